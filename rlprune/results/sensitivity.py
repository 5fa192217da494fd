"""What each channel group costs when it is pruned alone, as a table, as heatmaps and as curves."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlprune.files import write_atomically
from rlprune.results.plots import COLOURS
from rlprune.results.tables import to_markdown

CHEAP = 1.0  # points: units that cost no more are called cheap
CLIP = 20.0  # points: drops beyond it look alike, so that those below can be told apart
BESIDE = 5.5  # inches: the panels of a narrower figure stand one below the other
ROW, FONT = 0.16, 7.0  # inches of a group, points of its name
GAP = 0.02  # inches that two labels of the share axis keep at least between them
EM = 0.62  # of the font size: the width of a letter, at most on average
GREY, LINE = "0.88", "#D55E00"
PANELS, PANEL, ACROSS = 60, (1.55, 1.15), 6  # panels of curves at most, inches of each, and how many stand side by side
Curve = tuple[list[float], list[float]]
"""Units removed and top-1, both in percent; from the whole network on."""


def sensitivity_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A line a group: of each network its units, the drop in points at half of them or the nearest share, and which share is cheap.

    Args:
        frame: rows of sensitivity.csv; drops are fractions.
    """
    half = min(frame["share"].unique(), key=lambda share: (abs(share - 0.5), share))
    lines = []
    for group in frame["group"].unique():
        line: dict[str, Any] = {"group": group}
        for network in frame["network"].unique():
            rows = frame[(frame["network"] == network) & (frame["group"] == group)]
            drops = rows.loc[rows["share"] == half, "drop"]
            line |= {
                f"{network}: units": rows["units"].iloc[0] if len(rows) else 1,
                f"drop at {100 * half:g} % ({network})": f"{100 * drops.iloc[0]:.2f}" if len(rows) else "–",
                f"≤ {CHEAP:g} point ({network})": f"{100 * _cheap(rows):.0f} %" if len(rows) else "–",
            }
        lines.append(line)
    return pd.DataFrame(lines)


def sensitivity_text(frame: pd.DataFrame, images: int) -> str:
    """The table below a line that says what is compared; as Markdown.

    Args:
        frame: rows of sensitivity.csv.
        images: of the search split, that the networks were measured on.
    """
    whole = frame.groupby("network", sort=False)[["accuracy", "drop"]].first().sum(axis=1)
    found = ", ".join(f"{name} {100 * top1:.2f} %" for name, top1 in whole.items())
    head = f"Points of top-1 lost when one group alone is pruned; {images} images of the search split, on which the whole networks reach"
    return f"{head}: {found}.\n\n{to_markdown(sensitivity_table(frame))}"


def plot_sensitivity(path: Path, frame: pd.DataFrame) -> None:
    """Draw `sensitivity_figure` as a PNG file."""
    write_atomically(path, lambda temporary: sensitivity_figure(frame).savefig(temporary, dpi=150, format="png"))


def sensitivity_figure(frame: pd.DataFrame, *, width: float = 7.0) -> Any:
    """Heatmaps of the drop, a panel a network: groups in network order as rows, shares as columns, all on one scale.

    A line in each row stands behind the largest share that is cheap. Gains have the colour of zero.

    Args:
        frame: rows of sensitivity.csv; drops are fractions.
        width: of the figure, inches; below 5.5 the panels stand one below the other.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    networks, groups = list(frame["network"].unique()), list(frame["group"].unique())
    rows, columns = (1, len(networks)) if width >= BESIDE else (len(networks), 1)
    height = 1.3 + rows * (0.6 + max(0.6, ROW * len(groups)))
    figure = Figure(figsize=(width, height), layout="constrained")
    all_axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).ravel())
    shares, worst = sorted(frame["share"].unique()), 100 * frame["drop"].max()
    every = _every(shares, (width - max(map(_inches, groups)) - 0.3) / columns)
    for axes, network in zip(all_axes, networks, strict=True):
        image = _panel(axes, frame[frame["network"] == network], groups, min(CLIP, max(CHEAP, worst)))
        whole = 100 * frame.loc[frame["network"] == network, ["accuracy", "drop"]].iloc[0].sum()
        axes.set_title(f"{network}, top-1 {whole:.1f} %", fontsize=FONT + 2, loc="left" if rows == 1 else "right")  # over the names
        axes.set_xticks(range(0, len(shares), every), [f"{100 * share:g}" for share in shares[::every]], fontsize=FONT)
        axes.set_xlabel("units removed (%)", fontsize=FONT + 1)
    extend, inch = "max" if worst > CLIP else "neither", 1 / height  # by themselves the sizes grow with the figure
    bar = figure.colorbar(image, ax=all_axes, location="top", extend=extend, aspect=30, fraction=0.1 * inch, pad=0.05 * inch)
    if worst > CLIP:
        bar.set_ticks([0, CLIP / 2, CLIP], labels=["0", f"{CLIP / 2:g}", f"≥ {CLIP:g}"])
    bar.ax.tick_params(labelsize=FONT)
    figure.suptitle("top-1 lost when one group alone is pruned (points)", fontsize=FONT + 2)
    _legend(figure, grey=any(np.ma.getmaskarray(axes.images[0].get_array()).any() for axes in all_axes))
    return figure


def curves(frame: pd.DataFrame) -> dict[str, dict[str, Curve]]:
    """Accuracy against sparsity of each group alone: group, in network order → network → curve.

    Args:
        frame: rows of sensitivity.csv; accuracies are fractions.
    """
    found: dict[str, dict[str, Curve]] = {}
    for (group, network), rows in frame.groupby(["group", "network"], sort=False):
        points = {0.0: 100 * float(rows["accuracy"].iloc[0] + rows["drop"].iloc[0])}
        shares = 100 * rows["removed"] / rows["units"]
        points |= dict(zip(shares.tolist(), (100 * rows["accuracy"]).tolist(), strict=True))  # several shares may be as many units
        found.setdefault(str(group), {})[str(network)] = (list(points), list(points.values()))
    return found


def steepest(found: dict[str, dict[str, Curve]], number: int = PANELS) -> dict[str, dict[str, Curve]]:
    """Those groups, in network order, that lose the most somewhere; all if there are no more than `number`."""
    worst = {group: max(top1[0] - min(top1) for _, top1 in lines.values()) for group, lines in found.items()}
    chosen = set(sorted(worst, key=lambda group: -worst[group])[:number])
    return {group: lines for group, lines in found.items() if group in chosen}


def plot_curves(path: Path, frame: pd.DataFrame) -> None:
    """Draw `curves_figure` as a PNG file."""
    write_atomically(path, lambda temporary: curves_figure(frame).savefig(temporary, dpi=150, format="png"))


def curves_figure(frame: pd.DataFrame) -> Any:
    """A panel a group, in network order and on shared axes: a line a network, dotted where its whole network is.

    Args:
        frame: rows of sensitivity.csv; of more than `PANELS` groups the steepest are drawn, and the title says so.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    everything = curves(frame)
    shown, networks = steepest(everything), list(frame["network"].unique())
    columns = min(ACROSS, len(shown))
    rows, width = math.ceil(len(shown) / columns), max(4.5, columns * PANEL[0] + 0.6)
    height = rows * PANEL[1] + 1.15
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(0.5 / width, 0.65 / height, 1 - 0.1 / width, 1 - 0.5 / height, wspace=0.12, hspace=0.32)  # constrained is slow
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel())
    letters = int(72 * (width - 0.6) / columns / (FONT * EM))
    for axes, (group, lines) in zip(panels, shown.items(), strict=False):
        _curve_panel(axes, lines, networks)
        axes.set_title(group if len(group) <= letters else f"…{group[1 - letters :]}", fontsize=FONT, pad=3, parse_math=False)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(shown) - columns) : len(shown)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("units removed (%)", fontsize=FONT, labelpad=1)
    panels[0].set(xlim=(0, 100), xticks=[0, 25, 50, 75, 100])
    figure.supylabel("top-1 (%)", fontsize=FONT + 1, x=0.1 / width)
    more = f"; the {len(shown)} steepest of {len(everything)}" if len(everything) > len(shown) else ""
    figure.suptitle(f"accuracy when one group alone is pruned{more}", fontsize=FONT + 2, y=1 - 0.15 / height)
    _curve_legend(figure, networks)
    return figure


def _curve_panel(axes: Any, lines: dict[str, Curve], networks: list[str]) -> None:
    for network, (removed, top1) in lines.items():
        colour = COLOURS[networks.index(network)]
        axes.axhline(top1[0], color=colour, linestyle=":", linewidth=0.8)
        axes.plot(removed, top1, color=colour, marker="o", markersize=2, linewidth=1.1)
    axes.tick_params(labelsize=FONT - 1, length=2)
    axes.spines[["top", "right"]].set_visible(False)


def _curve_legend(figure: Any, networks: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [Line2D([], [], color=COLOURS[place], marker="o", markersize=2, label=name) for place, name in enumerate(networks)]
    handles.append(Line2D([], [], color="0.4", linestyle=":", linewidth=0.8, label="whole network"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=FONT)


def _panel(axes: Any, frame: pd.DataFrame, groups: list[str], top: float) -> Any:
    """One network's heatmap; grey where a group is so small that no unit goes."""
    known = frame.assign(points=(100 * frame["drop"]).where(frame["removed"] > 0))
    drops = known.pivot(index="group", columns="share", values="points").reindex(groups).to_numpy(dtype=float)  # (group, share)
    axes.set_facecolor(GREY)
    image = axes.imshow(np.ma.masked_invalid(drops), aspect="auto", cmap="cividis", interpolation="nearest", vmin=0.0, vmax=top)
    axes.set_yticks(range(len(groups)), groups, fontsize=FONT)
    axes.tick_params(length=2)
    for place, line in enumerate(drops):
        if not np.isnan(line).all():
            behind = np.flatnonzero(line <= CHEAP + 1e-9).max(initial=-1) + 0.5
            axes.plot([behind, behind], [place - 0.5, place + 0.5], color=LINE, linewidth=2.5, solid_capstyle="butt", clip_on=False)
    return image


def _every(shares: list[float], width: float) -> int:
    """Each how manieth share gets a label, so that they do not touch on an axis so many inches wide."""
    longest = max(_inches(f"{100 * share:g}") for share in shares) + GAP
    return max(1, math.ceil(longest * len(shares) / max(width, longest)))


def _inches(text: str) -> float:
    """How wide a label is, about."""
    return len(text) * FONT * EM / 72


def _legend(figure: Any, *, grey: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Line2D([], [], color=LINE, linewidth=2.5, label=f"up to here at most {CHEAP:g} point is lost")]
    if grey:
        handles.append(Patch(color=GREY, label="too few units for one to go"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=FONT)


def _cheap(rows: pd.DataFrame) -> float:
    """The largest share of a group's units whose removal is cheap."""
    cheap = rows[100 * rows["drop"] <= CHEAP + 1e-9]
    return float((cheap["removed"] / cheap["units"]).max()) if len(cheap) else 0.0
