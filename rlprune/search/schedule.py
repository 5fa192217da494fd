"""When how much is gone, and which steps end in a saved level."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlprune.errors import UserError
from rlprune.graph import ChannelGraph
from rlprune.results.tables import count
from rlprune.search.limits import Goal


@dataclass(frozen=True)
class Size:
    """Of a network: channels of its groups, MACs for one example, parameters, predicted seconds a pass where they are known."""

    channels: int
    macs: int
    params: int
    latency: float | None = None


def size_of(graph: ChannelGraph, counts: np.ndarray) -> Size:
    """Of the network without `counts` units of each group, shape (group,)."""
    seconds = None if graph.clock is None else float(graph.seconds(counts))
    return Size(graph.num_channels - int(counts @ graph.channels_per_unit), graph.cost.macs(counts), graph.cost.params(counts), seconds)


@dataclass(frozen=True)
class Targets:
    """How far a search goes; None asks nothing. Where several are set, removal goes on until all hold.

    `sparsity` is the channel sparsity to reach, `macs`, `params` and `latency` (as predicted) are the largest shares kept of the dense
    network's, `max_drop` the largest loss of accuracy on the search split, in points: alone it asks for the smallest network within it,
    beside others it ends the search early.
    """

    sparsity: float | None
    macs: float | None
    params: float | None
    max_drop: float | None
    latency: float | None = None


@dataclass(frozen=True)
class Schedule:
    """When a search removes, recovers and saves.

    `goals[k]` holds after step k + 1, `levels` maps steps (from 1) to the sparsity saved there (None: whatever is reached), and the network
    recovers every `period` steps. With `max_drop` (a fraction) every recovery is a whole one, after which the loss is looked at. Where it
    is `bisected`, the agent's bound decides how much goes in all steps but the last, and is sought until that has almost nothing to do.
    Where it is `joint`, a step is an epoch of training, of which the decision alone is kept: what the last one has decided goes.
    """

    goals: tuple[Goal, ...]
    levels: dict[int, float | None]
    period: int
    max_drop: float | None = None
    bisected: bool = False
    joint: bool = False

    @property
    def steps(self) -> int:
        """Pruning steps."""
        return len(self.goals)

    def recovers(self, step: int) -> bool:
        """Whether a recovery follows this step (from 1): every `period` steps and at every level."""
        return step % self.period == 0 or step in self.levels

    def saves(self, step: int) -> bool:
        """Whether the network after this step may be kept, and so gets the recovery of a level."""
        return step in self.levels or (self.max_drop is not None and self.recovers(step))


def level_steps(*, sparsity: float, steps: int, save_at: Sequence[float]) -> dict[int, float]:
    """The step (from 1) at which each level is saved.

    Raises:
        UserError: two levels fall on one step.
    """
    levels: dict[int, float] = {}
    for level in sorted({*save_at, sparsity}):
        step = steps if level == sparsity else max(1, round(level / sparsity * steps))
        if step in levels:
            raise UserError(f"schedule.save_at: {levels[step]} and {level} fall on one step; raise schedule.steps={steps} or drop a level")
        levels[step] = level
    return levels


def make_schedule(
    *,
    targets: Targets,
    steps: int,
    period: int,
    save_at: Sequence[float],
    dense: Size,
    smallest: Size,
    free: bool = False,
    by_layer: bool = False,
    joint: bool = False,
) -> Schedule:
    """Equal steps from the dense network to the targets; the step nearest to a level reaches it exactly.

    Args:
        targets: how far.
        steps: pruning steps.
        period: recover after so many of them.
        save_at: sparsities that are saved on the way.
        dense: size of the dense network.
        smallest: size of the network that has lost all it may lose.
        free: the agent decides how much goes where nothing is asked.
        by_layer: it decides layer by layer, in so many steps of which nothing is asked; what the targets ask for is left to one more step.
        joint: the steps are epochs of training, each of which decides on the whole way.

    Raises:
        UserError: as `level_steps`, or a target is out of reach; says what is within it; or targets that do not go together.
    """
    _check_reach(targets, dense, smallest, free)
    if joint:
        return _joint(targets, steps, save_at, dense)
    if by_layer:
        return _layer_by_layer(targets, steps, period, save_at, dense)
    done = [step / steps for step in range(1, steps + 1)]  # share of the way behind each step
    levels: dict[int, float | None] = {steps: targets.sparsity}
    if targets.sparsity is not None:
        for step, level in level_steps(sparsity=targets.sparsity, steps=steps, save_at=save_at).items():
            done[step - 1] = level / targets.sparsity
            levels[step] = level
    elif save_at:
        raise UserError(
            f"schedule.save_at={list(save_at)}: levels are channel sparsities on the way to schedule.sparsity; "
            "set it too, or schedule.save_at=[]"
        )
    bound_alone = targets.max_drop is not None and targets == Targets(None, None, None, targets.max_drop)
    fewest = smallest.channels if bound_alone else None
    goals = tuple(_goal(targets, share, dense, fewest, exact=step in levels) for step, share in enumerate(done, start=1))
    return Schedule(goals, dict(sorted(levels.items())), period, None if targets.max_drop is None else targets.max_drop / 100)


def _joint(targets: Targets, steps: int, save_at: Sequence[float], dense: Size) -> Schedule:
    if save_at:
        raise UserError(f"schedule.save_at={list(save_at)}: joint training prunes once, at its end; schedule.save_at=[]")
    if targets.max_drop is not None:
        raise UserError(
            f"budget.max_drop={targets.max_drop}: joint training is told how much goes: budget.macs, budget.params, budget.latency or "
            "schedule.sparsity"
        )
    goals = (_goal(targets, 1.0, dense, None, exact=True),) * steps
    return Schedule(goals, {steps: targets.sparsity}, steps, joint=True)


def _layer_by_layer(targets: Targets, steps: int, period: int, save_at: Sequence[float], dense: Size) -> Schedule:
    sizes, drop = replace(targets, max_drop=None), targets.max_drop
    bisected = sizes != Targets(None, None, None, None)
    if save_at:
        raise UserError(f"schedule.save_at={list(save_at)}: this agent decides layer by layer how much goes; schedule.save_at=[]")
    if bisected and drop is not None:
        raise UserError(
            f"budget.max_drop={drop}: goes with no other target for this agent, whose drop_bound is bisected for them; drop one"
        )
    goals = (Goal(math.inf, math.inf, math.inf, exact=True),) * steps
    if bisected:
        goals = (*goals, _goal(sizes, 1.0, dense, None, exact=True))
    return Schedule(goals, {len(goals): targets.sparsity}, period, None if drop is None else drop / 100, bisected)


def _goal(targets: Targets, done: float, dense: Size, fewest: int | None, *, exact: bool) -> Goal:
    """What may be left when this share of the way is done; `fewest` channels where no target but the accuracy ends it."""
    channels = math.inf
    if targets.sparsity is not None:
        channels = dense.channels - math.ceil(targets.sparsity * done * dense.channels - 1e-6)
    elif fewest is not None:
        channels = dense.channels - round(done * (dense.channels - fewest))
    macs, params = (
        math.inf if share is None else math.floor((1 - done * (1 - share)) * whole + 1e-6)
        for share, whole in ((targets.macs, dense.macs), (targets.params, dense.params))
    )
    latency = math.inf
    if targets.latency is not None and dense.latency is not None:
        latency = (1 - done * (1 - targets.latency)) * dense.latency * (1 + 1e-9)
    return Goal(channels, macs, params, exact, latency)


def _check_reach(targets: Targets, dense: Size, smallest: Size, free: bool) -> None:
    if targets == Targets(None, None, None, None) and not free:
        raise UserError(
            "schedule.sparsity=null: nothing says how much goes; set it, or budget.macs, budget.params, budget.latency or budget.max_drop"
        )
    if smallest.channels == dense.channels:
        raise UserError("schedule: nothing may go; lower schedule.min_keep or schedule.round_to, or raise schedule.max_sparsity")
    beyond = out_of_reach(targets, dense, smallest)
    if beyond is not None:
        name, within = beyond
        floors = "as schedule.min_keep, round_to, max_sparsity and agent.pr_max, where there is one, keep the rest"
        raise UserError(f"{'schedule' if name == 'sparsity' else 'budget'}.{name}={getattr(targets, name)}: {within}, {floors}")


def out_of_reach(targets: Targets, dense: Size, smallest: Size) -> tuple[str, str] | None:
    """The first target that cannot be met, by name, and what is within reach; None where all can."""
    most = 1 - smallest.channels / dense.channels
    if targets.sparsity is not None and math.ceil(targets.sparsity * dense.channels - 1e-6) > dense.channels - smallest.channels:
        return "sparsity", f"at most {_down(most)} is within reach"
    fastest = smallest.latency / dense.latency if smallest.latency is not None and dense.latency is not None else 0.0
    for name, share, least in (
        ("macs", targets.macs, smallest.macs / dense.macs),
        ("params", targets.params, smallest.params / dense.params),
        ("latency", targets.latency, fastest),
    ):
        if share is not None and share < least:
            return name, f"{_up(least)} to 1 of the dense network's is within reach"
    return None


def reach_rows(targets: Targets, dense: Size, smallest: Size) -> list[dict[str, str]]:
    """What may be asked, for people: the smallest that is within reach, what was asked, and the dense network's."""
    rows = []
    for name, least, share, whole in (
        ("channels", smallest.channels, None if targets.sparsity is None else 1 - targets.sparsity, dense.channels),
        ("MACs", smallest.macs, targets.macs, dense.macs),
        ("parameters", smallest.params, targets.params, dense.params),
        ("latency ms, predicted", smallest.latency, targets.latency, dense.latency),
    ):
        if least is None or whole is None:
            continue
        show = count if name != "latency ms, predicted" else lambda seconds: f"{1000 * seconds:.3f}"
        floor, asked = f"{show(least)} ({_up(least / whole)})", "" if share is None else f"≤ {show(share * whole)} ({share:g})"
        rows.append({"": name, "floor": floor, "target": asked, "dense": show(whole)})
    return rows


def _down(share: float) -> str:
    return f"{math.floor(1000 * share + 1e-6) / 1000:.3f}"


def _up(share: float) -> str:
    return f"{math.ceil(1000 * share - 1e-6) / 1000:.3f}"
