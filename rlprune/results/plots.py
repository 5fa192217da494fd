"""The plots of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rlprune.files import write_atomically
from rlprune.results.record import Row, StepRecord

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933", "#332288")
"""Which the colour-blind can tell apart: Okabe and Ito's, then three of Tol's."""
Bar = tuple[str, int, int]
"""A channel group: its name, units kept, units pruned."""
BARS_ABREAST = 40  # more are no longer read in one row of panels


def plot_accuracy(path: Path, steps: Sequence[StepRecord], rows: Sequence[Row]) -> None:
    """Accuracy against channel sparsity: the search split along the way, the test split at the saved levels."""
    figure, axes = _figure()
    path_x, path_y = [0.0], [100 * rows[0].search_top1]
    for step in steps:  # a recovery is a vertical jump
        path_x += [100 * step.sparsity] * 2
        path_y += [100 * step.accuracy_pruned, 100 * step.accuracy_recovered]
    axes.plot(path_x, path_y, color="0.7", linewidth=1, zorder=1)
    recovered = [step for step in steps if step.recovery_seconds > 0]
    for label, chosen, name, colour, marker in (
        ("pruned (search split)", steps, "accuracy_pruned", COLOURS[1], "v"),
        ("recovered (search split)", recovered, "accuracy_recovered", COLOURS[0], "o"),
    ):
        points = [100 * step.sparsity for step in chosen], [100 * getattr(step, name) for step in chosen]
        axes.plot(*points, linestyle="none", marker=marker, color=colour, label=label)
    tested = [row for row in rows if row.level > 0 and not row.name.startswith("pruned")] or [row for row in rows if row.level > 0]
    axes.errorbar(
        [100 * row.sparsity for row in tested],
        [100 * row.top1 for row in tested],
        yerr=[100 * row.standard_error for row in tested],
        fmt="D", color=COLOURS[2], capsize=4, label="saved level (test split, ± standard error)", zorder=3,
    )  # fmt: skip
    axes.axhline(100 * rows[0].top1, color="0.4", linestyle=":", label="dense (test split)")
    axes.set_xlabel("channel sparsity (%)")
    axes.set_ylabel("top-1 accuracy (%)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def plot_training(path: Path, steps: Sequence[StepRecord], rows: Sequence[Row]) -> None:
    """Accuracy by epoch of joint training: the whole network, what the best policy leaves of it, and where it ends."""
    figure, axes = _figure()
    epochs = [step.step for step in steps]
    for label, name, colour, style in (
        ("whole network (search split)", "accuracy_unpruned", COLOURS[0], "o-"),
        ("what the best policy leaves (search split)", "accuracy_pruned", COLOURS[1], "v-"),
    ):
        axes.plot(epochs, [100 * getattr(step, name) for step in steps], style, color=colour, markersize=4, linewidth=1, label=label)
    last = rows[-1]
    axes.errorbar(
        [epochs[-1] + 0.5], [100 * last.top1], yerr=[100 * last.standard_error],
        fmt="D", color=COLOURS[2], capsize=4, label=f"{last.name} (test split, ± SE)", zorder=3,
    )  # fmt: skip
    axes.axhline(100 * rows[0].top1, color="0.4", linestyle=":", label=f"{rows[0].name} (test split)")
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 accuracy (%)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def plot_layers(path: Path, layers: Sequence[dict[str, Any]]) -> None:
    """Each group's sparsity over the steps, as a map: groups in network order."""
    frame = pd.DataFrame(layers)
    table = frame.pivot(index="group", columns="step", values="units").loc[list(dict.fromkeys(frame["group"]))]
    sparsity = 100 * (1 - table.div(table.iloc[:, 0], axis=0))
    names = list(sparsity.index)
    figure, axes = _figure(height=max(3.2, 0.19 * len(names) + 1.2))
    image = axes.imshow(sparsity.to_numpy(), aspect="auto", cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    steps = list(sparsity.columns)
    shown = list(range(0, len(steps), max(1, len(steps) // 12)))
    axes.set_xticks(shown, [str(steps[index]) for index in shown])
    axes.set_xlabel("step (0: dense)")
    axes.set_ylabel("channel group, in network order")
    figure.colorbar(image, ax=axes, label="units removed (%)")
    _save(figure, path)


def plot_channels(path: Path, panels: Mapping[str, Sequence[Bar]]) -> None:
    """Kept and pruned units of every group: panels of stacked bars, by title."""
    _save(channels_figure(panels), path)


def channels_figure(panels: Mapping[str, Sequence[Bar]]) -> Any:
    """The figure of `plot_channels`: panels of one scale, beside each other where there is room."""
    from matplotlib.figure import Figure

    places = [max(6, len(bars)) + 0.4 for bars in panels.values()]  # the width of a panel, in bars; its title takes six
    beside = sum(places) <= BARS_ABREAST
    rows, columns = (1, len(places)) if beside else (len(places), 1)
    longest = max(len(name) for bars in panels.values() for name, _, _ in bars)
    inches = 0.21 * (sum(places) if beside else max(places)) + 0.5 + 0.5 * columns
    figure = Figure(figsize=(max(5.0, inches), 0.9 + rows * (2.6 + 0.065 * longest)), layout="constrained")
    all_axes = figure.subplots(rows, columns, sharey=True, squeeze=False, width_ratios=places if beside else None).ravel()
    for axes, width, (title, bars) in zip(all_axes, places if beside else [max(places)] * rows, panels.items(), strict=True):
        names, kept, pruned = zip(*bars, strict=True)
        axes.bar(range(len(bars)), kept, color=COLOURS[0], label="kept")
        axes.bar(range(len(bars)), pruned, bottom=kept, color=COLOURS[1], label="pruned")
        axes.set_xticks(range(len(bars)), names, rotation=90, fontsize=8)
        axes.set_xlim(-0.7, width - 0.7)  # bars of all panels are equally wide
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("channel group, in network order", fontsize=10)
    figure.supylabel("units of the group", fontsize=10)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return figure


def plot_episodes(path: Path, episodes: Sequence[dict[str, Any]]) -> None:
    """Reward, and the losses of an agent that has some, by episode; a line where a pruning step, or its search on one group, ends."""
    frame = pd.DataFrame(episodes, index=range(1, len(episodes) + 1))
    place = frame[[name for name in ("step", "group") if name in frame]]
    search = place.ne(place.shift()).any(axis=1).cumsum()
    panels = ["reward", *(name for name in ("critic_loss", "actor_loss", "decoder_loss") if name in frame and frame[name].notna().any())]
    figure, axes = _figure(height=1.2 + 2.1 * len(panels), rows=len(panels))
    for panel, label in zip(axes, panels, strict=True):
        panel.plot(frame[label], ".", markersize=4, color=COLOURS[0], label="episode" if label == "reward" else None)
        if label == "reward":
            for number, best in frame["best"].groupby(search):
                panel.plot(best, "-", color=COLOURS[1], label="best so far" if number == 1 else None)
        panel.set_ylabel(label.replace("_", " "))
        panel.set_yscale("log" if label in ("critic_loss", "decoder_loss") else "linear")  # squared errors, over orders of magnitude
        for end in frame.index[search.diff() > 0]:
            panel.axvline(end - 0.5, color="0.6", linewidth=0.8, linestyle=":")
    axes[0].legend(frameon=False)
    axes[-1].set_xlabel("episode")
    _save(figure, path)


def _figure(height: float = 4.2, rows: int | None = None) -> tuple[Any, Any]:
    """A figure and its axes; a list of them, one below the other, where rows are asked for."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots(rows or 1, sharex=True, squeeze=False)[:, 0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes[0] if rows is None else list(axes)


def _save(figure: Any, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
