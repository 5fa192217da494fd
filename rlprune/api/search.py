"""The search of a call: the same loop, task and schedule as the command line's, on a user's loss and metric."""

import json
import logging
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from rlprune.agents.base import Agent
from rlprune.api.learning import Learner
from rlprune.api.result import Level
from rlprune.checkpoint import load_into, load_tensors, save_tensors
from rlprune.config import first_difference
from rlprune.errors import UserError
from rlprune.files import create_held, hold, is_whole, read_json, remove_temporaries
from rlprune.graph import ChannelGraph, prune
from rlprune.results.record import write_steps
from rlprune.search.bisection import bisected_search, seconds_of_passes
from rlprune.search.resume import keep_measured, load_state, save_state
from rlprune.search.runner import SearchState, run_search, start_state
from rlprune.search.schedule import Schedule
from rlprune.search.task import Environment

log = logging.getLogger(__name__)
CALL = "call.json"  # who holds this file works in the folder
DONE = "report.json"


@contextmanager
def held(run_dir: Path, facts: dict[str, Any]) -> Iterator[None]:
    """Work in a folder, alone: begin in it, or go on with the same call.

    Args:
        run_dir: the folder; it is made where it is not there.
        facts: what tells the call from others.

    Raises:
        UserError: another process works there, or the call there is another one, or done.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    facts = json.loads(json.dumps(facts, default=str))
    path = run_dir / CALL
    try:
        file = create_held(path, json.dumps(facts, indent=2) + "\n")
    except FileExistsError:
        try:
            file = hold(path)
        except BlockingIOError as error:
            raise UserError(f"run_dir={run_dir}: another process works there; wait for it, or name another folder") from error
    try:
        difference = first_difference(read_json(path), facts)
        if is_whole(run_dir / DONE):
            raise UserError(
                f"run_dir={run_dir}: holds a call that is done; rlprune.load(run_dir, model=...) loads it, or name another folder"
            )
        if difference is not None:
            raise UserError(f"run_dir={run_dir}: holds another call: {difference}; name another folder")
        remove_temporaries(run_dir)
        yield
    finally:
        file.close()


def architecture(network: nn.Module) -> int:
    """Changes with a network's layers."""
    return zlib.crc32(repr(network).encode())


@dataclass
class Search:
    """From the dense network to the levels that are saved.

    Args:
        agent: that decides.
        environment: that measures.
        plan: what goes in which step.
        learner: that recovers.
        dense: the network.
        graph: its channel graph.
        seed: of all streams.
        folder: of the states, and of metrics.csv.
        keeps: whether a killed search can go on from it.
        max_minutes: at which the search ends.
    """

    agent: Agent
    environment: Environment
    plan: Schedule
    learner: Learner
    dense: nn.Module
    graph: ChannelGraph
    seed: int
    folder: Path
    keeps: bool
    max_minutes: float | None
    _levels: dict[str, Level] = field(init=False, default_factory=dict)

    def run(self) -> SearchState:
        """Search, from the start or from where the folder has it."""
        states = self.folder / "checkpoint"
        if self.plan.bisected:
            ledger = self.environment.ledger
            state, _ = bisected_search(states, agent=self.agent, schedule=self.plan, ledger=ledger, load=self._load, run=self._run)
            return state
        return self._run(self._load(states), states, None)

    def levels(self, state: SearchState) -> dict[str, Level]:
        """Every level that was saved, the smallest one within all bounds as `pruned`, behind the others.

        Raises:
            UserError: the first look was beyond `max_drop` already.
        """
        names = [level["folder"] for level in state.history.levels]
        if "pruned" not in names:
            record = state.history.steps[-1]
            bound, lost = 100 * (self.plan.max_drop or 0.0), 100 * (state.dense_accuracy - record.accuracy_recovered)
            raise UserError(
                f"max_drop={bound:g}: {100 * record.sparsity:.1f} % of the channels cost {lost:.2f} points already; "
                "raise it, recovery.final_epochs, or steps for smaller steps"
            )
        names.sort(key=lambda name: name == "pruned")
        return {name: self._levels[name] if name in self._levels else self._load_level(name) for name in names}

    def _load(self, states: Path) -> SearchState:
        """The search as its folder has it, or before its first step."""
        ledger = self.environment.ledger
        state = load_state(states, self.dense, self.graph, self.agent, ledger) if self.keeps or self.plan.bisected else None
        if state is None:
            if self.plan.bisected:
                self.agent.load_state_dict({})
            state = start_state(self.dense, self.graph, self.environment.measure(self.dense))
        if self.max_minutes is not None and ledger.deadline is None:
            spent = sum(record.search_seconds + record.recovery_seconds for record in state.history.steps)
            spent += seconds_of_passes(self.folder / "checkpoint") if self.plan.bisected else 0.0
            ledger.deadline = time.monotonic() + 60 * self.max_minutes - spent
        return state

    def _run(self, state: SearchState, states: Path, until: int | None) -> SearchState:
        recovery, ledger = self.learner.recovery, self.environment.ledger

        def deciding(state: SearchState) -> AbstractContextManager[None]:
            return keep_measured(states / "measured.json", ledger, state) if self.keeps else nullcontext()

        return run_search(
            state,
            agent=self.agent,
            environment=self.environment,
            schedule=self.plan,
            recover=self.learner.recover,
            epochs=recovery.epochs,
            final_epochs=recovery.final_epochs,
            seed=self.seed,
            on_step=partial(self._after_step, states),
            on_level=self._save_level,
            deciding=deciding,
            until=until,
            progress_bar=self.learner.progress_bar,
        )

    def _after_step(self, states: Path, state: SearchState) -> None:
        if self.keeps:
            write_steps(self.folder, state.history)
        if self.keeps or self.plan.bisected:
            save_state(states, state, self.agent)

    def _save_level(self, state: SearchState, level: float | None, before: nn.Module) -> None:
        last = state.step == self.plan.steps or bool(state.history.stopped)
        names = [] if last or level is None else [f"pruned-{level:g}"]
        if last or self.plan.max_drop is not None:
            names.append("pruned")
        record = state.history.steps[-1]
        recovered = record.recovery_seconds > 0
        saved = Level(record.sparsity, record.macs, record.params, recovered, before, state.network, dict(state.kept))
        for name in names:
            self._levels[name] = saved
            if self.keeps:
                self._write_level(name, saved)
            entry = {"folder": name, "sparsity": record.sparsity, "macs": record.macs, "params": record.params, "recovered": recovered}
            if state.graph.clock is not None:
                entry["latency"] = state.graph.latency({})
            state.history.levels = [*(known for known in state.history.levels if known["folder"] != name), entry]

    def _write_level(self, name: str, level: Level) -> None:
        tensors = {f"before.{key}": tensor for key, tensor in level.before.state_dict().items()}
        tensors |= {f"after.{key}": tensor for key, tensor in level.network.state_dict().items()}
        facts = {"sparsity": level.sparsity, "macs": level.macs, "params": level.params, "recovered": level.recovered}
        keep = {group: units.tolist() for group, units in level.keep.items()}
        save_tensors(self._path(name), tensors, {"keep": keep, "facts": facts})

    def _load_level(self, name: str) -> Level:
        tensors, metadata = load_tensors(self._path(name))
        keep = {group: np.array(units, dtype=int) for group, units in metadata["keep"].items()}
        networks: dict[str, nn.Module] = {}
        for role in ("before", "after"):
            networks[role] = prune(self.dense, self.graph, keep).eval()
            own = {key.removeprefix(f"{role}."): tensor for key, tensor in tensors.items() if key.startswith(f"{role}.")}
            load_into(networks[role], own, str(self._path(name)))
        facts: Mapping[str, Any] = metadata["facts"]
        return Level(**facts, before=networks["before"], network=networks["after"], keep=keep)

    def _path(self, name: str) -> Path:
        return self.folder / "checkpoint" / f"level-{name}.safetensors"
