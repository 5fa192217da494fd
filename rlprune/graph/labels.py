"""Channel labels: which entries of which tensors stand or fall together."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

Slot = tuple[str, int]
"""One dimension of a parameter or buffer: (qualified name, dimension)."""


@dataclass(frozen=True)
class Channels:
    """An activation whose entries along `axis` carry `labels`, shape (size of that axis,), int64."""

    axis: int
    labels: Tensor


@dataclass
class LabelSpace:
    """Hands out labels and remembers which are equal (edges), which must stay (pins) and where they sit (slots)."""

    count: int = 0
    edges: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    pins: list[tuple[Tensor, str]] = field(default_factory=list)
    slots: dict[Slot, Tensor | str] = field(default_factory=dict)  # str: the reason why the slot is fixed
    roles: dict[Slot, str] = field(default_factory=dict)

    def fresh(self, size: int) -> Tensor:
        """New labels, shape (size,)."""
        labels = torch.arange(self.count, self.count + size)
        self.count += size
        return labels

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Entry i of both goes together."""
        self.edges.append((first, second))

    def pin(self, labels: Tensor, reason: str) -> None:
        """These channels must be kept."""
        self.pins.append((labels, reason))

    def bind(self, slot: Slot, labels: Tensor, role: str) -> None:
        """Entry i of the slot carries labels[i]; a slot used before unites the two."""
        known = self.slots.setdefault(slot, labels)
        self.roles.setdefault(slot, role)
        if isinstance(known, str):
            self.pin(labels, known)
        elif known is not labels:
            self.unite(known, labels)

    def fix(self, slot: Slot, reason: str) -> None:
        """The slot must keep its full size."""
        known = self.slots.get(slot)
        if isinstance(known, Tensor):
            self.pin(known, reason)
        self.slots[slot] = reason if known is None else known

    def fix_tensor(self, name: str, dims: int, reason: str) -> None:
        """Every dimension of a parameter must keep its full size."""
        for dim in range(dims):
            self.fix((name, dim), reason)

    def components(self) -> np.ndarray:
        """The class of every label, shape (count,): equal numbers go together."""
        if not self.edges:
            return np.arange(self.count)
        rows = torch.cat([first for first, _ in self.edges]).numpy()
        columns = torch.cat([second for _, second in self.edges]).numpy()
        matrix = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(self.count, self.count))
        return connected_components(matrix, directed=False)[1]

    def reasons(self, components: np.ndarray) -> dict[int, str]:
        """The first reason given for each pinned class."""
        found: dict[int, str] = {}
        for labels, reason in self.pins:
            for component in np.unique(components[labels.numpy()]):
                found.setdefault(int(component), reason)
        return found


def tensors_in(value: object, depth: int = 0) -> Iterable[Tensor]:
    """Every tensor in nested lists, tuples, dicts and plain objects, in order; objects that hold themselves end at 20 levels."""
    if isinstance(value, Tensor):
        yield value
    elif depth > 20 or isinstance(value, str | bytes | int | float | type | torch.nn.Module):
        return
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()), depth)
    elif isinstance(value, Collection):
        for item in value:
            yield from tensors_in(item, depth + 1)
    else:
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str)]
        yield from tensors_in([*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)], depth + 1)
