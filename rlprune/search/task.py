"""The task an agent sees at one pruning step: what it may remove, and what a candidate is worth."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
from torch import Tensor, nn

from rlprune.graph import ChannelGraph, Slicer, prune
from rlprune.search.allocate import allocate, carried, turns_by_share
from rlprune.search.execution import MULTIPLES
from rlprune.search.limits import Goal, Room
from rlprune.search.schedule import Size

Reward = Callable[..., float]
"""Called with accuracy, flops_ratio and params_ratio by name, all fractions."""


@dataclass(frozen=True)
class Candidate:
    """A network that a pruning step could end in.

    `action` is the real-valued distribution that led to it, shape (group,); `counts` the units it removes from each group, shape (group,);
    `keep` the units that stay, by group; `carry` the channels that rounding still owes each group, shape (group,); `accuracy` is on the
    search split, `reward` the agent's return for one step.
    """

    action: np.ndarray
    counts: np.ndarray
    keep: dict[str, np.ndarray]
    carry: np.ndarray
    accuracy: float
    macs: int
    params: int
    reward: float


@dataclass
class Ledger:
    """Counts what a search measures and says when it must end.

    `distinct` candidates were measured, `repeated` came from the cache. `max_candidates` bounds the distinct ones of a step; `deadline` is
    on the clock of time.monotonic. `on_measure` is called after every measurement. `measured` holds the accuracies of the step's distinct
    candidates in their order; those that are `known` from before the search was interrupted, in `known_seconds`, are not measured again.
    """

    max_candidates: int | None = None
    deadline: float | None = None
    distinct: int = 0
    repeated: int = 0
    seconds: float = 0.0
    step_start: int = 0
    on_measure: Callable[[Candidate], None] = lambda candidate: None
    measured: list[float] = field(default_factory=list)
    known: list[float] = field(default_factory=list)
    known_seconds: float = 0.0
    on_accuracy: Callable[[], None] = lambda: None

    @property
    def expired(self) -> bool:
        """The time for the search is over; it is not as long as accuracies are known."""
        return self.deadline is not None and time.monotonic() >= self.deadline and len(self.measured) >= len(self.known)

    @property
    def exhausted(self) -> bool:
        """No further candidate may be measured in this step."""
        return self.expired or (self.max_candidates is not None and self.distinct - self.step_start >= self.max_candidates)

    def accuracy(self, measure: Callable[[], float]) -> float:
        """The accuracy of the step's next distinct candidate: known, or measured now."""
        place = len(self.measured)
        self.measured.append(self.known[place] if place < len(self.known) else measure())
        self.on_accuracy()
        return self.measured[place]


def as_it_is(network: nn.Module) -> nn.Module:
    """Nothing done to a network."""
    return network


@dataclass(frozen=True)
class Environment:
    """What stays the same over all steps of a search."""

    measure: Callable[[nn.Module], float]  # accuracy on the search split
    reward: Reward
    score: Callable[[nn.Module, ChannelGraph], dict[str, Tensor]]  # criterion on the calibration images
    dense: Size
    goals: tuple[Goal, ...]  # of every step
    kept_counts: dict[str, np.ndarray]  # group → numbers of units it may keep, descending
    ledger: Ledger = field(default_factory=Ledger)
    refresh: Callable[[nn.Module], object] = as_it_is  # what a pruned network gets before it is looked at
    prepare: Callable[[nn.Module], nn.Module] = as_it_is  # makes of a candidate the network that is measured
    execution: str = "sliced"  # how candidates are run: a key of MULTIPLES


class Task:
    """One pruning step. An action is a distribution of what goes over the groups, in network order."""

    def __init__(
        self, environment: Environment, network: nn.Module, graph: ChannelGraph, step: int, carry: np.ndarray | None = None
    ) -> None:
        self.environment, self.network, self.graph, self.step = environment, network, graph, step
        self.carry = np.zeros(len(graph.groups)) if carry is None else carry
        self.room = Room(graph, [environment.kept_counts[group.name] for group in graph.groups])
        self._cache: dict[tuple[int, ...], Candidate] = {}
        self._ranking: dict[str, np.ndarray] | None = None
        self._slicer: Slicer | None = None

    @property
    def goal(self) -> Goal:
        """What may be left after this step."""
        return self.environment.goals[self.step]

    @property
    def idle(self) -> bool:
        """Earlier steps have removed what this one was to remove."""
        return float(self.goal.excess(self.graph, np.zeros(len(self.graph.groups), dtype=int))) <= 0

    @property
    def steps(self) -> int:
        """Pruning steps of the whole search."""
        return len(self.environment.goals)

    @property
    def exhausted(self) -> bool:
        """Agents stop sampling when this turns true; one candidate may always be measured."""
        return self.environment.ledger.exhausted

    @property
    def channel_shares(self) -> np.ndarray:
        """Each group's share of the channels now, shape (group,); sums to 1."""
        channels = self.graph.num_units * self.graph.channels_per_unit
        return channels / channels.sum()

    @property
    def accuracy(self) -> float:
        """Accuracy of the network as it is, on the search split."""
        return self.environment.measure(self.network)

    @cached_property
    def scores(self) -> list[np.ndarray]:
        """The criterion's score of every unit, group after group, each of shape (unit,); computed once for this network state."""
        scores = self.environment.score(self.network, self.graph)
        return [scores[group.name].numpy() for group in self.graph.groups]

    def evaluate(self, action: np.ndarray) -> Candidate:
        """Measure what an action leads to. Actions that round to the same units are measured once."""
        counts = allocate(turns_by_share(action, self.carry, self.room), self.room, self.goal)
        return self._evaluate(action, counts, carried(action, self.carry, counts, self.room))

    def evaluate_ranking(self, scores: Sequence[np.ndarray]) -> Candidate:
        """Measure what goes when the units of all groups stand in one ranking, lowest first.

        Args:
            scores: of every unit, comparable over groups; each of shape (unit,). Within a group the criterion's order counts.
        """
        turns = np.empty(len(self.room.owner))
        for index, values in enumerate(scores):
            sums = np.concatenate([[0], np.cumsum(np.sort(values))])
            mine = self.room.owner == index
            first, last = self.room.first[mine], self.room.last[mine]
            turns[mine] = (sums[last] - sums[first]) / (last - first)
        counts = allocate(turns, self.room, self.goal)
        removed = counts * self.room.weights
        return self._evaluate(removed / max(1, removed.sum()), counts, self.carry)

    def after(self, candidate: Candidate) -> "Task | None":
        """The next step's task if this candidate were carried out now, without recovery; None behind the last step."""
        if self.step + 1 == self.steps:
            return None
        network = prune(self.network, self.graph, candidate.keep)
        return Task(self.environment, network, self.graph.after(candidate.keep), self.step + 1, candidate.carry)

    def keep(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The units that stay when each group loses its `counts` lowest-ranked ones."""
        if self._ranking is None:
            self._ranking = {
                group.name: np.argsort(values, kind="stable") for group, values in zip(self.graph.groups, self.scores, strict=True)
            }
        return {
            group.name: np.sort(self._ranking[group.name][count:]) for group, count in zip(self.graph.groups, counts.tolist(), strict=True)
        }

    def _evaluate(self, action: np.ndarray, counts: np.ndarray, carry: np.ndarray) -> Candidate:
        key = tuple(counts.tolist())
        ledger = self.environment.ledger
        if key in self._cache:
            ledger.repeated += 1
            return replace(self._cache[key], action=action, carry=carry)
        start = time.perf_counter()
        candidate = self._measure(action, counts, carry)
        self._cache[key] = candidate
        ledger.seconds += time.perf_counter() - start
        ledger.distinct += 1
        ledger.on_measure(candidate)
        return candidate

    def _measure(self, action: np.ndarray, counts: np.ndarray, carry: np.ndarray) -> Candidate:
        keep = self.keep(counts)
        if self._slicer is None:
            self._slicer = Slicer(self.network, self.graph, multiple=MULTIPLES[self.environment.execution])
        accuracy = self.environment.ledger.accuracy(partial(self._accuracy, self._slicer, keep))
        macs, params, dense = self.graph.cost.macs(counts), self.graph.cost.params(counts), self.environment.dense
        reward = self.environment.reward(accuracy=accuracy, flops_ratio=1 - macs / dense.macs, params_ratio=1 - params / dense.params)
        return Candidate(action, counts, keep, carry, accuracy, macs, params, reward)

    def _accuracy(self, slicer: Slicer, keep: dict[str, np.ndarray]) -> float:
        network = slicer(keep)
        self.environment.refresh(network)
        return self.environment.measure(self.environment.prepare(network))
