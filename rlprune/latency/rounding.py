"""Which multiple of channels a device likes: time over widths, by what divides them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from rlprune.files import digest, recall, write_sealed
from rlprune.graph import ChannelGraph, prune
from rlprune.latency.calls import Shrinking, is_layer, shrinking_calls
from rlprune.latency.timing import ROUNDS, Grid, dense_width, device_of, time_grids

MULTIPLES = (1, 2, 4, 8, 16, 32)
SHARES = (1.0, 0.75, 0.5, 0.25)  # of the dense width, around which widths are tried
HEAVIEST = 8  # layers that are looked at: those that take the most time
WORTH = 0.05  # of the time, that a multiple must save
NEAR = 0.02  # multiples whose savings differ by less are alike: the smallest leaves most freedom


@dataclass(frozen=True)
class Preference:
    """The multiple chosen, and the share of the time that each saves over networks of any widths, at equal width."""

    multiple: int
    savings: Mapping[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        saved = ", ".join(f"{multiple}: {100 * share:.0f} %" for multiple, share in self.savings.items())
        return f"{self.multiple}; at equal width, multiples save of the time: {saved or 'nothing to measure'}"


def preferred_multiple(network: nn.Module, graph: ChannelGraph, example: Any, *, where: str, cache: Path | None) -> Preference:
    """The smallest multiple at which the network's heaviest layers run, for their width, about as fast as at any.

    Args:
        network: that `graph` was traced on; it is not changed.
        graph: its channel graph.
        example: inputs on the device; their number is the batch size.
        where: what speed depends on beyond the program.
        cache: folder of what was measured before; None: nothing is kept.
    """
    subject = prune(network, graph, {}).eval().to(memory_format=torch.contiguous_format)
    calls = shrinking_calls(subject, graph, example, np.flatnonzero(graph.num_units > 1).tolist())
    layers = {call.call.key: call for call in calls if call.axes and is_layer(call)}
    grids = [grid for grid in map(_sweep, layers.values()) if len(grid.widths[0]) > len(MULTIPLES)]
    path = None if cache is None else cache / f"rounding-{digest([where, torch.__version__, [grid.key for grid in grids]])}.json"
    kept = recall(path).get("savings")
    if isinstance(kept, dict) and all(name in map(str, MULTIPLES) and isinstance(share, float) for name, share in kept.items()):
        return chosen({int(multiple): share for multiple, share in kept.items()})
    grids = _heaviest(grids, Counter(call.call.key for call in calls), device_of(example))
    nodes = ROUNDS * sum(len(grid.widths[0]) for grid in grids)
    with tqdm(total=nodes, desc="widths that the device likes", unit="width", leave=False, delay=1) as bar:
        seconds = time_grids(grids, device_of(example), bar.update, monotone=False)
    sweeps = [(np.array(grid.widths[0]), table) for grid, table in zip(grids, seconds, strict=True) if (table > 0).all()]
    savings = multiple_savings(sweeps)
    if path is not None:
        write_sealed(path, {"savings": savings})
    return chosen(savings)


def chosen(savings: Mapping[int, float]) -> Preference:
    """The smallest multiple that saves about as much as the best; 1 where none is worth its loss of freedom."""
    best = max(savings.values(), default=0.0)
    near = [multiple for multiple, share in savings.items() if share >= best - NEAR]
    return Preference(min(near) if best >= WORTH else 1, dict(savings))


def multiple_savings(sweeps: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[int, float]:
    """Share of the time that multiples save at equal width, over widths as they come; by multiple, the first of which, 1, saves nothing.

    Args:
        sweeps: widths and seconds of each layer, both (width,).
    """
    residuals: dict[int, list[float]] = {multiple: [] for multiple in MULTIPLES}
    for widths, seconds in sweeps:
        smooth = np.polyfit(np.log(widths), np.log(seconds), 2)  # what a width costs, whatever divides it
        for width, residual in zip(widths.tolist(), (np.log(seconds) - np.polyval(smooth, np.log(widths))).tolist(), strict=True):
            residuals[max(multiple for multiple in MULTIPLES if width % multiple == 0)].append(residual)
    found = {multiple: float(np.mean(values)) for multiple, values in residuals.items() if values}
    expected = {}  # of the multiples of m, half are no multiples of 2 m, and so on
    for multiple in found:
        parts = [(1 / (2 * other) if other < MULTIPLES[-1] else 1 / other, found[other]) for other in found if other >= multiple]
        expected[multiple] = sum(share * value for share, value in parts) / sum(share for share, _ in parts)
    return {multiple: 1 - float(np.exp(expected[multiple] - expected[1])) for multiple in expected} if 1 in expected else {}


def _sweep(call: Shrinking) -> Grid:
    """Nodes at multiples of 32 (in narrow layers of a smaller power of two), and 1, 2, 4, … below and above them, on all axes together."""
    full = [dense_width(call, axis) for axis in call.axes]
    lump = min(MULTIPLES[-1], 2 ** int(np.log2(min(full))))
    smaller = [multiple for multiple in MULTIPLES if multiple < lump]
    offsets = [0, *smaller, *(lump - multiple for multiple in smaller[:-1])]  # kernels waste least just below a multiple, most just above
    nodes = {}
    for share in SHARES:
        for offset in offsets:
            widths = [round(share * width / lump) * lump - offset for width in full]
            if min(widths) >= min(full) / 8 and all(width <= most for width, most in zip(widths, full, strict=True)):
                nodes[widths[-1]] = tuple(round(most - width) for width, most in zip(widths, full, strict=True))
    ordered = sorted(nodes)
    return Grid(call, (tuple(nodes[width] for width in ordered),), (tuple(map(float, ordered)),), copies=1)


def _heaviest(grids: Sequence[Grid], times: Mapping[str, int], device: torch.device) -> list[Grid]:
    """Those whose calls, as often as they are made, take the most time at their dense widths."""
    dense = [Grid(grid.call, ((grid.steps[0][-1],),), ((grid.widths[0][-1],),), copies=1) for grid in grids]
    seconds = time_grids(dense, device, lambda: None, monotone=False)
    total = [float(table[0]) * times[grid.call.call.key] for grid, table in zip(grids, seconds, strict=True)]
    return [grids[place] for place in np.argsort(total)[::-1][:HEAVIEST]]
