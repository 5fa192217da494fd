"""Timing one call over the widths that its tensors may have."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression

from rlprune.graph.labels import tensors_in
from rlprune.latency.calls import Axis, Shrinking
from rlprune.latency_model import AXES, LUMP

log = logging.getLogger(__name__)
SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)  # of the dense width, where nodes of two axes stand
FINE = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)  # and those of one
ROUNDS = 2  # over all nodes, each in an order of its own, so that a busy moment does not hit neighbours
CHUNK, CHUNKS = 2e-4, 4  # seconds between two looks at the clock, at least, and how many looks
PATIENCE = 0.02  # seconds at one node and round, about, where a call is slow
COPIES, COPIED = 16, 2**26  # of a call's weights, at most, and bytes of them together
NARROW = 128  # widths up to which time may jump by much from one multiple to the next


@dataclass(frozen=True)
class Grid:
    """The nodes of one call's table.

    An axis of the table is one of the call's; a call with more than two has a table of one axis, on which all shrink together.
    `steps[k][i]` are the steps gone, at node i of axis k, from each of the call's axes that it stands for; `widths[k][i]`, ascending,
    what is left then.
    """

    call: Shrinking
    steps: tuple[tuple[tuple[int, ...], ...], ...]
    widths: tuple[tuple[float, ...], ...]
    copies: int  # of the weights, which take turns: as many bytes as the whole network's lie between two uses of one

    @property
    def key(self) -> str:
        """What tells tables apart."""
        return repr((self.call.call.key, [axis.dims for axis in self.call.axes], self.steps, self.copies))

    def shapes(self, node: Sequence[int]) -> list[list[int]]:
        """Of the call's tensors at a node."""
        return self.call.shapes([gone for row, place in zip(self.steps, node, strict=True) for gone in row[place]])


def make_grid(call: Shrinking, most: np.ndarray, network_bytes: int) -> Grid:
    """Nodes between the dense call and its smallest.

    Args:
        call: that shrinks.
        most: units that each group may lose, (group,).
        network_bytes: memory of the dense network's weights; in a network larger than the cache, they are fetched from memory every time.
    """
    size = call.call.weight_bytes
    copies = 1 if size == 0 else 2 ** round(math.log2(max(1.0, min(COPIES, min(network_bytes, COPIED) / size))))
    limits = [int(np.dot(axis.taken, most)) for axis in call.axes]
    full = [dense_width(call, axis) for axis in call.axes]
    if len(call.axes) <= AXES:
        nodes = _nodes_of_one if len(call.axes) == 1 else _nodes_of_two
        rows = [_steps(width, limit, nodes(width)) for width, limit in zip(full, limits, strict=True)]
        steps = tuple(tuple((gone,) for gone in row) for row in rows)
        widths = tuple(tuple(width - gone for gone in row) for row, width in zip(rows, full, strict=True))
        return Grid(call, steps, widths, copies)
    gone = sorted({*(1 - share for share in FINE), 1.0}, reverse=True)
    joint = tuple(dict.fromkeys(tuple(round(share * limit) for limit in limits) for share in gone))
    return Grid(call, (joint,), (tuple(sum(full) - sum(steps) for steps in joint),), copies)


def dense_width(call: Shrinking, axis: Axis) -> float:
    """The width that an axis counts: steps that its first dimension is long."""
    hole, dim, entries = axis.dims[0]
    return call.call.holes[hole].shape[dim] / entries


def _steps(width: float, limit: int, nodes: set[float]) -> list[int]:
    """Steps gone at the nodes of an axis, descending, with those of the two smallest widths: kernels for a single channel are others."""
    found = {round(width - node) for node in nodes if width - limit <= node <= width}
    return sorted(found | {0, limit, max(0, limit - 1)}, reverse=True)


def _nodes_of_two(width: float) -> set[float]:
    """Widths where one of two axes has nodes: multiples, and in narrow layers one above, as time may jump there."""
    nodes = set()
    for share in SHARES:
        lumps = round(share * width / LUMP) * LUMP
        nodes.add(float(lumps or round(share * width)))
        if lumps and width <= NARROW:
            nodes.add(lumps + 1.0)
    return nodes


def _nodes_of_one(width: float) -> set[float]:
    """Widths where the only axis has nodes: multiples, from the smallest to the largest, and others beside them."""
    nodes = {float(LUMP), width // LUMP * LUMP, width - 1}
    for share in FINE:
        lumps = round(share * width / LUMP) * LUMP
        nodes |= {float(lumps), lumps + 1.0} if lumps else {float(round(share * width))}
    return nodes


def time_grids(grids: Sequence[Grid], device: torch.device, advance: Callable[[], object], *, monotone: bool = True) -> list[np.ndarray]:
    """Seconds of every call at every node of its grid, at best; (node,) or (node, node).

    A call that cannot be made with other widths (numbers in its arguments do not follow them) takes the time of the dense one everywhere.

    Args:
        grids: of the calls.
        device: where they run.
        advance: called after every node.
        monotone: the nearest times that rise with the widths.
    """
    seconds = [np.full(tuple(map(len, grid.steps)), np.inf) for grid in grids]
    places = [(number, node) for number, table in enumerate(seconds) for node in np.ndindex(table.shape)]
    order = np.random.default_rng(0)
    with torch.inference_mode(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for _ in range(ROUNDS):
            for place in order.permutation(len(places)):
                number, node = places[place]
                seconds[number][node] = min(seconds[number][node], _time_call(grids[number], node, device))
                advance()
    tables = [_mended(table) for table in seconds]
    return [_monotone_grid(grid, table) for grid, table in zip(grids, tables, strict=True)] if monotone else tables


def _time_call(grid: Grid, node: Sequence[int], device: torch.device) -> float:
    """Seconds at a node, at best; infinite where the call fails."""
    call = grid.call.call
    try:
        sets = call.arguments(grid.shapes(node), device, grid.copies)
        once = _clocked(call.function, sets, device)
        sets *= max(1, round(CHUNK / once))
        chunks = max(1, min(CHUNKS, round(PATIENCE / max(once, CHUNK))))
        return min(_clocked(call.function, sets, device) for _ in range(chunks)) / len(sets)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        log.debug("%s cannot be timed at %s: %s", call.name, grid.shapes(node), error)
        return float("inf")


def _clocked(function: Callable[..., Any], sets: Sequence[Any], device: torch.device) -> float:
    """Seconds of a call with each set of arguments."""
    synchronise(device)
    start = time.perf_counter()
    for args, kwargs in sets:
        function(*args, **kwargs)
    synchronise(device)
    return time.perf_counter() - start


def device_of(inputs: Any) -> torch.device:
    """Where example inputs are: a tensor, or nested ones."""
    return next(iter(tensors_in(inputs))).device


def synchronise(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mended(table: np.ndarray) -> np.ndarray:
    """Finite everywhere: the dense call's time where one fails; nothing where that fails too."""
    if np.isfinite(table).all():
        return table
    dense = float(table.flat[-1])
    return np.full(table.shape, dense if np.isfinite(dense) else 0.0)


def aligned(grid: Grid) -> np.ndarray | None:
    """At which nodes of its only width LUMP divides it, (node,); None for a call of several."""
    return np.array(grid.widths[0]) % LUMP == 0 if len(grid.call.axes) == 1 else None


def _monotone_grid(grid: Grid, table: np.ndarray) -> np.ndarray:
    """Seconds that rise with the widths; those of a single width among multiples, and among others."""
    divided = aligned(grid)
    if divided is None:
        return _monotone(table)
    table = table.copy()
    for mine in (divided, ~divided):
        table[mine] = _monotone(table[mine])
    return table


def _monotone(table: np.ndarray) -> np.ndarray:
    """The nearest table that rises along every axis, or almost: a narrower call is not slower, so that what lies between can be sought."""
    if table.size < 2:
        return table
    ranks = IsotonicRegression()
    for _ in range(3):
        for axis in range(table.ndim):
            table = np.apply_along_axis(lambda row: ranks.fit_transform(np.arange(len(row)), row), axis, table)
    return table
