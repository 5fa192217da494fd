"""A search on disk after every step, and what a step has measured, so that a killed run goes on where it was."""

import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from rlprune.agents.base import Agent
from rlprune.checkpoint import load_into, load_tensors, packed, save_tensors, tensors_checksum, unpacked
from rlprune.errors import UserError
from rlprune.files import read_json, write_sealed
from rlprune.graph import ChannelGraph, prune
from rlprune.results.record import History, StepRecord, elapsed
from rlprune.search.ledger import Ledger, Measured
from rlprune.search.runner import SearchState

log = logging.getLogger(__name__)
KEPT = 2
EVERY = 60.0  # seconds of measuring that a SIGKILL may cost


Further = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and plain values that are kept beside a search."""


def save_state(folder: Path, state: SearchState, agent: Agent, further: Further | None = None) -> None:
    """Write the state after a step and forget all but the last two.

    Args:
        folder: of the states.
        state: of the search.
        agent: that searches.
        further: what is kept beside.

    Raises:
        UserError: a number is not finite.
    """
    tensors = {f"student.{name}": tensor for name, tensor in state.network.state_dict().items()}
    if state.teacher is not state.network:
        tensors |= {f"teacher.{name}": tensor for name, tensor in state.teacher.state_dict().items()}
    if further is not None:
        tensors |= {f"further.{name}": tensor for name, tensor in further[0].items()}
    metadata = {
        "kept": {name: units.tolist() for name, units in state.kept.items()},
        "teacher_kept": {name: units.tolist() for name, units in state.teacher_kept.items()},
        "teacher_accuracy": state.teacher_accuracy,
        "dense_accuracy": state.dense_accuracy,
        "carry": state.carry.tolist(),
        "step": state.step,
        "aim": None if state.aim is None else state.aim.tolist(),
        "history": asdict(state.history),
        "agent": packed(agent.state_dict(), tensors, "agent"),
        "further": None if further is None else further[1],
    }
    try:
        save_tensors(folder / f"step-{state.step:04d}.safetensors", tensors, metadata)
    except ValueError as error:
        raise UserError(
            f"step {state.step}: what the agent remembers or has reported is not finite ({error}); lower its learning rates"
        ) from error
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()


def forget_states(folder: Path) -> None:
    """Remove the saved states of a run that is done."""
    shutil.rmtree(folder, ignore_errors=True)


def load_state(
    folder: Path,
    dense: nn.Module,
    graph: ChannelGraph,
    agent: Agent,
    ledger: Ledger,
    take: Callable[[dict[str, Tensor], dict[str, Any]], None] | None = None,
) -> SearchState | None:
    """The newest readable state; None where there is none. A damaged file falls back to the one before.

    Args:
        folder: of the states.
        dense: network that the search started from.
        graph: its channel graph.
        agent: that takes up its own state.
        ledger: likewise.
        take: what takes up the `further` of `save_state`; it may refuse it with a KeyError, RuntimeError, TypeError or ValueError.
    """
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            tensors, metadata = load_tensors(path)
            state = _restore(path, tensors, metadata, dense, graph)
            if take is not None:  # before the agent, which a search that starts anew must find as it was
                take(_named(tensors, "further"), metadata["further"])
            agent.load_state_dict(unpacked(metadata["agent"], tensors))
            ledger.distinct, ledger.repeated = state.history.candidates, state.history.repeated
            return state
        except (UserError, KeyError, RuntimeError, TypeError, ValueError) as error:
            log.warning("%s: cannot be used (%s); trying the one before", path, " ".join(str(error).split())[:200])
    return None


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with a prefix, without it."""
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def _restore(path: Path, tensors: dict[str, Any], metadata: dict[str, Any], dense: nn.Module, graph: ChannelGraph) -> SearchState:
    networks: dict[str, nn.Module] = {}
    kept: dict[str, dict[str, np.ndarray]] = {}
    for role, key in (("student", "kept"), ("teacher", "teacher_kept")):
        kept[role] = {name: np.array(units, dtype=int) for name, units in metadata[key].items()}
        own = _named(tensors, role)
        if not own and role == "teacher":  # the network is its own
            networks[role] = networks["student"]
            continue
        networks[role] = prune(dense, graph, kept[role])
        load_into(networks[role], own, str(path))
    history = dict(metadata["history"])
    history["steps"] = [StepRecord(**record) for record in history["steps"]]
    history["recoveries"] = [(phase, epochs) for phase, epochs in history["recoveries"]]
    return SearchState(
        network=networks["student"],
        graph=graph.after(kept["student"]),
        kept=kept["student"],
        teacher=networks["teacher"].eval(),
        teacher_kept=kept["teacher"],
        teacher_accuracy=metadata["teacher_accuracy"],
        dense_accuracy=metadata["dense_accuracy"],
        carry=np.array(metadata["carry"], dtype=float),
        step=metadata["step"],
        aim=None if metadata.get("aim") is None else np.array(metadata["aim"], dtype=int),
        history=History(**history),
    )


# -- within a step ---------------------------------------------------------------------------------------------------------------------


class Stage(Protocol):
    """What candidates are cut from, and behind how many steps."""

    @property
    def network(self) -> nn.Module:
        """What they are cut from."""

    @property
    def step(self) -> int:
        """Steps done."""


@contextmanager
def keep_measured(path: Path, ledger: Ledger, state: Stage, title: str | None = None) -> Iterator[None]:
    """While an agent decides: keep what it measures in a file, and take what is there instead of measuring it again.

    Decisions follow from the step's random stream and the measurements, so the accuracies in their order are all there is to keep; a
    fingerprint of each candidate shows if they do not.
    Ctrl-C and SIGTERM wait for the candidate being measured; a second one does not.

    Args:
        path: of the file.
        ledger: what measures.
        state: what the candidates are cut from.
        title: how messages call it; None: the number of the step.

    Raises:
        KeyboardInterrupt: one of these came.
    """
    state_of = {"step": state.step + 1, "network": tensors_checksum(state.network.state_dict())}
    kept = _Measured(path, ledger, state_of, title or f"step {state.step + 1}")
    kept.restore()
    with _patience() as interrupted:

        def after_one() -> None:
            if interrupted():
                raise KeyboardInterrupt
            if not 0 <= kept.due - time.monotonic() <= EVERY:  # or the clock was put back
                kept.save()

        ledger.on_accuracy = after_one
        try:
            yield
        except Exception as error:
            if interrupted():  # it may have ended the workers that decode images
                raise KeyboardInterrupt from error
            raise
        finally:
            ledger.on_accuracy = lambda: None
            kept.save()  # a recovery may follow, which ends at once
        if interrupted():
            raise KeyboardInterrupt


class _Measured:
    """The file of what a step has measured.

    Args:
        path: of the file.
        ledger: what measures and knows.
        state_of: step and network that the accuracies belong to.
        title: how messages call it.
    """

    def __init__(self, path: Path, ledger: Ledger, state_of: dict[str, int], title: str) -> None:
        self.path, self.ledger, self.state_of, self.title = path, ledger, state_of, title
        self.started, self.due = time.perf_counter(), time.monotonic() + EVERY

    def restore(self) -> None:
        """Tell the ledger what is known."""
        ledger = self.ledger
        ledger.known, ledger.known_seconds, ledger.in_time = _read_measured(self.path, self.state_of)
        if ledger.known:
            log.info("%s: %d candidates were measured before the interruption", self.title, len(ledger.known))
        if ledger.deadline is not None:
            ledger.deadline -= ledger.known_seconds

    def save(self) -> None:
        """Write what is known by now; a search is worth more than this file, so a full disk does not end it."""
        lines = [*self.ledger.measured, *self.ledger.known[len(self.ledger.measured) :]]
        seconds = self.ledger.known_seconds + elapsed(self.started)
        try:
            content = {
                "seconds": seconds,
                "accuracies": [line.accuracy for line in lines],
                "fingerprints": [line.fingerprint for line in lines],
                "in_time": self.ledger.in_time,  # the rest was measured behind the deadline, such as what is carried out
            }
            write_sealed(self.path, self.state_of | content)
        except (OSError, ValueError) as error:
            log.warning("%s: what was measured cannot be saved (%s)", self.path, error)
        self.due = time.monotonic() + EVERY


def _read_measured(path: Path, state_of: dict[str, int]) -> tuple[list[Measured], float, int]:
    """Accuracies, seconds, and how many came in time; none where the file is damaged, or belongs to another step."""
    if not path.exists():
        return [], 0.0, 0
    try:
        kept = read_json(path)
        accuracies, seconds, prints = kept["accuracies"], kept["seconds"], kept["fingerprints"]
        if not (isinstance(accuracies, list) and all(type(value) is float and math.isfinite(value) for value in [seconds, *accuracies])):
            raise ValueError("it holds something else than accuracies")
        if kept["step"] != state_of["step"]:
            return [], 0.0, 0
        if kept["network"] != state_of["network"]:
            raise ValueError("it belongs to another network")
        if not (isinstance(prints, list) and all(type(value) is int for value in prints) and len(prints) == len(accuracies)):
            raise ValueError("it does not say what they belong to")
        in_time = min(int(kept["in_time"]), len(accuracies))
    except (UserError, KeyError, TypeError, ValueError) as error:
        log.warning("%s: cannot be used (%s); measuring again", path, error)
        return [], 0.0, 0
    return list(map(Measured, prints, accuracies)), seconds, in_time


@contextmanager
def _patience() -> Iterator[Callable[[], bool]]:
    """Remember the first Ctrl-C or SIGTERM instead of ending at once; what is yielded says whether it came."""
    process = os.getpid()
    came: list[int] = []
    old: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    def remember(number: int, frame: Any) -> None:
        if os.getpid() == process:
            restore()  # a second one ends at once
            came.append(number)
            with suppress(OSError):  # a print could come in the middle of another
                os.write(2, b"\ninterrupted: ends behind the candidate being measured; once more ends at once\n")
        elif number != signal.SIGINT:  # a worker lives until it is told to go; Ctrl-C reaches it, too
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (None, signal.SIG_IGN):  # who ignores them goes on doing so
                old[number] = signal.signal(number, remember)
    try:
        yield lambda: bool(came)
    finally:
        restore()
