"""What a candidate's accuracy before recovery says about its accuracy after: rank correlations over random plans of one sparsity.

usage: python scripts/benchmarks/proxy.py FOLDER CHECKPOINT [sparsity] [plans] [model] [key=value of the model ...]
FOLDER holds train/<class>/ and test/<class>/ (the test images are not read). Each plan draws a share for every group, is carried out in one
step, measured on the search split in several ways, recovers by distillation on 12,800 training images, and is measured again. How well a
second recovery with other batches agrees with the first is the best that any measure can do.
"""

import copy
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rlprune.checkpoint import load_into, load_weights
from rlprune.config import build, conf_dir, load_yaml, shipped
from rlprune.data.base import sample, split
from rlprune.graph import prune, trace
from rlprune.results.origin import Origin
from rlprune.results.tables import to_markdown
from rlprune.search.allocate import allocate, turns_by_share
from rlprune.search.limits import Goal, Room
from rlprune.seeding import numpy_generator
from rlprune.setup import Setup
from rlprune.training.evaluate import Evaluator
from rlprune.training.execution import choose_execution
from rlprune.training.fit import Recipe
from rlprune.training.recover import Recovery, recover
from rlprune.training.refresh import BriefRecovery, Recalibration


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


RECIPE = Recipe(optimizer=sgd, lr_schedule="one_cycle", lr_milestones=(), lr_gamma=0.1, warmup_epochs=0, clip_norm=None, ema=None)
RECOVERY = Recovery(recipe=RECIPE, batch_size=128, epochs=1, final_epochs=1, rho=0.75, temperature=2.0, control=False)


def prepare(root, checkpoint, model, settings):
    execution = choose_execution(device="auto", precision="auto", channels_last="auto", compile=False)
    data = shipped("dataset", "imagefolder", {"root": root})
    dataset = build(data, "dataset", cache_dir=Path("outputs/cache"), data_dir=Path("outputs/data"))
    splits = split(dataset, 0)
    channels, *size = splits.train.shape
    constants = splits.normalization
    origin = Origin(model, settings, "imagefolder", data, channels, tuple(size), splits.class_names, constants.mean, constants.std)
    network = build(shipped("model", model, settings), "model", in_channels=channels, num_classes=len(splits.class_names))
    load_into(network, load_weights(Path(checkpoint))[0], checkpoint)
    return Setup(execution, dataset, splits, origin, 0).suited_to(network, checkpoint), network.eval()


def draw(graph, goal, plans):
    """Plans whose groups lose very different shares: log-normal weights on the channels."""
    room = Room(graph, [np.arange(units, 0, -1) for units in graph.num_units])
    shares = graph.num_units * graph.channels_per_unit
    for index in range(plans):
        spread = np.random.default_rng(index).choice([0.2, 0.4, 0.6])
        weights = np.exp(spread * np.random.default_rng([index, 1]).standard_normal(len(shares)))
        yield allocate(turns_by_share(shares * weights, np.zeros(len(shares)), room), room, goal)


def main():
    root, checkpoint = sys.argv[1:3]
    sparsity, plans = float((sys.argv[3:4] or ["0.5"])[0]), int((sys.argv[4:5] or ["16"])[0])
    model = (sys.argv[5:6] or ["resnet20"])[0]
    setup, network = prepare(root, checkpoint, model, dict(item.split("=") for item in sys.argv[6:]))
    images = setup.splits.search
    parts = {count: sample(images, count, numpy_generator(0, "search samples")) for count in (256, 1024, len(images))}
    evaluators = {count: Evaluator(part, setup.splits.normalization, setup.execution) for count, part in parts.items()}
    whole = evaluators[len(images)]
    graph = trace(network, setup.example())
    goal = Goal(graph.num_channels - round(sparsity * graph.num_channels), float("inf"), float("inf"), True)
    criterion = build(load_yaml(conf_dir() / "criterion" / "taylor.yaml"), "criterion")
    calibration = sample(setup.splits.train, 100, numpy_generator(0, "calibration")).load()
    scores = criterion.scores(network, graph, setup.splits.normalization(calibration.pixels), calibration.labels)
    refreshers = {f"batch norm on {n} images": Recalibration(setup, n, 0) for n in (128, 512, 2048)}
    briefs = {f"{n} batches of recovery": BriefRecovery(setup, RECOVERY, network, n, 0) for n in (2, 8, 32)}
    lines = []
    splits = replace(setup.splits, train=sample(setup.splits.train, 12_800, numpy_generator(0, "recovery")).load())
    for counts in draw(graph, goal, plans):
        keep = {g.name: torch.argsort(scores[g.name])[count:].numpy() for g, count in zip(graph.groups, counts, strict=True)}
        small = prune(network, graph, keep)
        start = time.perf_counter()
        line = {"MACs": graph.cost.macs(counts)} | {f"as it is, {n} images": e.accuracy(small).top1 for n, e in evaluators.items()}
        for name, refresh in refreshers.items():
            trial = copy.deepcopy(small)
            refresh(trial)
            line |= {f"{name}, {n} images": e.accuracy(trial).top1 for n, e in evaluators.items()}
        for name, brief in briefs.items():
            line[name] = whole.accuracy(brief(small)).top1
        for phase in ("after recovery", "after recovery, other batches"):
            trial = copy.deepcopy(small)
            recover(trial, network, splits, epochs=1, recovery=RECOVERY, execution=setup.execution, seed=0, phase=phase)
            line[phase] = whole.accuracy(trial).top1
        lines.append(line)
        print(f"plan {len(lines)}/{plans}: {100 * line['after recovery']:.2f} %, {time.perf_counter() - start:.0f} s", flush=True)
    frame = pd.DataFrame(lines)
    ranks = frame.corr(method="spearman")["after recovery"]
    table = pd.DataFrame(
        {
            "measured": frame.columns,
            "mean %": [f"{100 * frame[name].mean():.2f}" if name != "MACs" else "" for name in frame],
            "std": [f"{100 * frame[name].std():.2f}" if name != "MACs" else "" for name in frame],
            "rank correlation": [f"{ranks[name]:+.2f}" for name in frame],
        }
    )
    print(f"\n{model}, {sparsity:.0%} of the channels, {plans} plans; accuracy on the search split, {len(images)} images")
    print(to_markdown(table))


if __name__ == "__main__":
    main()
