"""Sharing candidates out to workers that may come, go, die, hang, or answer nonsense."""

import logging
import math
import time
from collections import deque
from collections.abc import Generator, Sequence
from itertools import count
from typing import NamedTuple, Protocol

from rlprune.errors import UserError
from rlprune.evaluators.base import Job, read_answer
from rlprune.search.candidates import Request, Stage
from rlprune.training.evaluate import Evaluator

log = logging.getLogger(__name__)
LOSSES = 3  # workers that one candidate may cost
AGAIN = 0.02  # of a candidate's time that every part of it costs, as it is cut anew
TICK = 1.0  # seconds between two looks at the clock


class Event(NamedTuple):
    """What became of a worker: it is ready where there is neither an answer nor a reason, lost where there is a reason."""

    worker: int
    answer: bytes | None = None
    lost: str = ""


class Crew(Protocol):
    """Workers by number, and how to reach them. Who is lost or dismissed is replaced by one of another number."""

    @property
    def size(self) -> int:
        """Workers that there are, or are on their way."""
        ...

    @property
    def power(self) -> float:
        """Threads of all of them to those of this process; on GPUs the number of workers."""
        ...

    def begin(self, stage: Stage) -> None:
        """Jobs that are given from now on are of this network."""

    def give(self, worker: int, job: bytes) -> None:
        """Hand a job to a worker that has none. One that is gone makes an event of it."""

    def wait(self, seconds: float) -> list[Event]:
        """What has happened since the last call; waits for it, but no longer."""

    def dismiss(self, worker: int) -> None:
        """End a worker, without an event."""

    def close(self) -> None:
        """End all of them."""


def parts_of(candidates: int, workers: int, batches: int) -> list[int]:
    """Into how many parts of its images each candidate is cut, so that workers end at about the same time.

    Those that fill whole rounds stay whole; what is left over is cut, as long as that saves more than cutting a candidate again costs.

    Args:
        candidates: that are measured at once.
        workers: that share them.
        batches: of images; there are no smaller parts.
    """
    left = candidates % workers
    parts = min(range(1, batches + 1), key=lambda parts: math.ceil(left * parts / workers) / parts + AGAIN * parts)
    return [1] * (candidates - left) + [parts] * left


class Scheduler:
    """Measures candidates with a crew. Answers come in the order of the requests, whoever gives them first.

    Candidates that would leave workers idle are cut into parts of their images: numbers of correct images add up to the same.

    Args:
        crew: the workers.
        evaluator: whose batches are shared out.
        timeout: seconds without an answer behind which a worker is replaced.
    """

    def __init__(self, crew: Crew, evaluator: Evaluator, *, timeout: float) -> None:
        self.crew, self.evaluator, self.timeout = crew, evaluator, timeout
        self._stage: Stage | None = None
        self._numbers = count()
        self._idle: set[int] = set()
        self._running: dict[int, tuple[Job, float]] = {}  # by worker: its job, and when it is overdue
        self._heard = time.monotonic()  # when a worker last came, or answered
        self._lost_in_a_row = 0
        self.answers, self.busy_seconds, self.waited_seconds = 0, 0.0, 0.0  # of the workers; of the search, for them

    def measure(self, stage: Stage, requests: Sequence[Request]) -> Generator[float, None, None]:
        """Accuracies, in the order of the requests; what is under way when it is closed is dropped.

        Raises:
            UserError: no worker is left, or a candidate costs one after another.
        """
        if not requests:
            return
        if stage is not self._stage:
            self.crew.begin(stage)
            self._stage = stage
        work = _Work(self._jobs(requests), len(requests))
        self._heard = time.monotonic()
        for place in range(len(requests)):
            while work.missing[place]:
                self._hand_out(work)
                self._listen(work)
            self._hand_out(work)
            yield work.correct[place] / len(self.evaluator)

    @property
    def power(self) -> float:
        """How many times the share of this machine that the search has alone, by threads or GPUs; its speed goes with it, at best."""
        return self.crew.power

    def __str__(self) -> str:
        return str(self.crew)

    def close(self) -> None:
        """Dismiss the workers."""
        self.crew.close()
        if self.answers:
            log.info(
                "workers: %d answers, %.1f ms each; the search waited %.1f s for them",
                self.answers, 1000 * self.busy_seconds / self.answers, self.waited_seconds,
            )  # fmt: skip

    def _jobs(self, requests: Sequence[Request]) -> list[list[Job]]:
        """Of each request."""
        total = math.ceil(len(self.evaluator) / self.evaluator.batch_size)
        jobs = []
        for request, parts in zip(requests, parts_of(len(requests), self.crew.size, total), strict=True):
            bounds = [(part * total // parts, (part + 1) * total // parts) for part in range(parts)]
            jobs.append([Job(next(self._numbers), request, batches) for batches in bounds])
        return jobs

    def _hand_out(self, work: "_Work") -> None:
        """A job to everyone who has none."""
        assert self._stage is not None
        while self._idle and work.waiting:
            worker, job = self._idle.pop(), work.waiting.popleft()
            self._running[worker] = job, time.monotonic() + self.timeout
            self.crew.give(worker, job.packed(self._stage.graph))

    def _listen(self, work: "_Work") -> None:
        """Take what has come, and give up who is overdue."""
        started = time.perf_counter()
        events = self.crew.wait(TICK)
        self.waited_seconds += time.perf_counter() - started
        for event in events:
            if event.lost:
                self._idle.discard(event.worker)
                self._lose(event.worker, event.lost, work)
            elif event.answer is None:
                self._heard = time.monotonic()
                self._idle.add(event.worker)
            else:
                self._take(event.worker, event.answer, work)
        now = time.monotonic()
        for worker in [worker for worker, (_, due) in self._running.items() if now > due]:
            self.crew.dismiss(worker)
            self._lose(worker, f"has not answered for {self.timeout:g} s (evaluator.timeout)", work)
        if not self._running and not self._idle and now > self._heard + self.timeout:
            raise UserError(
                f"evaluator: no worker has come for {self.timeout:g} s; raise evaluator.timeout, or use fewer evaluator.workers"
            )

    def _take(self, worker: int, message: bytes, work: "_Work") -> None:
        if worker not in self._running:
            self.crew.dismiss(worker)
            self._lose(worker, "answered without being asked", work)
            return
        job = self._running[worker][0]
        try:
            answer = read_answer(message, job, self._images(job))
            correct, self.answers, self.busy_seconds = answer.correct, self.answers + 1, self.busy_seconds + answer.seconds
        except ValueError as problem:
            self.crew.dismiss(worker)
            self._lose(worker, f"gave an answer that is none: {problem}", work)
            return
        except (UserError, RuntimeError):
            if work.wants(job):
                raise
            correct = 0
        del self._running[worker]
        self._idle.add(worker)
        self._heard, self._lost_in_a_row = time.monotonic(), 0
        work.done(job, correct)

    def _images(self, job: Job) -> int:
        first, last = (min(batch * self.evaluator.batch_size, len(self.evaluator)) for batch in job.batches)
        return last - first

    def _lose(self, worker: int, why: str, work: "_Work") -> None:
        """A worker is gone: another one measures what it had."""
        job = self._running.pop(worker, (None, 0.0))[0]
        self._lost_in_a_row += 1
        again = "; its candidate is measured again" if job is not None and work.wants(job) else ""
        log.warning("worker %d %s%s", worker, why, again)
        if self._lost_in_a_row > LOSSES * self.crew.size:
            raise UserError(f"evaluator: {self._lost_in_a_row} workers were lost without an answer between, the last as it {why}")
        if job is not None and work.wants(job) and work.lose(job) >= LOSSES:
            raise UserError(
                f"evaluator: a candidate has cost {LOSSES} workers, the last {why}; use fewer evaluator.workers, or evaluator.workers=null"
            )


class _Work:
    """Jobs of one call: those that wait for a worker, and what is known of each request."""

    def __init__(self, jobs: Sequence[Sequence[Job]], requests: int) -> None:
        self.waiting = deque(job for of_request in jobs for job in of_request)
        self.missing, self.correct = [len(of_request) for of_request in jobs], [0] * requests
        self._place = {job.number: place for place, of_request in enumerate(jobs) for job in of_request}
        self._losses: dict[int, int] = {}

    def wants(self, job: Job) -> bool:
        """It belongs to this call."""
        return job.number in self._place

    def done(self, job: Job, correct: int) -> None:
        """Count what was found; that of another call is of no use any more."""
        if self.wants(job):
            self.correct[self._place[job.number]] += correct
            self.missing[self._place[job.number]] -= 1

    def lose(self, job: Job) -> int:
        """Let another worker do it; returns how many it has cost."""
        self.waiting.appendleft(job)
        self._losses[job.number] = self._losses.get(job.number, 0) + 1
        return self._losses[job.number]
