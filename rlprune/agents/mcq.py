"""RL-Pruner: Monte-Carlo sampling and Q-learning of a pruning distribution (section 3.2).

The policy is a base distribution PD over the channel groups. A step runs several sampling stages; each draws noisy copies of PD, measures
the networks they lead to, and moves PD towards a good one.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlprune.agents.base import Normalization, StepTask, comparable, noisy


@dataclass
class Entry:
    """One line of the replay buffer."""

    action: np.ndarray
    q_value: float
    candidate: Any


class MCQ:
    """The agent of RL-Pruner.

    Args:
        stages: sampling stages a pruning step.
        sample_num: actions a stage, and entries of the replay buffer.
        sample_steps: steps looked ahead by a Q value; 1 looks at the next state alone.
        discount: γ of equation 15.
        noise_std: standard deviation of the noise ε on PD, scaled by a uniform draw, equation 12.
        step_size: λ of equation 19.
        clip: δ of equation 20, the largest relative change of a share in one update.
        epsilon: probability of a random choice from the buffer at the first step, equation 18.
        epsilon_decay: how it falls to 0: `constant` (it does not), `linear` or `cosine`.
        epsilon_fraction: share of the pruning steps over which it falls.
        update_on_improvement: update PD only in stages whose best Q value is the step's best so far.
        ranking: where it is set, the first action of a step is what one ranking of all units removes, their scores made comparable by
            `mean`, `l2`, `max` or `none`: not in the paper, and for one candidate a step the search starts no worse than that baseline.
        reset_drop: put PD back to its start when accuracy falls by more than this fraction in a step; null never does.
    """

    def __init__(
        self,
        *,
        stages: int,
        sample_num: int,
        sample_steps: int,
        discount: float,
        noise_std: float,
        step_size: float,
        clip: float,
        epsilon: float,
        epsilon_decay: Literal["constant", "linear", "cosine"],
        epsilon_fraction: float,
        update_on_improvement: bool,
        ranking: Normalization | None,
        reset_drop: float | None,
    ) -> None:
        for name, value in (("stages", stages), ("sample_num", sample_num), ("sample_steps", sample_steps)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be ≥ 1")
        if noise_std < 0:
            raise ValueError(f"noise_std={noise_std}: must be ≥ 0")
        for name, share in (("discount", discount), ("step_size", step_size), ("epsilon", epsilon)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: must be in [0, 1]")
        for name, share in (("clip", clip), ("epsilon_fraction", epsilon_fraction)):
            if not 0 < share <= 1:
                raise ValueError(f"{name}={share}: must be in (0, 1]")
        if reset_drop is not None and not 0 < reset_drop < 1:
            raise ValueError(f"reset_drop={reset_drop}: must be in (0, 1), or null")
        self.stages, self.sample_num, self.sample_steps = stages, sample_num, sample_steps
        self.discount, self.noise_std, self.step_size, self.clip = discount, noise_std, step_size, clip
        self.epsilon, self.epsilon_decay, self.epsilon_fraction = epsilon, epsilon_decay, epsilon_fraction
        self.update_on_improvement, self.reset_drop, self.ranking = update_on_improvement, reset_drop, ranking
        self.distribution: np.ndarray | None = None  # PD, shape (group,)
        self.initial: np.ndarray | None = None

    @property
    def candidates_per_step(self) -> int:
        """Actions drawn in a step, looked-ahead ones included."""
        return self.stages * sum(self.sample_num**depth for depth in range(1, self.sample_steps + 1))

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """One pruning step: sample, learn, and choose what is carried out."""
        if self.distribution is None or self.initial is None:
            self.initial = task.channel_shares.copy()
            self.distribution = self.initial.copy()
        epsilon = self.exploration(task.step, task.steps)
        buffer: list[Entry] = []  # emptied every step; PD persists
        best = -math.inf
        for stage in range(self.stages):
            for candidate in self.drawn(task, generator, first=stage == 0):
                entry = Entry(candidate.action, self.q_value(task, candidate, self.sample_steps, generator), candidate)
                self.store(buffer, entry, generator)
            top = max(entry.q_value for entry in buffer)
            if top > best or not self.update_on_improvement:
                self.update(self.choose(buffer, epsilon, generator).action)
            best = max(best, top)
            if task.exhausted:
                break
        chosen = self.choose(buffer, epsilon, generator).candidate
        if self.reset_drop is not None and chosen.accuracy < (1 - self.reset_drop) * task.accuracy:
            self.distribution = self.initial.copy()
        return chosen

    def drawn(self, task: StepTask, generator: np.random.Generator, *, first: bool) -> list[Any]:
        """The candidates of a stage, drawn before any is measured, so that they can be measured side by side."""
        if not first or self.ranking is None:
            return list(task.evaluate_many([self.sample(generator) for _ in range(self.sample_num)]))
        ranked = task.evaluate_ranking(comparable(task.scores, self.ranking))
        others = [self.sample(generator) for _ in range(self.sample_num - 1)]
        return [ranked, *(task.evaluate_many(others) if others and not task.exhausted else [])]

    def sample(self, generator: np.random.Generator) -> np.ndarray:
        """Equations 11 and 12: an action near PD."""
        assert self.distribution is not None
        return noisy(self.distribution, self.noise_std, generator)

    def q_value(self, task: StepTask, candidate: Any, depth: int, generator: np.random.Generator) -> float:
        """Equations 13–16: Q(s, a) = r(s') + γ max_a' Q(s', a'), `depth` steps deep and `sample_num` actions wide."""
        reward = float(candidate.reward)
        following = task.after(candidate) if depth > 1 and not task.exhausted else None
        if following is None:
            return reward
        successors = following.evaluate_many([self.sample(generator) for _ in range(self.sample_num)])
        next_q_values = [self.q_value(following, successor, depth - 1, generator) for successor in successors]
        return reward + self.discount * max(next_q_values)

    def store(self, buffer: list[Entry], entry: Entry, generator: np.random.Generator) -> None:
        """A full buffer gives up its lowest Q value for a higher or equal one; ties are broken at random."""
        if len(buffer) < self.sample_num:
            buffer.append(entry)
            return
        lowest = min(line.q_value for line in buffer)
        if entry.q_value >= lowest:
            ties = [index for index, line in enumerate(buffer) if line.q_value == lowest]
            if entry.q_value == lowest:
                ties.append(len(buffer))  # the new entry may be the one that goes
            victim = int(generator.choice(ties))
            if victim < len(buffer):
                buffer[victim] = entry

    def choose(self, buffer: list[Entry], epsilon: float, generator: np.random.Generator) -> Entry:
        """Equation 18: ε-greedy; ties are broken at random."""
        if generator.random() < epsilon:
            return buffer[int(generator.integers(len(buffer)))]
        highest = max(entry.q_value for entry in buffer)
        ties = [entry for entry in buffer if entry.q_value == highest]
        return ties[int(generator.integers(len(ties)))]

    def update(self, action: np.ndarray) -> None:
        """Equations 19 and 20: PD' = PD + λ (a − PD), each share's ratio clipped to [1 − δ, 1 + δ] as in PPO, then renormalised.

        A share is taken as at least a thousandth of its initial value, so that one that fell to zero can return.
        """
        assert self.distribution is not None
        assert self.initial is not None
        base = np.maximum(self.distribution, self.initial / 1000)
        moved = base + self.step_size * (action - base)  # eq. 19
        clipped = base * np.clip(moved / base, 1 - self.clip, 1 + self.clip)  # eq. 20
        self.distribution = clipped / clipped.sum()

    def exploration(self, step: int, steps: int) -> float:
        """ε at a pruning step: it reaches 0 after the first `ceil(epsilon_fraction · steps)` steps, unless it is constant."""
        if self.epsilon_decay == "constant":
            return self.epsilon
        progress = min(1.0, step / math.ceil(self.epsilon_fraction * steps))
        if self.epsilon_decay == "linear":
            return self.epsilon * (1 - progress)
        return self.epsilon * 0.5 * (1 + math.cos(math.pi * progress))

    def state_dict(self) -> dict[str, Any]:
        """PD and where it started."""
        if self.distribution is None or self.initial is None:
            return {}
        return {"distribution": self.distribution.tolist(), "initial": self.initial.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved PD."""
        if state:
            self.distribution, self.initial = np.array(state["distribution"]), np.array(state["initial"])
