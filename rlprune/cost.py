"""Closed-form MACs and parameters of any plan, and measured latency."""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Taken:
    """What one unit of a group takes from one dimension of many tensors: three arrays of the same length."""

    rows: np.ndarray  # tensor
    groups: np.ndarray
    entries: np.ndarray

    def total(self, counts: np.ndarray, num_rows: int) -> np.ndarray:
        """Entries gone from every tensor after `counts` units were removed from each group; shape (..., group) → (..., tensor)."""
        plans = counts.reshape(math.prod(counts.shape[:-1]), counts.shape[-1])
        rows = (self.rows + num_rows * np.arange(len(plans))[:, None]).ravel()
        gone = np.bincount(rows, weights=(self.entries * plans[:, self.groups]).ravel(), minlength=len(plans) * num_rows)
        return gone.reshape(*counts.shape[:-1], num_rows)

    def restricted(self, stay: np.ndarray) -> "Taken":
        """The same for the groups in `stay` only, renumbered."""
        position = np.full(max(int(self.groups.max(initial=-1)), int(stay.max(initial=-1))) + 1, -1)
        position[stay] = np.arange(len(stay))
        groups = position[self.groups]
        return Taken(self.rows[groups >= 0], groups[groups >= 0], self.entries[groups >= 0])


@dataclass(frozen=True)
class CostModel:
    """Sizes of all that multiplies, as linear functions of the units removed from each group.

    Rows are the parameters and buffers, by name, and behind them products of activations (attention scores and the like). `sizes[d]` is
    the dense size of dimension d, shape (row,), 1 where a row has fewer dimensions; `taken[d]` says how much of it units take; `uses` is
    how often each element multiplies for one example, shape (row,).
    """

    names: tuple[str, ...]
    is_parameter: np.ndarray
    sizes: tuple[np.ndarray, ...]
    taken: tuple[Taken, ...]
    uses: np.ndarray
    fixed_macs: float

    def numels(self, counts: np.ndarray) -> np.ndarray:
        """Elements of every row after `counts` units were removed from each group; shape (..., group) → (..., row)."""
        numels = np.ones((*counts.shape[:-1], len(self.uses)))
        for size in self.left(counts):
            numels *= size
        return numels

    def left(self, counts: np.ndarray) -> tuple[np.ndarray, ...]:
        """Sizes after `counts` units were removed from each group."""
        return tuple(size - taken.total(counts, len(size)) for size, taken in zip(self.sizes, self.taken, strict=True))

    def macs(self, counts: np.ndarray) -> int:
        """Multiply-accumulates of convolutions, linear layers and matrix products for one example."""
        return round(float(self.numels(counts) @ self.uses) + self.fixed_macs)

    def params(self, counts: np.ndarray) -> int:
        """Parameters; buffers are not counted."""
        return round(float(self.numels(counts) @ self.is_parameter))

    def many(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """MACs and parameters of many plans at once; shape (..., group) → two of (...)."""
        numels = self.numels(counts)
        return np.round(numels @ self.uses + self.fixed_macs), np.round(numels @ self.is_parameter)

    def one_changed(self, counts: np.ndarray, more: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """MACs and parameters after `counts` units went, and of a single group `more` (fewer where negative): for each; all (group,).

        The same as `many` with a plan for each group, without the tensors that it leaves as they are.
        """
        rows, groups, entries = self._meetings
        left = np.stack(self.left(counts))  # (dim, row)
        numels = left.prod(axis=0)
        change = (left[:, rows] - entries * more[groups]).prod(axis=0) - numels[rows]  # (meeting,)
        macs, params = (
            np.round(fixed + numels @ weights + np.bincount(groups, change * weights[rows], minlength=len(more)))
            for weights, fixed in ((self.uses, self.fixed_macs), (self.is_parameter, 0.0))
        )
        return macs, params

    @cached_property
    def whole(self) -> tuple[int, int]:
        """MACs and parameters with nothing removed."""
        numels = np.prod(self.sizes, axis=0)
        return round(float(numels @ self.uses) + self.fixed_macs), round(float(numels @ self.is_parameter))

    @cached_property
    def _meetings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which rows a group takes from: row and group, shape (meeting,), and what a unit takes from each dimension, (dim, meeting)."""
        places = [np.stack([taken.rows, taken.groups]) for taken in self.taken]
        found, numbers = np.unique(np.concatenate(places, axis=1), axis=1, return_inverse=True)
        entries, start = np.zeros((len(self.taken), found.shape[1])), 0
        for dim, taken in enumerate(self.taken):
            np.add.at(entries[dim], numbers.ravel()[start : start + len(taken.rows)], taken.entries)
            start += len(taken.rows)
        return found[0], found[1], entries

    @staticmethod
    def build(
        shapes: Mapping[str, tuple[int, ...]],
        parameters: Collection[str],
        uses: Mapping[str, float],
        products: Sequence[tuple[Sequence[int], float]],
        taken: Mapping[tuple[int, int, int], int],
        fixed_macs: float,
    ) -> "CostModel":
        """From dense shapes, uses by tensor name, products (sizes, factor), and what a unit takes: (row, dimension, group) → entries."""
        names = list(shapes)
        rows = [*shapes.values(), *(tuple(sizes) for sizes, _ in products)]
        depth = max((len(shape) for shape in rows), default=1)
        sizes = tuple(np.array([shape[d] if d < len(shape) else 1 for shape in rows], dtype=float) for d in range(depth))
        columns: list[list[tuple[int, int, int]]] = [[] for _ in range(depth)]
        for (row, dim, group), entries in taken.items():
            columns[dim].append((row, group, entries))
        found = []
        for column in columns:
            array = np.array(column, dtype=np.int64).reshape(-1, 3)
            found.append(Taken(array[:, 0], array[:, 1], array[:, 2].astype(float)))
        is_parameter = np.array([name in parameters for name in names] + [False] * len(products), dtype=float)
        used = np.array([uses.get(name, 0.0) for name in names] + [factor for _, factor in products])
        return CostModel(tuple(names), is_parameter, sizes, tuple(found), used, fixed_macs)


def machine(device: torch.device) -> str:
    """What speed depends on beyond the program."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def count_params(model: nn.Module) -> int:
    """Parameters of a network; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.inference_mode()
def measure_latency(model: nn.Module, example: Tensor, *, repeats: int = 30) -> float:
    """Median seconds of one forward pass in float32 on `example`'s device, after a warm-up of three."""
    training = model.training
    model.eval()
    seconds = []
    for index in range(repeats + 3):
        if example.is_cuda:
            torch.cuda.synchronize(example.device)
        start = time.perf_counter()
        model(example)
        if example.is_cuda:
            torch.cuda.synchronize(example.device)
        if index >= 3:
            seconds.append(time.perf_counter() - start)
    model.train(training)
    return float(np.median(seconds))
