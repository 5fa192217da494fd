"""The replay memory of off-policy methods."""

from dataclasses import dataclass

import numpy as np

from rlprune.rl.episode import Transition


@dataclass(frozen=True)
class Batch:
    """Transitions: observations and next_observations (N, feature), actions, rewards and done (N, 1); float32."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    done: np.ndarray

    def __len__(self) -> int:
        """Transitions."""
        return len(self.rewards)


class Replay:
    """The last transitions, in a ring: a full one forgets the oldest.

    Args:
        capacity: transitions that it holds.
        num_features: of an observation.
    """

    def __init__(self, capacity: int, num_features: int) -> None:
        self._batch = Batch(*(np.zeros((capacity, width), dtype=np.float32) for width in (num_features, 1, 1, num_features, 1)))
        self._stored = 0

    def __len__(self) -> int:
        """Transitions that it holds now."""
        return min(self._stored, len(self._batch))

    def store(self, transition: Transition) -> None:
        """Remember one more."""
        place, batch = self._stored % len(self._batch), self._batch
        batch.observations[place], batch.next_observations[place] = transition.observation, transition.next_observation
        batch.actions[place], batch.rewards[place], batch.done[place] = transition.action, transition.reward, transition.done
        self._stored += 1

    def sample(self, size: int, generator: np.random.Generator) -> Batch:
        """Distinct transitions, each as likely as the others.

        Raises:
            ValueError: it holds fewer.
        """
        rows = generator.choice(len(self), size, replace=False)
        batch = self._batch
        return Batch(batch.observations[rows], batch.actions[rows], batch.rewards[rows], batch.next_observations[rows], batch.done[rows])
