"""Equal sparsity in every group: the baseline that any search must beat."""

from typing import Any

import numpy as np

from rlprune.agents.base import StepTask


class Uniform:
    """Each group loses channels in proportion to those it has; one candidate a step."""

    candidates_per_step = 1

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """The proportional candidate."""
        return task.evaluate(task.channel_shares)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is learned."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore; a state of another agent is refused."""
        if state:
            raise ValueError(f"uniform keeps no state, got {sorted(state)}")
