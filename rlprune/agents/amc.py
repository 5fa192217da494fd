"""AMC: a pruning rate for every layer from one reward at the end of an episode (He et al. 2018), the ancestor of FPRL."""

import logging
from typing import Any, Literal

import numpy as np

from rlprune.agents.base import Stateless, StepTask, best_episode
from rlprune.rl.ddpg import ActorCritic, Learning, Losses
from rlprune.rl.episode import Episode, play
from rlprune.rl.noise import truncated_normal
from rlprune.rl.replay import Replay

log = logging.getLogger(__name__)
STATE = (  # (t, n, c, h, w, stride, k, FLOPs[t], reduced, rest, a of t − 1), equation 1
    "layer", "out_channels", "in_channels", "height", "width", "stride", "kernel_size", "macs", "flops_ratio", "macs_left",
    "previous_action",
)  # fmt: skip


class AMC(Stateless):
    """The agent of AMC. Every pruning step is a search of its own: nothing is carried from one to the next.

    Args:
        episodes: in all.
        warmup: first episodes, whose actions are uniformly random and which only fill the replay memory.
        pr_max: largest pruning rate of a layer.
        noise_std: standard deviation of the truncated normal distribution that actions are drawn from, behind the warm-up.
        noise_decay: its factor from episode to episode.
        baseline_rate: share of a batch's mean reward that goes into the moving average b at every update, equation 4.
        actor_hidden: widths of the actor's hidden layers.
        actor_bound: what keeps its actions in their range: a `sigmoid`, or `clip`, cut off and pulled back (inverted gradients, Hausknecht
            and Stone 2016), which does not get stuck at an end.
        critic_hidden: widths of the critic's.
        actor_lr: learning rate of the actor.
        critic_lr: learning rate of the critic.
        discount: γ; 1 does not prefer rewards that are near.
        tau: share of the networks that goes into their targets at every update.
        replay_size: transitions remembered.
        batch_size: transitions an update.
    """

    def __init__(
        self,
        *,
        episodes: int,
        warmup: int,
        pr_max: float,
        noise_std: float,
        noise_decay: float,
        baseline_rate: float,
        actor_hidden: list[int],
        actor_bound: Literal["sigmoid", "clip"],
        critic_hidden: list[int],
        actor_lr: float,
        critic_lr: float,
        discount: float,
        tau: float,
        replay_size: int,
        batch_size: int,
    ) -> None:
        if episodes < 1:
            raise ValueError(f"episodes={episodes}: must be ≥ 1")
        if not 0 <= warmup < episodes:
            raise ValueError(f"warmup={warmup}: must be in [0, episodes={episodes}), as nothing is learned before its end")
        if not 0 < pr_max < 1:
            raise ValueError(f"pr_max={pr_max}: must be in (0, 1); 0.8 leaves a fifth of every layer")
        if noise_std < 0:
            raise ValueError(f"noise_std={noise_std}: must be ≥ 0")
        for name, value in (("noise_decay", noise_decay), ("baseline_rate", baseline_rate)):
            if not 0 < value <= 1:
                raise ValueError(f"{name}={value}: must be in (0, 1]")
        self.learning = Learning(actor_hidden, actor_bound, critic_hidden, actor_lr, critic_lr, discount, tau, replay_size, batch_size)
        self.candidates_per_step, self.warmup, self.pr_max = episodes, warmup, pr_max
        self.noise_std, self.noise_decay, self.baseline_rate = noise_std, noise_decay, baseline_rate

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """The candidate of the episode with the highest reward."""
        env = task.layers(features=STATE, pr_max=self.pr_max)
        learner = ActorCritic(self.learning, num_features=env.num_features, most=self.pr_max, generator=generator)
        replay = Replay(self.learning.replay_size, env.num_features)
        baseline: float | None = None  # b of equation 4
        losses: list[Losses] = []

        def update() -> None:
            nonlocal baseline
            batch = replay.sample(self.learning.batch_size, generator)
            mean = float(batch.rewards.mean())
            baseline = mean if baseline is None else baseline + self.baseline_rate * (mean - baseline)
            losses.append(learner.update(batch, baseline))

        def play_one(number: int) -> tuple[Episode, dict[str, Any]]:
            learns, before = number >= self.warmup, len(losses)
            noise_std = self.noise_std * self.noise_decay ** (number - self.warmup) if learns else None
            episode = play(env, lambda state: self.act(learner, state, noise_std, generator))
            for transition in episode.with_last_reward() if episode.complete else ():
                replay.store(transition)
                if learns and len(replay) >= self.learning.batch_size:
                    update()
            return episode, {"noise_std": noise_std, **Losses.mean(losses[before:])}

        counts = best_episode(task, self.candidates_per_step, play_one)
        if not losses:
            log.warning(
                "agent: has learned nothing: agent.warmup=%d episodes were not over, or agent.batch_size=%d is more than all its actions",
                self.warmup, self.learning.batch_size,
            )  # fmt: skip
        return task.evaluate_counts(counts)

    def act(self, learner: ActorCritic, state: np.ndarray, noise_std: float | None, generator: np.random.Generator) -> float:
        """Uniformly random in the warm-up, then around the policy's action."""
        if noise_std is None:
            return self.pr_max * float(generator.random())
        return truncated_normal(learner.act(state), noise_std, self.pr_max, generator)
