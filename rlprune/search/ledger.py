"""What a search has measured, step by step: known from before an interruption, or measured now, until it may measure no more."""

import logging
import math
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np

log = logging.getLogger(__name__)


class Measured(NamedTuple):
    """A distinct candidate's accuracy, and a number that tells it from others."""

    fingerprint: int
    accuracy: float


@dataclass
class Ledger:
    """Counts what a search measures and says when it must end.

    `distinct` candidates were measured, `repeated` came from the cache. `max_candidates` bounds the distinct ones of a step; `deadline` is
    on the clock of time.monotonic. `on_measure` is called with every accuracy, `on_report` with what an agent reports. `measured` holds
    the step's distinct candidates in their order, `in_time` of them before the deadline; those that are `known` from before the search was
    interrupted, in `known_seconds`, are not measured again.
    """

    max_candidates: int | None = None
    deadline: float | None = None
    distinct: int = 0
    repeated: int = 0
    step_start: int = 0
    on_measure: Callable[[float], None] = lambda accuracy: None
    measured: list[Measured] = field(default_factory=list)
    known: list[Measured] = field(default_factory=list)
    known_seconds: float = 0.0
    in_time: int = 0
    on_accuracy: Callable[[], None] = lambda: None
    on_report: Callable[[dict[str, Any]], None] = lambda values: None

    @property
    def expired(self) -> bool:
        """The time for the search is over; it is not before all are known that it was enough for before the interruption."""
        return self.deadline is not None and time.monotonic() >= self.deadline and len(self.measured) >= self.in_time

    @property
    def exhausted(self) -> bool:
        """No further candidate may be measured in this step."""
        return self.exhausted_at(1.0)

    def exhausted_at(self, share: float) -> bool:
        """No further candidate may be measured in this step before so large a share of it is over."""
        return self.expired or (self.max_candidates is not None and self.distinct - self.step_start >= share * self.max_candidates)

    def left(self, share: float) -> int | None:
        """Further candidates that may be measured before so large a share of the step is over; None: any number."""
        return None if self.max_candidates is None else math.ceil(share * self.max_candidates) - (self.distinct - self.step_start)

    def accuracy(self, subject: Sequence[np.ndarray], measure: Callable[[], float]) -> float:
        """The accuracy of the step's next distinct candidate, which `subject` tells from others: known, or measured now."""
        place, fingerprint = len(self.measured), _fingerprint(subject)
        if place < len(self.known) and self.known[place].fingerprint != fingerprint:  # as where another machine rounds otherwise
            log.warning(
                "the search goes another way than before the interruption; %d candidates are measured anew", len(self.known) - place
            )
            self.known, self.in_time = self.known[:place], min(self.in_time, place)
        if not self.expired:
            self.in_time = max(self.in_time, place + 1)
        self.measured.append(self.known[place] if place < len(self.known) else Measured(fingerprint, measure()))
        self.distinct += 1
        self.on_measure(self.measured[place].accuracy)
        self.on_accuracy()
        return self.measured[place].accuracy

    def accuracies(
        self, subjects: Sequence[Sequence[np.ndarray]], measure: Callable[[Sequence[int]], Iterable[float]]
    ) -> Generator[float, None, None]:
        """The accuracies of the step's next distinct candidates, one after another: known, or measured now.

        Args:
            subjects: what tells each from others.
            measure: places among them, ascending → their accuracies in this order; it may be closed before the last.
        """
        ahead = zip(self.known[len(self.measured) :], map(_fingerprint, subjects), strict=False)
        known = sum(1 for _ in takewhile(lambda pair: pair[0].fingerprint == pair[1], ahead))
        found = iter(measure(range(known, len(subjects))))
        try:
            for subject in subjects:
                yield self.accuracy(subject, lambda: next(found))
        finally:
            if isinstance(found, Generator):  # what is being measured ahead is not wanted any more
                found.close()


def _fingerprint(subject: Sequence[np.ndarray]) -> int:
    return zlib.crc32(b"/".join(np.asarray(array, dtype=np.int64).tobytes() for array in subject))
