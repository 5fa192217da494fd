"""Global ranking: one list of normalised scores over all groups, the lowest go first; no search."""

from typing import Any, Literal

import numpy as np

from rlprune.agents.base import StepTask


class GlobalRanking:
    """Removes what ranks lowest in the whole network; one candidate a step.

    Args:
        normalization: what a group's scores are divided by to be comparable with those of others: their `mean`, `l2` norm (Molchanov et
            al. 2017), `max`, or `none`.
    """

    candidates_per_step = 1

    def __init__(self, *, normalization: Literal["mean", "l2", "max", "none"]) -> None:
        self.normalization = normalization

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """The candidate of the ranking."""
        return task.evaluate_ranking([values / self._scale(values) for values in task.scores])

    def _scale(self, values: np.ndarray) -> float:
        sizes = np.abs(values)
        scale = {"mean": sizes.mean(), "l2": np.linalg.norm(sizes), "max": sizes.max(), "none": 1.0}[self.normalization]
        return float(scale) or 1.0

    def state_dict(self) -> dict[str, Any]:
        """Nothing is learned."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore; a state of another agent is refused."""
        if state:
            raise ValueError(f"global keeps no state, got {sorted(state)}")
