"""Random search: what MCQ draws before it has learned anything, and the best of it."""

from typing import Any

import numpy as np

from rlprune.agents.base import Normalization, StepTask, comparable, noisy


class RandomSearch:
    """Draws actions near the dense network's channel shares at every step and carries out the best; learns nothing.

    Args:
        candidates: actions a step.
        noise_std: standard deviation of the noise on the shares, scaled by a uniform draw (RL-Pruner, equation 12).
        ranking: where it is set, the first action of a step is what one ranking of all units removes, as for MCQ.
    """

    def __init__(self, *, candidates: int, noise_std: float, ranking: Normalization | None) -> None:
        if candidates < 1:
            raise ValueError(f"candidates={candidates}: must be ≥ 1")
        if noise_std < 0:
            raise ValueError(f"noise_std={noise_std}: must be ≥ 0")
        self.candidates_per_step, self.noise_std, self.ranking = candidates, noise_std, ranking
        self.shares: np.ndarray | None = None

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """The draw with the highest reward; the first among equals."""
        if self.shares is None:
            self.shares = task.channel_shares.copy()
        candidates: list[Any] = []
        if self.ranking is not None:
            candidates.append(task.evaluate_ranking(comparable(task.scores, self.ranking)))
        actions = [noisy(self.shares, self.noise_std, generator) for _ in range(self.candidates_per_step - len(candidates))]
        if actions and not (candidates and task.exhausted):
            candidates += task.evaluate_many(actions)
        return max(candidates, key=lambda candidate: candidate.reward)  # the first among equals

    def state_dict(self) -> dict[str, Any]:
        """The dense network's shares."""
        return {} if self.shares is None else {"shares": self.shares.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with saved shares."""
        if state:
            self.shares = np.array(state["shares"])
