"""How well look-up tables predict the latency of pruned networks, how long they take to measure, and how many times faster they are to ask.

Eight networks are what the model is fitted to; the error is over twelve others, with random shares of every group gone, which are timed by
turns with the dense one.

usage: OMP_NUM_THREADS=1 python scripts/benchmarks/latency.py [--networks resnet56 vgg16 mobilenetv2 resnet50] [--batch-size 1]
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch
import torchvision

import rlprune
from rlprune.config import build, shipped
from rlprune.latency.build import measure_networks
from rlprune.results.tables import to_markdown

PLANS = 12
SIDES = {"resnet50": 224}  # torchvision's; the others are those for 32×32 pixels


def make(name):
    if name == "resnet50":
        return torchvision.models.resnet50(weights=None)
    return build(shipped("model", name, {}), "model", in_channels=3, num_classes=10)


def measured(name, batch_size):
    network, side = make(name).eval(), SIDES.get(name, 32)
    example = torch.randn(batch_size, 3, side, side)
    graph = rlprune.trace(network, example)
    start = time.perf_counter()
    graph = rlprune.with_latency(network, graph, example)
    seconds = time.perf_counter() - start
    generator = np.random.default_rng(1)
    keeps = [
        {group.name: np.arange(max(1, round(group.num_units * generator.uniform(0.1, 1)))) for group in graph.groups} for _ in range(PLANS)
    ]
    counts = np.stack([graph.counts(keep) for keep in keeps])
    start = time.perf_counter()
    predicted = graph.seconds(counts)
    asked = (time.perf_counter() - start) / PLANS
    found = measure_networks({"dense": network, **{str(i): rlprune.prune(network, graph, keep) for i, keep in enumerate(keeps)}}, example)
    errors = 100 * (predicted / np.array([found[str(i)] for i in range(PLANS)]) - 1)
    shares = predicted / graph.latency({}) - np.array([found[str(i)] / found["dense"] for i in range(PLANS)])
    return {
        "network": f"{name}, {side}×{side}", "tables": len(graph.clock.values), "measuring s": f"{seconds:.0f}",
        "dense ms": f"{1e3 * found['dense']:.2f}", "predicted ms": f"{1e3 * graph.latency({}):.2f}",
        "pruned ms": f"{1e3 * min(found.values()):.2f} to {1e3 * max(v for k, v in found.items() if k != 'dense'):.2f}",
        "mean error %": f"{np.abs(errors).mean():.1f}", "worst error %": f"{errors[np.abs(errors).argmax()]:+.1f}",
        "mean error of the share": f"{np.abs(shares).mean():.3f}", "a question, µs": f"{1e6 * asked:.0f}",
        "a pass / a question": f"{np.mean(list(found.values())) / asked:.0f}",
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet56", "vgg16", "mobilenetv2", "resnet50"])
    parser.add_argument("--batch-size", type=int, default=1)
    options = parser.parse_args()
    print(to_markdown(pd.DataFrame([measured(name, options.batch_size) for name in options.networks])))
