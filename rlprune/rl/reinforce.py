"""A policy over the filters of a layer, and the policy gradient with a leave-one-out baseline (RLP, section 2.1)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.rl.networks import Perceptron
from rlprune.rl.settings import check_rates, check_widths

SURE = 10.0  # samples in which a policy that is as sure as it can be decides once against what it says, on average
FEW = 27  # elements of a filter
Baseline = Literal["leave_one_out", "none"]


@dataclass(frozen=True)
class Learning:
    """How the policy of a layer learns.

    Args:
        samples: K, decisions drawn for an update.
        baseline: what is subtracted from a decision's reward: the mean over the others of the update (`leave_one_out`), or `none`.
        hidden: widths of the policy's hidden layers.
        lr: learning rate (Adam).
        initial_keep: probability at the start that a filter is kept; None leaves it to `Reinforce.start`.

    Raises:
        ValueError: a number is out of its range.
    """

    samples: int
    baseline: Baseline
    hidden: Sequence[int]
    lr: float
    initial_keep: float | None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples={self.samples}: must be ≥ 1")
        if self.samples < 2 and self.baseline == "leave_one_out":
            raise ValueError(
                f"samples={self.samples}: baseline=leave_one_out compares with the others, so it needs 2 or more; or baseline=none"
            )
        check_widths("[64]", hidden=self.hidden)
        check_rates(lr=self.lr)
        if self.initial_keep is not None and not 0 < self.initial_keep < 1:
            raise ValueError(f"initial_keep={self.initial_keep}: must be in (0, 1), or null")


class FilterPolicy(nn.Module):
    """π(A | W, θ): filters → the logit of keeping each; the weights θ are shared over the filters.

    A logit is a level that all filters have in common, and what a network reads in the filter, less its mean over the filters: what is
    learned of one filter need not carry the others along. No probability comes nearer to 0 or 1 than 1 / (1 + `SURE` · filters), so that
    some samples always try something else.

    Args:
        elements: weights of a filter.
        hidden: widths of the hidden layers.
        level: at the start.
        generator: of the first weights.
    """

    def __init__(self, elements: int, hidden: Sequence[int], level: float, generator: torch.Generator) -> None:
        super().__init__()
        self.body, self.level = Perceptron(elements, hidden, generator), nn.Parameter(torch.tensor(level))

    def forward(self, filters: Tensor) -> Tensor:
        """(unit, elements) → logits, (unit,)."""
        most, read = math.log(SURE * len(filters)), self.body(filters)[:, 0]
        logits: Tensor = most * torch.tanh((self.level + read - read.mean()) / most)
        return logits


def logit(probability: float) -> float:
    """Of a probability in (0, 1)."""
    return math.log(probability / (1 - probability))


def start_looks(filters: int) -> int:
    """Probabilities that `Reinforce.start` may try: what goes is doubled from half a filter to half of all."""
    return filters.bit_length()


def log_probability(logits: Tensor, decisions: Tensor) -> Tensor:
    """Of decisions, log π(A | W, θ): (sample, unit) with 1 for keep → (sample,)."""
    each = F.binary_cross_entropy_with_logits(logits.expand(decisions.shape), decisions, reduction="none")
    return -each.sum(1)


def advantages(rewards: Tensor, baseline: Baseline) -> Tensor:
    """R − b for every sample, (sample,): b is the mean reward of the *other* samples, so that it does not depend on the decision itself."""
    if baseline == "none":
        return rewards
    others = (rewards.sum() - rewards) / (len(rewards) - 1)
    return rewards - others


def surrogate(logits: Tensor, decisions: Tensor, rewards: Tensor, baseline: Baseline) -> Tensor:
    """A loss whose gradient is minus the estimate of ∇E[R], equation 4: the mean over samples of (R − b) ∇ log π(A).

    Args:
        logits: of the policy, (unit,).
        decisions: that were drawn, 1 for keep, (sample, unit).
        rewards: theirs, (sample,).
        baseline: b, see `Learning`.
    """
    return -(advantages(rewards, baseline) * log_probability(logits, decisions)).mean()


class Reinforce:
    """The policy of one layer, and what it learns with.

    Args:
        learning: how.
        filters: that it reads, (unit, elements).
        generator: of weights and decisions.
    """

    def __init__(self, learning: Learning, filters: Tensor, generator: np.random.Generator) -> None:
        self.learning, self.filters, self._generator = learning, filters, generator
        weights = torch.Generator().manual_seed(int(generator.integers(2**63)))
        level = logit(1 - 0.5 / len(filters) if learning.initial_keep is None else learning.initial_keep)
        self.policy = FilterPolicy(filters.shape[1], learning.hidden, level, weights)
        first = self.policy.body.layers[0].weight
        others = [parameter for parameter in self.policy.parameters() if parameter is not first]
        # Adam moves each weight alike, so what reads filters of many elements would leap: its steps are those of a filter of 3 × 3 × 3.
        groups = [{"params": [first], "lr": learning.lr * min(1.0, FEW / filters.shape[1])}, {"params": others, "lr": learning.lr}]
        self._optimizer = torch.optim.Adam(groups, fused=True)

    @torch.inference_mode()
    def logits(self) -> np.ndarray:
        """Of keeping each unit, shape (unit,); above 0 the policy rather keeps it."""
        logits: np.ndarray = self.policy(self.filters).double().numpy()
        return logits

    def sample(self) -> np.ndarray:
        """K draws of logit + noise, shape (sample, unit): a draw above 0 keeps the unit, which is a decision A ~ π."""
        return self._draws(self.logits())

    def start(self, mean_reward: Callable[[np.ndarray], float | None]) -> None:
        """Start where one probability for all filters is worth most, so that learning need not find out how much can go.

        The share that goes is doubled from half a filter to half of all, until decisions are beyond the bound on average.

        Args:
            mean_reward: draws, as of `sample` → the mean of their rewards; None ends it.
        """
        best = -np.inf
        for look in range(start_looks(len(self.filters))):
            removed = 0.5 / len(self.filters) * 2**look
            worth = mean_reward(self._draws(np.full(len(self.filters), logit(1 - removed))))
            if worth is None or worth <= 0:
                return
            if worth > best:
                best = worth
                nn.init.constant_(self.policy.level, logit(1 - removed))

    def _draws(self, logits: np.ndarray) -> np.ndarray:
        uniform = np.clip(self._generator.random((self.learning.samples, len(self.filters))), 1e-12, 1 - 1e-12)
        draws: np.ndarray = logits + np.log(uniform) - np.log1p(-uniform)
        return draws

    def update(self, decisions: np.ndarray, rewards: Sequence[float]) -> None:
        """One step along the estimate of ∇E[R], whose length does not depend on how far apart the rewards are.

        They lie orders of magnitude apart at first, where most decisions are beyond the bound, and hundredths at the end.

        Args:
            decisions: what the policy drew, True for keep, (sample, unit).
            rewards: theirs.
        """
        drawn, scores = torch.from_numpy(decisions.astype(np.float32)), torch.tensor(rewards, dtype=torch.float32)
        scale = float(advantages(scores, self.learning.baseline).square().mean().sqrt())
        loss = surrogate(self.policy(self.filters), drawn, scores, self.learning.baseline) / (scale or 1.0)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
