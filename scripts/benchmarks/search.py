"""Where the time of a candidate goes, and how our evaluator compares with a plain rendition of the published loop.

usage: python scripts/benchmarks/search.py [model] [images]
Both loops measure the same candidates on the same images, in one run, and must agree on every network's parameter count.
The plain loop copies the network deeply, removes one filter at a time, scores the filters anew for every candidate, and evaluates
in float32 and batches of 128; ours slices, scores once, and evaluates in the device's fast precision.
"""

import copy
import sys
import time

import numpy as np
import torch

from rlprune.config import build, conf_dir, load_yaml, shipped
from rlprune.data.base import Images, Normalization
from rlprune.graph import Slicer, prune, trace
from rlprune.search.allocate import allocate
from rlprune.training.evaluate import Evaluator
from rlprune.training.execution import choose_execution

CANDIDATES = 20


def plain_accuracy(network, images, labels):
    correct = 0
    with torch.no_grad():
        for x, y in zip(images.split(128), labels.split(128), strict=True):
            correct += int((network(x).argmax(1) == y).sum())
    return correct / len(labels)


def one_filter_at_a_time(network, graph, order, counts):
    """A deep copy from which every unit is cut on its own, out of the tensors of its group alone."""
    small = copy.deepcopy(network)
    owned = {}
    for group in graph.groups:
        for member in group.members:
            owned.setdefault((member.tensor, member.dim), {})[group.name] = member.units.copy()
    for group, gone in zip(graph.groups, counts, strict=True):
        for unit in order[group.name][:gone]:
            for member in group.members:
                module = small.get_submodule(member.layer)
                name = member.tensor.rpartition(".")[2]
                tensor = getattr(module, name)
                units = owned[member.tensor, member.dim]
                stays = np.setdiff1d(np.arange(tensor.shape[member.dim]), units[group.name][unit])
                cut = tensor.detach().index_select(member.dim, torch.from_numpy(stays))
                setattr(module, name, torch.nn.Parameter(cut) if isinstance(tensor, torch.nn.Parameter) else cut)
                for mine in units.values():
                    mine[...] = np.searchsorted(stays, mine)
    return small


class Stopwatch:
    """Seconds by name."""

    def __init__(self):
        self.seconds = {}

    def __call__(self, name, function, *arguments):
        start = time.perf_counter()
        value = function(*arguments)
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return value

    def sum_of_means(self, *names):
        return sum(sum(self.seconds[name]) / len(self.seconds[name]) for name in names)


def draw_plans(graph):
    shares = graph.num_units * graph.channels_per_unit / graph.num_channels
    generator = np.random.default_rng(0)
    noise = 0.04 * generator.standard_normal((CANDIDATES, len(shares)))
    budget = graph.num_channels // 16
    return [allocate(np.maximum(0, shares + row), budget, graph.channels_per_unit, graph.num_units - 1) for row in noise]


def report(clock, title):
    print(f"{title}; milliseconds a candidate")
    for name in clock.seconds:
        print(f"  {name:<24}{1000 * clock.sum_of_means(name):9.2f}")
    ours = clock.sum_of_means("slice", "forward") + clock.sum_of_means("score") / CANDIDATES
    work = clock.sum_of_means("plain: score", "plain: copy and remove")
    bare, forward = clock.sum_of_means("bare forward"), clock.sum_of_means("plain: forward")
    print(f"  ours {1000 * ours:.1f} (score shared by {CANDIDATES}); bare forward passes over it {bare / ours:.2f}")
    print(f"  the plain loop is {(work + forward) / ours:.1f} times slower, at equal precision and format {(work + bare) / ours:.1f} times")


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else "resnet20"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1024
    torch.manual_seed(0)
    network = build(shipped("model", model, {}), "model", in_channels=3, num_classes=10).eval()
    pixels, labels = torch.randint(0, 255, (count, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (count,))
    normalization = Normalization((0.5,) * 3, (0.25,) * 3)
    execution = choose_execution(device="cpu", precision="auto", channels_last="auto", compile=False)
    evaluator = Evaluator(Images(pixels, labels), normalization, execution)
    images = normalization(pixels)
    graph = trace(network, images[:2])
    criterion = build(load_yaml(conf_dir() / "criterion" / "taylor.yaml"), "criterion")
    scoring = (criterion.scores, network, graph, images[:100], labels[:100])
    criterion.scores(*scoring[1:])  # warms up
    evaluator.accuracy(network)
    clock, plans, sizes = Stopwatch(), draw_plans(graph), []
    order = {name: torch.argsort(values).numpy() for name, values in clock("score", *scoring).items()}
    keeps = [{g.name: order[g.name][c:] for g, c in zip(graph.groups, counts, strict=True)} for counts in plans]
    slicer = Slicer(network, graph)
    for keep in keeps:
        candidate = clock("slice", slicer, keep)
        clock("forward", evaluator.accuracy, candidate)
        sizes.append(sum(parameter.numel() for parameter in candidate.parameters()))

    def bare(small):
        with torch.inference_mode(), execution.autocast():
            for batch in images.contiguous(memory_format=torch.channels_last).split(512):
                small(batch)

    for keep in keeps:
        clock("bare forward", bare, prune(network, graph, keep).to(memory_format=torch.channels_last))
    for counts, size in zip(plans, sizes, strict=True):
        clock("plain: score", *scoring)
        small = clock("plain: copy and remove", one_filter_at_a_time, network, graph, order, counts)
        assert sum(parameter.numel() for parameter in small.parameters()) == size
        clock("plain: forward", plain_accuracy, small, images, labels)
    report(clock, f"{model}, {count} images, {execution.dtype or torch.float32}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
