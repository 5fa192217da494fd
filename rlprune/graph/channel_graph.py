"""Channel groups: what a network's channels are tied to, and what removing them costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from rlprune.cost import CostModel
from rlprune.errors import UserError
from rlprune.graph.calls import Key
from rlprune.latency_model import LatencyModel

Keep = Mapping[str, Sequence[int] | np.ndarray]
"""Kept unit indices by group name; absent groups stay whole."""


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter or buffer that a group owns entries of.

    `units[i]` are the indices that unit i owns along `dim`; shape (unit, entries of a unit). `role` is `out` for the outputs of a layer's
    weight, `in` for its inputs, `channel` for scales and shifts (bias, batch norm), `statistic` for running statistics, `index` for a
    buffer of channel numbers, and `raw` for other tensors that meet channels one to one.
    """

    tensor: str
    dim: int
    units: np.ndarray
    role: str

    @property
    def layer(self) -> str:
        """Qualified name of the module that owns the tensor."""
        return self.tensor.rpartition(".")[0] or self.tensor


@dataclass(frozen=True)
class Group:
    """Channels of several layers that can only be removed together, unit by unit."""

    name: str
    members: tuple[Member, ...]

    @property
    def num_units(self) -> int:
        """Removable indices in this group."""
        return len(self.members[0].units)

    @cached_property
    def producers(self) -> tuple[Member, ...]:
        """The weights whose output channels these units are."""
        return tuple(member for member in self.members if member.role == "out")

    @cached_property
    def channels_per_unit(self) -> int:
        """Output channels that one unit removes: one for each producing layer it has a channel in."""
        return sum(member.units.shape[1] for member in self.producers)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the producing layers, in network order."""
        return tuple(member.layer for member in self.producers)


@dataclass(frozen=True)
class Frozen:
    """A layer whose output channels, all or some, may not be removed, and why."""

    layer: str
    reason: str
    channels: int


@dataclass(frozen=True)
class ZeroPoint:
    """Where a masked channel must be set to zero again: after the call `key`, along `axis`.

    `groups` and `units` give the owner of each entry along the axis, shape (size,), -1 where none.
    """

    key: Key
    axis: int
    groups: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class IndexBuffer:
    """A buffer of channel numbers, and the owner of each channel that it picks from: shape (size of that axis,), -1 where none."""

    tensor: str
    groups: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class Width:
    """A number that a module keeps as an attribute and no weight tells: its value, and what one unit of each group takes from it."""

    module: str
    attribute: str
    size: int
    taken: Mapping[str, int]  # group → entries


@dataclass(frozen=True)
class ChannelGraph:
    """The groups of one network, the layers left alone, and the closed-form cost of any plan."""

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    cost: CostModel
    zero_points: tuple[ZeroPoint, ...]
    warnings: tuple[str, ...]
    grouped: Mapping[str, tuple[int, int]]  # weight of a grouped convolution that loses whole groups → outputs and inputs of a group
    indices: tuple[IndexBuffer, ...] = ()
    widths: tuple[Width, ...] = ()
    doubts: tuple[str, ...] = ()  # what the trace could not see for itself, so that a proof is due
    clock: LatencyModel | None = None  # predicts the latency of any plan on a device, where it was measured

    @cached_property
    def num_units(self) -> np.ndarray:
        """Units of every group, shape (group,)."""
        return np.array([group.num_units for group in self.groups], dtype=int)

    @cached_property
    def channels_per_unit(self) -> np.ndarray:
        """Output channels one unit of each group weighs, shape (group,)."""
        return np.array([group.channels_per_unit for group in self.groups], dtype=int)

    @property
    def num_channels(self) -> int:
        """Output channels of all prunable layers."""
        return int(self.num_units @ self.channels_per_unit)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {group.name: index for index, group in enumerate(self.groups)}

    def check(self, keep: Keep) -> dict[str, np.ndarray]:
        """Sorted kept units of every group, absent groups whole.

        Raises:
            UserError: an unknown group, or a list that is empty, out of range or has duplicates.
        """
        checked = self._kept(keep)
        return {g.name: checked[g.name] if g.name in checked else np.arange(g.num_units) for g in self.groups}

    def _kept(self, keep: Keep) -> dict[str, np.ndarray]:
        """Sorted kept units of the groups that are named."""
        if not isinstance(keep, Mapping):
            raise UserError(f"keep: is a {type(keep).__name__}; pass a dict, group name → list of kept unit indices")
        checked = {}
        for name, units in keep.items():
            index = self._index.get(name) if isinstance(name, str) else None
            if index is None:
                frozen = next((f": its channels are kept ({f.reason})" for f in self.frozen if f.layer == name), "")
                known = ", ".join(sorted(self._index)) or "none"
                raise UserError(f"group {name!r}: the graph has no such group{frozen}; groups: {known}")
            checked[name] = _checked(name, units, self.groups[index].num_units)
        return checked

    def counts(self, keep: Keep) -> np.ndarray:
        """Units removed from every group, shape (group,)."""
        counts = np.zeros(len(self.groups), dtype=int)
        for name, units in self._kept(keep).items():
            index = self._index[name]
            counts[index] = self.groups[index].num_units - len(units)
        return counts

    def macs(self, keep: Keep) -> int:
        """Multiply-accumulates for one example after the plan `keep`."""
        return self.cost.macs(self.counts(keep))

    def params(self, keep: Keep) -> int:
        """Parameters after the plan `keep`."""
        return self.cost.params(self.counts(keep))

    def latency(self, keep: Keep) -> float:
        """Predicted seconds of one forward pass after the plan `keep`.

        Raises:
            UserError: the graph has no latency model: `rlprune.with_latency` measures one.
        """
        return float(self.seconds(self.counts(keep)))

    def seconds(self, counts: np.ndarray) -> np.ndarray:
        """Predicted seconds after `counts` units were removed from each group, shape (..., group) → (...).

        Raises:
            UserError: the graph has no latency model.
        """
        if self.clock is None:
            raise UserError("graph: its latency was not measured; graph = rlprune.with_latency(model, graph, example_inputs)")
        return self.clock.seconds(self.num_units - counts)

    def removed_entries(self, keep: Keep) -> dict[tuple[str, int], np.ndarray]:
        """Boolean masks of removed entries by (tensor, dim): True where an entry goes; absent pairs stay whole. Shape (size of dim,)."""
        gone: dict[tuple[str, int], np.ndarray] = {}
        for name, units in self._kept(keep).items():
            group = self.groups[self._index[name]]
            if len(units) == group.num_units:
                continue
            removed = np.ones(group.num_units, dtype=bool)
            removed[units] = False
            shared: dict[tuple[int, int], np.ndarray] = {}  # a layer's weight, bias and norm lose the same entries
            for member in group.members:
                slot = (member.tensor, member.dim)
                size = self.size(*slot)
                mask = shared.get((id(member.units), size))
                if mask is None:
                    mask = shared[id(member.units), size] = np.zeros(size, dtype=bool)
                    mask[member.units[removed].ravel()] = True
                gone[slot] = gone[slot] | mask if slot in gone else mask
        return gone

    @cached_property
    def known_shapes(self) -> dict[str, list[int]]:
        """Sizes of every parameter and buffer, filled up with 1."""
        sizes = np.stack(self.cost.sizes, axis=1).astype(int).tolist() if self.cost.names else []
        return dict(zip(self.cost.names, sizes, strict=False))

    def size(self, tensor: str, dim: int) -> int:
        """Size of one dimension of a parameter or buffer."""
        return self.known_shapes[tensor][dim]

    def removed_from(self, keep: Keep, owners: ZeroPoint | IndexBuffer) -> np.ndarray:
        """Which entries of an axis go, shape (size of the axis,)."""
        gone = np.zeros(len(owners.groups), dtype=bool)
        for name, units in self._kept(keep).items():
            index = self._index[name]
            stays = np.zeros(self.groups[index].num_units, dtype=bool)
            stays[units] = True
            mine = owners.groups == index
            gone[mine] = ~stays[owners.units[mine]]
        return gone

    def after(self, keep: Keep) -> "ChannelGraph":
        """The graph of the network that `prune(model, graph, keep)` returns, without another trace."""
        checked = self.check(keep)
        gone = self.removed_entries(keep)
        groups = tuple(
            Group(
                group.name,
                tuple(
                    replace(member, units=_shift(member.units[checked[group.name]], gone.get((member.tensor, member.dim))))
                    for member in group.members
                ),
            )
            for group in self.groups
        )
        counts = self.counts(keep)
        renumber = [np.full(group.num_units + 1, -1) for group in self.groups]
        for numbers, group in zip(renumber, self.groups, strict=True):
            numbers[checked[group.name]] = np.arange(len(checked[group.name]))
        gone_by_name = dict(zip((group.name for group in self.groups), counts.tolist(), strict=True))
        return replace(
            self,
            groups=groups,
            cost=replace(self.cost, sizes=self.cost.left(counts)),
            zero_points=tuple(_renumber(point, renumber) for point in self.zero_points),
            indices=tuple(_renumber(buffer, renumber) for buffer in self.indices),
            widths=tuple(replace(width, size=width_after(width, gone_by_name)) for width in self.widths),
        )

    def freeze(self, names: Mapping[str, str]) -> "ChannelGraph":
        """The same graph with some groups frozen: group name → reason. It has no latency model, as that knows all groups."""
        stay = [index for index, group in enumerate(self.groups) if group.name not in names]
        frozen = [
            Frozen(member.layer, names[group.name], member.units.size)
            for group in self.groups
            if group.name in names
            for member in group.producers
        ]
        position = np.full(len(self.groups) + 1, -1)
        position[stay] = np.arange(len(stay))
        return replace(
            self,
            groups=tuple(self.groups[index] for index in stay),
            frozen=self.frozen + tuple(frozen),
            cost=replace(self.cost, taken=tuple(taken.restricted(np.array(stay, dtype=np.int64)) for taken in self.cost.taken)),
            zero_points=tuple(_refer(point, position) for point in self.zero_points),
            indices=tuple(_refer(buffer, position) for buffer in self.indices),
            widths=tuple(replace(w, taken={name: n for name, n in w.taken.items() if name not in names}) for w in self.widths),
            clock=None,
            warnings=self.warnings + tuple(f"{name} is left whole: {reason}" for name, reason in names.items()),
        )


def width_after(width: Width, gone: Mapping[str, int]) -> int:
    """The attribute's value after so many units of every group are gone."""
    return width.size - sum(entries * gone.get(name, 0) for name, entries in width.taken.items())


def _checked(name: str, units: object, num_units: int) -> np.ndarray:
    """Sorted unit indices.

    Raises:
        UserError: the list is empty, out of range or has duplicates.
    """
    try:
        kept = np.asarray(units)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"group {name!r}: keep must be a list of unit indices ({error})") from error
    if kept.ndim != 1 or len(kept) == 0 or kept.dtype.kind not in "iu":
        raise UserError(f"group {name!r}: keep must list at least one unit by its index")
    kept = np.sort(kept)
    if kept[0] < 0 or kept[-1] >= num_units:
        raise UserError(f"group {name!r}: kept units must lie in 0..{num_units - 1}")
    if (kept[1:] == kept[:-1]).any():
        raise UserError(f"group {name!r}: the kept units hold duplicates")
    return kept


_Owned = TypeVar("_Owned", ZeroPoint, IndexBuffer)


def _shift(indices: np.ndarray, gone: np.ndarray | None) -> np.ndarray:
    """Old positions → positions after the entries in `gone` were removed."""
    if gone is None:
        return indices
    before = np.concatenate([[0], np.cumsum(gone)])
    return indices - before[np.minimum(indices, len(gone))]


def _renumber(owned: _Owned, renumber: list[np.ndarray]) -> _Owned:
    """Owners on the pruned network: entries of removed units are gone, the others have new numbers."""
    groups, units = owned.groups, owned.units.copy()
    for index, numbers in enumerate(renumber):
        mine = groups == index
        units[mine] = numbers[units[mine]]
    stays = (groups < 0) | (units >= 0)
    return replace(owned, groups=groups[stays], units=units[stays])


def _refer(owned: _Owned, position: np.ndarray) -> _Owned:
    """The same owners with groups numbered anew, -1 where they are gone."""
    groups = position[owned.groups]
    return replace(owned, groups=groups, units=np.where(groups < 0, -1, owned.units))
