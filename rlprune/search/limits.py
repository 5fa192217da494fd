"""How far each channel group may shrink, and in which lumps."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlprune.errors import UserError
from rlprune.graph import ChannelGraph


@dataclass(frozen=True)
class Limits:
    """Which numbers of units a group may keep.

    Args:
        min_keep: units that stay in every group, at least.
        round_to: what a group keeps is a multiple of this, unless it stays whole.
        lenient: where a group has less than twice as many units, of the largest power of two that is at most half of them.
        max_sparsity: share of its units that a group may lose: one number, or by name or regular expression of the group; the first that
            matches counts, and groups that none matches may lose all but `min_keep`.
        most: share that any group may lose, beside `max_sparsity`: the agent's own bound.
    """

    min_keep: int
    round_to: int
    max_sparsity: float | Mapping[str, float]
    most: float = 1.0
    lenient: bool = False

    def kept_counts(self, group: str, units: int) -> np.ndarray:
        """What a group of so many units in the dense network may keep, descending; the first is all of them."""
        floor = max(self.min_keep, math.ceil(units * (1 - min(self.most, self._max_sparsity(group))) - 1e-9))
        fewer = np.arange(units - 1, floor - 1, -1)
        lump = min(self.round_to, 2 ** (units.bit_length() - 2)) if self.lenient and 2 <= units < 2 * self.round_to else self.round_to
        return np.concatenate([[units], fewer[fewer % lump == 0]])

    def check(self, graph: ChannelGraph, *, section: str = "schedule.") -> None:
        """Refuse limits that do not fit the network.

        Args:
            graph: its channel graph.
            section: what stands before the name of a setting where it is set.

        Raises:
            UserError: `round_to` is larger than a group, or a key of `max_sparsity` matches none.
        """
        names = [group.name for group in graph.groups]
        for group in graph.groups:
            if group.num_units < self.round_to and not self.lenient and self._max_sparsity(group.name) > 0:
                raise UserError(
                    f"{section}round_to={self.round_to}: the channel group {group.name} has {group.num_units} units only; "
                    f"choose {group.num_units} or less, or ignore=[{group.name}]"
                )
        if isinstance(self.max_sparsity, Mapping):
            for pattern in self.max_sparsity:
                if not any(_matches(str(pattern), name) for name in names):
                    raise UserError(f"{section}max_sparsity: {pattern} matches no channel group; there are {', '.join(names)}")

    def _max_sparsity(self, group: str) -> float:
        if not isinstance(self.max_sparsity, Mapping):
            return self.max_sparsity
        return next((share for pattern, share in self.max_sparsity.items() if _matches(str(pattern), group)), 1.0)


def _matches(pattern: str, name: str) -> bool:
    return pattern == name or re.fullmatch(pattern, name) is not None


class Room:
    """What one network can still lose: of each group a series of chunks, one unit each unless `round_to` makes lumps.

    Chunks of all groups lie behind one another: chunk j of group i at `starts[i] + j`. `taken` below counts the chunks that go from each
    group, shape (..., group).
    """

    def __init__(self, graph: ChannelGraph, kept_counts: Sequence[np.ndarray]) -> None:
        self.graph, self.weights = graph, graph.channels_per_unit
        gone = [
            np.concatenate([[0], units - counts[counts < units]])
            for units, counts in zip(graph.num_units.tolist(), kept_counts, strict=True)
        ]
        self.num_chunks = np.array([len(series) - 1 for series in gone])  # (group,)
        self.capacity = np.array([series[-1] for series in gone], dtype=int)  # units, (group,)
        self.starts = np.concatenate([[0], np.cumsum(self.num_chunks)[:-1]])
        self.owner = np.repeat(np.arange(len(gone)), self.num_chunks)  # (chunk,)
        self.first = np.concatenate([series[:-1] for series in gone])  # units of the group gone before this chunk, (chunk,)
        self.last = np.concatenate([series[1:] for series in gone])  # and after it
        self._gone = np.concatenate(gone)
        self._offsets = self.starts + np.arange(len(gone))

    def series(self, group: int) -> np.ndarray:
        """Units of a group that are gone with 0, 1, … of its chunks, ascending."""
        series: np.ndarray = self._gone[self._offsets[group] : self._offsets[group] + self.num_chunks[group] + 1]
        return series

    def units(self, taken: np.ndarray) -> np.ndarray:
        """Units that go from each group, shape (..., group)."""
        counts: np.ndarray = self._gone[self._offsets + taken]
        return counts


@dataclass(frozen=True)
class Goal:
    """What may be left after a step: channels, MACs, parameters and predicted seconds a pass, infinite where nothing is asked.

    `exact`: the step must reach the goal; otherwise what is missing by less than a unit is left to the next step.
    """

    channels: float
    macs: float
    params: float
    exact: bool
    latency: float = math.inf

    @property
    def free(self) -> bool:
        """Nothing is asked."""
        return math.inf == self.channels == self.macs == self.params == self.latency

    def relative_excess(self, channels: int, macs: int, params: int, latency: float = 0.0) -> float:
        """By how much a network is larger than asked for, as a share of what was: the worst of all, negative where all are met."""
        found = ((channels, self.channels), (macs, self.macs), (params, self.params), (latency, self.latency))
        return max(size / most - 1 for size, most in found)

    def excess(self, graph: ChannelGraph, counts: np.ndarray) -> np.ndarray:
        """How much more must go after `counts` units are gone, as a share of what is there now, shape (...).

        0 where the goal is met to the unit, negative behind it.
        """
        return self._excess(graph, counts @ graph.channels_per_unit, lambda: graph.cost.many(counts), lambda: graph.seconds(counts))

    def excess_of_one(self, graph: ChannelGraph, counts: np.ndarray, more: np.ndarray) -> np.ndarray:
        """The same if of a single group `more` units went beside (fewer where negative), for each group; all of shape (group,)."""
        gone = counts @ graph.channels_per_unit + more * graph.channels_per_unit
        each = np.diag(more)
        return self._excess(graph, gone, lambda: graph.cost.one_changed(counts, more), lambda: graph.seconds(counts + each))

    def _excess(
        self,
        graph: ChannelGraph,
        gone: np.ndarray,
        costs: Callable[[], tuple[np.ndarray, np.ndarray]],
        seconds: Callable[[], np.ndarray],
    ) -> np.ndarray:
        """Of plans with so many channels gone, (...), so many MACs and parameters left, two of (...), and so many seconds a pass, (...)."""
        parts = [np.full(np.shape(gone), -np.inf)]
        if self.channels < math.inf:
            parts.append((graph.num_channels - gone - self.channels) / graph.num_channels)
        if self.macs < math.inf or self.params < math.inf:
            (macs, params), (all_macs, all_params) = costs(), graph.cost.whole
            parts += [(macs - self.macs) / all_macs, (params - self.params) / all_params]
        if self.latency < math.inf and graph.clock is not None:
            parts.append((seconds() - self.latency) / graph.clock.dense)
        excess: np.ndarray = np.max(parts, axis=0)
        return excess
