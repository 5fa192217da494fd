"""Tables for people: percent, millions, and the uncertainty beside each accuracy."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:  # a report needs no torch
    from rlprune.graph import ChannelGraph, Verdict
    from rlprune.graph.channel_graph import Keep
    from rlprune.results.record import Row

CONTROL = "dense + same recovery epochs"
"""The dense network trained for as long as the pruned one recovered: what pruning is fairly compared with."""
JOINT = "jointly trained"
"""What joint training has come to before anything is removed."""


def run_table(rows: "Sequence[Row]") -> pd.DataFrame:
    """The table that ends a run; Δ is taken to the first row, and to the control if there is one."""
    dense = rows[0]
    control = next((row for row in rows if row.name == CONTROL), None)
    with_top5 = any(row.top5 is not None for row in rows)
    table = []
    for row in rows:
        line = {"network": row.name, "top-1 %": f"{100 * row.top1:.2f} ± {100 * row.standard_error:.2f}"}
        if with_top5:
            line["top-5 %"] = "" if row.top5 is None else f"{100 * row.top5:.2f}"
        if len(rows) > 1:
            line["Δ"] = f"{100 * (row.top1 - dense.top1):+.2f}"
        if control is not None:
            line["Δ to control"] = f"{100 * (row.top1 - control.top1):+.2f}"
        line |= {
            "n": str(row.n),
            "parameters": count(row.params),
            "MACs": count(row.macs),
            **({"FLOPs ratio %": f"{100 * (1 - row.macs / dense.macs):.1f}"} if len(rows) > 1 else {}),
            "sparsity %": f"{100 * row.sparsity:.1f}",
            "latency ms": f"{row.latency_ms:.2f}",
        }
        table.append(line)
    return pd.DataFrame(table)


def group_table(graph: "ChannelGraph", verdicts: "Mapping[str, Verdict]", keep: "Keep | None" = None) -> pd.DataFrame:
    """What can be removed: a row a group, with the verdict of its check if there was one.

    Args:
        graph: of the dense network.
        verdicts: by group.
        keep: kept units by group, of a pruned network: the table says how many, and what one more of them takes along.
    """
    gone = graph.counts(keep or {})
    more = np.ones(len(graph.groups))
    saved = [before - after for before, after in zip(_costs(graph, gone), graph.cost.one_changed(gone, more), strict=True)]
    lines = []
    for index, group in enumerate(graph.groups):
        kept = {} if keep is None else {"kept": group.num_units - gone[index], "removed": gone[index]}
        line = {
            "group": group.name,
            "units": group.num_units,
            **kept,
            "channels a unit": group.channels_per_unit,
            "MACs a unit": count(saved[0][index]),
            "parameters a unit": count(saved[1][index]),
            "layers": _shorten(group.layers),
        }
        if verdicts:
            verdict = verdicts[group.name]
            line["zeroed = removed"] = f"exact ({verdict.difference:.0e})" if verdict.exact else str(verdict)
        lines.append(line)
    return pd.DataFrame(lines)


def _costs(graph: "ChannelGraph", counts: np.ndarray) -> tuple[int, int]:
    """MACs and parameters."""
    return graph.cost.macs(counts), graph.cost.params(counts)


def frozen_table(graph: "ChannelGraph") -> pd.DataFrame:
    """What is left alone, and why."""
    return pd.DataFrame([{"kept layer": frozen.layer, "channels": frozen.channels, "reason": frozen.reason} for frozen in graph.frozen])


def _shorten(names: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def count(number: float) -> str:
    """0.27 M, 41.2 M, 4.09 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"


def change(dense: int, kept: int, name: str, short: Callable[[int], str] = count) -> str:
    """`40.81 M MACs`, or what is left of them: `40.81 M → 13.38 M MACs (−67.2 %)`."""
    return f"{short(dense)} {name}" if dense == kept else f"{short(dense)} → {short(kept)} {name} (−{100 * (1 - kept / dense):.1f} %)"


def to_markdown(table: pd.DataFrame) -> str:
    """A Markdown table with padded columns."""
    cells = [list(map(str, table.columns)), *[[str(value) for value in line] for line in table.itertuples(index=False)]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["| " + " | ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
