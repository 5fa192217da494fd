"""What workers cost a search: a candidate here, with one process, with several, and with Ray; and what a pruning step's network costs.

The same candidates of one step are measured by each in turn, by workers of one thread; all must agree. The columns: what a candidate takes
of one worker's time, and what of the search's own, which is not spent waiting. Images and weights are random: speed does not ask.

usage: OMP_NUM_THREADS=1 python scripts/benchmarks/workers.py [--network resnet56] [--images 1024] [--candidates 40] [--workers 1 2 4]
       [--ray 2] [--out outputs/workers.json]

The file is what scripts/simulate_search.py predicts from.
"""

import argparse
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rlprune.config import build, shipped
from rlprune.data.base import Images, Normalization
from rlprune.evaluators.base import Kit, dumps, received
from rlprune.evaluators.local import Local
from rlprune.evaluators.ray import Ray
from rlprune.evaluators.scheduler import Scheduler
from rlprune.graph import Slicer, trace
from rlprune.results.tables import to_markdown
from rlprune.search.candidates import Cutter, Request, Stage, as_it_is
from rlprune.training.evaluate import Evaluator
from rlprune.training.execution import choose_execution
from rlprune.training.merged import mergeable

SIDE, CLASSES = 32, 10


def make(options):
    """A stage, an evaluator, and candidates that lose a quarter of their channels."""
    torch.manual_seed(0)
    network = build(shipped("model", options.network, {}), "model", in_channels=3, num_classes=CLASSES).eval()
    example = torch.randn(2, 3, SIDE, SIDE)
    graph = trace(network, example)
    execution = choose_execution(device="cpu", precision=options.precision, channels_last="auto", compile=False)
    pixels = torch.randint(0, 256, (options.images, 3, SIDE, SIDE), dtype=torch.uint8)
    images = Images(pixels, torch.randint(0, CLASSES, (options.images,)))
    evaluator = Evaluator(images, Normalization((0.5,) * 3, (0.25,) * 3), execution, pairs=mergeable(network, example))
    generator = np.random.default_rng(0)
    requests = []
    for _ in range(options.candidates):
        gone = [round(group.num_units * generator.uniform(0, 0.5)) for group in graph.groups]
        keep = {
            group.name: np.sort(generator.permutation(group.num_units)[count:]) for group, count in zip(graph.groups, gone, strict=True)
        }
        requests.append(Request(keep))
    return Stage(network, graph), evaluator, requests


def timed(function):
    """What it returns, and the seconds that it takes."""
    start = time.perf_counter()
    value = function()
    return value, time.perf_counter() - start


def measured(name, crew, stage, evaluator, requests, wanted):
    """A line of the table; the team is warm before its candidates are timed."""
    kit = Kit(evaluator, as_it_is, as_it_is, 1, True)
    team, asked = timed(lambda: crew.start(kit))
    assert isinstance(team, Scheduler)
    _, first = timed(lambda: list(team.measure(stage, requests[:1])))
    list(team.measure(stage, requests[: 2 * team.crew.size]))
    again = Stage(stage.network, stage.graph)
    _, step = timed(lambda: list(team.measure(again, requests[:1])))
    _, same = timed(lambda: list(team.measure(again, requests[:1])))
    team.answers, team.busy_seconds, team.waited_seconds = 0, 0.0, 0.0
    found, seconds = timed(lambda: list(team.measure(again, requests)))
    assert found == wanted, f"{name}: not what this process measures"
    busy = team.busy_seconds / team.answers
    row = {
        "by": name, "workers": team.crew.size, "seconds": seconds, "candidate_seconds": seconds / len(requests),
        "answer_seconds": busy, "search_seconds": (seconds - team.waited_seconds) / len(requests),
        "step_seconds": max(0.0, step - same), "start_seconds": asked + first,
    }  # fmt: skip
    team.close()
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet56")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--ray", type=int, nargs="*", default=[2])
    parser.add_argument("--out", type=Path, default=Path("outputs/workers.json"))
    options = parser.parse_args()
    logging.getLogger("rlprune").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    stage, evaluator, requests = make(options)
    cutter = Cutter(stage, measure=lambda network: evaluator.accuracy(network).top1)
    cutter(requests[0])
    wanted, alone = timed(lambda: [cutter(request) for request in requests])
    one = alone / len(requests)
    rows = [{"by": "this process", "workers": 0, "seconds": alone, "candidate_seconds": one, "answer_seconds": one}]
    for count in options.workers:
        crew = Local(workers=count, threads=1, timeout=600.0)
        rows.append(measured(f"{count} process{'es' * (count > 1)}", crew, stage, evaluator, requests, wanted))
    for count in options.ray:
        crew = Ray(address=None, workers=count, threads=1, num_gpus=None, timeout=600.0)
        rows.append(measured(f"Ray, {count}", crew, stage, evaluator, requests, wanted))
    _, building = timed(lambda: [Slicer(stage.network, stage.graph)(request.keep) for request in requests[:5]])
    content, packing = timed(lambda: dumps(stage))
    _, unpacking = timed(lambda: received(content))
    facts = {
        "network": options.network, "parameters": stage.graph.params({}), "macs": stage.graph.macs({}), "images": options.images,
        "candidates": len(requests), "batches": -(-options.images // evaluator.batch_size), "stage_bytes": len(content),
        "build_seconds": building / 5, "cores": len(os.sched_getaffinity(0)), "packing_seconds": packing,
        "unpacking_seconds": unpacking, "rows": rows,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(facts, indent=2) + "\n")
    table = pd.DataFrame(rows)
    shown = pd.DataFrame({
        "by": table["by"],
        "candidates/s": (1 / table["candidate_seconds"]).map("{:.2f}".format),
        "of this process": (one / table["candidate_seconds"]).map("{:.2f}×".format),
        "ms a candidate, of one worker": (1000 * table["answer_seconds"]).map("{:.1f}".format),
        "ms of the search a candidate": (1000 * table["search_seconds"]).map("{:.2f}".format),
        "ms a step's network": (1000 * table["step_seconds"]).map("{:.0f}".format),
        "s to start": table["start_seconds"].map("{:.1f}".format),
    })  # fmt: skip
    print(to_markdown(shown.replace({"nan": ""})))
    print(f"a step's network: {len(content):,} bytes, {1000 * packing:.1f} ms to pack, {1000 * unpacking:.1f} ms to unpack")
