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


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else "resnet20"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1024
    torch.manual_seed(0)
    network = build(shipped("model", model, {}), "model", in_channels=3, num_classes=10).eval()
    pixels, labels = torch.randint(0, 255, (count, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (count,))
    normalization = Normalization((0.5,) * 3, (0.25,) * 3)
    execution = choose_execution(device="cpu", precision="auto", channels_last="auto", compile=False)
    evaluator = Evaluator(Images(pixels, labels), normalization, execution)
    graph = trace(network, normalization(pixels[:2]))
    criterion = build(load_yaml(conf_dir() / "criterion" / "taylor.yaml"), "criterion")
    calibration = normalization(pixels[:100]), labels[:100]
    shares = graph.num_units * graph.channels_per_unit / graph.num_channels
    generator = np.random.default_rng(0)
    plans = [
        allocate(
            np.maximum(0, shares + 0.04 * generator.standard_normal(len(shares))),
            graph.num_channels // 16,
            graph.channels_per_unit,
            graph.num_units - 1,
        )
        for _ in range(CANDIDATES)
    ]

    def keep_of(scores, counts):
        return {g.name: torch.argsort(scores[g.name]).numpy()[c:] for g, c in zip(graph.groups, counts, strict=True)}

    seconds = dict.fromkeys(("score", "slice", "forward", "bare forward", "plain: score", "plain: copy and remove", "plain: forward"), 0.0)

    def timed(name, function):
        start = time.perf_counter()
        value = function()
        seconds[name] += time.perf_counter() - start
        return value

    evaluator.accuracy(network)
    ours = []
    scores = timed("score", lambda: criterion.scores(network, graph, *calibration))
    slicer = Slicer(network, graph)
    for counts in plans:
        candidate = timed("slice", lambda counts=counts: slicer(keep_of(scores, counts)))
        timed("forward", lambda candidate=candidate: evaluator.accuracy(candidate))
        ours.append(sum(p.numel() for p in candidate.parameters()))
    batches = evaluator._batches()
    for counts in plans:
        small = prune(network, graph, keep_of(scores, counts)).to(memory_format=torch.channels_last)

        def bare(small=small):
            with torch.inference_mode(), execution.autocast():
                for images, _ in batches:
                    small(images)

        timed("bare forward", bare)
    images = normalization(pixels)
    for index, counts in enumerate(plans[:5]):  # enough for a mean, and slow
        scores = timed("plain: score", lambda: criterion.scores(network, graph, *calibration))

        def one_by_one(scores=scores, counts=counts):
            small, current = copy.deepcopy(network), graph
            order = {g.name: list(torch.argsort(scores[g.name]).numpy()) for g in graph.groups}
            for group, gone in zip(graph.groups, counts, strict=True):
                left = list(range(group.num_units))
                for victim in order[group.name][:gone]:
                    position = left.index(victim)
                    left.remove(victim)
                    keep = {group.name: [u for u in range(len(left) + 1) if u != position]}
                    small, current = prune(small, current, keep), current.after(keep)
            return small

        small = timed("plain: copy and remove", one_by_one)
        assert sum(p.numel() for p in small.parameters()) == ours[index]
        timed("plain: forward", lambda small=small: plain_accuracy(small, images, labels))
    per = {name: value / (5 if name.startswith("plain") else CANDIDATES) for name, value in seconds.items()}
    total = per["score"] + per["slice"] + per["forward"]
    plain = sum(value for name, value in per.items() if name.startswith("plain"))
    print(f"{model}, {count} images, {execution.dtype or torch.float32}, {torch.get_num_threads()} threads; milliseconds a candidate")
    for name, value in per.items():
        print(f"  {name:<24}{1000 * value:9.2f}")
    print(f"  ours {1000 * total:.1f}, of which bare forward passes are {per['bare forward'] / total:.2f}")
    print(f"  the plain loop is {plain / total:.1f} times slower")
    float32 = sum(per[name] for name in per if name.startswith("plain") and name != "plain: forward") + per["bare forward"]
    print(f"  at equal precision and format (bare forward in place of the plain one) {float32 / total:.1f} times slower")


if __name__ == "__main__":
    main()
