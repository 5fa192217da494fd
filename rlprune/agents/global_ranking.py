"""Global ranking: one list of normalised scores over all groups, the lowest go first; no search."""

from typing import Any

import numpy as np

from rlprune.agents.base import Normalization, Stateless, StepTask, comparable


class GlobalRanking(Stateless):
    """Removes what ranks lowest in the whole network; one candidate a step.

    Args:
        normalization: what makes the scores of different groups comparable: `mean`, `l2`, `max` or `none`.
    """

    candidates_per_step = 1

    def __init__(self, *, normalization: Normalization) -> None:
        self.normalization = normalization

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """The candidate of the ranking."""
        return task.evaluate_ranking(comparable(task.scores, self.normalization))
