"""Channel groups: what a network's channels are tied to, and what removing them costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rlprune.cost import CostModel
from rlprune.errors import UserError

Keep = Mapping[str, Sequence[int] | np.ndarray]
"""Kept unit indices by group name; absent groups stay whole."""


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter or buffer that a group owns entries of.

    `units[i]` are the indices that unit i owns along `dim`; shape (unit, entries of a unit). `role` is `out` for the output channels of a
    convolution's or linear layer's weight, `in` for its input channels, `channel` for what follows a channel (bias, batch norm).
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
    """Where a masked channel must be set to zero again: after the call with this number, along `axis`.

    `groups` and `units` give the owner of each entry along the axis, shape (size,), -1 where none.
    """

    call: int
    axis: int
    groups: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class ChannelGraph:
    """The groups of one network, the layers left alone, and the closed-form cost of any plan."""

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    cost: CostModel
    zero_points: tuple[ZeroPoint, ...]
    warnings: tuple[str, ...]
    depthwise: Mapping[str, int]  # weight → outputs for each input channel
    grouped: Mapping[str, int]  # weight of any other grouped convolution → groups

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

    def check(self, keep: Keep) -> dict[str, np.ndarray]:
        """Sorted kept units of every group, absent groups whole.

        Raises:
            UserError: an unknown group, or a list that is empty, out of range or has duplicates.
        """
        names = {group.name for group in self.groups}
        for name in keep:
            if name not in names:
                frozen = next((f": its channels are kept ({f.reason})" for f in self.frozen if f.layer == name), "")
                raise UserError(f"group {name!r}: the graph has no such group{frozen}; groups: {', '.join(sorted(names)) or 'none'}")
        checked = {}
        for group in self.groups:
            try:
                units = np.asarray(keep.get(group.name, range(group.num_units)))
            except (TypeError, ValueError, RuntimeError) as error:
                raise UserError(f"group {group.name!r}: keep must be a list of unit indices ({error})") from error
            if units.ndim != 1 or len(units) == 0 or units.dtype.kind not in "iu":
                raise UserError(f"group {group.name!r}: keep must list at least one unit by its index")
            if units.min() < 0 or units.max() >= group.num_units:
                raise UserError(f"group {group.name!r}: kept units must lie in 0..{group.num_units - 1}")
            if len(np.unique(units)) != len(units):
                raise UserError(f"group {group.name!r}: the kept units hold duplicates")
            checked[group.name] = np.sort(units)
        return checked

    def counts(self, keep: Keep) -> np.ndarray:
        """Units removed from every group, shape (group,)."""
        checked = self.check(keep)
        return np.array([group.num_units - len(checked[group.name]) for group in self.groups])

    def macs(self, keep: Keep) -> int:
        """Multiply-accumulates for one example after the plan `keep`."""
        return self.cost.macs(self.counts(keep))

    def params(self, keep: Keep) -> int:
        """Parameters after the plan `keep`."""
        return self.cost.params(self.counts(keep))

    def removed_entries(self, keep: Keep) -> dict[tuple[str, int], np.ndarray]:
        """Boolean masks of removed entries by (tensor, dim): True where an entry goes; absent pairs stay whole.

        Masks end at the last owned entry; what lies beyond is kept.
        """
        checked = self.check(keep)
        gone: dict[tuple[str, int], np.ndarray] = {}
        for group in self.groups:
            removed = np.ones(group.num_units, dtype=bool)
            removed[checked[group.name]] = False
            if not removed.any():
                continue
            for member in group.members:
                indices = member.units[removed].ravel()
                mask = gone.get((member.tensor, member.dim), np.zeros(0, dtype=bool))
                mask = np.pad(mask, (0, max(0, int(indices.max()) + 1 - len(mask))))
                mask[indices] = True
                gone[(member.tensor, member.dim)] = mask
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
        sizes = tuple(size - per_unit @ counts for size, per_unit in zip(self.cost.sizes, self.cost.removed, strict=True))
        renumber = [np.full(group.num_units + 1, -1) for group in self.groups]
        for numbers, group in zip(renumber, self.groups, strict=True):
            numbers[checked[group.name]] = np.arange(len(checked[group.name]))
        return replace(
            self,
            groups=groups,
            cost=replace(self.cost, sizes=sizes),
            zero_points=tuple(_renumber(point, renumber) for point in self.zero_points),
        )

    def freeze(self, names: Mapping[str, str]) -> "ChannelGraph":
        """The same graph with some groups frozen: group name → reason."""
        stay = [index for index, group in enumerate(self.groups) if group.name not in names]
        frozen = [
            Frozen(member.layer, names[group.name], member.units.size)
            for group in self.groups
            if group.name in names
            for member in group.producers
        ]
        position = np.full(len(self.groups) + 1, -1)
        position[stay] = np.arange(len(stay))
        points = [replace(p, groups=position[p.groups], units=np.where(position[p.groups] < 0, -1, p.units)) for p in self.zero_points]
        return replace(
            self,
            groups=tuple(self.groups[index] for index in stay),
            frozen=self.frozen + tuple(frozen),
            cost=replace(self.cost, removed=tuple(per_unit[:, stay] for per_unit in self.cost.removed)),
            zero_points=tuple(points),
            warnings=self.warnings + tuple(f"{name} is left whole: {reason}" for name, reason in names.items()),
        )


def _shift(indices: np.ndarray, gone: np.ndarray | None) -> np.ndarray:
    """Old positions → positions after the entries in `gone` were removed."""
    if gone is None:
        return indices
    before = np.concatenate([[0], np.cumsum(gone)])
    return indices - before[np.minimum(indices, len(gone))]


def _renumber(point: ZeroPoint, renumber: list[np.ndarray]) -> ZeroPoint:
    """A zero point on the pruned network: entries of removed units are gone, the others have new numbers."""
    groups, units = point.groups, point.units.copy()
    for index, numbers in enumerate(renumber):
        mine = groups == index
        units[mine] = numbers[units[mine]]
    stays = (groups < 0) | (units >= 0)
    return replace(point, groups=groups[stays], units=units[stays])
