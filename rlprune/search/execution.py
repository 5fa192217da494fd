"""How candidates are run: cut to their widths, padded with zeros to widths that kernels like, or uncut with zeros alone.

The outputs are the same but for rounding; the speed depends on the machine's kernels. It is measured once, and what was chosen is kept, so
that a search that goes on rounds as it began.
"""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rlprune.cost import machine
from rlprune.errors import UserError
from rlprune.files import digest, recall, write_sealed
from rlprune.graph import ChannelGraph, Slicer, prune
from rlprune.graph.run import copy_module
from rlprune.graph.verify import TOLERANCE
from rlprune.search.schedule import Schedule
from rlprune.training.evaluate import Evaluator
from rlprune.training.measure import GAIN, ROUNDS

log = logging.getLogger(__name__)
MULTIPLES: dict[str, int | None] = {"sliced": 1, "padded": 16, "masked": None}
"""What `Slicer` rounds the kept units of a group up to."""
SHARE = 0.02  # of the images that the search will see, at most
FEWEST, MOST = 128, 512  # images of a measured candidate, if there are so many; few say little about many


def choose_execution(
    name: str,
    network: nn.Module,
    graph: ChannelGraph,
    evaluator: Evaluator,
    *,
    schedule: Schedule,
    candidates: int,
    cache: Path,
    chosen: Path,
) -> str:
    """`sliced`, `padded` or `masked`; `auto` takes the fastest, and `sliced` where the search is too short for a measurement.

    Args:
        name: one of these.
        network: the dense network; it is not changed.
        graph: its channel graph.
        evaluator: of the search split.
        schedule: of the search, as the speed depends on what a step removes.
        candidates: that the search will measure at most.
        cache: folder of what was measured before.
        chosen: file that keeps the choice of this run.

    Raises:
        UserError: the execution asked for changes this network's outputs.
    """
    if name != "auto":
        if name not in exact_executions(network, graph, evaluator):
            raise UserError(f"search.execution={name}: changes this network's outputs; use auto or sliced")
        return name
    count = min(len(evaluator), MOST, int(SHARE * candidates * len(evaluator) / (len(MULTIPLES) * (ROUNDS + 1))))
    kept = str(recall(chosen).get("execution"))
    if kept in MULTIPLES or count < min(FEWEST, len(evaluator)):
        return kept if kept in MULTIPLES else "sliced"
    path = cache / f"execution-{_key(network, graph, evaluator, schedule, count)}.json"
    seconds = recall(path)
    if not (set(seconds) <= set(MULTIPLES) and all(isinstance(value, float) for value in seconds.values()) and "sliced" in seconds):
        seconds = measure_executions(network, graph, evaluator.first(count), schedule)
        write_sealed(path, seconds)
    fastest = min(seconds, key=lambda name: seconds[name])
    best = fastest if GAIN * seconds[fastest] < seconds["sliced"] else "sliced"
    log.info("candidates run %s; milliseconds each: %s", best, ", ".join(f"{name} {1000 * value:.0f}" for name, value in seconds.items()))
    write_sealed(chosen, {"execution": best})
    return best


def measure_executions(network: nn.Module, graph: ChannelGraph, evaluator: Evaluator, schedule: Schedule) -> dict[str, float]:
    """Seconds of building and evaluating a candidate of the search's middle step, by execution; those that are not exact are left out."""
    names, middle = exact_executions(network, graph, evaluator), schedule.steps // 2
    goals = _channels_gone(graph, schedule)
    gone = [goals[middle - 1] if middle and not schedule.joint else 0.0, goals[middle]]
    generator = np.random.default_rng(0)
    before = _draw(graph, lambda units: units * gone[0] / graph.num_channels * generator.uniform(0.5, 1.5), generator)
    network, graph = prune(network, graph, before), graph.after(before)
    share = (gone[1] - gone[0]) / max(1, graph.num_channels)
    keep = _draw(graph, lambda units: units * share * generator.uniform(0.5, 1.5), generator)
    slicers = {name: Slicer(network, graph, multiple=MULTIPLES[name]) for name in names}
    seconds = dict.fromkeys(names, float("inf"))
    for _ in range(ROUNDS + 1):  # in turn, so that a busy moment hurts all; the first round warms up
        for name, slicer in slicers.items():
            start = time.perf_counter()
            evaluator.accuracy(slicer(keep))
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def exact_executions(network: nn.Module, graph: ChannelGraph, evaluator: Evaluator) -> list[str]:
    """Those with the outputs of `sliced`, in float64 on two images, with half of every group gone and padding in every group of 16 up."""
    generator = np.random.default_rng(0)
    keep = _draw(graph, lambda units: units - (units // 2 | 1), generator)  # odd numbers stay
    example = evaluator.normalization(evaluator.images.subset(np.arange(min(2, len(evaluator)))).load().pixels)
    example = example.to(evaluator.execution.device).double()
    exact = ["sliced"]
    try:
        double = copy_module(network).double().eval()
        with torch.inference_mode():
            outputs = {name: Slicer(double, graph, multiple=multiple)(keep)(example) for name, multiple in MULTIPLES.items()}
    except (UserError, RuntimeError) as error:  # it only runs in the precision that it has
        log.debug("candidates run sliced: %s", error)
        return exact
    wanted = outputs.pop("sliced")
    scale = float(wanted.abs().max())
    return exact + [name for name, found in outputs.items() if float((found - wanted).abs().max()) <= TOLERANCE * scale]


def _channels_gone(graph: ChannelGraph, schedule: Schedule) -> list[float]:
    """After each step; where only other things are asked for, a guess: they fall with the square of the widths."""
    none = np.zeros(len(graph.groups))
    gone = []
    for goal in schedule.goals:
        shares = [goal.macs / graph.cost.macs(none), goal.params / graph.cost.params(none), (goal.channels / graph.num_channels) ** 2]
        if graph.clock is not None:
            shares.append(goal.latency / graph.clock.dense)
        gone.append(graph.num_channels * (1 - math.sqrt(min(1.0, *shares))))
    return gone


def _draw(graph: ChannelGraph, removed: Callable[[int], float], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Random units that stay when every group loses as many of its units as `removed` says, rounded, but never all."""
    keep = {}
    for group in graph.groups:
        stay = max(1, group.num_units - round(removed(group.num_units)))
        keep[group.name] = np.sort(generator.permutation(group.num_units)[:stay])
    return keep


def _key(network: nn.Module, graph: ChannelGraph, evaluator: Evaluator, schedule: Schedule, count: int) -> str:
    """Changes with the network, what a step removes, the images, and the machine."""
    execution = evaluator.execution
    how = [machine(execution.device), torch.__version__, str(execution.dtype), execution.channels_last, evaluator.batch_size]
    facts = [repr(network), graph.num_units.tolist(), _channels_gone(graph, schedule), evaluator.images.shape, count, MULTIPLES, how]
    return digest(facts)
