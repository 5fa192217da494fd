"""Equal sparsity in every group: the baseline that any search must beat."""

from typing import Any

import numpy as np

from rlprune.agents.base import Stateless, StepTask


class Uniform(Stateless):
    """Each group loses channels in proportion to those it has; one candidate a step."""

    candidates_per_step = 1

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """The proportional candidate."""
        return task.evaluate(task.channel_shares)
