"""A Gymnasium environment of a user's own network and accuracy, in Python: no yaml, no data set, no run folder."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rlprune.agents.base import LayerReward, LayerState
from rlprune.agents.ddpg import STATE
from rlprune.criteria.l1 import L1
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph, prune
from rlprune.rewards.weighted import WeightedReward
from rlprune.search.limits import Goal, Limits, Room
from rlprune.search.returned import number, shown
from rlprune.search.schedule import Size, Targets, make_schedule, out_of_reach, size_of
from rlprune.search.task import Environment, Task

if TYPE_CHECKING:
    from rlprune.search.gymnasium_env import PruningEnv

Scores = Mapping[str, Any]
"""Group name → score of every unit, shape (unit,): a tensor, an array or a list. Units that score lowest go first."""


def pruning_env(
    model: nn.Module,
    graph: ChannelGraph,
    *,
    accuracy: Callable[[nn.Module], float],
    score: Scores | Callable[[nn.Module, ChannelGraph], Scores] | None = None,
    macs: float | None = None,
    params: float | None = None,
    sparsity: float | None = None,
    features: Sequence[str] = STATE,
    pr_max: float = 0.95,
    reward: LayerReward | None = None,
    min_keep: int = 1,
    round_to: int = 1,
) -> "PruningEnv":
    """The network as a Gymnasium environment: an episode prunes one channel group after another, an action is the share that goes.

    Where a target is set, every episode ends in a network that meets it within one unit, whatever the actions: see `LayerEnv`. Networks
    that are equal are measured once, over all episodes. The environment works on a copy of the model, in eval mode. It is measured once
    now, so that an `accuracy` that does not fit is refused at once.

    Args:
        model: any network; it is not changed, and nothing that happens to it later matters.
        graph: its channel graph, `rlprune.trace(model, example_inputs)`.
        accuracy: network → fraction in [0, 1]. The network is in eval mode and changes with the next call: look at it, do not keep it.
        score: what ranks the units inside of each group, lowest first: by group, or (network, graph) → by group. None: the mean L1 norm of
            a unit's filters.
        macs: largest share of the MACs kept, in (0, 1).
        params: largest share of the parameters kept.
        sparsity: smallest share of the prunable channels removed. Where none of the three is set, actions are carried out as they are.
        features: what an observation says, in this order; names in `rlprune.agents.base.FEATURES`. Without `accuracy` among them, and
            without `reward`, an episode measures one network, otherwise one for every group.
        pr_max: largest share of its units that a group may lose, in (0, 1).
        reward: of every action: states before and after (each with `accuracy` and `flops_ratio`, the share of the MACs that is gone) →
            number. None: zero, and behind the last action the accuracy.
        min_keep: units that stay in every group, at least.
        round_to: what a group keeps is a multiple of this, unless it stays whole.

    Raises:
        UserError: gymnasium is missing, an argument is not as it must be, or a target is out of reach; says what is within it.
    """
    try:
        from rlprune.search.gymnasium_env import PruningEnv
    except ModuleNotFoundError as error:
        raise UserError("pruning_env: needs the package gymnasium; pip install 'rlprune[gym]'") from error
    _require_kinds(model, graph, accuracy=accuracy, score=score, features=features, reward=reward)
    _require_shares(macs=macs, params=params, sparsity=sparsity, pr_max=pr_max)
    for name, value in (("min_keep", min_keep), ("round_to", round_to)):
        if not isinstance(value, Integral) or value < 1:
            raise UserError(f"{name}={value!r}: must be an integer ≥ 1")
    network = prune(model, graph, {}).eval()
    limits = Limits(int(min_keep), int(round_to), 1.0, most=float(pr_max))
    limits.check(graph, section="")
    kept_counts = {group.name: limits.kept_counts(group.name, group.num_units) for group in graph.groups}
    dense = size_of(graph, np.zeros(len(graph.groups), dtype=int))
    smallest = size_of(graph, Room(graph, list(kept_counts.values())).capacity)
    environment = Environment(
        measure=partial(_measured, accuracy),
        reward=WeightedReward(alpha=0.0, beta=0.0, gamma=0.0),
        score=L1(aggregation="mean", normalization="none").scores if score is None else partial(_scored, score),
        dense=dense,
        goals=(_goal(Targets(sparsity, macs, params, None), dense, smallest, limits),),
        kept_counts=kept_counts,
    )
    task = Task(environment, network, graph, 0)
    _ = task.accuracy, task.scores  # kept, and refused if they must be, before the first episode
    rewarded = None if reward is None else partial(_rewarded, reward)
    return PruningEnv(partial(task.layers, features=tuple(features), pr_max=float(pr_max), reward=rewarded))


def _goal(targets: Targets, dense: Size, smallest: Size, limits: Limits) -> Goal:
    """Of the one step that there is."""
    floors = f"min_keep={limits.min_keep}, round_to={limits.round_to} and pr_max={limits.most:g}"
    if smallest.channels == dense.channels:
        raise UserError(f"graph: no group may lose a unit, as {floors} keep all")
    beyond = out_of_reach(targets, dense, smallest)
    if beyond is not None:
        raise UserError(f"{beyond[0]}={getattr(targets, beyond[0])}: {beyond[1]}, as {floors} keep the rest")
    return make_schedule(targets=targets, steps=1, period=1, save_at=(), dense=dense, smallest=smallest, free=True).goals[0]


# -- what a user's functions return ----------------------------------------------------------------------------------------------------


def _measured(accuracy: Callable[[nn.Module], float], network: nn.Module) -> float:
    value = accuracy(network)
    fraction = number(value)
    if not 0 <= fraction <= 1:
        raise UserError(f"accuracy: returned {shown(value)}; return a fraction in [0, 1], 0.93 for 93 %")
    return fraction


def _rewarded(reward: LayerReward, before: LayerState, after: LayerState) -> float:
    value = reward(before, after)
    finite = number(value)
    if not math.isfinite(finite):
        raise UserError(f"reward: returned {shown(value)}; return a finite number")
    return finite


def _scored(score: Scores | Callable[[nn.Module, ChannelGraph], Scores], network: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    """A user's scores as the search wants them: float64 on the CPU."""
    found = score(network, graph) if callable(score) else score
    names = [group.name for group in graph.groups]
    if not isinstance(found, Mapping) or set(found) != set(names):
        given = ", ".join(map(str, found)) if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise UserError(f"score: must be a dict with the scores of the groups {', '.join(names)}; got {given or 'none'}")
    scores = {}
    for group in graph.groups:
        try:
            values = torch.as_tensor(found[group.name]).detach().double().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"score: those of {group.name} are no numbers ({error})") from error
        if values.shape != (group.num_units,) or not values.isfinite().all():
            raise UserError(f"score: {group.name} needs {group.num_units} finite numbers; got {shown(found[group.name])}")
        scores[group.name] = values
    return scores


# -- arguments -------------------------------------------------------------------------------------------------------------------------


def _require_kinds(model: object, graph: object, *, accuracy: object, score: object, features: object, reward: object) -> None:
    if not isinstance(model, nn.Module) or not isinstance(graph, ChannelGraph):
        got = f"a {type(model).__name__} and a {type(graph).__name__}"
        raise UserError(f"pruning_env: pass the network and its channel graph, in this order; got {got}")
    if not graph.groups:
        raise UserError("graph: it has no channel group, so nothing can be removed; graph.frozen says why")
    if not callable(accuracy):
        raise UserError(f"accuracy: must be a function, network → fraction in [0, 1]; got {shown(accuracy)}")
    if reward is not None and not callable(reward):
        raise UserError(f"reward: must be a function, (state before, state after) → number, or None; got {shown(reward)}")
    if score is not None and not callable(score) and not isinstance(score, Mapping):
        raise UserError(f"score: must be a dict, group → scores, or a function, (network, graph) → such a dict; got {shown(score)}")
    if isinstance(features, str) or not isinstance(features, Sequence) or not features:
        raise UserError(f"features={features!r}: must be a list of names, at least one; rlprune.agents.base.FEATURES describes them")


def _require_shares(*, pr_max: object, **targets: object) -> None:
    for name, share in targets.items():
        if share is not None and not 0 < number(share) < 1:
            raise UserError(f"{name}={share!r}: must be a number in (0, 1), or None, which asks for nothing")
    if not 0 < number(pr_max) < 1:
        raise UserError(f"pr_max={pr_max!r}: must be in (0, 1); 0.95 leaves a twentieth of every layer")
