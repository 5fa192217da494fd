"""A search as the run's tracker sees it: the rows of metrics.csv and episodes.csv while they come, and the epochs of recovery."""

from dataclasses import asdict

from rlprune.results.record import History
from rlprune.trackers.tracking import Tracking
from rlprune.training.fit import OnEpoch


class TrackedSearch:
    """Reports a search; what its history holds already is reported first, for a tracker that was not there from the start.

    Args:
        tracking: of the run.
        history: of the search, which grows.
        prefix: of its series; the passes of a bisection, whose steps count from one again, are told apart so.
    """

    def __init__(self, tracking: Tracking, history: History, prefix: str) -> None:
        self.tracking, self.history, self.prefix = tracking, history, prefix
        for row in range(len(history.episodes)):
            self._episode(row)
        for row in range(len(history.steps)):
            self._step(row)

    def step(self) -> None:
        """Report the newest step."""
        self._step(len(self.history.steps) - 1)

    def episode(self) -> None:
        """Report the newest episode; episodes are numbered over all steps, from 1."""
        self._episode(len(self.history.episodes) - 1)

    def recovery(self) -> OnEpoch:
        """What the recoveries that follow report their epochs to, which are numbered over all steps, from 1."""
        done = self.history.recoveries  # the one that goes on is not among them
        return lambda epoch, values: self.tracking.log(f"{self.prefix}recovery", sum(epochs for _, epochs in done) + epoch, values)

    def _step(self, row: int) -> None:
        values = asdict(self.history.steps[row])
        self.tracking.log(f"{self.prefix}step", values.pop("step"), values)

    def _episode(self, row: int) -> None:
        self.tracking.log(f"{self.prefix}episode", row + 1, self.history.episodes[row])
