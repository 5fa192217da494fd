"""Candidates are measured by Ray's actors, on this machine or on a cluster."""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from rlprune.errors import UserError
from rlprune.evaluators.base import Kit, Measuring, sendable, stage_bytes
from rlprune.evaluators.scheduler import Event, Scheduler
from rlprune.search.candidates import Stage, Workers


class Ray:
    """Actors hold data and calibration; a step's network comes to them through the object store, candidates as units that stay.

    Workers that cannot be placed yet wait for a node to join; one that goes with its node is replaced. Results are those of `local`
    with workers of the same number of threads.

    Args:
        address: of a running cluster, `auto` for the one of this machine, null: that of RAY_ADDRESS, or one of its own for this run.
        workers: actors; auto: as many as the cluster has room for, looked up again at every pruning step.
        threads: CPUs that each claims, and uses.
        num_gpus: that each claims, a fraction where several share one; null: one where the run is on a GPU, none elsewhere.
        timeout: seconds without an answer to one candidate behind which a worker is replaced.
    """

    def __init__(
        self, *, address: str | None, workers: int | Literal["auto"], threads: int, num_gpus: float | None, timeout: float
    ) -> None:
        if isinstance(workers, int) and workers < 1:
            raise ValueError(f"workers={workers}: must be ≥ 1, or auto")
        if threads < 1:
            raise ValueError(f"threads={threads}: must be ≥ 1")
        if num_gpus is not None and num_gpus < 0:
            raise ValueError(f"num_gpus={num_gpus:g}: must be ≥ 0; 0.25 lets four workers share a GPU")
        if timeout <= 0:
            raise ValueError(f"timeout={timeout:g}: must be > 0 seconds")
        self.address, self.workers, self.threads, self.num_gpus, self.timeout = address, workers, threads, num_gpus, timeout

    def start(self, kit: Kit) -> Workers:
        """Connect, and ask for the actors.

        Raises:
            UserError: Ray is not installed, its cluster cannot be reached, or a GPU is needed and none is claimed.
        """
        try:
            import ray
        except ModuleNotFoundError as error:
            raise UserError("evaluator=ray: needs the package ray; pip install 'rlprune[ray]'") from error
        cuda = kit.evaluator.execution.device.type == "cuda"
        num_gpus = float(cuda) if self.num_gpus is None else self.num_gpus
        if cuda and not num_gpus:
            raise UserError(
                "evaluator.num_gpus=0: the run is on a GPU, and so are its workers; claim a share, such as 0.25, or use device=cpu"
            )
        owned = not ray.is_initialized()
        if owned:
            try:
                own: dict[str, Any] = {"include_dashboard": False} if self.address is None else {}
                ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False, **own)
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(
                    f"evaluator.address={self.address}: no Ray cluster can be reached ({reason}); start one, or use null"
                ) from error
        size = None if self.workers == "auto" else self.workers
        return Scheduler(Actors(ray, kit, size, self.threads, num_gpus, owned), kit.evaluator, timeout=self.timeout)


class _Actor:
    """A worker as Ray runs it.

    Args:
        path: where this program finds modules.
        threads: of torch.
        kit: of the search, uint8.
    """

    def __init__(self, path: Sequence[str], threads: int, kit: np.ndarray) -> None:
        sys.path.extend(folder for folder in path if folder not in sys.path)
        torch.set_num_threads(threads)
        self.measuring = Measuring(kit.data)

    def ready(self) -> bool:
        """It can take jobs."""
        return True

    def begin(self, stage: np.ndarray) -> None:
        """See `Measuring`; uint8."""
        self.measuring.begin(stage.data)

    def answer(self, job: bytes) -> bytes:
        """See `Measuring`."""
        return self.measuring.answer(job)


@dataclass
class Actors:
    """A crew of Ray's actors.

    Args:
        ray: the package.
        kit: of a search.
        asked: workers; None: as many as there is room for.
        threads: CPUs of each.
        num_gpus: of each.
        owned: the connection ends with the crew.
    """

    ray: Any
    kit: Kit
    asked: int | None
    threads: int
    num_gpus: float
    owned: bool
    _actors: dict[int, Any] = field(init=False, default_factory=dict)
    _told: dict[int, Stage | None] = field(init=False, default_factory=dict)  # of which network each was told
    _awaited: dict[Any, int] = field(init=False, default_factory=dict)  # what will tell of a worker
    _stage: Stage | None = field(init=False, default=None)
    _stage_ref: Any = field(init=False, default=None)
    _started: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Ask for all of them: they import torch while the search goes on."""
        self._kit_ref = self._put(sendable("data or a plug-in", self.kit))
        self._fill()

    def __str__(self) -> str:
        gpus = f" and {self.num_gpus:g} GPU" if self.num_gpus else ""
        return f"{self.size} Ray worker{'s' * (self.size > 1)} of {self.threads} CPU{'s' * (self.threads > 1)}{gpus} each"

    @property
    def size(self) -> int:
        """See `Crew`."""
        return self.asked or max(1, len(self._actors))

    @property
    def power(self) -> float:
        """See `Crew`."""
        return self.size * self.num_gpus if self.num_gpus else self.size * self.threads / torch.get_num_threads()

    def begin(self, stage: Stage) -> None:
        """The network goes to the object store once; every node fetches it once."""
        content = stage_bytes(stage)
        self._stage, self._stage_ref = stage, self._put(content)
        self._fill()

    def give(self, worker: int, job: bytes) -> None:
        """See `Crew`."""
        actor = self._actors[worker]
        if self._told[worker] is not self._stage:
            actor.begin.remote(self._stage_ref)  # in order with the job
            self._told[worker] = self._stage
        self._awaited[actor.answer.remote(job)] = worker

    def wait(self, seconds: float) -> list[Event]:
        """See `Crew`."""
        if not self._awaited:
            time.sleep(seconds)
            return []
        done, _ = self.ray.wait(list(self._awaited), timeout=seconds)
        return [self._event(reference) for reference in done]

    def dismiss(self, worker: int) -> None:
        """See `Crew`."""
        self._forget(worker)
        self._fill()

    def close(self) -> None:
        """See `Crew`."""
        for worker in list(self._actors):
            self._forget(worker)
        self._stage_ref = self._kit_ref = None
        if self.owned:
            self.ray.shutdown()

    def _event(self, reference: Any) -> Event:
        worker = self._awaited.pop(reference)
        try:
            value = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self._forget(worker)
            self._fill()
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return Event(worker, lost=f"was lost ({lines[-1][:200] if lines else type(error).__name__})")
        return Event(worker, value if isinstance(value, bytes) else None)

    def _forget(self, worker: int) -> None:
        self.ray.kill(self._actors.pop(worker), no_restart=True)
        del self._told[worker]
        self._awaited = {reference: other for reference, other in self._awaited.items() if other != worker}

    def _fill(self) -> None:
        """Ask for the workers that are missing; Ray places them as soon as there is room."""
        while len(self._actors) < (self.asked or self._room()):
            options = {"num_cpus": self.threads, "num_gpus": self.num_gpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
            actor = self.ray.remote(_Actor).options(**options).remote(sys.path, self.threads, self._kit_ref)
            number, self._started = self._started, self._started + 1
            self._actors[number], self._told[number] = actor, None
            self._awaited[actor.ready.remote()] = number

    def _room(self) -> int:
        """Workers that the cluster has room for, were it empty."""
        there = self.ray.cluster_resources()
        by_gpus = there.get("GPU", 0) / self.num_gpus if self.num_gpus else float("inf")
        return max(1, int(min(there.get("CPU", 0) / self.threads, by_gpus)))

    def _put(self, content: bytes) -> Any:
        return self.ray.put(np.frombuffer(content, dtype=np.uint8))
