"""A search on disk after every step, so that a killed run goes on where it was."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from rlprune.agents.base import Agent
from rlprune.checkpoint import load_into, load_tensors, save_tensors
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph, prune
from rlprune.results.record import StepRecord
from rlprune.search.runner import SearchState
from rlprune.search.task import Ledger

log = logging.getLogger(__name__)
KEPT = 2


def save_state(folder: Path, state: SearchState, agent: Agent, ledger: Ledger, elapsed: float) -> None:
    """Write the state after a step and forget all but the last two."""
    tensors = {f"student.{name}": tensor for name, tensor in state.network.state_dict().items()}
    tensors |= {f"teacher.{name}": tensor for name, tensor in state.teacher.state_dict().items()}
    metadata = {
        "kept": {name: units.tolist() for name, units in state.kept.items()},
        "teacher_kept": {name: units.tolist() for name, units in state.teacher_kept.items()},
        "teacher_accuracy": state.teacher_accuracy,
        "step": state.step,
        "steps": [asdict(record) for record in state.steps],
        "layers": state.layers,
        "recoveries": state.recoveries,
        "stopped": state.stopped,
        "agent": agent.state_dict(),
        "ledger": {"distinct": ledger.distinct, "repeated": ledger.repeated, "seconds": ledger.seconds},
        "elapsed": elapsed,
    }
    save_tensors(folder / f"step-{state.step:04d}.safetensors", tensors, metadata)
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()


def load_state(
    folder: Path, dense: nn.Module, graph: ChannelGraph, agent: Agent, ledger: Ledger
) -> tuple[SearchState, float] | None:
    """The newest readable state and the seconds spent until then; None where there is none. A damaged file falls back to the one before."""
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            tensors, metadata = load_tensors(path)
            return _restore(path, tensors, metadata, dense, graph, agent, ledger), float(metadata["elapsed"])
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
    state = SearchState(
        network=networks["student"],
        graph=graph.after(kept["student"]),
        kept=kept["student"],
        teacher=networks["teacher"].eval(),
        teacher_kept=kept["teacher"],
        teacher_accuracy=metadata["teacher_accuracy"],
        step=metadata["step"],
        steps=[StepRecord(**record) for record in metadata["steps"]],
        layers=metadata["layers"],
        recoveries=[(phase, epochs) for phase, epochs in metadata["recoveries"]],
        stopped=metadata["stopped"],
    )
    agent.load_state_dict(metadata["agent"])
    for name, value in metadata["ledger"].items():
        setattr(ledger, name, value)
    return state
