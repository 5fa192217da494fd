"""The main loop: decide, prune, recover, save."""

import copy
import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from rlprune.agents.base import Agent
from rlprune.graph import ChannelGraph, prune
from rlprune.results.record import History, StepRecord, elapsed
from rlprune.search.ledger import Ledger
from rlprune.search.schedule import Schedule
from rlprune.search.task import Environment, Task
from rlprune.seeding import numpy_generator

log = logging.getLogger(__name__)


@dataclass
class SearchState:
    """Everything that a search carries from step to step."""

    network: nn.Module
    graph: ChannelGraph
    kept: dict[str, np.ndarray]  # units of the dense network that are still there, by group
    teacher: nn.Module
    teacher_kept: dict[str, np.ndarray]
    teacher_accuracy: float
    dense_accuracy: float
    carry: np.ndarray  # channels that rounding owes each group, shape (group,)
    step: int = 0  # steps done
    aim: np.ndarray | None = None  # units that go from each group at the end of joint training, as decided by now, shape (group,)
    history: History = field(default_factory=History)


Recover = Callable[[nn.Module, nn.Module, int, str], None]
"""(network, teacher, epochs, phase): train the network in place."""
Train = Callable[[SearchState], float]
"""Trains the network in place for an epoch, the one of the step that is next; returns its mean loss."""


def start_state(network: nn.Module, graph: ChannelGraph, accuracy: float) -> SearchState:
    """The search before its first step: the dense network is its own teacher."""
    kept = {group.name: np.arange(group.num_units) for group in graph.groups}
    state = SearchState(network, graph, kept, network, dict(kept), accuracy, accuracy, np.zeros(len(graph.groups)))
    state.history.layers += _layer_rows(state)
    return state


@dataclass(frozen=True)
class _Epoch:
    """What an epoch of joint training came to; nothing in other searches."""

    train_loss: float | None = None
    training_seconds: float | None = None
    accuracy_unpruned: float | None = None


def run_search(
    state: SearchState,
    *,
    agent: Agent,
    environment: Environment,
    schedule: Schedule,
    recover: Recover,
    epochs: int,
    final_epochs: int,
    seed: int,
    on_step: Callable[[SearchState], None],
    on_level: Callable[[SearchState, float | None, nn.Module], None],
    deciding: Callable[[SearchState], AbstractContextManager[None]] = lambda state: nullcontext(),
    on_episode: Callable[[SearchState], None] = lambda state: None,
    until: int | None = None,
    train: Train | None = None,
    progress_bar: bool = True,
) -> SearchState:
    """Carry a search from where it is to its end.

    Random numbers come from streams that belong to a step, so a search that continues from a saved state equals an unbroken one.

    Args:
        state: where the search is; changed in place.
        agent: decides each step.
        environment: measures candidates.
        schedule: what each step removes.
        recover: trains a pruned network.
        epochs: of a recovery after `schedule.period` steps.
        final_epochs: of a recovery at a saved level.
        seed: of all streams.
        on_step: called when a step is complete.
        on_level: called at a saved level, before `on_step`, with the sparsity asked for (None: none was) and the network as it was before
            its recovery.
        deciding: around an agent's decision.
        on_episode: called when an agent has reported an episode.
        until: end behind this step, and save nothing when the time is over; None: to the last.
        train: what a step of joint training begins with.
        progress_bar: whether there is one.
    """
    ledger = environment.ledger
    while state.step < (until or schedule.steps) and not state.history.stopped:
        step = state.step + 1
        epoch = _Epoch() if train is None else _trained(state, train, environment)
        started = time.perf_counter()
        ledger.step_start, ledger.measured, ledger.in_time = ledger.distinct, [], 0
        repeated, distinct = ledger.repeated, ledger.distinct
        title = f"search step {step}/{schedule.steps}{_time_left(state.history.steps, schedule)}"
        with deciding(state):
            candidate = _decide(agent, environment, state, numpy_generator(seed, f"agent/{step}"), title, on_episode, progress_bar)
        state.step, state.aim = step, candidate.counts
        if ledger.expired and step < schedule.steps:
            state.history.stopped = "max_minutes"
        latency = None if state.graph.clock is None else float(state.graph.seconds(candidate.counts))
        channels = state.graph.num_channels - int(candidate.counts @ state.graph.channels_per_unit)
        if train is None or step == schedule.steps or state.history.stopped:
            _carry_out(state, candidate, environment)
        search_seconds = elapsed(started) + ledger.known_seconds
        saves = schedule.saves(step) or (until is None and bool(state.history.stopped))
        before = state.network
        recovery_seconds, accuracy = 0.0, candidate.accuracy
        rounds = final_epochs if saves else epochs
        if (saves or schedule.recovers(step)) and rounds > 0:
            recovery_seconds, accuracy = _recovered(state, recover, rounds, environment)
        record = StepRecord(
            step=step,
            sparsity=1 - channels / environment.dense.channels,
            macs=candidate.macs,
            params=candidate.params,
            reward=candidate.reward,
            accuracy_pruned=candidate.accuracy,
            accuracy_recovered=accuracy,
            candidates=ledger.distinct - distinct,
            repeated=ledger.repeated - repeated,
            search_seconds=search_seconds,
            recovery_seconds=recovery_seconds,
            latency_predicted=latency,
            **vars(epoch),
        )
        _keep(state, record, ledger, schedule.steps)
        if saves and schedule.max_drop is not None and accuracy < state.dense_accuracy - schedule.max_drop - 1e-9:
            state.history.stopped = "max_drop"
        elif saves:
            on_level(state, schedule.levels.get(step), before)
        on_step(state)
    return state


def _keep(state: SearchState, record: StepRecord, ledger: Ledger, steps: int) -> None:
    """What is known of a step that is done, in the history and in the log."""
    state.history.steps.append(record)
    state.history.layers += _layer_rows(state)
    state.history.candidates, state.history.repeated = ledger.distinct, ledger.repeated
    _log_step(record, steps)


def _trained(state: SearchState, train: Train, environment: Environment) -> _Epoch:
    """An epoch; the network is what the pruned one will be compared with, and its teacher."""
    started = time.perf_counter()
    loss = train(state)
    seconds, accuracy = elapsed(started), environment.measure(state.network)
    state.dense_accuracy = state.teacher_accuracy = accuracy
    return _Epoch(loss, seconds, accuracy)


def _decide(
    agent: Agent,
    environment: Environment,
    state: SearchState,
    generator: np.random.Generator,
    title: str,
    on_episode: Callable[[SearchState], None],
    progress_bar: bool,
) -> Any:
    """The candidate to carry out: the agent's, or none at all where earlier steps removed what this one was to remove."""
    ledger = environment.ledger
    task = Task(environment, state.network, state.graph, state.step, state.carry, state.dense_accuracy)
    if task.idle:
        return task.evaluate(task.channel_shares)
    layers = 0 if task.bounded else len(task.turn)
    total = step_candidates(agent, state.graph, ledger.max_candidates, layers)
    silent = not progress_bar or "TQDM_DISABLE" in os.environ  # tqdm reads it only where nothing is said
    with tqdm(total=total, desc=title, unit="cand", leave=False, disable=silent) as bar:

        def report(values: dict[str, Any]) -> None:
            state.history.episodes.append({"step": state.step + 1, **values})
            bar.set_postfix(values, refresh=False)
            on_episode(state)

        ledger.on_measure, ledger.on_report = partial(_advance, bar), report
        return agent.decide(task, generator)


def step_candidates(agent: Agent, graph: ChannelGraph, most: int | None, layers_a_step: int) -> int:
    """Distinct candidates that an agent measures in a step at most, or the most it may.

    Args:
        agent: that decides.
        graph: of the network.
        most: candidates a step.
        layers_a_step: channel groups that have their turn in a step, for agents that go layer by layer.
    """
    of_layer: Callable[[int], int] | None = getattr(agent, "candidates_of_layer", None)
    if of_layer is not None:
        count = of_layer(int(graph.num_units.max())) * layers_a_step
    else:
        count = agent.candidates_per_step * (len(graph.groups) if getattr(agent, "measures_layers", False) else 1)
    return min(count, most or count)


def _carry_out(state: SearchState, candidate: Any, environment: Environment) -> None:
    keep = candidate.keep
    state.network = prune(state.network, state.graph, keep)
    environment.refresh(state.network)
    state.graph = state.graph.after(keep)
    state.kept = {name: state.kept[name][keep[name]] for name in state.kept}
    state.carry, state.aim = candidate.carry, None


def _recovered(state: SearchState, recover: Recover, epochs: int, environment: Environment) -> tuple[float, float]:
    """Seconds of a recovery, and the accuracy behind it; the network as it was before stays whole."""
    started, phase = time.perf_counter(), f"recover step {state.step}"
    state.network = copy.deepcopy(state.network)
    recover(state.network, state.teacher, epochs, phase)
    state.history.recoveries.append((phase, epochs))
    seconds, accuracy = elapsed(started), environment.measure(state.network)
    _switch_teacher(state, accuracy)
    return seconds, accuracy


def _switch_teacher(state: SearchState, accuracy: float) -> None:
    """A compressed network that beats the teacher on the search split becomes the teacher (RL-Pruner, section 4.1)."""
    if accuracy > state.teacher_accuracy:
        state.teacher = copy.deepcopy(state.network)
        state.teacher_kept, state.teacher_accuracy = dict(state.kept), accuracy
        log.info("step %d: the pruned network beats its teacher (%.2f %%) and takes its place", state.step, 100 * accuracy)


def _layer_rows(state: SearchState) -> list[dict[str, Any]]:
    gone = np.zeros(len(state.kept), dtype=int) if state.aim is None else state.aim
    rows = zip(state.kept.items(), gone.tolist(), strict=True)
    return [{"step": state.step, "group": name, "units": len(units) - count} for (name, units), count in rows]


def _time_left(steps: list[StepRecord], schedule: Schedule) -> str:
    """How long all the steps that are left may take, by those that are done; of a bisection nobody knows the passes."""
    if not steps or schedule.bisected:
        return ""
    spent = sum(record.search_seconds + record.recovery_seconds + (record.training_seconds or 0.0) for record in steps)
    return f", {tqdm.format_interval(spent / len(steps) * (schedule.steps - len(steps)))} to the end"


def _advance(bar: Any, accuracy: float) -> None:
    bar.set_postfix(accuracy=f"{100 * accuracy:.2f}%", refresh=False)
    bar.update()


def _log_step(record: StepRecord, steps: int) -> None:
    recovered = f", {100 * record.accuracy_recovered:.2f} % after recovery" if record.recovery_seconds else ""
    if record.accuracy_unpruned is not None:
        recovered = f" ({100 * record.accuracy_unpruned:.2f} % unpruned){recovered}"
    trained = "" if record.training_seconds is None else f", training {record.training_seconds:.1f} s"
    log.info(
        "step %d/%d: sparsity %.1f %%, %.2f M MACs, search split %.2f %%%s; %d candidates in %.1f s%s",
        record.step, steps, 100 * record.sparsity, record.macs / 1e6, 100 * record.accuracy_pruned, recovered,
        record.candidates, record.search_seconds, trained,
    )  # fmt: skip
