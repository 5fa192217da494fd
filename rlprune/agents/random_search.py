"""Random search: what MCQ draws before it has learned anything, and the best of it."""

from typing import Any

import numpy as np

from rlprune.agents.base import StepTask, noisy


class RandomSearch:
    """Draws actions near the dense network's channel shares at every step and carries out the best; learns nothing.

    Args:
        candidates: actions a step.
        noise_std: standard deviation of the noise on the shares, scaled by a uniform draw (RL-Pruner, equation 12).
    """

    def __init__(self, *, candidates: int, noise_std: float) -> None:
        if candidates < 1:
            raise ValueError(f"candidates={candidates}: must be ≥ 1")
        if noise_std < 0:
            raise ValueError(f"noise_std={noise_std}: must be ≥ 0")
        self.candidates_per_step, self.noise_std = candidates, noise_std
        self.shares: np.ndarray | None = None

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """The draw with the highest reward; the first among equals."""
        if self.shares is None:
            self.shares = task.channel_shares.copy()
        best = task.evaluate(noisy(self.shares, self.noise_std, generator))
        for _ in range(self.candidates_per_step - 1):
            if task.exhausted:
                break
            candidate = task.evaluate(noisy(self.shares, self.noise_std, generator))
            best = candidate if candidate.reward > best.reward else best
        return best

    def state_dict(self) -> dict[str, Any]:
        """The dense network's shares."""
        return {} if self.shares is None else {"shares": self.shares.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with saved shares."""
        if state:
            self.shares = np.array(state["shares"])
