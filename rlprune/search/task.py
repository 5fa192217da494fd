"""The task an agent sees at one pruning step: what it may remove, and what a candidate is worth."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from rlprune.agents.base import Finetuning
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph, prune
from rlprune.search.allocate import allocate, carried, turns_by_share
from rlprune.search.candidates import Cutter, Request, Stage, Workers, as_it_is, digest_of
from rlprune.search.execution import MULTIPLES
from rlprune.search.layers import LayerEnv, LayerReward
from rlprune.search.ledger import Ledger
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
    workers: Workers | None = None  # that measure candidates; None: this process does


@dataclass(frozen=True)
class _Proposal:
    """A candidate before it is measured; `key` tells it from others of its step, `subject` from all others."""

    action: np.ndarray
    counts: np.ndarray
    keep: dict[str, np.ndarray]
    carry: np.ndarray
    key: tuple[int, ...] | bytes
    subject: Sequence[np.ndarray]
    among: str | None = None


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
        ahead_of: "Task | None" = None,
    ) -> None:
        self.environment, self.network, self.graph, self.step = environment, network, graph, step
        self._dense_accuracy = dense_accuracy
        self._ahead_of = ahead_of  # the task whose network this one's is cut from
        self._stage: Stage = Stage(network, graph) if ahead_of is None else ahead_of._stage
        self._units: Mapping[str, np.ndarray] | None = None  # of the stage that this network has, where it is cut from that
        self.carry = np.zeros(len(graph.groups)) if carry is None else carry
        self.room = Room(graph, [environment.kept_counts[group.name] for group in graph.groups])
        self._cache: dict[tuple[int, ...] | bytes, float] = {}  # accuracy alone: VGG-16's kept units, ten thousand times, fill a gigabyte
        self._cutter: Cutter[float] | None = None

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
        return self._measured([self._proposal(action, None if scores is None else ranked(scores))])[0]

    def evaluate_many(self, actions: Sequence[np.ndarray]) -> list[Candidate]:
        """Measure what several actions lead to, side by side where the run has workers.

        They end early where no further candidate may be measured, but never before the first.

        Args:
            actions: distributions over groups, each of shape (group,); at least one.
        """
        return self._measured([self._proposal(action) for action in actions])

    def evaluate_counts(self, counts: np.ndarray) -> Candidate:
        """Measure the network without so many units of each group, shape (group,), whether or not it meets the step's goal."""
        return self._measured([self._fixed(counts)])[0]

    def evaluate_keep(self, keep: Mapping[str, np.ndarray], *, among: str | None = None) -> Candidate:
        """Measure the network with only these units of each group that is named, ascending; the others stay whole.

        Args:
            keep: units by group.
            among: a group in which alone many candidates differ that are measured one after another: what comes before it is computed once.
        """
        return self._measured([self._kept(keep, among)])[0]

    def evaluate_keeps(self, keeps: Sequence[Mapping[str, np.ndarray]], *, among: str, share: float = 1.0) -> list[Candidate]:
        """Measure several such networks, side by side where the run has workers.

        They end early where so large a share of the step's candidates is measured, but never before the first.

        Args:
            keeps: units by group; at least one.
            among: the group in which alone they differ.
            share: of the candidates of this step.
        """
        return self._measured([self._kept(keep, among) for keep in keeps], share)

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
        return self._measured([self._fixed(counts, ranked(scores) if within else None)])[0]

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
        graph = self.graph.after(candidate.keep)
        following = Task(self.environment, network, graph, self.step + 1, candidate.carry, self._dense_accuracy, ahead_of=self)
        following._units = self._of_stage(candidate.keep)
        return following

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

    def _proposal(self, action: np.ndarray, orders: Sequence[np.ndarray] | None = None) -> _Proposal:
        """What an action leads to."""
        counts = allocate(turns_by_share(action, self.carry, self.room), self.room, self.goal)
        return self._with(action, counts, carried(action, self.carry, counts, self.room), orders)

    def _fixed(self, counts: np.ndarray, orders: Sequence[np.ndarray] | None = None, among: str | None = None) -> _Proposal:
        """So many units of each group gone, whatever rounding owes."""
        removed = counts * self.room.weights
        return self._with(removed / max(1, removed.sum()), counts, self.carry, orders, among)

    def _kept(self, keep: Mapping[str, np.ndarray], among: str | None) -> _Proposal:
        """These units stay of the groups that are named."""
        orders = [np.arange(group.num_units) for group in self.graph.groups]
        for index, group in enumerate(self.graph.groups):
            if group.name in keep:
                orders[index] = np.concatenate([np.setdiff1d(orders[index], keep[group.name]), keep[group.name]])
        return self._fixed(self.graph.counts(keep), orders, among)

    def _with(
        self,
        action: np.ndarray,
        counts: np.ndarray,
        carry: np.ndarray,
        orders: Sequence[np.ndarray] | None,
        among: str | None = None,
    ) -> _Proposal:
        keep = self.keep(counts, orders)
        key = tuple(counts.tolist()) if orders is None else digest_of(keep.values())
        return _Proposal(action, counts, keep, carry, key, [counts] if orders is None else list(keep.values()), among)

    def _measured(self, proposals: Sequence[_Proposal], share: float = 1.0) -> list[Candidate]:
        """Candidates in the same order, equal ones measured once; they end where no further one may be measured, behind the first."""
        ledger, left = self.environment.ledger, self.environment.ledger.left(share)
        new = list({proposal.key: proposal for proposal in proposals if proposal.key not in self._cache}.values())
        new = new[: None if left is None else max(1, left)]
        requests = [Request(self._of_stage(proposal.keep), proposal.among) for proposal in new]
        accuracies = ledger.accuracies([proposal.subject for proposal in new], lambda places: self._measure([requests[p] for p in places]))
        candidates: list[Candidate] = []
        with closing(accuracies):
            for proposal in proposals:
                if candidates and ledger.exhausted_at(share):
                    break
                if proposal.key in self._cache:
                    ledger.repeated += 1
                else:
                    self._cache[proposal.key] = next(accuracies)
                candidates.append(self._candidate(proposal, self._cache[proposal.key]))
        return candidates

    def _measure(self, requests: Sequence[Request]) -> Iterable[float]:
        """Accuracies, one after another: those of the workers, or of this process."""
        if self.environment.workers is not None:
            return self.environment.workers.measure(self._stage, requests)
        return (self._own_cutter()(request) for request in requests)

    def _own_cutter(self) -> Cutter[float]:
        """What measures candidates in this process."""
        if self._ahead_of is not None:
            return self._ahead_of._own_cutter()
        if self._cutter is None:
            environment = self.environment
            self._cutter = Cutter(
                self._stage,
                measure=environment.measure,
                refresh=environment.refresh,
                prepare=environment.prepare,
                multiple=MULTIPLES[environment.execution],
                alike=environment.alike,
            )
        return self._cutter

    def _of_stage(self, keep: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Units of this network as they are numbered in that which the step started from."""
        return keep if self._units is None else {name: self._units[name][units] for name, units in keep.items()}

    def _candidate(self, proposal: _Proposal, accuracy: float) -> Candidate:
        counts = proposal.counts
        macs, params = self.graph.cost.macs(counts), self.graph.cost.params(counts)
        return Candidate(proposal.action, counts, proposal.keep, proposal.carry, accuracy, macs, params, self.worth(accuracy, counts))
