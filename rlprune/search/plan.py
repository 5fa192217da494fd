"""What a search is to do with a network: how far each group may shrink, and what goes in which step."""

from dataclasses import replace

import numpy as np

from rlprune.agents.base import Agent
from rlprune.graph import ChannelGraph
from rlprune.search.limits import Limits, Room
from rlprune.search.schedule import Schedule, Targets, make_schedule, size_of
from rlprune.skeleton import BudgetConfig, ScheduleConfig


def targets_of(schedule: ScheduleConfig, budget: BudgetConfig) -> Targets:
    """How far a search goes."""
    return Targets(schedule.sparsity, budget.macs, budget.params, budget.max_drop, budget.latency)


def kept_counts(agent: Agent, schedule: ScheduleConfig, graph: ChannelGraph, *, multiple: int = 1) -> dict[str, np.ndarray]:
    """Numbers of units that each group may keep, descending.

    Args:
        agent: that decides.
        schedule: what no group may lose.
        graph: of the dense network.
        multiple: that the device likes, with `schedule.round_to=auto`.

    Raises:
        UserError: limits that do not fit the network.
    """
    automatic = schedule.round_to == "auto"
    limits = Limits(schedule.min_keep, multiple if automatic else schedule.round_to, schedule.max_sparsity, lenient=automatic)
    limits.check(graph)
    limits = replace(limits, most=float(getattr(agent, "pr_max", 1.0)))
    may_lose = agent.groups(graph) if hasattr(agent, "groups") else [group.name for group in graph.groups]
    return {
        group.name: limits.kept_counts(group.name, group.num_units) if group.name in may_lose else np.array([group.num_units])
        for group in graph.groups
    }


def num_steps(agent: Agent, schedule: ScheduleConfig, graph: ChannelGraph, *, multiple: int = 1) -> int:
    """Pruning steps: the schedule's, or else the agent's, or else one for each group that may lose units."""
    groups = sum(len(counts) > 1 for counts in kept_counts(agent, schedule, graph, multiple=multiple).values())
    return schedule.steps or getattr(agent, "steps", None) or max(1, groups)


def make_plan(agent: Agent, schedule: ScheduleConfig, targets: Targets, graph: ChannelGraph, *, multiple: int = 1) -> Schedule:
    """The steps of a search.

    Args:
        agent: that decides.
        schedule: how many steps, and what no group may lose.
        targets: how far it goes.
        graph: of the dense network.
        multiple: that the device likes, with `schedule.round_to=auto`.

    Raises:
        UserError: as `make_schedule`, and limits that do not fit the network.
    """
    return make_schedule(
        targets=targets,
        steps=num_steps(agent, schedule, graph, multiple=multiple),
        period=schedule.period,
        save_at=schedule.save_at,
        dense=size_of(graph, np.zeros(len(graph.groups), dtype=int)),
        smallest=size_of(graph, Room(graph, list(kept_counts(agent, schedule, graph, multiple=multiple).values())).capacity),
        free=bool(getattr(agent, "decides_size", False)),
        by_layer=bool(getattr(agent, "by_layer", False)),
        joint=schedule.joint,
    )
