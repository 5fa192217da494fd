"""What an agent is, and what it may ask of its task."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

Normalization = Literal["mean", "l2", "max", "none"]
"""What a group's scores are divided by to be comparable with those of others: their mean, l2 norm (Molchanov et al. 2017), maximum, 1."""


class Outcome(Protocol):
    """A measured candidate."""

    @property
    def action(self) -> np.ndarray:
        """The distribution over groups that led to it, shape (group,)."""
        ...

    @property
    def reward(self) -> float:
        """Its reward."""
        ...

    @property
    def accuracy(self) -> float:
        """Its accuracy on the search split, a fraction."""
        ...


class StepTask(Protocol):
    """One pruning step: `rlprune.search.task.Task` documents every member."""

    step: int

    @property
    def steps(self) -> int: ...  # noqa: D102

    @property
    def exhausted(self) -> bool: ...  # noqa: D102

    @property
    def accuracy(self) -> float: ...  # noqa: D102

    @property
    def channel_shares(self) -> np.ndarray: ...  # noqa: D102

    @property
    def scores(self) -> list[np.ndarray]: ...  # noqa: D102

    def evaluate(self, action: np.ndarray) -> Outcome: ...  # noqa: D102

    def evaluate_ranking(self, scores: Sequence[np.ndarray]) -> Outcome: ...  # noqa: D102

    def after(self, candidate: Any) -> "StepTask | None": ...  # noqa: D102


class Agent(Protocol):
    """Decides what a pruning step removes. Its numbers are set in its yaml; it draws from the generator it is given and from no other."""

    candidates_per_step: int
    """At most so many candidates are measured in a step; printed before a search."""

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """Measure candidates with `task.evaluate` and return the one to carry out."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the agent carries from step to step, as JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        ...


def noisy(distribution: np.ndarray, noise_std: float, generator: np.random.Generator) -> np.ndarray:
    """An action near a distribution over groups (RL-Pruner, equations 11 and 12).

    a = PD + ε, ε_i = noise_std · u · N(0, 1), u ~ U(0, 1) once a draw; clamped at 0 and renormalised. Shapes (group,).
    """
    noise = noise_std * generator.random() * generator.standard_normal(len(distribution))
    action = np.maximum(distribution + noise, 0)
    return action / action.sum() if action.sum() > 0 else distribution.copy()


def comparable(scores: Sequence[np.ndarray], normalization: Normalization) -> list[np.ndarray]:
    """Scores of each group's units, shape (unit,), divided by what makes them comparable over groups; zeros stay zeros."""
    scales = []
    for sizes in map(np.abs, scores):
        scales.append({"mean": sizes.mean(), "l2": np.linalg.norm(sizes), "max": sizes.max(), "none": 1.0}[normalization])
    return [values / (scale or 1.0) for values, scale in zip(scores, scales, strict=True)]
