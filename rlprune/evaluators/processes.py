"""Workers on this machine, a process each."""

import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from rlprune.errors import UserError
from rlprune.evaluators.base import Kit, sendable, stage_bytes
from rlprune.evaluators.process import READY, STAGE
from rlprune.evaluators.scheduler import Event
from rlprune.evaluators.wire import FrameError, Frames, send, shared_file
from rlprune.search.candidates import Stage

log = logging.getLogger(__name__)


@dataclass
class _Worker:
    """A process, and how it is reached."""

    process: subprocess.Popen[bytes]
    frames: Frames
    place: int  # which of the crew's places it has
    stage: Stage | None = None  # that it was told of
    ready: bool = False

    @property
    def channel(self) -> socket.socket:
        """To it."""
        return self.frames.channel


@dataclass
class Processes:
    """A crew of processes. They end when the search does, however that ends: their socket is closed then.

    Ctrl-C does not reach them, as they have a session of their own. On a machine with GPUs each sees one, in turn.

    Args:
        kit: of a search.
        size: workers.
        threads: of each.
    """

    kit: Kit
    size: int
    threads: int
    _workers: dict[int, _Worker] = field(init=False, default_factory=dict)
    _selector: selectors.DefaultSelector = field(init=False, default_factory=selectors.DefaultSelector)
    _stage: Stage | None = field(init=False, default=None)
    _stage_file: int | None = field(init=False, default=None)
    _gone: list[Event] = field(init=False, default_factory=list)
    _started: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Start them all: they import torch while the search goes on."""
        self._kit_file = shared_file(sendable("data or a plug-in", self.kit))
        for place in range(self.size):
            self._start(place)

    def __str__(self) -> str:
        return f"{self.size} process{'es' * (self.size > 1)} of {self.threads} thread{'s' * (self.threads > 1)} each"

    @property
    def power(self) -> float:
        """See `Crew`."""
        if self.kit.evaluator.execution.device.type == "cuda":
            return float(min(self.size, torch.cuda.device_count()))
        return self.size * self.threads / torch.get_num_threads()

    def begin(self, stage: Stage) -> None:
        """The network is written to memory once; a worker maps it before its next job."""
        content = stage_bytes(stage)
        if self._stage_file is not None:
            os.close(self._stage_file)
        self._stage, self._stage_file = stage, shared_file(content)

    def give(self, worker: int, job: bytes) -> None:
        """See `Crew`."""
        assert self._stage_file is not None
        one = self._workers[worker]
        try:
            if one.stage is not self._stage:
                send(one.channel, STAGE, self._stage_file)
                one.stage = self._stage
            send(one.channel, job)
        except OSError:
            self._lost(worker)

    def wait(self, seconds: float) -> list[Event]:
        """See `Crew`."""
        events, self._gone = self._gone, []
        for key, _ in self._selector.select(0 if events else seconds):
            events += self._heard(key.data)
        gone, self._gone = self._gone, []
        return events + gone

    def dismiss(self, worker: int) -> None:
        """See `Crew`."""
        self._start(self._end(worker).place)

    def close(self) -> None:
        """See `Crew`."""
        for worker in list(self._workers):
            self._end(worker)
        self._selector.close()
        for descriptor in (self._kit_file, self._stage_file):
            if descriptor is not None:
                os.close(descriptor)
        self._stage_file = None

    def _heard(self, worker: int) -> list[Event]:
        one = self._workers[worker]
        try:
            messages = one.frames.read()
        except FrameError:
            return [Event(worker, b"")]  # which is no answer
        if messages is None:
            self._lost(worker)
            return []
        if one.ready or not messages:
            return [Event(worker, message) for message in messages]
        if messages[0] != READY:
            raise UserError(f"evaluator: a worker cannot begin: {messages[0].decode(errors='replace')[:500]}")
        one.ready = True
        return [Event(worker), *(Event(worker, message) for message in messages[1:])]

    def _lost(self, worker: int) -> None:
        """One that has ended by itself is replaced."""
        with suppress(subprocess.TimeoutExpired):  # how it ended is known a moment after its socket is closed
            self._workers[worker].process.wait(1.0)
        ended = self._end(worker)
        self._gone.append(Event(worker, lost=_why(ended.process.returncode)))
        self._start(ended.place)

    def _end(self, worker: int) -> _Worker:
        one = self._workers.pop(worker)
        self._selector.unregister(one.channel)
        one.channel.close()
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        return one

    def _start(self, place: int) -> None:
        ours, theirs = socket.socketpair()
        passed = (theirs.fileno(), self._kit_file)
        line = [sys.executable, "-m", "rlprune.evaluators.process", *map(str, passed), str(self.threads)]
        try:
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=2, env=self._environment(place), pass_fds=passed, start_new_session=True
            )
        except OSError as error:
            ours.close()
            raise UserError(f"evaluator: a worker cannot be started ({error.strerror}); use fewer evaluator.workers") from error
        finally:
            theirs.close()
        number, self._started = self._started, self._started + 1
        self._workers[number] = _Worker(process, Frames(ours), place)
        self._selector.register(ours, selectors.EVENT_READ, number)

    def _environment(self, place: int) -> dict[str, str]:
        """Modules are found as here; threads and GPUs are shared out."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        gpus = {}
        if self.kit.evaluator.execution.device.type == "cuda":
            seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
            gpus = {"CUDA_VISIBLE_DEVICES": seen.split(",")[place % len(seen.split(","))]}
        return {**os.environ, **threads, "PYTHONPATH": path, **gpus}


def _why(code: int | None) -> str:
    """A worker was lost."""
    if code is None or code >= 0:
        return f"has ended (exit code {code})"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}" + (", as where memory runs out" if name == "SIGKILL" else "")
