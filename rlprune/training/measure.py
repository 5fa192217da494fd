"""Choosing precision and memory format of training by the clock: which is fastest depends on the network as much as on the machine.

Depthwise convolutions train up to three times faster in float32 than in bfloat16 on a CPU; others half as fast
(scripts/benchmarks/training.py). What was measured once is kept, so that later runs and resumed ones do as the first did.
"""

import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.cost import machine
from rlprune.files import digest, recall, write_sealed
from rlprune.graph.run import copy_module
from rlprune.kernels import careful_kernels
from rlprune.training.execution import Execution, Way

log = logging.getLogger(__name__)
GAIN = 1.1  # another way must be so much faster than the first: the clock is noisy
ROUNDS = 3  # and one that warms up
SHARE = 0.05  # of the training that may go into measuring, at most
SMALLEST = 16  # images of a measured step; small batches say little about large ones
MEMORY = 2**22  # numbers in the images of a measured step, at most


def choose_way(
    execution: Execution, network: nn.Module, example: Tensor, *, batch_size: int, images: int, cache: Path, chosen: Path
) -> Execution:
    """The same execution with the fastest of its ways of training in front.

    Args:
        execution: with the ways to choose from.
        network: the dense network; it is not changed.
        example: a normalised image or more, shape (n, C, H, W).
        batch_size: of the training.
        images: that the training will see, counted in every epoch; where they are few, nothing is measured.
        cache: folder of what was measured before.
        chosen: file that keeps the choice of this run, so that it goes on as it began.
    """
    steps = len(execution.ways) * (ROUNDS + 1)
    count = min(batch_size, int(SHARE * images / steps), MEMORY // example[0].numel())
    names = [str(way) for way in execution.ways]
    if len(names) == 1 or count < min(SMALLEST, batch_size):
        return execution
    best = str(recall(chosen).get("way"))
    if best not in names:
        path = cache / f"speed-{_key(execution, network, example, count)}.json"
        rates = recall(path)
        if not all(isinstance(rates.get(name), float) for name in names):
            rates = measure_ways(execution, network, example, count)
            if all(rates.values()):  # what failed may have failed by chance
                write_sealed(path, rates)
        best = max(names, key=lambda name: rates[name])
        best = best if rates[best] > GAIN * rates[names[0]] else names[0]
        if best != names[0]:
            log.info("training in %s: %.0f images/s, in %s %.0f", best, rates[best], names[0], rates[names[0]])
        write_sealed(chosen, {"way": best})
    way = execution.ways[names.index(best)]
    return replace(execution, ways=(way, *(other for other in execution.ways if other != way)))


def measure_ways(execution: Execution, network: nn.Module, example: Tensor, count: int) -> dict[str, float]:
    """Images a second of forward and backward passes of `count` images, by the name of each way; 0 where it cannot run."""
    best = dict.fromkeys(execution.ways, float("inf"))
    with torch.random.fork_rng(devices=[execution.device] if execution.device.type == "cuda" else []):
        copy = copy_module(network).to(execution.device).train()
        for _ in range(ROUNDS + 1):  # in turn, so that a busy moment hurts all; the first round warms up
            for way in execution.ways:
                best[way] = min(best[way], _step(copy.to(memory_format=way.memory_format), execution, way, example, count))
    return {str(way): count / value for way, value in best.items()}


def _step(network: nn.Module, execution: Execution, way: Way, example: Tensor, count: int) -> float:
    """Seconds of one forward and backward pass."""
    images = example.repeat(-(-count // len(example)), 1, 1, 1)[:count].contiguous(memory_format=way.memory_format)
    images = images + 0.1 * torch.randn_like(images)
    network.zero_grad(set_to_none=True)
    start = _now(execution.device)
    try:
        with careful_kernels(network, execution.device):
            with torch.autocast(execution.device.type, way.dtype or torch.bfloat16, enabled=way.dtype is not None):
                scores = network(images)
            F.cross_entropy(scores.float(), torch.zeros(count, dtype=torch.long, device=execution.device)).backward()
    except RuntimeError as error:  # an operation that does not exist in this precision, or too little memory
        log.debug("training in %s fails: %s", way, error)
        return float("inf")
    return max(1e-9, _now(execution.device) - start)  # a clock may have been put back


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _key(execution: Execution, network: nn.Module, example: Tensor, count: int) -> str:
    """Changes with the network, its images, and the machine."""
    ways = list(map(str, execution.ways))
    facts = [repr(network), tuple(example.shape[1:]), count, machine(execution.device), torch.__version__, ways]
    return digest(facts)
