"""Soft actor-critic (Haarnoja et al. 2018) with a fixed entropy coefficient: what RLAL learns with."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.rl.networks import Critic, GaussianActor, soft_update
from rlprune.rl.optimizer import finite, load_moments, moments
from rlprune.rl.replay import Batch
from rlprune.rl.settings import check_off_policy, check_rates, check_widths


@dataclass(frozen=True)
class Losses:
    """Of one update: the squared error of the critics, both added, and the actor's α log π − min Q."""

    critic: float
    actor: float


@dataclass(frozen=True)
class Learning:
    """How actor and critics learn.

    Args:
        hidden: widths of the hidden layers, of the actor and of the critics.
        actor_lr: learning rate of the actor (Adam).
        critic_lr: learning rate of the critics (Adam).
        entropy: α, what a nat of the policy's entropy is worth, in rewards.
        discount: γ.
        tau: share of the critics that goes into their targets at every update.
        replay_size: transitions remembered.
        batch_size: transitions an update.

    Raises:
        ValueError: a number is out of its range.
    """

    hidden: Sequence[int]
    actor_lr: float
    critic_lr: float
    entropy: float
    discount: float
    tau: float
    replay_size: int
    batch_size: int

    def __post_init__(self) -> None:
        check_widths(hidden=self.hidden)
        check_rates(actor_lr=self.actor_lr, critic_lr=self.critic_lr)
        if self.entropy < 0:
            raise ValueError(f"entropy={self.entropy}: must be ≥ 0")
        check_off_policy(discount=self.discount, tau=self.tau, replay_size=self.replay_size, batch_size=self.batch_size)


def normal(shape: tuple[int, ...], generator: np.random.Generator) -> Tensor:
    """Standard-normal noise."""
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


class SoftActorCritic:
    """A stochastic policy, two estimates of its value, and their slow copies, the targets.

    Args:
        learning: how they learn.
        num_features: of an observation.
        most: largest action; the smallest is 0.
        generator: of the first weights.
    """

    def __init__(self, learning: Learning, *, num_features: int, most: float, generator: np.random.Generator) -> None:
        weights = torch.Generator().manual_seed(int(generator.integers(2**63)))
        self.actor = GaussianActor(num_features, learning.hidden, most, weights)
        self.critics = nn.ModuleList(Critic(num_features, learning.hidden, weights) for _ in range(2))
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=learning.actor_lr, betas=(0.9, 0.999), fused=True)
        self._critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=learning.critic_lr, betas=(0.9, 0.999), fused=True)
        self._slow, self._fast = list(self.target_critics.parameters()), list(self.critics.parameters())
        self.entropy, self.discount, self.tau = learning.entropy, learning.discount, learning.tau

    @property
    def num_parameters(self) -> int:
        """Of actor and critics."""
        return sum(parameter.numel() for network in (self.actor, self.critics) for parameter in network.parameters())

    @torch.inference_mode()
    def act(self, observation: np.ndarray, generator: np.random.Generator) -> float:
        """A draw of π(a | s); observation of shape (feature,)."""
        drawn = self.actor(torch.as_tensor(observation, dtype=torch.float32)[None], normal((1, 1), generator))[0]
        return finite(float(drawn), "actor_lr", "critic_lr")

    @torch.inference_mode()
    def greedy(self, observation: np.ndarray) -> float:
        """The squashed mean of π(a | s); observation of shape (feature,)."""
        mean, _ = self.actor.gaussian(torch.as_tensor(observation, dtype=torch.float32)[None])
        return finite(float(self.actor.squash(mean)), "actor_lr", "critic_lr")

    def update(self, batch: Batch, generator: np.random.Generator) -> Losses:
        """One step of critics, actor and targets.

        Args:
            batch: of transitions.
            generator: of the actions that the policy draws in them.
        """
        observations, actions = torch.from_numpy(batch.observations), torch.from_numpy(batch.actions)
        noise, next_noise = normal((2, len(batch), 1), generator)
        targets = self.targets(batch, next_noise)
        critic_loss = torch.stack([F.mse_loss(critic(observations, actions), targets) for critic in self.critics]).sum()  # eq. 5
        self._critic_optimizer.zero_grad()
        critic_loss.backward()
        self._critic_optimizer.step()
        self.critics.requires_grad_(False)
        drawn, log_probability = self.actor(observations, noise)
        actor_loss = (self.entropy * log_probability - least(self.critics, observations, drawn)).mean()  # eq. 7
        self._actor_optimizer.zero_grad()
        actor_loss.backward()
        self._actor_optimizer.step()
        self.critics.requires_grad_(True)
        soft_update(self._slow, self._fast, self.tau)
        return Losses(finite(critic_loss.item(), "actor_lr", "critic_lr"), finite(actor_loss.item(), "actor_lr", "critic_lr"))

    @torch.no_grad()
    def targets(self, batch: Batch, noise: Tensor) -> Tensor:
        """The critics' y = r + γ (1 − done) (min Q'(s', a') − α log π(a' | s')), a' drawn by noise; (N, 1)."""
        next_observations = torch.from_numpy(batch.next_observations)
        actions, log_probability = self.actor(next_observations, noise)
        soft_values = least(self.target_critics, next_observations, actions) - self.entropy * log_probability
        return torch.from_numpy(batch.rewards) + self.discount * (1 - torch.from_numpy(batch.done)) * soft_values

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets and what Adam remembers."""
        networks = {"actor": self.actor, "critics": self.critics, "target_critics": self.target_critics}
        return {name: dict(network.state_dict()) for name, network in networks.items()} | {
            "actor_optimizer": moments(self._actor_optimizer),
            "critic_optimizer": moments(self._critic_optimizer),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the one that was saved."""
        self.actor.load_state_dict(state["actor"])
        self.critics.load_state_dict(state["critics"])
        self.target_critics.load_state_dict(state["target_critics"])
        load_moments(self._actor_optimizer, state["actor_optimizer"])
        load_moments(self._critic_optimizer, state["critic_optimizer"])


def least(critics: nn.ModuleList, observations: Tensor, actions: Tensor) -> Tensor:
    """The smaller of two estimates, which is less often too high (Fujimoto et al. 2018); (N, 1)."""
    first, second = (critic(observations, actions) for critic in critics)
    return torch.minimum(first, second)
