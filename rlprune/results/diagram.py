"""What a drawing of a channel graph shows, as data: a row a layer, and a lane for every group that ties layers or is read far away."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rlprune.graph import ChannelGraph, Group
from rlprune.graph.channel_graph import Keep
from rlprune.graph.labels import layer_of

MAX_ROWS = 400  # of more layers those with the most MACs get a row; the picture would be taller than any screen takes
TIED_COLOURS = 8  # that lanes of tied layers take in turn
OTHER = "other multiplications"  # of activations with each other, or inside of operations that the trace does not look into


class Units(NamedTuple):
    """A group beside the first of its layers: its units, how many stay, and the output channels that one of them is."""

    group: str
    units: int
    kept: int
    channels: int

    def __str__(self) -> str:
        """`9/16 units × 4 channels`; a unit of one channel needs no factor, and where all is one unit, nothing can go."""
        number = str(self.units) if self.kept == self.units else f"{self.kept}/{self.units}"
        factor = f" × {self.channels} channels" if self.channels > 1 else ""
        return f"{number} units{factor}" if self.units > 1 else f"1 unit{factor}, which stays"


@dataclass(frozen=True)
class Row:
    """A layer: its MACs for one example and its output channels, all and those that stay.

    Args:
        layer: its name.
        macs: of the dense layer.
        macs_kept: of what stays.
        channels: output channels; 0 where nothing is known of them.
        channels_kept: those that stay.
        groups: that it produces, by name.
        begins: groups whose first layer it is.
        reasons: why channels of it are left alone; empty where none is.
        summed: it stands for what has no row of its own.
    """

    layer: str
    macs: float
    macs_kept: float
    channels: int
    channels_kept: int
    groups: tuple[str, ...]
    begins: tuple[Units, ...]
    reasons: tuple[str, ...]
    summed: bool = False

    @property
    def note(self) -> str:
        """The units of the groups that begin here, and why channels are left alone."""
        return "; ".join([*map(str, self.begins), *(f"kept: {reason}" for reason in self.reasons)])


@dataclass(frozen=True)
class Lane:
    """A line along the rows of a group: which layers produce it and which read it, as row numbers in rising order.

    Args:
        group: its name.
        tied: several layers produce it, so they lose channels together; else it is one layer's, read elsewhere than in the next row.
        produced: rows.
        read: rows.
        column: lanes of a kind that overlap in rows have different ones; 0 is nearest to the names.
        colour: of a tied lane, below `TIED_COLOURS`; lanes that overlap have different ones as long as there are some.
    """

    group: str
    tied: bool
    produced: tuple[int, ...]
    read: tuple[int, ...]
    column: int = 0
    colour: int = 0

    @property
    def first(self) -> int:
        """The uppermost row it touches."""
        return min(self.produced + self.read)

    @property
    def last(self) -> int:
        """The lowest row it touches."""
        return max(self.produced + self.read)


@dataclass(frozen=True)
class Diagram:
    """Rows in network order, lanes, and totals as (dense, kept).

    `left_out` layers have no row of their own: one behind the others is their sum.
    """

    rows: tuple[Row, ...]
    lanes: tuple[Lane, ...]
    num_groups: int
    channels: tuple[int, int]
    macs: tuple[int, int]
    params: tuple[int, int]
    left_out: int


def diagram(graph: ChannelGraph, keep: Keep, *, max_rows: int = MAX_ROWS) -> Diagram:
    """What to draw of `graph` after the plan `keep`.

    Args:
        graph: of the dense network.
        keep: kept units by group; absent groups stay whole.
        max_rows: layers that get a row; of more, those with the most MACs.

    Raises:
        UserError: `keep` does not fit the graph.
    """
    counts = graph.counts(keep)
    macs, kept = _macs(graph, np.zeros_like(counts)), _macs(graph, counts)
    order = network_order(graph, macs)
    largest = sorted(order, key=lambda layer: -macs.get(layer, 0.0))[:max_rows]
    shown = [layer for layer in order if layer in set(largest)]
    rest = [layer for layer in {**dict.fromkeys(order), **macs} if layer not in set(shown) and layer != OTHER]
    rows = _rows(graph, counts, shown, macs, kept)
    if rest:
        rows.append(_sum(f"{len(rest)} smaller layers", rest, macs, kept))
    if macs.get(OTHER, 0.0):
        rows.append(_sum(OTHER, [OTHER], macs, kept))
    units = graph.num_units * graph.channels_per_unit
    channels_kept = int((graph.num_units - counts) @ graph.channels_per_unit)
    return Diagram(
        rows=tuple(rows),
        lanes=tuple(_lanes(graph, {layer: place for place, layer in enumerate(shown)})),
        num_groups=len(graph.groups),
        channels=(int(units.sum()), channels_kept),
        macs=(graph.macs({}), graph.macs(keep)),
        params=(graph.params({}), graph.params(keep)),
        left_out=len(rest),
    )


def network_order(graph: ChannelGraph, macs: Mapping[str, float]) -> list[str]:
    """Layers in the order of their calls as far as groups tell it, else in that of their definition.

    Groups are numbered, and their layers listed, in the order of calls; and nobody reads what no layer has produced.
    """
    defined = dict.fromkeys(layer_of(name) for name in graph.cost.names)
    wanted = {layer for layer, value in macs.items() if value} | {frozen.layer for frozen in graph.frozen}
    sequences = [[group.layers[0] for group in graph.groups]]
    for group in graph.groups:
        wanted |= {*group.layers, *_readers(group)}
        sequences += [list(group.layers), *([group.layers[0], reader] for reader in _readers(group))]
    before = defaultdict(set)
    for sequence in sequences:
        for earlier, later in pairwise(dict.fromkeys(sequence)):
            before[later].add(earlier)
    waiting = [layer for layer in defined if layer in wanted] + sorted(wanted - set(defined) - {OTHER})
    done: dict[str, None] = {}
    while waiting:
        layer = next((layer for layer in waiting if before[layer] <= done.keys()), waiting[0])  # weights of a loop wait for each other
        waiting.remove(layer)
        done[layer] = None
    return list(done)


def _readers(group: Group) -> set[str]:
    return {member.layer for member in group.members if member.role == "in"}


def _macs(graph: ChannelGraph, counts: np.ndarray) -> dict[str, float]:
    """MACs of every layer whose weights multiply, and `OTHER`."""
    found: dict[str, float] = defaultdict(float)
    macs = (graph.cost.numels(counts) * graph.cost.uses).tolist()
    for name, value in zip(graph.cost.names, macs, strict=False):
        if value:
            found[layer_of(name)] += value
    found[OTHER] = sum(macs[len(graph.cost.names) :]) + graph.cost.fixed_macs
    return found


def _rows(graph: ChannelGraph, counts: np.ndarray, shown: Sequence[str], macs: Mapping[str, float], kept: Mapping[str, float]) -> list[Row]:
    channels: dict[str, int] = defaultdict(int)
    channels_kept: dict[str, int] = defaultdict(int)
    groups: dict[str, list[str]] = defaultdict(list)
    begins: dict[str, list[Units]] = defaultdict(list)
    reasons: dict[str, list[str]] = defaultdict(list)
    for group, gone in zip(graph.groups, counts.tolist(), strict=True):
        left = group.num_units - gone
        for member in group.producers:
            channels[member.layer] += member.units.size
            channels_kept[member.layer] += left * member.units.shape[1]
        for layer in dict.fromkeys(group.layers):
            groups[layer].append(group.name)
        first = next((layer for layer in shown if layer in group.layers), None)
        if first is not None:
            begins[first].append(Units(group.name, group.num_units, left, group.channels_per_unit))
    for frozen in graph.frozen:
        channels[frozen.layer] += frozen.channels
        channels_kept[frozen.layer] += frozen.channels
        reasons[frozen.layer].append(frozen.reason)
    return [
        Row(
            layer, macs.get(layer, 0.0), kept.get(layer, 0.0), channels[layer], channels_kept[layer],
            tuple(groups[layer]), tuple(begins[layer]), tuple(dict.fromkeys(reasons[layer])),
        )
        for layer in shown
    ]  # fmt: skip


def _sum(name: str, layers: Iterable[str], macs: Mapping[str, float], kept: Mapping[str, float]) -> Row:
    """A row for what has none of its own."""
    layers = list(layers)
    dense, left = (sum(table.get(layer, 0.0) for layer in layers) for table in (macs, kept))
    return Row(name, dense, left, 0, 0, (), (), (), summed=True)


def _lanes(graph: ChannelGraph, places: Mapping[str, int]) -> list[Lane]:
    """Those that are needed, tied ones first, each kind from top to bottom."""
    found = []
    for group in graph.groups:
        produced = sorted({places[layer] for layer in group.layers if layer in places})
        read = sorted({places[layer] for layer in _readers(group) if layer in places})
        tied = len(set(group.layers)) > 1
        if produced and (tied or any(place != produced[0] + 1 for place in read)):
            found.append(Lane(group.name, tied, tuple(produced), tuple(read)))
    return [lane for tied in (True, False) for lane in _in_columns([lane for lane in found if lane.tied == tied])]


def _in_columns(lanes: Iterable[Lane]) -> list[Lane]:
    """The same lanes, each in the first column that is free again, in a colour that no lane beside it has."""
    placed: list[Lane] = []
    ends: list[int] = []
    for number, lane in enumerate(sorted(lanes, key=lambda lane: (lane.first, -lane.last))):
        column = next((column for column, end in enumerate(ends) if end < lane.first), len(ends))
        ends[column : column + 1] = [lane.last]
        beside = {other.colour for other in placed if other.last >= lane.first}
        turns = [(number + turn) % TIED_COLOURS for turn in range(TIED_COLOURS)]
        colour = next((colour for colour in turns if colour not in beside), turns[0])
        placed.append(Lane(lane.group, lane.tied, lane.produced, lane.read, column, colour))
    return placed
