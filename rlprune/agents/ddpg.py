"""FPRL: a pruning rate for every layer by deep deterministic policy gradient (Feng et al. 2022, Algorithm 1).

Stage 1 plays episodes: each starts from the network as it is, prunes one layer after another, fine-tunes behind each, and learns from every
layer's reward. Stage 2 prunes the network as it is by what was learned; the run's recovery retrains it.
"""

import logging
from typing import Any, Literal

import numpy as np

from rlprune.agents.base import Finetuning, LayerEnv, LayerState, Stateless, StepTask, best_episode
from rlprune.rl.ddpg import ActorCritic, Learning, Losses
from rlprune.rl.episode import Episode, Transition, play
from rlprune.rl.noise import gaussian
from rlprune.rl.replay import Replay

log = logging.getLogger(__name__)
STATE = ("layer", "out_channels", "kernel_size", "accuracy", "flops_ratio")  # (l, n, k, acc, f), section 3.1.1


class DDPG(Stateless):
    """The agent of FPRL. Every pruning step is a search of its own: nothing is carried from one to the next.

    Args:
        episodes: of stage 1.
        pr_max: largest pruning rate of a layer, equation 1.
        reward: `layer`, equation 2 behind every action; `end`, the run's reward behind the last one.
        omega1: weight of the accuracy lost by an action, equation 2.
        omega2: weight of the MACs that it removed, as a share of the dense network's.
        policy: what stage 2 prunes by: the `best` episode, or the `final` actor without noise.
        noise_std: standard deviation of the noise on actions in the first episode, equation 10.
        noise_decay: its factor from episode to episode.
        actor_hidden: widths of the actor's hidden layers.
        actor_bound: what keeps its actions in their range: a `sigmoid`, or `clip`, cut off and pulled back (inverted gradients, Hausknecht
            and Stone 2016), which does not get stuck at an end.
        critic_hidden: widths of the critic's.
        actor_lr: learning rate of the actor.
        critic_lr: learning rate of the critic.
        discount: γ.
        tau: share of the networks that goes into their targets at every update.
        replay_size: transitions remembered.
        batch_size: transitions an update.
        finetune_epochs: behind every action, over the training images or those of `finetune_batches`.
        finetune_batches: training batches that it sees; null: all images; 0: no fine-tuning.
        finetune_lr: its learning rate.
    """

    measures_layers = True
    decides_size = True

    def __init__(
        self,
        *,
        episodes: int,
        pr_max: float,
        reward: Literal["layer", "end"],
        omega1: float,
        omega2: float,
        policy: Literal["best", "final"],
        noise_std: float,
        noise_decay: float,
        actor_hidden: list[int],
        actor_bound: Literal["sigmoid", "clip"],
        critic_hidden: list[int],
        actor_lr: float,
        critic_lr: float,
        discount: float,
        tau: float,
        replay_size: int,
        batch_size: int,
        finetune_epochs: int,
        finetune_batches: int | None,
        finetune_lr: float,
    ) -> None:
        if episodes < 1:
            raise ValueError(f"episodes={episodes}: must be ≥ 1")
        if not 0 < pr_max < 1:
            raise ValueError(f"pr_max={pr_max}: must be in (0, 1); 0.95 leaves a twentieth of every layer")
        for name, weight in (("omega1", omega1), ("omega2", omega2), ("noise_std", noise_std)):
            if weight < 0:
                raise ValueError(f"{name}={weight}: must be ≥ 0")
        if not 0 < noise_decay <= 1:
            raise ValueError(f"noise_decay={noise_decay}: must be in (0, 1]")
        if finetune_epochs < 1:
            raise ValueError(f"finetune_epochs={finetune_epochs}: must be ≥ 1; finetune_batches=0 switches fine-tuning off")
        if finetune_batches is not None and finetune_batches < 0:
            raise ValueError(f"finetune_batches={finetune_batches}: must be ≥ 0, or null for all training images")
        if finetune_lr <= 0:
            raise ValueError(f"finetune_lr={finetune_lr}: must be > 0")
        self.learning = Learning(actor_hidden, actor_bound, critic_hidden, actor_lr, critic_lr, discount, tau, replay_size, batch_size)
        self.finetuning = Finetuning(finetune_epochs, finetune_batches, finetune_lr)
        self.candidates_per_step, self.pr_max, self.reward, self.policy = episodes, pr_max, reward, policy
        self.omega1, self.omega2, self.noise_std, self.noise_decay = omega1, omega2, noise_std, noise_decay

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """Stage 1, and the candidate that stage 2 starts with."""
        env = task.layers(
            features=STATE, pr_max=self.pr_max, reward=self.layer_reward if self.reward == "layer" else None, finetuning=self.finetuning
        )
        learner = ActorCritic(self.learning, num_features=env.num_features, most=self.pr_max, generator=generator)
        counts = self.learn(task, env, learner, generator)
        if self.policy == "final":
            counts = play(env, learner.act, options={"complete": True}).info["counts"]
        return task.evaluate_counts(counts)

    def layer_reward(self, before: LayerState, after: LayerState) -> float:
        """Equation 2: r = ω1 · min(acc' − acc, 0) + ω2 · (f' − f)."""
        return self.omega1 * min(after.accuracy - before.accuracy, 0.0) + self.omega2 * (after.flops_ratio - before.flops_ratio)

    def learn(self, task: StepTask, env: LayerEnv, learner: ActorCritic, generator: np.random.Generator) -> np.ndarray:
        """The episodes of stage 1; returns the units that the best one took, shape (group,)."""
        replay = Replay(self.learning.replay_size, env.num_features)
        losses: list[Losses] = []

        def learn(transition: Transition) -> None:
            replay.store(transition)
            if len(replay) >= self.learning.batch_size:
                losses.append(learner.update(replay.sample(self.learning.batch_size, generator)))

        def play_one(number: int) -> tuple[Episode, dict[str, Any]]:
            noise_std, before = self.noise_std * self.noise_decay**number, len(losses)
            episode = play(env, lambda state: gaussian(learner.act(state), noise_std, self.pr_max, generator), learn=learn)
            return episode, {"noise_std": noise_std, **Losses.mean(losses[before:])}

        counts = best_episode(task, self.candidates_per_step, play_one)
        if not losses:
            log.warning("agent: has learned nothing, as agent.batch_size=%d is more than all its actions", self.learning.batch_size)
        return counts
