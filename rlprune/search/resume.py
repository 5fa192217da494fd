"""A search on disk after every step, so that a killed run goes on where it was."""

import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from rlprune.agents.base import Agent
from rlprune.checkpoint import load_into, load_tensors, save_tensors
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph, prune
from rlprune.results.record import History, StepRecord
from rlprune.search.runner import SearchState
from rlprune.search.task import Ledger

log = logging.getLogger(__name__)
KEPT = 2


def save_state(folder: Path, state: SearchState, agent: Agent) -> None:
    """Write the state after a step and forget all but the last two."""
    tensors = {f"student.{name}": tensor for name, tensor in state.network.state_dict().items()}
    tensors |= {f"teacher.{name}": tensor for name, tensor in state.teacher.state_dict().items()}
    metadata = {
        "kept": {name: units.tolist() for name, units in state.kept.items()},
        "teacher_kept": {name: units.tolist() for name, units in state.teacher_kept.items()},
        "teacher_accuracy": state.teacher_accuracy,
        "dense_accuracy": state.dense_accuracy,
        "carry": state.carry.tolist(),
        "step": state.step,
        "history": asdict(state.history),
        "agent": agent.state_dict(),
    }
    save_tensors(folder / f"step-{state.step:04d}.safetensors", tensors, metadata)
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()


def forget_states(folder: Path) -> None:
    """Remove the saved states of a run that is done."""
    shutil.rmtree(folder, ignore_errors=True)


def load_state(folder: Path, dense: nn.Module, graph: ChannelGraph, agent: Agent, ledger: Ledger) -> SearchState | None:
    """The newest readable state; None where there is none. A damaged file falls back to the one before."""
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            tensors, metadata = load_tensors(path)
            return _restore(path, tensors, metadata, dense, graph, agent, ledger)
        except (UserError, KeyError, TypeError, ValueError) as error:
            log.warning("%s: cannot be used (%s); trying the one before", path, error)
    return None


def _restore(
    path: Path, tensors: dict[str, Any], metadata: dict[str, Any], dense: nn.Module, graph: ChannelGraph, agent: Agent, ledger: Ledger
) -> SearchState:
    networks = {}
    kept = {}
    for role, key in (("student", "kept"), ("teacher", "teacher_kept")):
        kept[role] = {name: np.array(units, dtype=int) for name, units in metadata[key].items()}
        networks[role] = prune(dense, graph, kept[role])
        own = {name.removeprefix(f"{role}."): tensor for name, tensor in tensors.items() if name.startswith(f"{role}.")}
        load_into(networks[role], own, str(path))
    history = dict(metadata["history"])
    history["steps"] = [StepRecord(**record) for record in history["steps"]]
    history["recoveries"] = [(phase, epochs) for phase, epochs in history["recoveries"]]
    state = SearchState(
        network=networks["student"],
        graph=graph.after(kept["student"]),
        kept=kept["student"],
        teacher=networks["teacher"].eval(),
        teacher_kept=kept["teacher"],
        teacher_accuracy=metadata["teacher_accuracy"],
        dense_accuracy=metadata["dense_accuracy"],
        carry=np.array(metadata["carry"], dtype=float),
        step=metadata["step"],
        history=History(**history),
    )
    agent.load_state_dict(metadata["agent"])
    ledger.distinct, ledger.repeated = state.history.candidates, state.history.repeated
    return state
