"""Candidates are measured on this machine: by this process, or by several."""

import os
from typing import Literal

import torch

from rlprune.evaluators.base import Kit
from rlprune.evaluators.processes import Processes
from rlprune.evaluators.scheduler import Scheduler
from rlprune.search.candidates import Workers


class Local:
    """This process, or workers beside it. Results are the same for any number of workers of the same number of threads.

    Args:
        workers: processes; null: this one alone, with all threads of the run; auto: one a GPU, or as many as cores leave each its threads.
        threads: of each worker on the CPU; the run's recoveries keep all.
        timeout: seconds without an answer to one candidate behind which a worker is replaced.
    """

    def __init__(self, *, workers: int | Literal["auto"] | None, threads: int, timeout: float) -> None:
        if isinstance(workers, int) and workers < 1:
            raise ValueError(f"workers={workers}: must be ≥ 1, auto, or null for this process alone")
        if threads < 1:
            raise ValueError(f"threads={threads}: must be ≥ 1")
        if timeout <= 0:
            raise ValueError(f"timeout={timeout:g}: must be > 0 seconds")
        self.workers, self.threads, self.timeout = workers, threads, timeout

    def start(self, kit: Kit) -> Workers | None:
        """Processes, or None: this one measures."""
        if self.workers is None:
            return None
        if self.workers == "auto":
            cuda = kit.evaluator.execution.device.type == "cuda"
            size = torch.cuda.device_count() if cuda else max(1, len(os.sched_getaffinity(0)) // self.threads)
        else:
            size = self.workers
        return Scheduler(Processes(kit, size, self.threads), kit.evaluator, timeout=self.timeout)
