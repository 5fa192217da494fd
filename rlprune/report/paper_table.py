"""A paper's table with its runs in it: as text for people, and long, a number a line, for programs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rlprune.report.collect import FINISHED, Run
from rlprune.report.layouts import Layout
from rlprune.report.paper import TRAINED, Block, Grid, Row, control_of, make_blocks, numbers_of, printed_numbers
from rlprune.report.paper_notes import notes_on
from rlprune.results.published import Published
from rlprune.results.tables import CONTROL, to_markdown

PAPER, HERE, HOLE = "paper", "here", "—"
NEAR = 0.51  # percent of channels between a level that was asked for and one that was saved
HEADINGS = {
    "top1": "top-1 %", "dense": "dense top-1 %", "delta": "Δ", "top5": "top-5 %", "dense_top5": "dense top-5 %", "delta_top5": "Δ top-5",
    "macs": "MACs removed %", "params": "parameters removed %", "channels": "channels removed %", "params_x": "parameters ×",
    "macs_x": "MACs ×", "reward": "reward", "candidates": "candidates",
}  # fmt: skip
SIGNED, UNCERTAIN = ("delta", "delta_top5"), ("top1", "delta", "reward", "delta_top5")
DIGITS = {"reward": 3, "candidates": 0}


@dataclass(frozen=True)
class Paper:
    """A table and what to know of it.

    Args:
        title: of the table.
        table: cells as text.
        numbers: a line a number: block, row, source, level, name, mean, std, n.
        notes: below the table.
        finished: runs with a result.
    """

    title: str
    table: pd.DataFrame
    numbers: pd.DataFrame
    notes: list[str]
    finished: int

    @property
    def text(self) -> str:
        """As Markdown, without the title."""
        return "\n\n".join([to_markdown(self.table), *(["\n".join(f"- {note}" for note in self.notes)] if self.notes else [])])


def make_paper(layout: Layout, grids: Sequence[Grid], patterns: Sequence[str] | None) -> Paper:
    """Fill a table with the runs of its grids.

    Args:
        layout: of the table.
        grids: whose runs it shows.
        patterns: globs over run folders; None: the grids' own folders.
    """
    blocks, runs, strays = make_blocks(layout, grids, patterns)
    draw: Callable[[_Sheet], None] = {
        "levels": _levels, "list": _list, "scratch": _scratch, "layers": _layers, "sensitivity": lambda sheet: _sensitivity(sheet, runs),
    }[layout.kind]  # fmt: skip
    sheet = _Sheet(layout, blocks)
    draw(sheet)
    notes = [*sheet.marks, *notes_on(blocks, runs), *strays]
    columns = ["block", "row", "source", "level", "number", "mean", "std", "n"]
    lines = sheet.lines or [{"network": ", ".join(block.key), "row": HOLE} for block in blocks]  # nothing was begun, and nothing is printed
    table, numbers = pd.DataFrame(lines).fillna(""), pd.DataFrame(sheet.numbers, columns=columns)
    return Paper(layout.title, table, numbers, notes, sum(run.state == FINISHED for run in runs))


class _Sheet:
    """Lines of a table that is being filled."""

    def __init__(self, layout: Layout, blocks: Sequence[Block]) -> None:
        self.layout, self.blocks = layout, blocks
        self.lines: list[dict[str, str]] = []
        self.numbers: list[tuple[Any, ...]] = []
        self.notes: list[str] = []

    @property
    def marks(self) -> list[str]:
        """What the paper's rows are marked with."""
        return [f"[{number + 1}] {note}" for number, note in enumerate(self.notes)]

    def marked(self, label: str, note: str | None) -> str:
        """A label with the number of its note."""
        if note is None:
            return label
        if note not in self.notes:
            self.notes.append(note)
        return f"{label} [{self.notes.index(note) + 1}]"

    def cell(self, where: tuple[str, str, str], level: float | str, name: str, values: Sequence[float]) -> str:
        """The text of some seeds' number, which is kept as a number as well."""
        known = np.array([value for value in values if not math.isnan(value)])
        if not len(known):
            return HOLE
        mean, spread = float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else math.nan
        self.numbers.append((*where, level, name, mean, spread, len(known)))
        digits = DIGITS.get(name, 2)
        text = f"{mean:{'+' if name in SIGNED else ''}.{digits}f}".replace("-", "−")
        return f"{text} ± {spread:.{digits}f}" if name in UNCERTAIN and len(known) > 1 else text

    def add(self, block: Block, label: str, source: str, cells: dict[str, str], seeds: str = "") -> None:
        """A line."""
        self.lines.append({"network": ", ".join(block.key), "row": label, "source": source, **cells, "seeds": seeds})


def _printed_label(entry: Published) -> str:
    return f"{entry.method}, {entry.variant}" if entry.variant else entry.method


# -- kinds -----------------------------------------------------------------------------------------------------------------------------


def _levels(sheet: _Sheet) -> None:
    """A column for every level; a cell holds some numbers."""
    for block in sheet.blocks:
        done: set[str] = set()
        for item in block.ordered():
            if isinstance(item, Row):
                found = [block.numbers(run) for run in item.finished]
                at = {level: [numbers for run in found if (numbers := _at(run, level))] for level in sheet.layout.levels}
                sheet.add(block, item.label, HERE, _level_cells(sheet, block, item.label, HERE, at), _seeds(item))
            elif (label := _printed_label(item)) not in done:
                done.add(label)
                alike = [entry for entry in block.published if _printed_label(entry) == label]
                at = {level: [printed_numbers(entry) for entry in alike if entry.sparsity == level] for level in sheet.layout.levels}
                cells = _level_cells(sheet, block, label, PAPER, at)
                notes = {entry.note for entry in alike}
                if len(notes) > 1:  # of some levels alone
                    cells = {key: sheet.marked(text, _note_at(alike, key)) for key, text in cells.items()}
                sheet.add(block, sheet.marked(label, alike[0].note) if len(notes) == 1 else label, PAPER, cells)
        if controls := _controls(block):
            where = (", ".join(block.key), CONTROL, HERE)
            cells = {_percent(level): HOLE for level in sheet.layout.levels}
            last = sheet.layout.levels[-1]  # for as many epochs as that one has recovered
            cells[_percent(last)] = sheet.cell(where, last, "top1", [numbers["top1"] for numbers in controls])
            sheet.add(block, CONTROL, HERE, cells, str(len(controls)))


def _level_cells(sheet: _Sheet, block: Block, label: str, source: str, at: Mapping[float, Sequence[Mapping[str, float]]]) -> dict[str, str]:
    cells = {}
    for level, numbers in at.items():
        where = (", ".join(block.key), label, source)
        texts = [sheet.cell(where, level, name, [known[name] for known in numbers]) for name in sheet.layout.cells]
        cells[_percent(level)] = HOLE if set(texts) == {HOLE} else " / ".join(texts)
    return cells


def _note_at(entries: Sequence[Published], heading: str) -> str | None:
    return next((entry.note for entry in entries if _percent(entry.sparsity or 0) == heading), None)


def _percent(level: float) -> str:
    return f"{level:g} %"


def _at(numbers: dict[float, dict[str, float]], level: float) -> dict[str, float] | None:
    near = min(numbers, key=lambda saved: abs(saved - level), default=None)
    return numbers[near] if near is not None and abs(near - level) <= NEAR else None


def _list(sheet: _Sheet) -> None:
    """A network a row."""
    names = sheet.layout.cells
    for block in sheet.blocks:
        for item in block.ordered():
            if isinstance(item, Published):
                label, known = _printed_label(item), printed_numbers(item)
                where = (", ".join(block.key), label, PAPER)
                cells = {HEADINGS[name]: sheet.cell(where, "", name, [known.get(name, math.nan)]) for name in names}
                sheet.add(block, sheet.marked(label, item.note), PAPER, cells)
            else:
                last = [numbers[max(numbers)] for numbers in map(block.numbers, item.finished) if numbers]
                where = (", ".join(block.key), item.label, HERE)
                cells = {HEADINGS[name]: sheet.cell(where, "", name, [numbers[name] for numbers in last]) for name in names}
                sheet.add(block, item.label, HERE, cells, _seeds(item))
        if controls := _controls(block):
            where = (", ".join(block.key), CONTROL, HERE)
            cells = {HEADINGS[name]: sheet.cell(where, "", name, [numbers[name] for numbers in controls]) for name in names}
            sheet.add(block, CONTROL, HERE, cells, str(len(controls)))


def _controls(block: Block) -> list[dict[str, float]]:
    """Dense networks that trained on for as long: what is fair to compare with; one a pair of seeds, as runs may share theirs."""
    found = {(run.seed, run.dense_seed): control_of(run) for row in block.rows for run in row.finished if control_of(run) is not None}
    return [numbers for numbers in found.values() if numbers is not None]


def _scratch(sheet: _Sheet) -> None:
    """A sparsity a row: the compressed network, and its architecture trained from scratch."""
    for block in sheet.blocks:
        agents = dict.fromkeys(row.pattern.get("agent", "") for row in block.rows)
        for level in sheet.layout.levels:
            printed = [entry for entry in block.published if entry.sparsity == level]
            pair = [[entry for entry in printed if entry.settings.get("trained") == how] for how in TRAINED]
            where = (", ".join(block.key), "RL-Pruner", PAPER)
            both = [[float(entry.top1) for entry in entries if entry.top1 is not None] for entries in pair]
            if any(both):
                sheet.lines.append(_scratch_line(sheet, block, where, level, both, ""))
            for agent in agents:
                pruned, scratch = ([row for row in block.rows if _is(row, agent, how)] for how in TRAINED)
                compressed = [numbers["top1"] for row in pruned for run in row.finished if (numbers := _at(numbers_of(run), level))]
                trained = [numbers_of(run)[100.0]["top1"] for row in scratch for run in row.finished if _like_level(run, level)]
                where = (", ".join(block.key), agent, HERE)
                seeds = "/".join(str(len(values)) for values in (compressed, trained))
                sheet.lines.append(_scratch_line(sheet, block, where, level, [compressed, trained], seeds))


def _scratch_line(
    sheet: _Sheet, block: Block, where: tuple[str, str, str], level: float, both: Sequence[Sequence[float]], seeds: str
) -> dict[str, str]:
    block_, row, source = where
    rows = (row, f"{row}, {TRAINED[1]}")
    compressed, trained = (sheet.cell((block_, name, source), level, "top1", values) for name, values in zip(rows, both, strict=True))
    lead = [float(np.mean(both[0])) - float(np.mean(both[1]))] if all(both) else []
    return {
        "network": ", ".join(block.key), "channels removed": f"{level:g} %", "row": where[1], "source": where[2],
        "compressed, top-1 %": compressed, "from scratch, top-1 %": trained, "Δ": sheet.cell(where, level, "delta", lead), "seeds": seeds,
    }  # fmt: skip


def _is(row: Row, agent: str, how: str) -> bool:
    return row.pattern.get("agent", "") == agent and row.pattern.get("trained", TRAINED[0]) == how


def _like_level(run: Run, level: float) -> bool:
    """Whether a training took the architecture that a run had saved at a level."""
    return abs(100 * float(run.result["rows"][-1]["sparsity"]) - level) <= NEAR


def _layers(sheet: _Sheet) -> None:
    """A layer a row: percent of its units that are gone at the end, means over seeds."""
    for block in sheet.blocks:
        shares: dict[str, dict[str, list[float]]] = {}
        columns: dict[str, list[Row]] = {}
        for row in block.rows:
            single = row.pattern.get("agent.layer")
            label = Row(row.block, {key: value for key, value in row.pattern.items() if key != "agent.layer"}).label
            label += ", one by one" if single is not None else ""
            columns.setdefault(label, []).append(row)
            for run in row.finished:
                for group, share in _removed(run).items():
                    if single is None or _same_layer(group, single):
                        shares.setdefault(group, {}).setdefault(label, []).append(100 * share)
        for group in shares or ({HOLE: {}} if block.rows else {}):
            values = shares.get(group, {})
            cells = {label: sheet.cell((", ".join(block.key), label, HERE), group, "channels", values.get(label, [])) for label in columns}
            sheet.lines.append({"network": ", ".join(block.key), "layer": group, **cells})


def _removed(run: Run) -> dict[str, float]:
    """Share of its units that each channel group has lost; empty where layers.csv cannot be read."""
    layers = run.table("layers.csv")
    if not {"step", "group", "units"} <= set(layers):
        return {}
    first, last = (layers[layers["step"] == step].set_index("group")["units"] for step in (layers["step"].min(), layers["step"].max()))
    return {str(group): 1 - float(last[group]) / float(units) for group, units in first.items() if group in last}


def _same_layer(group: str, layer: str) -> bool:
    return group == layer or layer in group.split("+")


def _sensitivity(sheet: _Sheet, runs: Sequence[Run]) -> None:
    """A layer a row: points that it costs to remove half of it alone, in each network."""
    done = [run for run in runs if run.command == "sensitivity" and run.state == FINISHED and len(run.table("sensitivity.csv"))]
    block = sheet.blocks[0]
    for run in done:
        frame = run.table("sensitivity.csv")
        half = min(frame["share"].unique(), key=lambda share: abs(share - 0.5))
        at = frame[frame["share"] == half]
        for group in at["group"].unique():
            rows = at[at["group"] == group]
            where = (", ".join(block.key), str(group), HERE)
            cells = {
                f"{name}, points at {100 * half:g} %": sheet.cell(
                    where, 100 * half, name, list(100 * rows.loc[rows["network"] == name, "drop"])
                )
                for name in at["network"].unique()
            }
            sheet.lines.append({"network": ", ".join(block.key), "layer": str(group), **cells})
    if not done:
        sheet.lines.append({"network": ", ".join(block.key), "layer": HOLE})
        sheet.notes.append("no sensitivities are measured yet: rlprune sensitivity run=RUN paths.run=FOLDER, beside the runs of the preset")


def _seeds(row: Row) -> str:
    there, asked = len(row.finished), len(row.expected)
    return str(there) if there >= asked else f"{there} of {asked}"
