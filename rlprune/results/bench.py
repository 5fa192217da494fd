"""How fast networks are, as a table and as bars."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from rlprune.cost import count_params
from rlprune.files import write_atomically, write_text
from rlprune.graph import trace
from rlprune.results.plots import COLOURS
from rlprune.results.record import FORMAT, Clock, Identity, environment, write_result
from rlprune.results.tables import count, to_markdown

if TYPE_CHECKING:
    from rlprune.benchmark.bench import Bench

GROUP, WIDEST = 1.0, 10.0  # inches of a group of bars; wider figures have their panels one below the other
FONT = 8.0
MEMORY = "Memory: weights, images and what a pass holds besides at most"
RESIDENT = "of onnxruntime what a process of its own holds for it while it runs, some 10 MB of it onnxruntime's own"


def write_bench(frame: pd.DataFrame, bench: "Bench", identity: Identity, clock: Clock, facts: Mapping[str, Any]) -> str:
    """Write bench.csv, bench.md, bench.png and, last, result.json; returns what bench.md says.

    Args:
        frame: of `bench`.
        bench: what was measured.
        identity: whose result this is.
        clock: seconds so far.
        facts: further entries of result.json.
    """
    folder, shape, machine = identity.run_dir, list(bench.example.shape[1:]), environment(bench.example.device)
    networks = [_size(name, network, bench.example) for name, network in bench.networks.items()]
    sizes = [f"{each['name']}: {count(each['params'])} parameters, {count(each['macs'])} MACs" for each in networks]
    text = f"{machine['device']}. Images of {'×'.join(map(str, shape))}. {'; '.join(sizes)}.\n\n{bench_text(frame)}"
    plot_bench(folder / "bench.png", frame)
    write_rows(folder, frame)
    write_text(folder / "bench.md", text + "\n")
    result = {
        "format": FORMAT,
        "command": identity.command,
        "choices": identity.choices,
        "seed": identity.seed,
        **facts,
        "networks": networks,
        "image_shape": shape,
        "rows": [{key: None if pd.isna(value) else value for key, value in row.items()} for row in frame.to_dict("records")],
        "seconds": clock.seconds,
        **machine,
    }
    result["versions"] |= _versions("onnxruntime", "onnx")
    write_result(folder, result)
    return text


def write_rows(folder: Path, frame: pd.DataFrame) -> None:
    """bench.csv."""
    write_text(folder / "bench.csv", frame.to_csv(index=False))


def _size(name: str, network: nn.Module, example: Tensor) -> dict[str, Any]:
    """Parameters, and MACs of one of the images."""
    macs = trace(network, example[:1].to(next(network.parameters()).device), prove=False).macs({})
    return {"name": name, "params": count_params(network), "macs": macs}


def _versions(*names: str) -> dict[str, str]:
    """Of packages that may be absent."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def bench_text(frame: pd.DataFrame) -> str:
    """The table, and below it a line for whatever was not timed; as Markdown.

    Args:
        frame: rows of bench.csv.
    """
    timed = frame[frame["passes"] > 0]
    known = timed.loc[timed["memory_bytes"].notna(), "runtime"]
    memory = f"{MEMORY}{f'; {RESIDENT}' if 'onnxruntime' in set(known) else ''}."
    return "\n\n".join(
        [
            to_markdown(bench_table(frame)),
            "Speed-up: ratio of the medians. Spread: distance of the quartiles. " + memory,
            *bench_notes(frame),
        ]
    )


def bench_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A line a network and case. The spread is the distance of the quartiles."""
    several = frame["precision"].nunique() > 1
    lines = []
    megabytes = frame["memory_bytes"].to_numpy(dtype=float, na_value=np.nan) / 1e6
    for row, memory in zip(frame.to_dict("records"), megabytes, strict=True):
        lines.append(
            {
                "runtime": row["runtime"],
                **({"precision": row["precision"]} if several else {}),
                "batch": row["batch_size"],
                "network": row["network"],
                "median ms": _digits(row["median_ms"]),
                "spread ms": _digits(row["q75_ms"] - row["q25_ms"]),
                "p95 ms": _digits(row["p95_ms"]),
                "images/s": _digits(row["images_per_second"]),
                "speed-up": _or_dash(row["speed_up"], "{:.2f}×"),
                "memory MB": _or_dash(memory, "{:.1f}"),
                "compile s": _or_dash(row["compile_seconds"], "{:.1f}"),
                "passes": row["passes"],
            }
        )
    return pd.DataFrame(lines)


def _digits(value: float) -> str:
    """Three digits, or all before the point."""
    return _or_dash(value, "{:.0f}" if abs(value) >= 100 else "{:.3g}")


def _or_dash(value: float, form: str) -> str:
    return "–" if pd.isna(value) else form.format(value)


def bench_notes(frame: pd.DataFrame) -> list[str]:
    """What was not timed and why, each reason once: `compiled: …`, or `compiled, batch 64, pruned: …` where it holds not for all."""
    lines = []
    missed = frame[frame["note"] != ""]
    for (runtime, note), rows in missed.groupby(["runtime", "note"], sort=False):
        if len(rows) == len(frame[frame["runtime"] == runtime]):
            lines.append(f"{runtime}: {note}")
        else:
            several = frame["precision"].nunique() > 1
            places = [
                f"batch {row.batch_size}, {row.network}" + (f", {row.precision}" if several else "")
                for row in rows.itertuples()
            ]  # fmt: skip
            lines.append(f"{runtime}, {'; '.join(places)}: {note}")
    return lines


def plot_bench(path: Path, frame: pd.DataFrame) -> None:
    """Draw `bench_figure` as a PNG file."""
    write_atomically(path, lambda temporary: bench_figure(frame).savefig(temporary, dpi=150, format="png"))


def bench_figure(frame: pd.DataFrame) -> Any:
    """Bars of the median latency, a panel a batch size, a group a runtime and precision; whiskers are the quartiles.

    Over the bars of all networks but the first stands their speed-up.

    Args:
        frame: rows of bench.csv.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    batches, networks = (frame[key].unique().tolist() for key in ("batch_size", "network"))
    cases = list(frame[["runtime", "precision"]].drop_duplicates().itertuples(index=False, name=None))
    panel = max(2.4, GROUP * len(cases) * max(1.0, len(networks) / 2)) + 0.7
    beside = panel * len(batches) <= WIDEST
    rows, columns = (1, len(batches)) if beside else (len(batches), 1)
    figure = Figure(figsize=(panel * columns, 0.6 + 2.8 * rows), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, batch in zip(all_axes, batches, strict=True):
        _panel(axes, frame[frame["batch_size"] == batch], cases, networks)
        axes.set_title(f"{batch} image{'s' * (batch > 1)} a pass", fontsize=FONT + 1, loc="left")
    figure.supylabel("median latency (ms), quartiles", fontsize=FONT + 1)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=FONT)
    return figure


def _panel(axes: Any, frame: pd.DataFrame, cases: list[tuple[str, str]], networks: list[str]) -> None:
    """One batch size."""
    several, width = len({precision for _, precision in cases}) > 1, 0.8 / len(networks)
    for place, name in enumerate(networks):
        rows = frame[frame["network"] == name].set_index(["runtime", "precision"]).loc[cases]
        x = np.arange(len(cases)) + width * (place - (len(networks) - 1) / 2)
        medians, timed = rows["median_ms"].to_numpy(), (rows["passes"] > 0).to_numpy()
        spread = np.stack([medians - rows["q25_ms"], rows["q75_ms"] - medians])[:, timed]
        axes.bar(x, np.nan_to_num(medians), width, color=COLOURS[place % len(COLOURS)], label=name)
        axes.errorbar(x[timed], medians[timed], yerr=spread, fmt="none", ecolor="0.15", elinewidth=1, capsize=3)
        for at, row in zip(x, rows.itertuples(), strict=True):
            label = "not\ntimed" if row.passes == 0 else "" if place == 0 or pd.isna(row.speed_up) else f"{row.speed_up:.2f}×"
            height = 0.0 if row.passes == 0 else row.q75_ms
            axes.annotate(label, (at, height), xytext=(0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=FONT)
    axes.set_xticks(range(len(cases)), [f"{runtime}\n{precision}" if several else runtime for runtime, precision in cases], fontsize=FONT)
    axes.tick_params(axis="y", labelsize=FONT)
    axes.set_xlim(-0.6, len(cases) - 0.4)
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
