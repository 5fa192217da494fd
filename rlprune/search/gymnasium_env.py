"""`LayerEnv` as a Gymnasium environment, for agents of other libraries; the only module that needs the package gymnasium."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box

from rlprune.errors import UserError
from rlprune.search.layers import LayerEnv


class PruningEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Prunes a network layer by layer; `rlprune.pruning_env` makes one, and `LayerEnv` says what actions, observations and info are.

    Nothing is random: the same actions give the same rewards, whatever the seed. There is nothing to render. `spec.make()` makes another
    environment of the same pruning step, which measures nothing that this one has measured.

    Args:
        make: a new `LayerEnv` of the pruning step.
    """

    def __init__(self, make: Callable[[], LayerEnv]) -> None:
        layers = make()
        self.observation_space = Box(0.0, 1.0, (layers.num_features,), np.float32)
        self.action_space = Box(0.0, layers.pr_max, (1,), np.float32)
        self.spec = EnvSpec("rlprune/Pruning-v0", entry_point=lambda **nothing: PruningEnv(make))
        self.best_return = -np.inf  # sum of the rewards of the best episode that came to its end
        self._layers, self._return = layers, 0.0
        self._best: np.ndarray | None = None  # units that it took, (group,)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Back to the whole network. The seed changes nothing."""
        super().reset(seed=seed)
        self._return = 0.0
        return self._layers.reset(options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Prune the next group: observation, reward, terminated, truncated, info.

        Raises:
            ValueError: the episode is over, or the action is not one finite number.
        """
        observation, reward, terminated, truncated, info = self._layers.step(action)
        self._return += reward
        if terminated and self._return > self.best_return:
            self.best_return, self._best = self._return, self._layers.counts
        return observation, reward, terminated, truncated, info

    def keep(self, *, best: bool = True) -> dict[str, np.ndarray]:
        """The units that stay, by group: what `rlprune.prune`, `mask` and `ChannelGraph.macs` take.

        Args:
            best: of the episode with the largest sum of rewards, the first among equals; False: of the latest, as far as it has come.

        Raises:
            UserError: no episode has come to its end.
        """
        counts = self._best if best else self._layers.counts
        if counts is None:
            raise UserError(f"keep: no episode has come to its end; one takes {self._layers.num_steps} steps")
        return self._layers.task.keep(counts)
