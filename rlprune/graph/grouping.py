"""From labels to groups: classes of labels that own the same kind of entries everywhere are the units of one group."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlprune.graph.labels import Labels, LabelSpace, Slot, layer_of


@dataclass
class Grouping:
    """Group and unit of every class of labels; -1 where the channels are kept."""

    components: np.ndarray  # class of every label
    kept: np.ndarray  # index of the reason to keep a class, -1 where there is none
    reasons: list[str]
    group_of: np.ndarray
    unit_of: np.ndarray
    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    _owned: dict[int, tuple[Labels, list[tuple[int, np.ndarray]]]] = field(default_factory=dict)

    def owners(self, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
        """Group and unit of every entry, -1 where kept; shapes as `labels`."""
        classes = self.components[labels]
        return self.group_of[classes], self.unit_of[classes]

    def entries(self, labels: Labels) -> list[tuple[int, np.ndarray]]:
        """What every group owns along an axis: (group, indices of shape (unit, entries of a unit))."""
        known = self._owned.get(id(labels))
        if known is None:
            known = self._owned[id(labels)] = (labels, self._entries(labels))  # the array is kept, so that its id stays its own
        return known[1]

    def _entries(self, labels: Labels) -> list[tuple[int, np.ndarray]]:
        groups, units = self.owners(labels)
        if len(groups) and (groups == groups[0]).all():
            group = int(groups[0])
            return [] if group < 0 else [(group, _matrix(units, np.arange(len(units)), self.sizes[group]))]
        found = []
        for group in np.unique(groups[groups >= 0]).tolist():
            positions = np.flatnonzero(groups == group)
            found.append((group, _matrix(units[positions], positions, self.sizes[group])))
        return found

    def reason(self, labels: Labels) -> tuple[str, int] | None:
        """Why some of these channels are kept, and how many are."""
        classes = self.components[labels]
        kept = classes[self.group_of[classes] < 0]
        return (self.reasons[self.kept[kept[0]]], len(kept)) if len(kept) else None


def _matrix(units: np.ndarray, positions: np.ndarray, num_units: int) -> np.ndarray:
    """Positions by unit, shape (unit, entries of a unit)."""
    if len(units) == num_units:
        ordered = np.empty(num_units, dtype=np.int64)
        ordered[units] = positions
        return ordered[:, None]
    return positions[np.argsort(units, kind="stable")].reshape(num_units, -1)


def group_labels(space: LabelSpace, produced: Sequence[Slot], extra: Iterable[Labels]) -> Grouping:
    """Number the groups in the order of their first layer. `extra`: axes besides the slots of which all units of a group own as much."""
    components = space.components()
    kept, reasons = space.reasons(components)
    arrays = [labels for labels in space.slots.values() if not isinstance(labels, str)]
    signature = _signatures([*arrays, *extra], components)
    found = Grouping(components, kept, reasons, np.full(space.count, -1), np.full(space.count, -1))
    index_of: dict[int, int] = {}
    used: dict[str, int] = {}
    for slot in produced:
        labels = space.slots[slot]
        assert not isinstance(labels, str)
        classes = components[labels]
        classes = classes[(found.group_of[classes] < 0) & (kept[classes] < 0)]
        if not len(classes):
            continue
        if not _is_run(classes):
            classes = classes[np.sort(np.unique(classes, return_index=True)[1])]
        for key, mine in _by_signature(signature[classes], classes):
            if key not in index_of:
                index_of[key] = len(found.names)
                base = layer_of(slot[0])
                used[base] = used.get(base, 0) + 1
                found.names.append(base if used[base] == 1 else f"{base}#{used[base]}")
                found.sizes.append(0)
            group = index_of[key]
            found.group_of[mine] = group
            found.unit_of[mine] = np.arange(found.sizes[group], found.sizes[group] + len(mine))
            found.sizes[group] += len(mine)
    return found


def _by_signature(signatures: np.ndarray, classes: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Classes of equal signature, in the order of their first."""
    if (signatures == signatures[0]).all():
        return [(int(signatures[0]), classes)]
    keys, first = np.unique(signatures, return_index=True)
    return [(int(keys[index]), classes[signatures == keys[index]]) for index in np.argsort(first)]


def _signatures(arrays: Sequence[Labels], components: np.ndarray) -> np.ndarray:
    """A number for every class that tells which axes it has entries in, and how many: equal for units of one group."""
    keys = np.random.default_rng(0).integers(1, 2**63, size=len(arrays), dtype=np.uint64)
    total: dict[int, np.uint64] = {}
    by_id: dict[int, Labels] = {}
    with np.errstate(over="ignore"):
        for key, labels in zip(keys, arrays, strict=True):
            total[id(labels)] = total.get(id(labels), np.uint64(0)) + key
            by_id[id(labels)] = labels
    signature = np.zeros(len(components), dtype=np.uint64)
    for name, labels in by_id.items():
        classes = components[labels]
        if _is_run(classes):
            signature[classes] += total[name]
        else:
            np.add.at(signature, classes, total[name])
    return signature


def _is_run(classes: np.ndarray) -> bool:
    """Whether these are consecutive numbers, so that none comes twice."""
    return len(classes) > 0 and int(classes[-1] - classes[0]) == len(classes) - 1 and bool((np.diff(classes) == 1).all())
