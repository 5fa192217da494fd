"""The replay memory of off-policy methods."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

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
        return self._at(self._rows(size, generator))

    def _rows(self, size: int, generator: np.random.Generator) -> np.ndarray:
        return generator.choice(len(self), size, replace=False)

    def _at(self, rows: np.ndarray) -> Batch:
        batch = self._batch
        return Batch(batch.observations[rows], batch.actions[rows], batch.rewards[rows], batch.next_observations[rows], batch.done[rows])


class EpochReplay(Replay):
    """A replay that also knows in which epoch each transition was (RLAL, section 3.2.1).

    Args:
        capacity: transitions that it holds.
        num_features: of an observation.
    """

    def __init__(self, capacity: int, num_features: int) -> None:
        super().__init__(capacity, num_features)
        self._epochs = np.zeros(capacity, dtype=np.int64)

    def store_in(self, transition: Transition, epoch: int) -> None:
        """Remember one more, and its epoch."""
        self._epochs[self._stored % len(self._epochs)] = epoch
        self.store(transition)

    def sample_with_epochs(self, size: int, generator: np.random.Generator) -> tuple[Batch, np.ndarray]:
        """As `sample`, and the epochs of the transitions, (N,).

        Raises:
            ValueError: it holds fewer.
        """
        rows = self._rows(size, generator)
        return self._at(rows), self._epochs[rows]

    def state_dict(self) -> dict[str, Any]:
        """What it holds, row by row, and how many transitions it has ever stored, which says where the next one goes."""
        held = {**vars(self._batch), "epochs": self._epochs}
        return {name: torch.from_numpy(array[: len(self)].copy()) for name, array in held.items()} | {
            "stored": self._stored,
            "capacity": len(self._epochs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the one that was saved.

        Raises:
            ValueError: that one had another capacity.
        """
        if state["capacity"] != len(self._epochs):
            raise ValueError(f"replay_size={len(self._epochs)}: must be {state['capacity']}, as in the run that is resumed")
        self._stored = state["stored"]
        for name, array in {**vars(self._batch), "epochs": self._epochs}.items():
            array[: len(self)] = state[name].numpy()
