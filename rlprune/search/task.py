"""The task an agent sees at one pruning step: what it may remove, and what a candidate is worth."""

import hashlib
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from rlprune.agents.base import Finetuning
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph, Slicer, prune
from rlprune.search.allocate import allocate, carried, turns_by_share
from rlprune.search.execution import MULTIPLES
from rlprune.search.layers import LayerEnv, LayerReward
from rlprune.search.limits import Goal, Room
from rlprune.search.schedule import Size

log = logging.getLogger(__name__)
Measure = Callable[[nn.Module], float]
Reward = Callable[..., float]
"""Called with accuracy, flops_ratio and params_ratio by name, all fractions; latency_ratio too where its `reads_latency` is true."""


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


class Measured(NamedTuple):
    """A distinct candidate's accuracy, and a number that tells it from others."""

    fingerprint: int
    accuracy: float


@dataclass
class Ledger:
    """Counts what a search measures and says when it must end.

    `distinct` candidates were measured, `repeated` came from the cache. `max_candidates` bounds the distinct ones of a step; `deadline` is
    on the clock of time.monotonic. `on_measure` is called with every accuracy, `on_report` with what an agent reports. `measured` holds
    the step's distinct candidates in their order, `in_time` of them before the deadline; those that are `known` from before the search was
    interrupted, in `known_seconds`, are not measured again.
    """

    max_candidates: int | None = None
    deadline: float | None = None
    distinct: int = 0
    repeated: int = 0
    step_start: int = 0
    on_measure: Callable[[float], None] = lambda accuracy: None
    measured: list[Measured] = field(default_factory=list)
    known: list[Measured] = field(default_factory=list)
    known_seconds: float = 0.0
    in_time: int = 0
    on_accuracy: Callable[[], None] = lambda: None
    on_report: Callable[[dict[str, Any]], None] = lambda values: None

    @property
    def expired(self) -> bool:
        """The time for the search is over; it is not before all are known that it was enough for before the interruption."""
        return self.deadline is not None and time.monotonic() >= self.deadline and len(self.measured) >= self.in_time

    @property
    def exhausted(self) -> bool:
        """No further candidate may be measured in this step."""
        return self.exhausted_at(1.0)

    def exhausted_at(self, share: float) -> bool:
        """No further candidate may be measured in this step before so large a share of it is over."""
        return self.expired or (self.max_candidates is not None and self.distinct - self.step_start >= share * self.max_candidates)

    def accuracy(self, subject: Sequence[np.ndarray], measure: Callable[[], float]) -> float:
        """The accuracy of the step's next distinct candidate, which `subject` tells from others: known, or measured now."""
        place = len(self.measured)
        fingerprint = zlib.crc32(b"/".join(np.asarray(array, dtype=np.int64).tobytes() for array in subject))
        if place < len(self.known) and self.known[place].fingerprint != fingerprint:  # as where another machine rounds otherwise
            log.warning(
                "the search goes another way than before the interruption; %d candidates are measured anew", len(self.known) - place
            )
            self.known, self.in_time = self.known[:place], min(self.in_time, place)
        if not self.expired:
            self.in_time = max(self.in_time, place + 1)
        self.measured.append(self.known[place] if place < len(self.known) else Measured(fingerprint, measure()))
        self.distinct += 1
        self.on_measure(self.measured[place].accuracy)
        self.on_accuracy()
        return self.measured[place].accuracy


def as_it_is(network: nn.Module) -> nn.Module:
    """Nothing done to a network."""
    return network


def ranked(scores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Units of each group, the lowest score first and the first among equals; each of shape (unit,)."""
    return [np.argsort(values, kind="stable") for values in scores]


def no_finetuning(network: nn.Module, finetuning: Finetuning, phase: str) -> None:
    """There are no images to train on.

    Raises:
        UserError: always.
    """
    raise UserError("finetune_batches: this search has no images to train on; set it to 0")


@dataclass(frozen=True)
class Environment:
    """What stays the same over all steps of a search."""

    measure: Measure  # accuracy on the search split
    reward: Reward
    score: Callable[[nn.Module, ChannelGraph], dict[str, Tensor]]  # criterion on the calibration images
    dense: Size
    goals: tuple[Goal, ...]  # of every step
    kept_counts: dict[str, np.ndarray]  # group → numbers of units it may keep, descending
    ledger: Ledger = field(default_factory=Ledger)
    refresh: Callable[[nn.Module], object] = as_it_is  # what a pruned network gets before it is looked at
    prepare: Callable[[nn.Module], nn.Module] = as_it_is  # makes of a candidate the network that is measured
    finetune: Callable[[nn.Module, Finetuning, str], None] = no_finetuning  # trains a network of an episode in place, in a named phase
    example: Tensor | None = None  # images, as the network takes them
    execution: str = "sliced"  # how candidates are run: a key of MULTIPLES
    alike: Callable[[Iterable[str]], Measure] | None = None  # by names of tensors: measures networks that differ in these alone


def _digest(arrays: Iterable[np.ndarray]) -> bytes:
    """A short key for units of all groups."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(array.astype(np.int64).tobytes() + b"/")
    return digest.digest()


class Task:
    """One pruning step. An action is a distribution of what goes over the groups, in network order."""

    def __init__(
        self,
        environment: Environment,
        network: nn.Module,
        graph: ChannelGraph,
        step: int,
        carry: np.ndarray | None = None,
        dense_accuracy: float | None = None,
    ) -> None:
        self.environment, self.network, self.graph, self.step = environment, network, graph, step
        self._dense_accuracy = dense_accuracy
        self.carry = np.zeros(len(graph.groups)) if carry is None else carry
        self.room = Room(graph, [environment.kept_counts[group.name] for group in graph.groups])
        self._cache: dict[tuple[int, ...] | bytes, float] = {}  # accuracy alone: VGG-16's kept units, ten thousand times, fill a gigabyte
        self._slicer: Slicer | None = None
        self._shared: tuple[bytes, Measure] | None = None  # what tells the candidates that share work, and how they are measured

    @property
    def goal(self) -> Goal:
        """What may be left after this step."""
        return self.environment.goals[self.step]

    @property
    def bounded(self) -> bool:
        """Something is asked of this step."""
        return not self.goal.free

    @property
    def turn(self) -> np.ndarray:
        """The groups whose turn it is where a search goes layer by layer, in network order; shape (group,).

        Those that can lose units are shared out evenly over the steps of which nothing is asked.
        """
        groups = [index for index, group in enumerate(self.graph.groups) if len(self.environment.kept_counts[group.name]) > 1]
        return np.array_split(np.array(groups, dtype=int), sum(goal.free for goal in self.environment.goals))[self.step]

    @property
    def dense_accuracy(self) -> float:
        """Accuracy of the dense network on the search split; of this one where none was given."""
        return self.accuracy if self._dense_accuracy is None else self._dense_accuracy

    def kept_counts(self, index: int) -> np.ndarray:
        """Numbers of units that a group may keep, descending; the first is all that it had in the dense network."""
        return self.environment.kept_counts[self.graph.groups[index].name]

    @property
    def idle(self) -> bool:
        """Earlier steps have removed what this one was to remove."""
        return self.bounded and float(self.goal.excess(self.graph, np.zeros(len(self.graph.groups), dtype=int))) <= 0

    @property
    def example(self) -> Tensor:
        """Two training images, as the network takes them, for agents that trace or run it.

        Raises:
            UserError: there is none in this search.
        """
        if self.environment.example is None:
            raise UserError("the agent needs example images, and this search has none")
        return self.environment.example

    @property
    def steps(self) -> int:
        """Pruning steps of the whole search."""
        return len(self.environment.goals)

    @property
    def exhausted(self) -> bool:
        """Agents stop sampling when this turns true; one candidate may always be measured."""
        return self.environment.ledger.exhausted

    def exhausted_at(self, share: float) -> bool:
        """For agents that share out a step's candidates: by now only so large a share of them may be measured, and is."""
        return self.environment.ledger.exhausted_at(share)

    @property
    def channel_shares(self) -> np.ndarray:
        """Each group's share of the channels now, shape (group,); sums to 1."""
        channels = self.graph.num_units * self.graph.channels_per_unit
        return channels / channels.sum()

    @cached_property
    def accuracy(self) -> float:
        """Accuracy of the network as it is, on the search split."""
        return self.environment.measure(self.network)

    @cached_property
    def scores(self) -> list[np.ndarray]:
        """The criterion's score of every unit, group after group, each of shape (unit,); computed once for this network state."""
        scores = self.environment.score(self.network, self.graph)
        return [scores[group.name].numpy() for group in self.graph.groups]

    def evaluate(self, action: np.ndarray, scores: Sequence[np.ndarray] | None = None) -> Candidate:
        """Measure what an action leads to. Actions that round to the same units are measured once.

        Args:
            action: the distribution over groups, shape (group,).
            scores: which units of a group go, lowest first; each of shape (unit,). None: the criterion's.
        """
        counts = allocate(turns_by_share(action, self.carry, self.room), self.room, self.goal)
        orders = None if scores is None else ranked(scores)
        return self._evaluate(action, counts, carried(action, self.carry, counts, self.room), orders)

    def evaluate_counts(self, counts: np.ndarray) -> Candidate:
        """Measure the network without so many units of each group, shape (group,), whether or not it meets the step's goal."""
        removed = counts * self.room.weights
        return self._evaluate(removed / max(1, removed.sum()), counts, self.carry)

    def evaluate_keep(self, keep: Mapping[str, np.ndarray], *, among: str | None = None) -> Candidate:
        """Measure the network with only these units of each group that is named, ascending; the others stay whole.

        Args:
            keep: units by group.
            among: a group in which alone many candidates differ that are measured one after another: what comes before it is computed once.
        """
        orders = [np.arange(group.num_units) for group in self.graph.groups]
        for index, group in enumerate(self.graph.groups):
            if group.name in keep:
                orders[index] = np.concatenate([np.setdiff1d(orders[index], keep[group.name]), keep[group.name]])
        counts = self.graph.counts(keep)
        removed = counts * self.room.weights
        measure = None if among is None else self._measure_among(among, keep)
        return self._evaluate(removed / max(1, removed.sum()), counts, self.carry, orders, measure)

    def evaluate_ranking(self, scores: Sequence[np.ndarray], *, within: bool = False) -> Candidate:
        """Measure what goes when the units of all groups stand in one ranking, lowest first.

        Args:
            scores: of every unit, comparable over groups; each of shape (unit,).
            within: they also say which units of a group go; otherwise the criterion's order counts there.
        """
        turns = np.empty(len(self.room.owner))
        for index, values in enumerate(scores):
            sums = np.concatenate([[0], np.cumsum(np.sort(values))])
            mine = self.room.owner == index
            first, last = self.room.first[mine], self.room.last[mine]
            turns[mine] = (sums[last] - sums[first]) / (last - first)
        counts = allocate(turns, self.room, self.goal)
        removed = counts * self.room.weights
        return self._evaluate(removed / max(1, removed.sum()), counts, self.carry, ranked(scores) if within else None)

    def layers(
        self,
        *,
        features: Sequence[str],
        pr_max: float,
        reward: LayerReward | None = None,
        finetuning: Finetuning | None = None,
    ) -> LayerEnv:
        """This step as episodes, one action a channel group: see `LayerEnv`."""
        return LayerEnv(self, features=features, pr_max=pr_max, reward=reward, finetuning=finetuning)

    def worth(self, accuracy: float, counts: np.ndarray) -> float:
        """The run's reward for a network of this accuracy without `counts` units of each group."""
        macs, params, dense = self.graph.cost.macs(counts), self.graph.cost.params(counts), self.environment.dense
        ratios = {"flops_ratio": 1 - macs / dense.macs, "params_ratio": 1 - params / dense.params}
        if getattr(self.environment.reward, "reads_latency", False) and self.graph.clock is not None:
            ratios["latency_ratio"] = 1 - float(self.graph.seconds(counts)) / self.graph.clock.dense
        return self.environment.reward(accuracy=accuracy, **ratios)

    def report(self, **values: float | str | None) -> None:
        """Tell the run about one episode: its numbers become a row of episodes.csv and the curves of episodes.png."""
        self.environment.ledger.on_report(values)

    def after(self, candidate: Candidate) -> "Task | None":
        """The next step's task if this candidate were carried out now, without recovery; None behind the last step."""
        if self.step + 1 == self.steps:
            return None
        network = prune(self.network, self.graph, candidate.keep)
        return Task(self.environment, network, self.graph.after(candidate.keep), self.step + 1, candidate.carry, self._dense_accuracy)

    @cached_property
    def orders(self) -> list[np.ndarray]:
        """The units of each group, group after group, in the order in which they go: by the criterion, lowest first."""
        return ranked(self.scores)

    def keep(self, counts: np.ndarray, orders: Sequence[np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """The units that stay when each group loses its `counts` first ones."""
        rankings = self.orders if orders is None else orders
        return {
            group.name: np.sort(order[count:]) for group, order, count in zip(self.graph.groups, rankings, counts.tolist(), strict=True)
        }

    def _evaluate(
        self,
        action: np.ndarray,
        counts: np.ndarray,
        carry: np.ndarray,
        orders: Sequence[np.ndarray] | None = None,
        measure: Measure | None = None,
    ) -> Candidate:
        keep = self.keep(counts, orders)
        key = tuple(counts.tolist()) if orders is None else _digest(keep.values())
        if key in self._cache:
            self.environment.ledger.repeated += 1
        else:
            if self._slicer is None:
                self._slicer = Slicer(self.network, self.graph, multiple=MULTIPLES[self.environment.execution])
            subject = [counts] if orders is None else list(keep.values())
            accuracy = partial(self._accuracy, self._slicer, keep, measure or self.environment.measure)
            self._cache[key] = self.environment.ledger.accuracy(subject, accuracy)
        return self._candidate(action, counts, keep, carry, self._cache[key])

    def _measure_among(self, name: str, keep: Mapping[str, np.ndarray]) -> Measure | None:
        """How candidates are measured that differ in this group alone, as long as they do."""
        if self.environment.alike is None:
            return None
        key = _digest(keep[other] for other in sorted(keep) if other != name) + name.encode()
        if self._shared is None or self._shared[0] != key:
            self._shared = None  # it may hold a lot of memory
            group = next(group for group in self.graph.groups if group.name == name)
            self._shared = key, self.environment.alike({member.tensor for member in group.members})
        return self._shared[1]

    def _candidate(
        self, action: np.ndarray, counts: np.ndarray, keep: dict[str, np.ndarray], carry: np.ndarray, accuracy: float
    ) -> Candidate:
        macs, params = self.graph.cost.macs(counts), self.graph.cost.params(counts)
        return Candidate(action, counts, keep, carry, accuracy, macs, params, self.worth(accuracy, counts))

    def _accuracy(self, slicer: Slicer, keep: dict[str, np.ndarray], measure: Measure) -> float:
        network = slicer(keep)
        self.environment.refresh(network)
        return measure(self.environment.prepare(network))
