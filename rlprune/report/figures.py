"""The plots of a report. Every figure is drawn for a width in inches, so that a page has one for desktops and one for phones.

Agents keep their colour and marker in all figures of a report; markers repeat behind twelve names.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rlprune.report.comparison import Line, interval
from rlprune.report.networks import DENSE, FINAL
from rlprune.results.plots import COLOURS
from rlprune.results.tables import CONTROL, JOINT

MARKERS = "osD^vPX*<>hp"
FONT = 8  # points
EM = 0.62  # width of a letter on average, as a share of its size
WIDE = 6.0  # inches; narrower figures stack their panels
FRONT = "Pareto front of the means"
PHASES = {  # seconds of result.json, in the order of a run
    "dense": "dense training", "training": "joint training", "trace and verify": "trace and verify", "choose execution": "choose execution",
    "search": "search", "recovery": "recovery", "control": "control", "test": "test", "plots": "plots",
}  # fmt: skip
PHASE_COLOURS = ("#999999", "#56B4E9", "#F0E442", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#000000")


@dataclass(frozen=True)
class Style:
    """The colour and marker of every name of a line, the same in all figures of a report."""

    places: Mapping[str, int]

    def colour(self, name: str) -> str:
        """A hexadecimal colour."""
        return COLOURS[self.places[name] % len(COLOURS)]

    def marker(self, name: str) -> str:
        """One of matplotlib's."""
        return MARKERS[self.places[name] % len(MARKERS)]


def style_of(names: Sequence[str]) -> Style:
    """Names in alphabetical order."""
    return Style({name: place for place, name in enumerate(sorted(set(names)))})


# -- accuracy --------------------------------------------------------------------------------------------------------------------------


def accuracy_figure(lines: Sequence[Line], style: Style, width: float) -> Any:
    """Top-1 on the test split against MACs and channel sparsity: means, standard deviations, seeds, Pareto front, dense networks."""
    low = _floor(lines)
    below = [line for line in lines if line.kind != JOINT and 100 * line.mean("top1") < low]
    shown = [line for line in lines if line.kind != JOINT and not any(line is other for other in below)]
    labels = [*dict.fromkeys(line.label for line in shown), FRONT]
    figure, axes = _figure(width, 2, height=3.4, below=_legend_rows(labels, width), sharey=True)
    for axis, key, unit, title in zip(axes, ("macs", "sparsity"), (1e-6, 100.0), ("MACs (millions)", "channel sparsity (%)"), strict=True):
        asides = _aside([line.mean(key) * unit for line in shown])
        for line, aside in zip(shown, asides, strict=True):
            _draw_accuracy(axis, line, style, key, unit, aside)
        at = [(line, line.mean(key) * unit + aside, 100 * line.mean("top1")) for line, aside in zip(shown, asides, strict=True)]
        for label in dict.fromkeys(line.label for line in shown if line.kind == FINAL):  # one agent at several targets
            path = sorted((x, y) for line, x, y in at if line.label == label and line.kind == FINAL)
            axis.plot(*zip(*path, strict=True), "-", color=style.colour(label), linewidth=0.6, alpha=0.6, zorder=1)
        true = {(line.mean(key), line.mean("top1")): (x, y) for line, x, y in at if line.kind == FINAL}
        front = [true[point] for point in pareto_front(list(true), least=key == "macs")]  # through the marks, which may stand aside
        axis.plot([x for x, _ in front], [y for _, y in front], "-", color="0.6", linewidth=1, zorder=1, label=FRONT)
        axis.set_xlabel(title)
    if below:
        words = [f"{line.label} {100 * line.mean('top1'):.1f} % at {line.mean('macs') / 1e6:.1f} M MACs" for line in below]
        inches = 0.75 * width / (2 if width > WIDE else 1)
        text = "\n".join(wrapped(f"not shown: {word}", inches, 7) for word in words)
        axes[0].text(0.98, 0.02, text, transform=axes[0].transAxes, fontsize=7, ha="right", va="bottom")
    axes[0].set_ylabel("top-1 accuracy, test split (%)")
    _legend(figure, axes[0], width)
    return figure


def _draw_accuracy(axis: Any, line: Line, style: Style, key: str, unit: float, aside: float) -> None:
    """A line's mean with its deviation, and its seeds; a star for a dense network."""
    points = [(network.sizes[key] * unit + aside, 100 * network.sizes["top1"]) for network in line.networks]
    x, y = np.array([point for point in points if not math.isnan(point[0])]).reshape(-1, 2).T
    if not len(x):
        return
    if line.kind in (DENSE, CONTROL):
        fill = "0.2" if line.kind == DENSE else "none"
        axis.plot([x.mean()], [y.mean()], "*", markersize=11, color="0.2", markerfacecolor=fill, label=line.label, zorder=3)
    elif line.kind == FINAL:
        colour, deviation = style.colour(line.label), y.std(ddof=1) if len(y) > 1 else 0.0
        axis.plot(x, y, ".", markersize=3, color=colour, alpha=0.5, zorder=2)
        axis.errorbar(
            [x.mean()], [y.mean()], yerr=[deviation], fmt=style.marker(line.label), markersize=6, capsize=3, color=colour, label=line.label,
            zorder=3,
        )  # fmt: skip


def _aside(places: Sequence[float]) -> list[float]:
    """How far to move points that would cover each other: those of one size stand side by side."""
    known = [place for place in places if not math.isnan(place)]
    reach = (max(known) - min(known)) if known else 0.0
    moved = [0.0] * len(places)
    order = sorted((index for index, place in enumerate(places) if not math.isnan(place)), key=lambda index: places[index])
    cluster: list[int] = []
    for index in [*order, -1]:
        if cluster and (index < 0 or places[index] - places[cluster[-1]] > 0.004 * reach):
            step = min(0.018, 0.15 / len(cluster)) * reach  # many stay near their place, though they cover each other
            for rank, member in enumerate(sorted(cluster)):
                moved[member] = (rank - (len(cluster) - 1) / 2) * step
            cluster = []
        cluster.append(index)
    return moved


def _floor(lines: Sequence[Line]) -> float:
    """Lowest accuracy shown, percent: one that fails, or was never trained, does not squeeze the others; what it cuts is written out."""
    means = [(line.target, 100 * line.mean("top1")) for line in lines if line.kind == FINAL]
    top = max(100 * line.mean("top1") for line in lines)
    medians = [float(np.median([mean for target, mean in means if target == wanted])) for wanted in {target for target, _ in means}]
    return min(median - 2.5 * max(1.0, top - median) for median in medians)


def pareto_front(points: Sequence[tuple[float, float]], *, least: bool) -> list[tuple[float, float]]:
    """Points (cost, accuracy) that no other point beats in both, by cost. `least`: less is better, otherwise more is."""
    known = [point for point in points if not any(map(math.isnan, point))]
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(known, key=lambda point: (point[0] if least else -point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return sorted(front)


def difference_figure(lines: Sequence[Line], style: Style, baseline: str, width: float) -> Any:
    """Mean difference to the baseline with its 95 % interval, and the difference of every pair; a panel a target."""
    shown = [line for line in lines if len(line.against.get("baseline", []))]
    targets = list(dict.fromkeys(line.target for line in shown))
    rows = [sum(line.target == target for line in shown) for target in targets]
    figure = blank(width, 0.9 + sum(0.29 * row + 0.55 for row in rows))
    panels = figure.subplots(len(targets), 1, sharex=True, squeeze=False, height_ratios=[row + 1 for row in rows])[:, 0]
    bound = _bound([end for line in shown for end in (*interval(line.against["baseline"]), line.against["baseline"].mean())])
    for panel, target in zip(panels, targets, strict=True):
        own = [line for line in shown if line.target == target]
        for place, line in enumerate(own):
            values = line.against["baseline"]
            low, high = interval(values)
            panel.plot(values, [place] * len(values), ".", markersize=4, color="0.6", zorder=1)
            panel.plot([low, high], [place, place], "-", color=style.colour(line.label), linewidth=2, zorder=2)
            panel.plot([values.mean()], [place], style.marker(line.label), color=style.colour(line.label), markersize=6, zorder=3)
            if max(abs(low), abs(high), abs(values.mean())) > bound:
                text = f"{values.mean():+.1f}" + (f" [{low:+.1f}, {high:+.1f}]" if len(values) > 1 else "")
                panel.text(-0.97 * bound, place - 0.28, text.replace("-", "−"), fontsize=7, va="center")
        panel.axvline(0, color="0.3", linewidth=0.8, linestyle=":")
        panel.set_yticks(range(len(own)), [wrapped(line.label, 0.33 * width) for line in own], fontsize=FONT)
        panel.set_ylim(len(own) - 0.4, -0.6)
        panel.set_xlim(-bound, bound)
        panel.set_title(target, fontsize=9, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"points of top-1 over {baseline}", fontsize=10)
    return figure


def _bound(ends: Sequence[float]) -> float:
    """A limit that one line far out does not stretch; what it cuts is written out."""
    sizes = sorted(abs(end) for end in ends if not math.isnan(end))
    return max(0.5, min(1.08 * sizes[-1], 4 * sizes[len(sizes) // 2]))


# -- time ------------------------------------------------------------------------------------------------------------------------------


def time_figure(lines: Sequence[Line], width: float) -> Any:
    """Minutes of every phase of a run, means over seeds, stacked; a bar a line."""
    names = [line.label for line in lines]
    seconds = [pd.DataFrame([network.run.result.get("seconds") or {} for network in line.networks]).fillna(0.0).mean() for line in lines]
    figure = blank(width, 0.7 + 0.3 * len(lines) + 0.19 * _legend_rows(list(PHASES.values()), width))
    axis = figure.subplots()
    left = np.zeros(len(lines))
    for (key, label), colour in zip(PHASES.items(), PHASE_COLOURS, strict=True):
        minutes = np.array([float(found.get(key, 0.0)) / 60 for found in seconds])
        if minutes.max() > 0:
            axis.barh(range(len(lines)), minutes, left=left, color=colour, edgecolor="white", linewidth=0.5, label=label)
            left += minutes
    axis.set_yticks(range(len(lines)), [wrapped(name, 0.33 * width) for name in names], fontsize=FONT)
    axis.invert_yaxis()
    axis.set_xlabel("minutes of a run")
    axis.spines[["top", "right"]].set_visible(False)
    _legend(figure, axis, width)
    return figure


# -- figures ---------------------------------------------------------------------------------------------------------------------------


def blank(width: float, height: float) -> Any:
    """A figure of so many inches."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    return Figure(figsize=(width, height), layout="constrained")


def _figure(width: float, panels: int, *, height: float, below: int, sharey: bool) -> tuple[Any, list[Any]]:
    """Panels beside each other where there is room, else stacked; with room for so many rows of a legend below."""
    beside = width > WIDE
    figure = blank(width, (height if beside else height * panels * 0.8) + 0.1 + 0.19 * below)
    axes = figure.subplots(*((1, panels) if beside else (panels, 1)), sharey=sharey, squeeze=False).ravel()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def across(width: float) -> int:
    """Panels in a row."""
    return 3 if width > WIDE else 2


def grid_of(width: float, titles: Sequence[str]) -> tuple[Any, list[Any]]:
    """Panels in rows, with their titles; those of many lines take no room from the panels."""
    panels, columns = len(titles), min(len(titles), across(width))
    down = -(-panels // columns)
    titles = [wrapped(title, 0.7 * width / across(width), 9) for title in titles]
    lines = [max(title.count("\n") for title in titles[start : start + columns]) for start in range(0, panels, columns)]
    figure = blank(width, 0.4 + 1.9 * down + 0.15 * sum(lines))
    grid = figure.subplots(down, columns, squeeze=False).ravel()
    for axis in grid:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    for axis, title in zip(grid, titles, strict=False):
        axis.set_title(title, fontsize=9, loc="left")
    for axis in grid[panels:]:
        axis.remove()
    return figure, list(grid[:panels])


def _legend(figure: Any, axis: Any, width: float) -> None:
    handles, labels = axis.get_legend_handles_labels()
    once = dict(reversed(list(zip(labels, handles, strict=True))))
    labels = list(dict.fromkeys(labels))
    handles = [once[label] for label in labels]
    columns, labels = _legend_columns(labels, width), [wrapped(label, 0.6 * width) for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=FONT)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    longest = max((len(row) for label in labels for row in wrapped(label, 0.6 * width).split("\n")), default=1)
    return max(1, min(len(labels), int(width / (0.55 + 0.072 * longest))))


def _legend_rows(labels: Sequence[str], width: float) -> int:
    rows = max((wrapped(label, 0.6 * width).count("\n") + 1 for label in labels), default=1)
    return -(-len(labels) // _legend_columns(labels, width)) * rows


def wrapped(text: str, inches: float, size: float = FONT) -> str:
    """Text in lines that fit a width; what does not fit alone is broken.

    Args:
        text: one line.
        inches: of the width.
        size: of the letters, points.
    """
    most = max(8, int(inches / (EM * size / 72)))
    lines = [""]
    for piece in re.split(r"(?<=[ _])", text):  # names break behind an underscore
        if len(lines[-1]) + len(piece.rstrip()) > most:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip()[start : start + most] for line in lines for start in range(0, len(line.strip()), most))
