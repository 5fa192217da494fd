"""How much faster candidates of one channel group are measured when what they compute alike is computed once.

usage: python scripts/benchmarks/prefix.py [--models vgg16 resnet18] [--width 0.25] [--images 512] [--candidates 20]

For a group near the beginning, in the middle and at the end, so many random candidates are measured plainly and with a `Prefix`, whose
recording on the first candidate is part of the time. Both must find the same number of correct answers for each of them. Images, labels and
weights are random: speed does not ask. Times are the better of two rounds, in which the two take turns, and mean something as ratios within
one run.
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch

from rlprune.config import build, shipped
from rlprune.data.base import Images, Normalization
from rlprune.graph import Slicer, trace
from rlprune.results.tables import to_markdown
from rlprune.training.evaluate import Evaluator
from rlprune.training.execution import choose_execution
from rlprune.training.merged import mergeable
from rlprune.training.prefix import Prefix

NORMALIZATION = Normalization((0.5,) * 3, (0.25,) * 3)
ROUNDS = 2


def measure(evaluator, slicer, plans, tensors):
    """Correct answers of all candidates, and seconds; `tensors` of the group are shared around, None: plainly."""
    start = time.perf_counter()
    prefix = None if tensors is None else Prefix(tensors)
    correct = [evaluator.accuracy(slicer(keep), prefix).correct for keep in plans]
    return correct, time.perf_counter() - start, "" if prefix is None else prefix.reason


def lines(model, width, images, candidates):
    torch.manual_seed(0)
    network = build(shipped("model", model, {"width": width}), "model", in_channels=3, num_classes=10).eval()
    execution = choose_execution(device="auto", precision="auto", channels_last="auto", compile=False)
    network.to(execution.device)
    example = NORMALIZATION(images.pixels[:2].to(execution.device))
    graph = trace(network, example)
    evaluator = Evaluator(images, NORMALIZATION, execution, pairs=mergeable(network, example))
    evaluator.accuracy(network)
    slicer, generator = Slicer(network, graph), np.random.default_rng(0)
    for where, index in (("early", 1), ("middle", len(graph.groups) // 2), ("late", -1)):
        group = graph.groups[index]
        kept = generator.integers(1, group.num_units, candidates)
        plans = [{group.name: np.sort(generator.choice(group.num_units, count, replace=False))} for count in kept]
        best = {}
        for _ in range(ROUNDS):
            for name, tensors in (("plain", None), ("shared", {member.tensor for member in group.members})):
                correct, seconds, reason = measure(evaluator, slicer, plans, tensors)
                best[name] = min(best.get(name, (float("inf"), [])), (seconds, correct))
        assert best["plain"][1] == best["shared"][1]
        seconds = {name: value for name, (value, _) in best.items()}
        yield {
            "model": f"{model}, width {width:g}",
            "group": f"{where}: {group.name}",
            "plain ms": f"{1000 * seconds['plain'] / candidates:.1f}",
            "shared ms": f"{1000 * seconds['shared'] / candidates:.1f}",
            "times as fast": f"{seconds['plain'] / seconds['shared']:.2f}",
            "why plain": reason,
        }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["vgg16", "resnet18"])
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--candidates", type=int, default=20)
    chosen = parser.parse_args()
    count = chosen.images
    images = Images(torch.randint(0, 255, (count, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (count,)))
    print(to_markdown(pd.DataFrame([line for model in chosen.models for line in lines(model, chosen.width, images, chosen.candidates)])))


if __name__ == "__main__":
    main()
