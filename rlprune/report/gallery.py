"""Which plots a report has: those of every model, of sensitivities that were measured, and of runs that go on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from rlprune.report.collect import FINISHED, Run
from rlprune.report.comparison import Line
from rlprune.report.curves import loss_panels, losses_figure, reward_curve, rewards_figure
from rlprune.report.figures import Style, accuracy_figure, difference_figure, style_of, time_figure
from rlprune.report.layers import channels_by_layer_figure, kept_by_step, sparsity_over_steps_figure, units_by_step
from rlprune.report.networks import FINAL
from rlprune.results.sensitivity import sensitivity_figure

T = TypeVar("T")
MAPS = 10  # panels of a map, at most


@dataclass(frozen=True)
class Plot:
    """A figure of a page.

    Args:
        name: of the file.
        section: model, or what else the plots before and behind it are about; empty where there is one model alone.
        title: heading on the page.
        caption: what is shown, and over how many runs.
        draw: inches → figure.
    """

    name: str
    section: str
    title: str
    caption: str
    draw: Callable[[float], Any]


def plan_plots(lines: Sequence[Line], runs: Sequence[Run], baseline: str) -> list[Plot]:
    """The plots of every model on every data set, of sensitivities, and of runs that are not finished."""
    waiting = {str(run.folder): [run] for run in runs if run.command == "prune" and run.state != FINISHED}
    style = style_of([line.label for line in lines if line.kind == FINAL])
    plots: list[Plot] = []
    groups = list(dict.fromkeys((line.data, line.model) for line in lines))
    for number, (data, model) in enumerate(groups):
        own = [line for line in lines if (line.data, line.model) == (data, model)]
        same = [other for other, name in groups if name == model]
        section = "" if len(groups) == 1 else model if len(same) == 1 else f"{model} on {data}"
        prefix = f"{number + 1}-" if section else ""
        plots += [replace(plot, name=f"{prefix}{plot.name}", section=section) for plot in _of_model(own, style, baseline)]
    measured = [run for run in runs if run.command == "sensitivity" and run.state == FINISHED and len(run.table("sensitivity.csv"))]
    plots += [_sensitivity(run, f"sensitivity{number + 1 if number else ''}") for number, run in enumerate(measured)]
    going = _curves(waiting, style_of(list(waiting)))
    return plots + [replace(plot, name=f"open-{plot.name}", section="Not finished yet") for plot in going]


def _of_model(lines: Sequence[Line], style: Style, baseline: str) -> Iterator[Plot]:
    """Of the lines of one model on one data set."""
    final = [line for line in lines if line.kind == FINAL]
    if not final:
        return
    yield Plot(
        "accuracy", "", "Accuracy, MACs and channels",
        "Means over seeds on the test split with their standard deviation; small dots are seeds, stars dense networks. Networks of one "
        "size stand a little apart.",
        partial(accuracy_figure, lines, style),
    )  # fmt: skip
    if any(len(line.against.get("baseline", [])) for line in final):
        yield Plot(
            "differences", "", f"Difference to {baseline}",
            "Means and 95 % intervals of differences paired by seed on the same dense network; dots are pairs. An interval that holds "
            "zero: no difference can be told. Intervals are not corrected for the number of agents.",
            partial(difference_figure, final, style, baseline),
        )  # fmt: skip
    last = _smallest(final)
    searched = [line for line in last if line.networks[0].run.command == "prune"]
    yield from _of_layers(searched)
    yield from _curves({line.label: [network.run for network in line.networks] for line in searched}, style)
    if any(network.run.result.get("seconds") for line in last for network in line.networks):
        yield Plot("time", "", "Time by phase", "Minutes of a whole run, means over seeds.", partial(time_figure, last))


def _of_layers(lines: Sequence[Line]) -> Iterator[Plot]:
    """What became of each layer on the way to one target."""
    first = {line.label: min((network.run for network in line.networks), key=lambda run: run.seed or 0) for line in lines}
    first = {name: run for name, run in first.items() if len(kept_by_step(run))}
    for part, names in _parts(list(first)):
        yield Plot(
            f"steps{part}", "", "Each layer's sparsity over the steps",
            "Channel groups in network order; of every agent the run with the lowest seed.",
            partial(sparsity_over_steps_figure, {name: first[name] for name in names}),
        )  # fmt: skip
    kept = [line for line in lines if any(len(units_by_step(network.run)) for network in line.networks)]
    for part, some in _parts(kept):
        yield Plot(
            f"channels{part}", "", "Kept and pruned channels by layer", f"At {some[0].target}; means over seeds.",
            partial(channels_by_layer_figure, some),
        )  # fmt: skip


def _curves(members: Mapping[str, Sequence[Run]], style: Style) -> Iterator[Plot]:
    """Rewards and losses, where there are some."""
    rewarded = {name: runs for name, runs in members.items() if any(reward_curve(run) is not None for run in runs)}
    if rewarded:
        yield Plot(
            "rewards", "", "Rewards", "What the agents are after, on the search split; a line a seed.",
            partial(rewards_figure, rewarded, style),
        )  # fmt: skip
    if loss_panels(members):
        yield Plot(
            "losses", "", "Losses", "A line a seed; a dense network that runs share is drawn once.",
            partial(losses_figure, members, style),
        )  # fmt: skip


def _sensitivity(run: Run, name: str) -> Plot:
    frame = run.table("sensitivity.csv")
    whose = run.result.get("run") or run.choices["model"]
    return Plot(
        name, "Sensitivity of each layer alone", str(whose),
        "Loss on the search split where one channel group alone loses so many of its units and everything else stays whole.",
        lambda width: sensitivity_figure(frame, width=width),
    )  # fmt: skip


def _smallest(lines: Sequence[Line]) -> list[Line]:
    """Lines of the target at which most of the channels are gone."""
    sparsity = {line.target: float(line.values("sparsity").mean()) for line in lines if len(line.values("sparsity"))}
    target = max(sparsity, key=lambda key: sparsity[key])
    return [line for line in lines if line.target == target]


def _parts(items: Sequence[T]) -> list[tuple[str, Sequence[T]]]:
    """Items for figures of so many panels, each with what its name ends in."""
    starts = range(0, len(items), MAPS)
    return [(str(start // MAPS + 1) if len(items) > MAPS else "", items[start : start + MAPS]) for start in starts]
