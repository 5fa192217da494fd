"""What became of each layer, drawn: its sparsity over the steps, units kept and pruned."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rlprune.report.collect import Run
from rlprune.report.comparison import Line
from rlprune.report.figures import EM, FONT, WIDE, blank, wrapped
from rlprune.report.networks import Network
from rlprune.results.plots import COLOURS

LABEL = 6  # points, of the names of groups


def sparsity_over_steps_figure(runs: Mapping[str, Run], width: float) -> Any:
    """Share of every channel group that is gone behind every step; a panel a run, by title."""
    maps = {title: kept_by_step(run) for title, run in runs.items()}
    maps = {title: table for title, table in maps.items() if len(table)}
    groups = max(len(table) for table in maps.values())
    across = min(len(maps), 5 if width > WIDE else 2)
    down = -(-len(maps) // across)
    tall = min(7.0 if width > WIDE else 4.0, max(1.4, 0.125 * groups))  # inches of a map
    height = down * (tall + 0.55) + 0.9
    aside = EM * LABEL / 72 * max(len(str(name)) for table in maps.values() for name in table.index)
    room = max(0.6, (width - aside) / across - 0.15)  # inches across a map
    figure = blank(width, height)
    grid = figure.subplots(down, across, squeeze=False)
    for axis, (title, table) in zip(grid.ravel(), maps.items(), strict=False):
        image = axis.imshow(
            100 * (1 - table.to_numpy()), aspect="auto", cmap="cividis", vmin=0, vmax=100, interpolation="nearest",
            extent=(0.5, table.shape[1] + 0.5, len(table) - 0.5, -0.5),
        )  # fmt: skip
        axis.set_title(wrapped(title, room), fontsize=FONT, loc="left")
        first = axis in grid[:, 0] or list(table.index) != list(next(iter(maps.values())).index)
        axis.set_yticks(*_thinned(list(table.index), tall / 0.11) if first else ([], []), fontsize=LABEL)
        axis.set_xticks([int(step) for step in table.columns[:: max(1, -(-table.shape[1] // max(2, int(room / 0.25))))]])
        axis.tick_params(axis="x", labelsize=7)
        axis.set_xlabel("pruning step", fontsize=7)
    for axis in grid.ravel()[len(maps) :]:
        axis.remove()
    shown, inch = list(grid.ravel()[: len(maps)]), 1 / height  # by themselves the bar and its distance grow with the figure
    bar = figure.colorbar(image, ax=shown, location="bottom", shrink=0.7, aspect=40, fraction=0.12 * inch, pad=0.08 * inch)
    bar.set_label("units removed (%)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def kept_by_step(run: Run) -> pd.DataFrame:
    """Share of units kept, groups in network order × steps; empty where a run has not come so far."""
    table = units_by_step(run)
    return table.div(table.iloc[:, 0], axis=0).iloc[:, 1:] if table.shape[1] > 1 else pd.DataFrame()


def units_by_step(run: Run) -> pd.DataFrame:
    """Units of every group, groups in network order × steps, dense first; empty where layers.csv is damaged or being written."""
    layers = run.table("layers.csv")
    if not {"step", "group", "units"} <= set(layers) or not all(pd.api.types.is_numeric_dtype(layers[name]) for name in ("step", "units")):
        return pd.DataFrame()
    return layers.pivot_table(index="group", columns="step", values="units", sort=False)


def channels_by_layer_figure(lines: Sequence[Line], width: float) -> Any:
    """Units kept and pruned of every channel group, means over seeds; a panel a line, one below the other on one scale."""
    kept = {line.label: _mean_units(line) for line in lines}
    kept = {name: table for name, table in kept.items() if len(table)}
    groups = next(iter(kept.values())).index
    figure = blank(width, 0.95 * len(kept) + 0.5 + 0.075 * max(map(len, groups)))
    panels = figure.subplots(len(kept), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for panel, (name, table) in zip(panels, kept.items(), strict=True):
        places = np.arange(len(table))
        panel.bar(places, table["kept"], color=COLOURS[0], label="kept", width=0.85)
        panel.bar(places, table["dense"] - table["kept"], bottom=table["kept"], color=COLOURS[4], label="pruned", width=0.85)
        panel.set_title(wrapped(name, 0.8 * width), fontsize=FONT, loc="left", pad=2)
        panel.tick_params(axis="y", labelsize=7)
        panel.set_xlim(-0.7, len(table) - 0.3)
        panel.spines[["top", "right"]].set_visible(False)
    marks, names = _thinned(list(groups), 12 * width)
    panels[-1].set_xticks(marks, names, rotation=90, fontsize=6 if len(groups) > 5 * width else 7)
    figure.supylabel("units of the channel group", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def _mean_units(line: Line) -> pd.DataFrame:
    """Units of every group, dense and kept by the smallest network, mean over seeds."""
    tables = []
    for network in line.networks:
        steps = units_by_step(network.run)
        if len(steps):
            tables.append(pd.DataFrame({"dense": steps.iloc[:, 0], "kept": steps[_step_of(network, steps)]}))
    alike = [table for table in tables if table.index.equals(tables[0].index)]
    return pd.concat(alike).groupby(level=0, sort=False).mean() if alike else pd.DataFrame()


def _step_of(network: Network, steps: pd.DataFrame) -> Any:
    """The step that has left a network; the last one where the run does not tell."""
    metrics = network.run.table("metrics.csv")
    if {"step", "sparsity"} <= set(metrics):
        nearest = metrics.iloc[(metrics["sparsity"] - network.sizes["sparsity"]).abs().to_numpy()[::-1].argmin() * -1 - 1]["step"]
        if nearest in steps:
            return nearest
    return steps.columns[-1]


def _thinned(names: Sequence[str], most: float) -> tuple[list[int], list[str]]:
    """Places and names of the labels that there is room for."""
    every = max(1, math.ceil(len(names) / most))
    places = list(range(0, len(names), every))
    return places, [names[place] for place in places]
