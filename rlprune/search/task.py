"""The task an agent sees at one pruning step: what it may remove, and what a candidate is worth."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from rlprune.graph import ChannelGraph, Slicer, prune
from rlprune.search.allocate import allocate

Reward = Callable[..., float]
"""Called with accuracy, flops_ratio and params_ratio by name, all fractions."""


@dataclass(frozen=True)
class DenseCost:
    """What ratios are taken against."""

    macs: int
    params: int
    channels: int


@dataclass(frozen=True)
class Candidate:
    """A network that a pruning step could end in.

    `action` is the real-valued distribution that led to it, shape (group,); `counts` the units it removes from each group, shape (group,);
    `keep` the units that stay, by group; `accuracy` is on the search split, `reward` the agent's return for one step.
    """

    action: np.ndarray
    counts: np.ndarray
    keep: dict[str, np.ndarray]
    accuracy: float
    macs: int
    params: int
    reward: float


@dataclass
class Ledger:
    """Counts what a search measures and says when it must end.

    `distinct` candidates were measured, `repeated` came from the cache. `max_candidates` bounds the distinct ones of a step; `deadline` is
    on the clock of time.monotonic. `on_measure` is called after every measurement.
    """

    max_candidates: int | None = None
    deadline: float | None = None
    distinct: int = 0
    repeated: int = 0
    seconds: float = 0.0
    step_start: int = 0
    on_measure: Callable[[Candidate], None] = lambda candidate: None

    @property
    def expired(self) -> bool:
        """The time for the search is over."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def exhausted(self) -> bool:
        """No further candidate may be measured in this step."""
        return self.expired or (self.max_candidates is not None and self.distinct - self.step_start >= self.max_candidates)


@dataclass(frozen=True)
class Environment:
    """What stays the same over all steps of a search."""

    measure: Callable[[nn.Module], float]  # accuracy on the search split
    reward: Reward
    score: Callable[[nn.Module, ChannelGraph], dict[str, Tensor]]  # criterion on the calibration images
    dense: DenseCost
    targets: tuple[int, ...]  # channels removed after each step, from the dense network's
    min_keep: int
    ledger: Ledger = field(default_factory=Ledger)


class Task:
    """One pruning step. An action is a distribution of the step's budget over the groups, in network order."""

    def __init__(self, environment: Environment, network: nn.Module, graph: ChannelGraph, step: int) -> None:
        self.environment, self.network, self.graph, self.step = environment, network, graph, step
        self._cache: dict[tuple[int, ...], Candidate] = {}
        self._ranking: dict[str, np.ndarray] | None = None
        self._slicer: Slicer | None = None

    @property
    def steps(self) -> int:
        """Pruning steps of the whole search."""
        return len(self.environment.targets)

    @property
    def exhausted(self) -> bool:
        """Agents stop sampling when this turns true; one candidate may always be measured."""
        return self.environment.ledger.exhausted

    @property
    def budget(self) -> int:
        """Channels to remove in this step; what earlier steps could not take in whole units is carried over."""
        return max(0, self.environment.targets[self.step] - (self.environment.dense.channels - self.graph.num_channels))

    @property
    def capacity(self) -> np.ndarray:
        """Units that each group may still lose, shape (group,)."""
        return np.maximum(0, self.graph.num_units - self.environment.min_keep)

    @property
    def channel_shares(self) -> np.ndarray:
        """Each group's share of the channels now, shape (group,); sums to 1."""
        channels = self.graph.num_units * self.graph.channels_per_unit
        return channels / channels.sum()

    @property
    def accuracy(self) -> float:
        """Accuracy of the network as it is, on the search split."""
        return self.environment.measure(self.network)

    def evaluate(self, action: np.ndarray) -> Candidate:
        """Measure what an action leads to. Actions that round to the same units are measured once."""
        counts = allocate(action, self.budget, self.graph.channels_per_unit, self.capacity)
        key = tuple(counts.tolist())
        ledger = self.environment.ledger
        if key in self._cache:
            ledger.repeated += 1
            known = self._cache[key]
            return Candidate(action, known.counts, known.keep, known.accuracy, known.macs, known.params, known.reward)
        start = time.perf_counter()
        candidate = self._measure(action, counts)
        self._cache[key] = candidate
        ledger.seconds += time.perf_counter() - start
        ledger.distinct += 1
        ledger.on_measure(candidate)
        return candidate

    def after(self, candidate: Candidate) -> "Task | None":
        """The next step's task if this candidate were carried out now, without recovery; None behind the last step."""
        if self.step + 1 == self.steps:
            return None
        return Task(self.environment, prune(self.network, self.graph, candidate.keep), self.graph.after(candidate.keep), self.step + 1)

    def keep(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The units that stay when each group loses its `counts` lowest-ranked ones."""
        if self._ranking is None:  # scores are computed once for this network state
            scores = self.environment.score(self.network, self.graph)
            self._ranking = {name: np.argsort(values.numpy(), kind="stable") for name, values in scores.items()}
        return {
            group.name: np.sort(self._ranking[group.name][count:]) for group, count in zip(self.graph.groups, counts.tolist(), strict=True)
        }

    def _measure(self, action: np.ndarray, counts: np.ndarray) -> Candidate:
        keep = self.keep(counts)
        if self._slicer is None:
            self._slicer = Slicer(self.network, self.graph)
        accuracy = self.environment.measure(self._slicer(keep))
        macs, params, dense = self.graph.cost.macs(counts), self.graph.cost.params(counts), self.environment.dense
        reward = self.environment.reward(accuracy=accuracy, flops_ratio=1 - macs / dense.macs, params_ratio=1 - params / dense.params)
        return Candidate(action, counts, keep, accuracy, macs, params, reward)
