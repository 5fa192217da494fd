"""Soft actor-critic in an environment that changes, on the state and on a model's z (RLAL, section 3.2.1)."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from rlprune.rl.environment import EnvironmentModel, Modelling
from rlprune.rl.episode import Transition
from rlprune.rl.optimizer import finite, load_moments, moments
from rlprune.rl.replay import Batch, EpochReplay
from rlprune.rl.sac import Learning, SoftActorCritic


class JointLearner:
    """All that is carried from epoch to epoch: policy, critics, model of the environment, replay.

    The replay holds the epoch of a transition, never z: that is computed anew from the embeddings as they are.

    Args:
        learning: how actor and critics learn.
        modelling: how the environment is modelled; None: not at all, and actor and critics see the state alone.
        num_features: of an observation.
        most: largest action; the smallest is 0.
        epochs: that there will be.
        generator: of the first weights.
    """

    def __init__(
        self,
        learning: Learning,
        modelling: Modelling | None,
        *,
        num_features: int,
        most: float,
        epochs: int,
        generator: np.random.Generator,
    ) -> None:
        if epochs < 1:
            raise ValueError(f"epochs={epochs}: must be ≥ 1")
        self.model: EnvironmentModel | None = None
        if modelling is not None:
            self.model = EnvironmentModel(modelling, num_features=num_features, epochs=epochs, generator=generator)
            self._optimizer = torch.optim.Adam(self.model.parameters(), lr=modelling.lr, betas=(0.9, 0.999), fused=True)
        states = 0 if modelling is None else modelling.gru_hidden
        self.sac = SoftActorCritic(learning, num_features=num_features + states, most=most, generator=generator)
        self.replay = EpochReplay(learning.replay_size, num_features)
        self.batch_size, self.epochs, self.begun = learning.batch_size, epochs, 0
        self._states: np.ndarray | None = None  # z of the epochs that have begun, until the model learns more

    @property
    def num_parameters(self) -> int:
        """Of everything that learns: actor, critics, and the model with all its embeddings."""
        return self.sac.num_parameters + (0 if self.model is None else sum(parameter.numel() for parameter in self.model.parameters()))

    def begin(self, epoch: int) -> None:
        """An epoch starts, the first one is 0; nothing happens where it has begun before.

        Raises:
            ValueError: there are fewer.
        """
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"epoch={epoch}: must be in [0, epochs={self.epochs})")
        while self.begun <= epoch:
            if self.model is not None:
                self.model.begin(self.begun)
            self.begun, self._states = self.begun + 1, None

    def act(self, observation: np.ndarray, epoch: int, generator: np.random.Generator) -> float:
        """A draw of the policy; observation of shape (feature,)."""
        return self.sac.act(self._seen(observation[None], np.array([epoch]))[0], generator)

    def greedy(self, observation: np.ndarray, epoch: int) -> float:
        """The policy's squashed mean; observation of shape (feature,)."""
        return self.sac.greedy(self._seen(observation[None], np.array([epoch]))[0])

    def store(self, transition: Transition, epoch: int) -> None:
        """Remember a transition and its epoch."""
        self._check(epoch)
        self.replay.store_in(transition, epoch)

    def update(self, updates: int, generator: np.random.Generator) -> dict[str, float | None]:
        """So many steps of the model, and of actor, critics and targets on what it says.

        Returns:
            The means of critic_loss, actor_loss and decoder_loss; None where there was no step, or nothing that has such a loss.
        """
        losses: dict[str, list[float]] = {"critic_loss": [], "actor_loss": [], "decoder_loss": []}
        for _ in range(updates if len(self.replay) >= self.batch_size else 0):
            batch, epochs = self.replay.sample_with_epochs(self.batch_size, generator)
            if self.model is not None:
                loss, states = self._decode(self.model, batch, epochs)
                losses["decoder_loss"].append(loss)
                batch = replace(
                    batch,
                    observations=np.concatenate([batch.observations, states], axis=1),
                    next_observations=np.concatenate([batch.next_observations, states], axis=1),
                )
            found = self.sac.update(batch, generator)
            losses["critic_loss"].append(found.critic)
            losses["actor_loss"].append(found.actor)
        return {name: float(np.mean(each)) if each else None for name, each in losses.items()}

    def _decode(self, model: EnvironmentModel, batch: Batch, epochs: np.ndarray) -> tuple[float, np.ndarray]:
        """One step of the model; its loss, and z of each transition as it was, which actor and critics see but do not move."""
        states = model.states(self.begun)[torch.from_numpy(epochs)]
        rewards = model(torch.from_numpy(batch.observations), torch.from_numpy(batch.actions), states)
        loss = F.mse_loss(rewards, torch.from_numpy(batch.rewards))
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._states = None
        return finite(loss.item(), "decoder_lr"), states.detach().numpy()

    @torch.inference_mode()
    def predict(self, observations: np.ndarray, actions: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """The decoder's rewards: (N, feature), (N,), (N,) → (N,).

        Raises:
            ValueError: there is no decoder.
        """
        if self.model is None:
            raise ValueError("modelling=None: there is no decoder to predict rewards")
        seen = torch.as_tensor(self._seen(observations, epochs), dtype=torch.float32)
        features, states = seen.tensor_split([observations.shape[1]], dim=1)
        rewards: np.ndarray = self.model(features, torch.as_tensor(actions, dtype=torch.float32).reshape(-1, 1), states)[:, 0].numpy()
        return rewards

    def _seen(self, observations: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """What actor and critics see: the observations, (N, feature), and beside each z of its epoch."""
        self._check(int(np.max(epochs)))
        if self.model is None:
            return observations
        if self._states is None:
            with torch.no_grad():
                self._states = self.model.states(self.begun).numpy()
        return np.concatenate([observations, self._states[epochs]], axis=1)

    def _check(self, epoch: int) -> None:
        if epoch >= self.begun:
            raise ValueError(f"epoch={epoch}: has not begun, call begin({epoch}) first")

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that learns or remembers: nested dicts and lists of numbers and tensors."""
        model = None if self.model is None else {"weights": dict(self.model.state_dict()), "optimizer": moments(self._optimizer)}
        state = {"epochs": self.epochs, "begun": self.begun, "sac": self.sac.state_dict(), "model": model}
        return copy.deepcopy({**state, "replay": self.replay.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the one that was saved: the same generators give the same numbers, bit for bit.

        Raises:
            ValueError: that one had other epochs or another size of replay, or one of the two has no model of the environment.
        """
        if state["epochs"] != self.epochs:
            raise ValueError(f"epochs={self.epochs}: must be {state['epochs']}, as in the run that is resumed")
        if (state["model"] is None) != (self.model is None):
            raise ValueError("modelling: must be as in the run that is resumed, with a model of the environment or without")
        self.replay.load_state_dict(state["replay"])
        self.sac.load_state_dict(state["sac"])
        if self.model is not None:
            self.model.load_state_dict(state["model"]["weights"])
            load_moments(self._optimizer, state["model"]["optimizer"])
        self.begun, self._states = state["begun"], None
