"""Deep deterministic policy gradient (Lillicrap et al. 2016): what FPRL and AMC learn with."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from rlprune.rl.networks import Actor, Bound, Critic, soft_update
from rlprune.rl.optimizer import finite
from rlprune.rl.replay import Batch
from rlprune.rl.settings import check_off_policy, check_rates, check_widths


@dataclass(frozen=True)
class Losses:
    """Of one update: the critic's squared error, and the actor's −Q."""

    critic: float
    actor: float

    @staticmethod
    def mean(losses: Sequence["Losses"]) -> dict[str, float | None]:
        """Of an episode's updates, by the names of episodes.csv; None where there were none."""
        names = ("critic", "actor")
        return {f"{name}_loss": float(np.mean([getattr(loss, name) for loss in losses])) if losses else None for name in names}


@dataclass(frozen=True)
class Learning:
    """How actor and critic learn.

    Args:
        actor_hidden: widths of the actor's hidden layers.
        actor_bound: what keeps its actions in their range, `sigmoid` or `clip`, see `Actor`.
        critic_hidden: widths of the critic's.
        actor_lr: learning rate of the actor (Adam).
        critic_lr: learning rate of the critic (Adam).
        discount: γ.
        tau: share of the networks that goes into their targets at every update.
        replay_size: transitions remembered.
        batch_size: transitions an update.

    Raises:
        ValueError: a number is out of its range.
    """

    actor_hidden: Sequence[int]
    actor_bound: Bound
    critic_hidden: Sequence[int]
    actor_lr: float
    critic_lr: float
    discount: float
    tau: float
    replay_size: int
    batch_size: int

    def __post_init__(self) -> None:
        check_widths(actor_hidden=self.actor_hidden, critic_hidden=self.critic_hidden)
        check_rates(actor_lr=self.actor_lr, critic_lr=self.critic_lr)
        check_off_policy(discount=self.discount, tau=self.tau, replay_size=self.replay_size, batch_size=self.batch_size)


class ActorCritic:
    """A policy, its value, and their slow copies, the targets.

    Args:
        learning: how they learn.
        num_features: of an observation.
        most: largest action; the smallest is 0.
        generator: of the first weights.
    """

    def __init__(self, learning: Learning, *, num_features: int, most: float, generator: np.random.Generator) -> None:
        weights = torch.Generator().manual_seed(int(generator.integers(2**63)))
        self.actor = Actor(num_features, learning.actor_hidden, most, learning.actor_bound, weights)
        self.critic = Critic(num_features, learning.critic_hidden, weights)
        self.target_actor, self.target_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=learning.actor_lr, fused=True)
        self._critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=learning.critic_lr, fused=True)
        self._slow = [*self.target_actor.parameters(), *self.target_critic.parameters()]
        self._fast = [*self.actor.parameters(), *self.critic.parameters()]
        self.discount, self.tau = learning.discount, learning.tau

    @torch.inference_mode()
    def act(self, observation: np.ndarray) -> float:
        """μ(s), without noise; observation of shape (feature,)."""
        return finite(float(self.actor(torch.as_tensor(observation, dtype=torch.float32)[None])), "actor_lr", "critic_lr")

    def update(self, batch: Batch, baseline: float = 0.0) -> Losses:
        """One step of critic, actor and targets (FPRL, equations 7 to 9).

        Args:
            batch: of transitions.
            baseline: subtracted from the rewards (AMC's b).
        """
        observations, next_observations = torch.from_numpy(batch.observations), torch.from_numpy(batch.next_observations)
        with torch.no_grad():  # y = r − b + γ Q'(s', μ'(s')), eq. 8
            next_q_values = self.target_critic(next_observations, self.target_actor(next_observations))
            targets = torch.from_numpy(batch.rewards) - baseline + self.discount * (1 - torch.from_numpy(batch.done)) * next_q_values
        critic_loss = F.mse_loss(self.critic(observations, torch.from_numpy(batch.actions)), targets)  # eq. 7
        self._critic_optimizer.zero_grad()
        critic_loss.backward()
        self._critic_optimizer.step()
        self.critic.requires_grad_(False)
        actor_loss = -self.critic(observations, self.actor(observations)).mean()  # eq. 9
        self._actor_optimizer.zero_grad()
        actor_loss.backward()
        self._actor_optimizer.step()
        self.critic.requires_grad_(True)
        soft_update(self._slow, self._fast, self.tau)
        return Losses(finite(critic_loss.item(), "actor_lr", "critic_lr"), finite(actor_loss.item(), "actor_lr", "critic_lr"))
