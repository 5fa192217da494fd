"""What processes that share every batch give against threads: images a second of training, in turn.

usage: python scripts/benchmarks/distributed.py [--models resnet20 resnet56] [--processes 2] [--batches 10] [--rounds 3]

Columns: one process with one thread, one process with as many threads as there are processes, and the processes with one thread each; the
best round of each, and ratios to the first.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import torch

from rlprune.config import build, shipped
from rlprune.data.base import Augmentation, Images, Normalization
from rlprune.data.batches import Batches
from rlprune.distributed import LostError, joined, leading
from rlprune.launch import launched
from rlprune.training.execution import choose_execution
from rlprune.training.fit import Recipe, cross_entropy, fit
from rlprune.training.team import Team

BATCH = 128
SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


def network(name):
    torch.manual_seed(0)
    return build(shipped("model", name, {}), "model", in_channels=3, num_classes=10)


def rate(name, count, team):
    """Images a second of the second of two epochs."""
    execution = replace(choose_execution(device="auto", precision="fp32", channels_last="true", compile=False), team=team)
    if team is not None:
        team.introduce(partial(network, name), execution.device)
    normalization, augmentation = Normalization((0.5,) * 3, (0.5,) * 3), Augmentation(crop=4, flip=True)
    images = Images(torch.randint(0, 255, (count * BATCH, 3, 32, 32)).byte(), torch.randint(0, 10, (count * BATCH,)))
    batches = Batches(
        images, batch_size=BATCH, normalization=normalization, augmentation=augmentation, num_classes=10, seed=0, device=execution.device
    )
    moments = []
    fit(
        network(name).to(execution.device), batches,
        epochs=2, loss=cross_entropy(0.0), recipe=Recipe(SGD, "cosine", (), 0.1, 0, None, None), execution=execution, description="",
        progress_bar=False, on_epoch=lambda epoch, values: moments.append(time.perf_counter()),
    )  # fmt: skip
    return count * BATCH / (moments[1] - moments[0])


def work(name, count):
    here = launched()
    if here is None:
        print(rate(name, count, None))
    elif here.rank == 0:
        with leading(here) as group:
            print(rate(name, count, Team(group)))
        group.end()
    else:
        team = Team(joined(here))
        try:
            while True:
                team.answer()
        except LostError:
            return


def started(options, name, processes, threads):
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    line = [sys.executable, *start, __file__, "--work", name, "--batches", str(options.batches)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return float(subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        return work(options.work, options.batches)
    n = options.processes
    ways = {"1 process, 1 thread": (1, 1), f"1 process, {n} threads": (1, n), f"{n} processes, 1 thread each": (n, 1)}
    print(
        f"images/s, batches of {BATCH} images of 32×32 pixels, float32; ratio to one thread\n| model | {' | '.join(ways)} |\n|{'---|' * 4}"
    )
    for name in options.models:
        best = dict.fromkeys(ways, 0.0)
        for _ in range(options.rounds):
            best = {way: max(best[way], started(options, name, *ways[way])) for way in ways}
        first = next(iter(best.values()))
        print(f"| {name} | {' | '.join(f'{value:.0f} ({value / first:.2f})' for value in best.values())} |", flush=True)
    return None


if __name__ == "__main__":
    main()
