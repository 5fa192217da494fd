"""RLAL: an agent that prunes a network while it is trained (Ganjdanesh et al. 2024, section 3).

Algorithm 1 is missing from our copy of the paper; what its text says of it (section 3.2) makes these lines, to which comments refer:

1. for every epoch t:
2.     train the weights for one epoch, CE + β R(W; m*)                         (equation 10; `rlprune.training.joint`)
3.     freeze them; z_t = GRU(e_1, …, e_t)                                     (section 3.2.1; `rlprune.rl.environment`)
4.     for P episodes:
5.         for every layer: draw a pruning rate from π(a | s, z_t), mask the channels with the smallest L1 norms
6.         the reward, for all its actions, is the accuracy of the masked network on the search split
7.         keep the episode, with t, in the replay memory; update the GRU, the embeddings and the decoder, and the agent (SAC)
8.     m* = the best policy so far
9. prune by m*; fine-tune
"""

import logging
from typing import Any

import numpy as np

from rlprune.agents.base import StepTask, best_episode
from rlprune.rl.environment import Modelling
from rlprune.rl.episode import Episode, play
from rlprune.rl.joint import JointLearner
from rlprune.rl.sac import Learning

log = logging.getLogger(__name__)
STATE = (  # section 3.2: the layer, its kernel size and FLOPs, the FLOPs that are pruned already and that are left, the action before
    "layer", "kernel_size", "stride", "in_channels", "out_channels", "macs", "flops_ratio", "macs_left", "previous_action",
)  # fmt: skip


class RLAL:
    """The agent of RLAL; it learns from epoch to epoch.

    Args:
        episodes: P, an epoch; the last of them without noise.
        warmup_epochs: first epochs, in which actions are uniformly random.
        pr_max: largest pruning rate of a layer.
        epoch_embeddings: tell the agent by z how the environment has changed; False leaves embeddings, GRU and decoder out.
        soft_regularization: align the weights with the best policy so far, equation 10.
        beta: β, weight of the regulariser.
        updates: of the agent and of the environment's model, behind every episode.
        hidden: widths of the hidden layers of actor and critics.
        actor_lr: learning rate of the actor.
        critic_lr: learning rate of the critics.
        entropy: α, weight of the policy's entropy.
        discount: γ.
        tau: share of the critics that goes into their targets at every update.
        replay_size: transitions remembered.
        batch_size: transitions an update.
        embedding: size of an epoch's embedding.
        gru_hidden: size of z.
        decoder_hidden: widths of the decoder's hidden layers.
        decoder_lr: learning rate of embeddings, GRU and decoder.
    """

    def __init__(
        self,
        *,
        episodes: int,
        warmup_epochs: int,
        pr_max: float,
        epoch_embeddings: bool,
        soft_regularization: bool,
        beta: float,
        updates: int,
        hidden: list[int],
        actor_lr: float,
        critic_lr: float,
        entropy: float,
        discount: float,
        tau: float,
        replay_size: int,
        batch_size: int,
        embedding: int,
        gru_hidden: int,
        decoder_hidden: list[int],
        decoder_lr: float,
    ) -> None:
        if episodes < 1:
            raise ValueError(f"episodes={episodes}: must be ≥ 1")
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs={warmup_epochs}: must be ≥ 0")
        if not 0 < pr_max < 1:
            raise ValueError(f"pr_max={pr_max}: must be in (0, 1); 0.8 leaves a fifth of every layer")
        if beta < 0:
            raise ValueError(f"beta={beta}: must be ≥ 0")
        if updates < 1:
            raise ValueError(f"updates={updates}: must be ≥ 1")
        if decoder_lr <= 0:
            raise ValueError(f"decoder_lr={decoder_lr}: must be > 0")
        self.learning = Learning(hidden, actor_lr, critic_lr, entropy, discount, tau, replay_size, batch_size)
        modelling = Modelling(embedding, gru_hidden, decoder_hidden, decoder_lr)
        self.modelling = modelling if epoch_embeddings else None
        self.episodes, self.warmup_epochs, self.pr_max, self.updates = episodes, warmup_epochs, pr_max, updates
        self.beta = beta if soft_regularization else 0.0
        self.candidates_per_step = episodes + 1  # m* is measured again on the weights as they are now
        self._learner: JointLearner | None = None
        self._sizes: tuple[int, int] = (0, 0)  # of the learner: features, epochs
        self._saved: dict[str, Any] | None = None
        self._best: list[int] | None = None  # m*: units that go from each group
        self._units: list[int] = []  # of the groups that it belongs to

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """An epoch's episodes, lines 3 to 8; returns the candidate of the best policy so far.

        The best policy of the epochs before competes as it does on the weights of now: what an accuracy was on others says little. The last
        episode of an epoch takes the policy's means: with ten layers and α = 0.1, hardly a draw is as good as they are.
        """
        env, epoch = task.layers(features=STATE, pr_max=self.pr_max), task.step
        learner = self._learner_of(env.num_features, task.steps, generator)
        learner.begin(epoch)

        acts = {
            "random": lambda state: self.pr_max * float(generator.random()),
            "sampled": lambda state: learner.act(state, epoch, generator),
            "greedy": lambda state: learner.greedy(state, epoch),
        }

        def play_one(number: int) -> tuple[Episode, dict[str, Any]]:
            policy = "random" if epoch < self.warmup_epochs else "greedy" if 0 < number == self.episodes - 1 else "sampled"
            episode, losses = play(env, acts[policy]), {}  # line 5
            if episode.complete:  # lines 6 and 7
                for transition in episode.with_last_reward():
                    learner.store(transition, epoch)
                losses = learner.update(self.updates, generator)
            return episode, {"policy": policy, **losses}

        units = task.graph.num_units.tolist()
        best = np.array(self._best) if self._best is not None and self._units == units else None
        best = best_episode(task, self.episodes, play_one, best)  # line 8
        self._best, self._units = best.tolist(), units
        if len(learner.replay) < self.learning.batch_size and task.step + 1 == task.steps:
            log.warning("agent: has learned nothing, as agent.batch_size=%d is more than all its actions", self.learning.batch_size)
        return task.evaluate_counts(best)

    def _learner_of(self, num_features: int, epochs: int, generator: np.random.Generator) -> JointLearner:
        """The one of the epochs before; made or restored where there is none."""
        if self._learner is None or self._sizes != (num_features, epochs):
            first = generator if self._saved is None else np.random.default_rng(0)  # what was drawn when it was made is not drawn again
            self._learner = JointLearner(
                self.learning, self.modelling, num_features=num_features, most=self.pr_max, epochs=epochs, generator=first
            )
            self._sizes = (num_features, epochs)
            if self._saved is not None:
                self._learner.load_state_dict(self._saved)
                self._saved = None
        return self._learner

    def state_dict(self) -> dict[str, Any]:
        """The best policy, and the learner with its memory: JSON values and tensors."""
        learner = self._saved if self._learner is None else self._learner.state_dict()
        return {"best": self._best, "units": self._units, "learner": learner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            KeyError: it is the state of another agent.
        """
        self._best, self._units, self._saved = state["best"], list(state["units"]), state["learner"]
        self._learner = None
