"""Random pruning rates, layer by layer: what AMC and FPRL play before they have learned anything, and the best of it."""

from typing import Any

import numpy as np

from rlprune.agents.base import Stateless, StepTask, best_episode
from rlprune.rl.episode import play


class RandomRates(Stateless):
    """Plays episodes of uniformly random actions and carries out the one with the highest reward; learns nothing.

    Args:
        episodes: each measures one candidate.
        pr_max: largest pruning rate of a layer.
    """

    def __init__(self, *, episodes: int, pr_max: float) -> None:
        if episodes < 1:
            raise ValueError(f"episodes={episodes}: must be ≥ 1")
        if not 0 < pr_max < 1:
            raise ValueError(f"pr_max={pr_max}: must be in (0, 1); 0.8 leaves a fifth of every layer")
        self.candidates_per_step, self.pr_max = episodes, pr_max

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """The candidate of the best episode."""
        env = task.layers(features=("layer",), pr_max=self.pr_max)
        counts = best_episode(
            task, self.candidates_per_step, lambda number: (play(env, lambda state: self.pr_max * float(generator.random())), {})
        )
        return task.evaluate_counts(counts)
