"""From a network to its latency model: tables, measured once on a machine, and whole networks that it is fitted to and checked on."""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn
from tqdm import tqdm

from rlprune.cost import machine
from rlprune.errors import UserError
from rlprune.files import digest, recall, write_sealed
from rlprune.graph import ChannelGraph, prune
from rlprune.graph.labels import tensors_in
from rlprune.graph.run import call
from rlprune.latency.calls import is_layer, shrinking_calls
from rlprune.latency.timing import Grid, aligned, dense_width, device_of, make_grid, synchronise, time_grids
from rlprune.latency_model import ALIGNED, AXES, Check, LatencyModel, padded

log = logging.getLogger(__name__)
VERSION = 2  # of what is kept; it rises when measuring changes
KINDS = 2  # of calls, each with a factor: without weights, and with
FITTED = 8  # networks that overhead and factors are fitted to: dense, half, the smallest, and others drawn at random
CHECKED = 4  # more that are drawn at random and tell the error
WHOLE_SECONDS, WHOLE_ROUNDS = 6.0, (7, 250)  # that whole networks are timed for, in so many rounds, at least and at most


def latency_model(
    network: nn.Module,
    graph: ChannelGraph,
    kept_counts: Mapping[str, np.ndarray],
    example: Any,
    *,
    where: str,
    cache: Path | None,
    own: Path | None = None,
) -> LatencyModel:
    """Predicts the latency of every plan within `kept_counts`.

    Every distinct call of the network is timed on its own over the widths that it may have; overhead and factors, which the calls on their
    own do not show, are fitted to eight whole networks, and four others tell the error. What was measured on this machine before is not
    measured again.

    Args:
        network: that `graph` was traced on; it is not changed. In float32, as stored.
        graph: its channel graph.
        kept_counts: numbers of units that each group may keep, descending, by name.
        example: a batch of inputs, on the device; its length is the batch size.
        where: what speed depends on beyond the program.
        cache: folder of what was measured before; None: nothing is kept.
        own: file that keeps the model of this run, so that it goes on as it began.

    Raises:
        UserError: the calls of the network change when units go, so that no table can tell.
    """
    device = device_of(example)
    subject = prune(network, graph, {}).eval().to(memory_format=torch.contiguous_format)
    most = np.array([int(counts[0] - counts[-1]) for counts in (kept_counts[group.name] for group in graph.groups)])
    calls = shrinking_calls(subject, graph, example, np.flatnonzero(most).tolist())
    network_bytes = sum(tensor.numel() * tensor.itemsize for tensor in subject.parameters())
    grids = [make_grid(shrinking, most, network_bytes) for shrinking in calls]
    asked = [VERSION, most.tolist(), graph.num_units.tolist(), [_describe(grid) for grid in grids]]
    begun = recall_model(own, digest(asked))
    if begun is not None:  # a run goes on with what it began with, whatever the machine is now
        if recall(own).get("where") != where:
            log.warning("latency model: measured where this run began (%s); the run goes on with it (%s)", recall(own).get("where"), where)
        return begun
    name = digest([where, torch.__version__, str(device), asked])
    path = None if cache is None else cache / f"latency-{name}.json"
    known = recall_model(path, name)
    if known is not None:
        known = replace(known, groups=tuple(group.name for group in graph.groups))  # another network's may have other names
        keep_model(known, digest(asked), own, where=where)
        return known
    started = time.perf_counter()
    tables = None if cache is None else cache / f"latency-tables-{digest([VERSION, where, torch.__version__, str(device)])}.json"
    model = _assembled(graph, grids, _batch_size(example), device, tables)
    model = _fitted(model, subject, graph, most, example)
    seconds = time.perf_counter() - started
    log.info(
        "latency model: %d calls in %d tables; dense %.3f ms; measured in %.1f s", len(calls), len(model.values), 1e3 * model.dense, seconds
    )
    keep_model(model, name, path)
    keep_model(model, digest(asked), own, where=where)
    return model


def with_latency(
    model: nn.Module, graph: ChannelGraph, example_inputs: Any, *, min_keep: int = 1, cache: str | Path | None = None
) -> ChannelGraph:
    """The same graph, which now predicts latency: `graph.latency(keep)` in seconds, for inputs like these on their device, in float32.

    Args:
        model: that `graph` was traced on; it is not changed.
        graph: its channel graph.
        example_inputs: a batch of inputs on the device that is asked about: a tensor, a tuple of arguments or a dict of keyword arguments.
        min_keep: units that stay in every group, at least; the tables end there.
        cache: folder that keeps what was measured, for the next time; None: nothing is kept.

    Raises:
        UserError: the calls of the network change when units go, or an argument is none.
    """
    if not isinstance(graph, ChannelGraph):
        raise UserError(f"graph: is a {type(graph).__name__}; pass the network, its channel graph, and example inputs, in this order")
    if not any(True for _ in tensors_in(example_inputs)):
        raise UserError("example_inputs: holds no tensor; pass a batch, a tuple of arguments, or a dict of keyword arguments")
    if isinstance(min_keep, bool) or not isinstance(min_keep, int) or min_keep < 1:
        raise UserError(f"min_keep={min_keep!r}: must be a whole number ≥ 1")
    if not graph.groups:
        raise UserError("graph: has no channel group, so that no plan changes its latency; rlprune.bench times a network as it is")
    if cache is not None and Path(cache).expanduser().is_file():
        raise UserError(f"cache={cache}: is a file; name a folder")
    kept_counts = {group.name: np.arange(group.num_units, min(min_keep, group.num_units) - 1, -1) for group in graph.groups}
    where = machine(device_of(example_inputs))
    clock = latency_model(model, graph, kept_counts, example_inputs, where=where, cache=None if cache is None else Path(cache).expanduser())
    return replace(graph, clock=clock)


def _assembled(graph: ChannelGraph, grids: Sequence[Grid], batch_size: int, device: torch.device, cache: Path | None) -> LatencyModel:
    """Tables and terms; overhead and factors are not known yet."""
    distinct = {grid.key: grid for grid in grids}
    seconds = _measured(distinct, device, cache)
    shrinking = [grid for grid in distinct.values() if grid.steps]
    numbers = {grid.key: number for number, grid in enumerate(shrinking)}
    fixed, terms = np.zeros(KINDS), Counter[tuple[int, int, Any, Any]]()
    for grid in grids:
        if not grid.steps:
            fixed[_kind(grid)] += float(seconds[grid.key])
            continue
        axes = [(dense_width(grid.call, axis), axis.taken) for axis in grid.call.axes]
        if len(axes) > AXES:
            axes = [(sum(width for width, _ in axes), tuple(np.sum([taken for _, taken in axes], axis=0).tolist()))]
        second = 0.0 if aligned(grid) is None else ALIGNED
        axes += [(second, (0,) * len(graph.groups))] * (AXES - len(axes))
        terms[_kind(grid), numbers[grid.key], tuple(width for width, _ in axes), tuple(taken for _, taken in axes)] += 1
    nodes, values = _tables(shrinking, seconds)
    return LatencyModel(
        groups=tuple(group.name for group in graph.groups),
        units=graph.num_units,
        table=np.array([table for _, table, _, _ in terms], dtype=int),
        widths=np.array([widths for _, _, widths, _ in terms]).reshape(-1, AXES).T,
        taken=np.array([taken for _, _, _, taken in terms], dtype=int).reshape(-1, AXES, len(graph.groups)).transpose(1, 0, 2),
        times=np.array([[times * (kind == own) for (own, _, _, _), times in terms.items()] for kind in range(KINDS)], dtype=float),
        nodes=nodes,
        values=values,
        fixed=fixed,
        overhead=0.0,
        factors=np.ones(KINDS),
        batch_size=batch_size,
    )


def _tables(grids: Sequence[Grid], seconds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Nodes, (axis, table, node), and seconds, (table, node, node), as `LatencyModel` has them; with a single axis, two columns."""
    longest = max([2, *(len(row) for grid in grids for row in grid.widths)])
    values, nodes = np.zeros((len(grids), longest, longest)), [[[0.0, 1.0]] * len(grids) for _ in range(AXES)]
    for number, grid in enumerate(grids):
        table = seconds[grid.key]
        table = _columns(grid, table) if table.ndim == 1 else table
        values[number, : table.shape[0], : table.shape[1]] = table
        for axis, row in enumerate(grid.widths):
            nodes[axis][number] = list(row)
    return padded(nodes, values.tolist()), values


def _columns(grid: Grid, table: np.ndarray) -> np.ndarray:
    """Seconds of a single width at all nodes, (node, 2): as if LUMP divided none, and all; equal where that does not matter."""
    widths, divided = np.array(grid.widths[0]), aligned(grid)
    if divided is None or divided.all() or not divided.any():
        return np.repeat(table[:, None], 2, axis=1)
    return np.stack([np.interp(widths, widths[mine], table[mine]) for mine in (~divided, divided)], axis=1)


def _measured(grids: Mapping[str, Grid], device: torch.device, cache: Path | None) -> dict[str, np.ndarray]:
    """Seconds at the nodes of every grid, by its key: kept ones, or measured now."""
    kept = {} if cache is None else recall(cache)
    found = {key: np.array(kept[digest([key])], dtype=float) for key, grid in grids.items() if _fits(kept.get(digest([key])), grid)}
    missing = [grid for key, grid in grids.items() if key not in found]
    if not missing:
        return found
    nodes = 2 * sum(int(np.prod([len(row) for row in grid.steps])) for grid in missing)
    with tqdm(total=nodes, desc="latency of calls", unit="node", leave=False) as bar:
        for grid, table in zip(missing, time_grids(missing, device, bar.update), strict=True):
            found[grid.key] = table
    if cache is not None:  # another run may have added some in the meantime
        write_sealed(cache, {**recall(cache), **{digest([grid.key]): found[grid.key].tolist() for grid in missing}})
    return found


def _fits(kept: Any, grid: Grid) -> bool:
    """Whether what a file holds is a table of this grid; it may be damaged."""
    try:
        table = np.array(kept, dtype=float)
    except (TypeError, ValueError):
        return False
    return table.shape == tuple(map(len, grid.steps)) and bool(np.isfinite(table).all())


def _fitted(model: LatencyModel, network: nn.Module, graph: ChannelGraph, most: np.ndarray, example: Any) -> LatencyModel:
    """The model with overhead and factors, checked on networks that it was not fitted to."""
    generator = np.random.default_rng(0)
    counts = {"dense": np.zeros(len(most), dtype=int), "half": most // 2, "smallest": most}
    for number in range(1, FITTED - len(counts) + CHECKED + 1):
        counts[f"random {number}"] = (most * generator.uniform(0, 1, len(most)) * generator.uniform(0.5, 1)).astype(int)
    networks = {}
    for name, gone in counts.items():
        keep = {group.name: np.arange(group.num_units - count) for group, count in zip(graph.groups, gone.tolist(), strict=True)}
        networks[name] = prune(network, graph, keep)
    measured = measure_networks(networks, example)
    left = np.array([graph.num_units - gone for gone in counts.values()])
    model = _scaled(model, left[:FITTED], np.array([measured[name] for name in list(counts)[:FITTED]]))
    kept = left @ graph.channels_per_unit / graph.num_channels
    rows = zip(counts, kept.tolist(), model.seconds(left).tolist(), strict=True)
    checks = [Check(name, share, predicted, measured[name]) for name, share, predicted in rows]
    return replace(model, checks=(checks[0], *checks[FITTED:]))


def _scaled(model: LatencyModel, left: np.ndarray, measured: np.ndarray) -> LatencyModel:
    """Overhead and factors by least squares of the relative error, none negative; the dense network, which shares refer to, counts twice.

    Args:
        model: whose tables are known.
        left: units of the measured networks, the dense one first, (network, group).
        measured: their seconds, (network,).
    """
    weights = np.where(np.arange(len(measured)) == 0, 2.0, 1.0) / measured
    table = np.concatenate([np.ones((len(measured), 1)), model.by_kind(left)], axis=1)
    found, _ = nnls(table * weights[:, None], measured * weights)
    return replace(model, overhead=float(found[0]), factors=found[1:])


def _kind(grid: Grid) -> int:
    """Of a call, as its factor is: 1 for layers, 0 for what has no weight of several dimensions."""
    return int(is_layer(grid.call))


@torch.inference_mode()
def measure_networks(networks: Mapping[str, nn.Module], example: Any) -> dict[str, float]:
    """Seconds of a forward pass of every network at best, in turn, so that a busy moment hurts all; in eval mode.

    Args:
        networks: by name, on the device of the inputs.
        example: a batch of inputs.
    """
    device = device_of(example)
    for network in networks.values():
        network.eval()
        call(network, example)
    once = sum(_pass(network, example, device) for network in networks.values()) / len(networks)
    rounds = int(np.clip(WHOLE_SECONDS / (2 * once * len(networks)), *WHOLE_ROUNDS))
    samples: dict[str, list[float]] = {name: [] for name in networks}
    for _ in tqdm(range(rounds), desc="latency of networks", unit="round", leave=False, delay=1):
        for name, network in networks.items():
            call(network, example)  # what the network before has left in the caches is not this one's fault
            samples[name].append(_pass(network, example, device))
    return {name: min(values) for name, values in samples.items()}


def _pass(network: nn.Module, example: Any, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    call(network, example)
    synchronise(device)
    return time.perf_counter() - start


def _describe(grid: Grid) -> list[Any]:
    return [grid.key, [axis.taken for axis in grid.call.axes]]


def _batch_size(example: Any) -> int:
    first = next(iter(tensors_in(example)))
    return first.shape[0] if first.ndim else 1


def keep_model(model: LatencyModel, name: str, path: Path | None, *, where: str = "") -> None:
    """Write a model to a file, if one is given, under a name that changes with all that it depends on."""
    if path is not None:
        write_sealed(path, {"name": name, "where": where, "model": model.as_dict()})


def recall_model(path: Path | None, name: str | None = None) -> LatencyModel | None:
    """The model that a file keeps under this name, or any; None where there is none."""
    kept = recall(path)
    try:
        return LatencyModel.from_dict(kept["model"]) if name is None or kept.get("name") == name else None
    except (KeyError, TypeError, ValueError):  # damaged: it is measured
        return None
