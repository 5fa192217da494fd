"""Channel labels: which entries of which tensors stand or fall together."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from rlprune.graph.sizes import Size, Symbol

Slot = tuple[str, int]
"""One dimension of a parameter or buffer: (qualified name, dimension)."""
Labels = np.ndarray
"""One label for each entry of an axis, shape (size of the axis,), int64."""


class Channels(NamedTuple):
    """An activation whose entries along `axis` carry `labels`.

    `clean`: zeroed weights alone make a channel zero here. `constant`: computed from parameters only.
    """

    axis: int
    labels: Labels
    clean: bool = True
    constant: bool = False


@dataclass
class LabelSpace:
    """Hands out labels and remembers which are equal (unite), which must stay (pin) and where they sit (slots).

    Most labels come in blocks, one for the outputs of a layer, and whole blocks meet: those are united in one step, so that the cost of
    a trace follows the number of layers and not that of channels. Only where blocks are cut, joined or reordered are labels united one by
    one.
    """

    count: int = 0
    starts: list[int] = field(default_factory=list)  # first label of every block
    parents: list[int] = field(default_factory=list)  # union-find over blocks
    blocks: dict[int, int] = field(default_factory=dict)  # id of a label array → its block
    arrays: list[Labels] = field(default_factory=list)  # keeps the ids valid
    edges: list[tuple[Labels, Labels]] = field(default_factory=list)
    pins: list[tuple[Labels, str]] = field(default_factory=list)
    slots: dict[Slot, Labels | str] = field(default_factory=dict)  # str: the reason why the slot is fixed
    roles: dict[Slot, str] = field(default_factory=dict)
    fits: list[tuple[Size, Labels, str]] = field(default_factory=list)  # sizes that code computes, and the axis they must follow
    escapes: list[tuple[Symbol, str]] = field(default_factory=list)  # sizes that became plain numbers
    ties: list[tuple[Symbol, Symbol]] = field(default_factory=list)  # sizes that code requires to be equal
    keys: list[Symbol] = field(default_factory=list)  # sizes that code looks things up by
    divisors: list[tuple[Size, int]] = field(default_factory=list)  # sizes that code requires to be divisible
    doubts: list[str] = field(default_factory=list)  # what only a proof on the network can settle
    open: bool = True

    def fresh(self, size: int) -> Labels:
        """New labels, shape (size,)."""
        labels = np.arange(self.count, self.count + size)
        self.blocks[id(labels)] = len(self.starts)
        self.arrays.append(labels)
        self.parents.append(len(self.starts))
        self.starts.append(self.count)
        self.count += size
        return labels

    def _root(self, block: int) -> int:
        parents = self.parents
        while parents[block] != block:
            parents[block] = parents[parents[block]]
            block = parents[block]
        return block

    def unite(self, first: Labels, second: Labels) -> None:
        """Entry i of both goes together."""
        if first is second:
            return
        left, right = self.blocks.get(id(first)), self.blocks.get(id(second))
        if left is None or right is None:
            self.edges.append((first, second))
            return
        left, right = self._root(left), self._root(right)
        self.parents[max(left, right)] = min(left, right)

    def pin(self, labels: Labels, reason: str) -> None:
        """These channels must be kept."""
        self.pins.append((labels, reason))

    def bind(self, slot: Slot, labels: Labels, role: str) -> None:
        """Entry i of the slot carries labels[i]; a slot used before unites the two."""
        known = self.slots.get(slot)
        if known is None:
            self.slots[slot] = labels
            self.roles[slot] = role
        elif isinstance(known, str):
            self.pin(labels, known)
        else:
            self.unite(known, labels)

    def fix(self, slot: Slot, reason: str) -> None:
        """The slot must keep its full size."""
        known = self.slots.get(slot)
        if known is None:
            self.slots[slot] = reason
        elif not isinstance(known, str):
            self.pin(known, reason)

    def fit(self, size: int, labels: Labels, reason: str) -> None:
        """The code says how long this axis is: a plain number keeps it, one read from a tensor's shape must shrink with it."""
        if not isinstance(size, Size) or size.symbols.space is not self:
            self.pin(labels, f"{reason} writes the number {int(size)} into the code")
            return
        bare = size.bare
        known = bare.labels if bare is not None else None
        if bare is not None and known is None and bare.slot is None:
            bare.known = labels  # an attribute, such as a number of groups, counts what it is used for
        elif known is None or len(known) != len(labels) or not np.array_equal(np.sort(known), np.sort(labels)):
            self.fits.append((size, labels, reason))

    def follow(self, size: int, labels: Labels, reason: str) -> None:
        """New entries with one value each, as many as the code computes: where that counts other channels, each goes with one of them."""
        bare = size.bare if isinstance(size, Size) and size.symbols.space is self else None
        if bare is not None and bare.labels is not None:
            self.unite(bare.labels, labels)
        else:
            self.fit(size, labels, reason)

    # -- after the trace -----------------------------------------------------------------------------------------------------------

    def components(self) -> np.ndarray:
        """The class of every label, shape (count,): equal numbers go together."""
        classes = self._classes()
        for first, second in self.ties:
            one, other = first.labels, second.labels
            if one is None or other is None or len(one) != len(other):
                self.escapes += [(first, "their number is compared in the code"), (second, "their number is compared in the code")]
            elif not np.array_equal(np.sort(classes[one]), np.sort(classes[other])):
                self.unite(one, other)
        # An axis that must be as long as another, and nothing else ties them: they go together.
        for size, labels, _ in self.fits:
            bare = size.bare
            known = bare.labels if bare is not None else None
            if bare is None or known is None or len(known) != len(labels):
                continue
            if not np.array_equal(np.sort(classes[known]), np.sort(classes[labels])):
                self.ties.append((bare, Symbol(self, labels)))
                self.unite(known, labels)
        changed, self.ties = bool(self.ties), []
        return self._classes() if changed else classes

    def _classes(self) -> np.ndarray:
        starts = np.array(self.starts, dtype=np.int64)
        roots = np.array([self._root(block) for block in range(len(starts))], dtype=np.int64)
        sizes = np.diff(np.append(starts, self.count))
        canonical = np.arange(self.count) + np.repeat(starts[roots] - starts, sizes) if self.count else np.zeros(0, dtype=np.int64)
        if not self.edges:
            return canonical
        rows = canonical[np.concatenate([first for first, _ in self.edges])]
        columns = canonical[np.concatenate([second for _, second in self.edges])]
        matrix = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(self.count, self.count))
        classes: np.ndarray = connected_components(matrix, directed=False)[1].astype(np.int64)
        return classes[canonical]

    def reasons(self, components: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """For every class the index of the first reason to keep it, shape (count,), -1 where there is none; and the reasons."""
        pins = list(self.pins)
        pins += [(symbol.labels, reason) for symbol, reason in self.escapes if symbol.labels is not None]
        first = np.full(self.count, -1, dtype=np.int64)
        texts: list[str] = []
        for labels, reason in pins:
            _keep(first, components[labels], len(texts))
            texts.append(reason)
        for size, labels, reason in self.fits:
            _keep(first, _misfits(size, labels, components), len(texts))
            texts.append(f"{reason} computes a size that does not follow them")
        for size, divisor in self.divisors:
            _keep(first, _misfits(size, np.zeros(0, dtype=np.int64), components, divisor), len(texts))
            texts.append(f"the code requires that {divisor} divides their number")
        return first, texts


def _keep(first: np.ndarray, classes: np.ndarray, reason: int) -> None:
    new = classes[first[classes] < 0]
    first[new] = reason


def _misfits(size: Size, labels: Labels, components: np.ndarray, divisor: int = 0) -> np.ndarray:
    """Classes whose removal changes the computed size by another number than the axis; `divisor`: or by no multiple of it."""
    terms = [(labels, -1.0)]
    terms += [(symbol.labels, float(factor)) for symbol, factor in size.symbols.items() if symbol.labels is not None]
    keys = np.concatenate([components[entries] for entries, _ in terms])
    weights = np.concatenate([np.full(len(entries), weight) for entries, weight in terms])
    classes, inverse = np.unique(keys, return_inverse=True)
    balance: np.ndarray = np.bincount(inverse.ravel(), weights=weights)
    if divisor:
        balance = balance - divisor * np.round(balance / divisor)
    return classes[np.abs(balance) > 1e-6]


def layer_of(tensor: str) -> str:
    """The module that owns a tensor; a tensor of the network itself stands for itself."""
    return tensor.rpartition(".")[0] or tensor


def tensors_in(value: object, seen: dict[int, object] | None = None) -> Iterable[Tensor]:
    """Every tensor in nested lists, tuples, dicts and plain objects, in order; each object is entered once."""
    if isinstance(value, Tensor):
        yield value
        return
    if value is None or isinstance(value, str | bytes | int | float | type | torch.nn.Module | torch.dtype | torch.device | slice):
        return
    seen = {} if seen is None else seen
    if id(value) in seen or len(seen) > 100_000:
        return
    seen[id(value)] = value
    if isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, seen)
    elif isinstance(value, Collection):
        for item in value:
            yield from tensors_in(item, seen)
    elif not callable(value):
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str)]
        for item in [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]:
            yield from tensors_in(item, seen)


def base_of(tensor: Tensor) -> Tensor:
    """The tensor that a view looks into; `detach` and `data` are views too."""
    base = tensor if tensor._base is None else tensor._base
    origin = getattr(base, "_rlprune_origin", None)
    return base if origin is None else base_of(origin)
