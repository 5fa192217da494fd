"""One episode in a Gymnasium-shaped environment with one action."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np


class Env(Protocol):
    """What Gymnasium calls an environment, as far as an episode needs it. Observations have shape (feature,), actions shape (1,)."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]: ...  # noqa: D102

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]: ...  # noqa: D102


@dataclass(frozen=True)
class Transition:
    """What one action did."""

    observation: np.ndarray
    action: float
    reward: float
    next_observation: np.ndarray
    done: bool


@dataclass
class Episode:
    """Transitions from reset to the end. `complete` is False where the environment cut it short; `info` is the last step's."""

    transitions: list[Transition] = field(default_factory=list)
    complete: bool = False
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def reward(self) -> float:
        """The sum of its rewards."""
        return sum(transition.reward for transition in self.transitions)

    def with_last_reward(self) -> list[Transition]:
        """Its transitions, each with the reward of the last one (AMC, section 3.3)."""
        return [replace(transition, reward=self.transitions[-1].reward) for transition in self.transitions]


def play(
    env: Env,
    act: Callable[[np.ndarray], float],
    *,
    learn: Callable[[Transition], object] = lambda transition: None,
    options: dict[str, Any] | None = None,
) -> Episode:
    """Act until the environment says that it is over.

    Args:
        env: where.
        act: observation → action.
        learn: called with every transition, before the next action.
        options: of the environment's reset.
    """
    episode, (observation, _) = Episode(), env.reset(options=options)
    while True:
        action = act(observation)
        next_observation, reward, terminated, truncated, episode.info = env.step(np.array([action], dtype=np.float32))
        if not truncated:
            episode.transitions.append(Transition(observation, action, reward, next_observation, terminated))
            learn(episode.transitions[-1])
        if terminated or truncated:
            episode.complete = terminated
            return episode
        observation = next_observation
