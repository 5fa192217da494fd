"""How long an MCQ search takes with 1 to 1,024 workers, predicted from what was measured on this machine; and where that ends, and why.

A step packs its network, the workers take it up, and its stages follow each other: a stage hands out its candidates, each one a job, or
several with parts of the images where workers would be idle; the next stage waits for the last answer. The search itself does
one thing at a time: it hands out jobs and takes in answers. Candidates differ in size, so their times do (±10 %, seeded).

usage: OMP_NUM_THREADS=1 python scripts/benchmarks/workers.py
       python scripts/simulate_search.py [outputs/workers.json] [--steps 75] [--out outputs/workers.png]

Measured: seconds of a candidate of one worker, of its being cut, of the search for a job, of packing and unpacking a byte. A network's
candidates take time as its MACs. Assumed: --bandwidth between nodes of --per-node workers each, every node passing on what it has (a tree),
and that workers of --speed are so many times as fast as the measured core, for the dashed lines.
"""

import argparse
import heapq
import json
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

from rlprune.evaluators.scheduler import parts_of
from rlprune.results.tables import to_markdown

NETWORKS = {  # parameters, MACs of an image
    "ResNet-56, 32×32": (0.86e6, 125.5e6),
    "ResNet-50, 224×224": (25.6e6, 4.09e9),
    "VGG-19, 224×224": (143.7e6, 19.6e9),
    "1 B parameters": (1e9, 160e9),
}
SPREAD = 0.1


@dataclass(frozen=True)
class Costs:
    """Of one candidate and one job, in seconds; of a byte of a step's network likewise."""

    evaluate: float  # all its images, by one worker
    build: float  # cutting it, which every part of it needs
    search: float  # handing out a job and taking in its answer
    pack: float  # a byte
    unpack: float


@dataclass(frozen=True)
class Search:
    """What is searched, and on what."""

    steps: int
    stages: int
    candidates: int  # a stage
    batches: int  # of images: a candidate has no more parts
    size: float  # bytes of a step's network
    bandwidth: float  # bytes a second between nodes
    per_node: int
    cores: float = math.inf  # that all workers share


def seconds_of(search: Search, costs: Costs, workers: int) -> dict[str, float]:
    """Of a whole search, and its parts: `network` until the workers have it, `stages`."""
    nodes = math.ceil(workers / search.per_node)
    network = search.size * (costs.pack + costs.unpack) + math.ceil(math.log2(nodes)) * search.size / search.bandwidth
    slower = max(1.0, workers / search.cores)
    stages = sum(_stage(search, costs, workers, slower, seed) for seed in range(search.stages))
    return {"network": search.steps * network, "stages": search.steps * stages, "all": search.steps * (network + stages)}


def _stage(search: Search, costs: Costs, workers: int, slower: float, seed: int) -> float:
    """Seconds of one stage, event by event."""
    factors = 1 + SPREAD * np.random.default_rng(seed).standard_normal(search.candidates).clip(-2, 2)
    cut = zip(factors, parts_of(search.candidates, workers, search.batches), strict=True)
    jobs = [slower * (costs.build + factor * (costs.evaluate - costs.build) / parts) for factor, parts in cut for _ in range(parts)]
    free, clock, last = [0.0] * min(workers, len(jobs)), 0.0, 0.0
    for job in jobs:
        clock = max(clock, heapq.heappop(free)) + costs.search
        heapq.heappush(free, clock + job)
        last = max(last, clock + job)
    return last


def predicted(measured: dict, options: argparse.Namespace, parameters: float, macs: float, speed: float = 1.0) -> tuple[Search, Costs]:
    """What a network's search would be, and cost."""
    alone = next(row for row in measured["rows"] if row["workers"] == 1)
    scale = macs / measured["macs"] / speed
    costs = Costs(
        evaluate=alone["answer_seconds"] * scale,
        build=measured["build_seconds"] * parameters / measured["parameters"] / min(speed, 10.0),
        search=alone["search_seconds"],
        pack=measured["packing_seconds"] / measured["stage_bytes"],
        unpack=measured["unpacking_seconds"] / measured["stage_bytes"],
    )
    return Search(
        options.steps, options.stages, options.candidates, measured["batches"], 4.1 * parameters, options.bandwidth, options.per_node
    ), costs


def draw(path: Path, measured: dict, options: argparse.Namespace, times: pd.DataFrame) -> None:
    """Seconds of a step here, predicted and measured; hours of a search by workers and networks."""
    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    here = times[times["network"] == "measured"]
    left.plot(here["workers"], here["seconds"], "-", color="tab:blue", label=f"predicted, {measured['cores']} cores")
    points = [row for row in measured["rows"] if row["workers"]]
    for local, marker in ((True, "o"), (False, "s")):
        some = [row for row in points if row["by"].startswith("Ray") != local]
        color, label = ("tab:orange", "measured, processes") if local else ("tab:red", "measured, Ray")
        left.plot([row["workers"] for row in some], [row["candidate_seconds"] for row in some], marker, color=color, label=label)
    left.set(xlabel="workers", ylabel="s a candidate", title=f"this machine, {measured['network']}", ylim=(0, None))
    left.legend()
    for color, name in zip(("tab:blue", "tab:green", "tab:purple", "tab:red"), NETWORKS, strict=True):
        for speed, style in ((1.0, "-"), (options.speed, "--")):
            line = times[(times["network"] == name) & (times["speed"] == speed)]
            right.loglog(line["workers"], line["seconds"] / 3600, style, color=color, label=name if speed == 1 else None)
    right.axvline(options.candidates, color="0.7", lw=1)
    right.axvline(options.candidates * measured["batches"], color="0.7", lw=1)
    right.set(xlabel="workers", ylabel="hours of search", title=f"{options.steps} steps; dashed: workers {options.speed:g} times as fast")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("costs", nargs="?", type=Path, default=Path("outputs/workers.json"))
    parser.add_argument("--steps", type=int, default=75)
    parser.add_argument("--stages", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=10, help="a stage")
    parser.add_argument("--bandwidth", type=float, default=1.25e9, help="bytes a second between nodes")
    parser.add_argument("--per-node", type=int, default=64, help="workers")
    parser.add_argument("--speed", type=float, default=300.0, help="of the dashed lines")
    parser.add_argument("--out", type=Path, default=Path("outputs/workers.png"))
    options = parser.parse_args()
    measured = json.loads(options.costs.read_text(encoding="utf-8"))
    rows = []
    one_step = Search(1, 1, measured["candidates"], measured["batches"], 0.0, options.bandwidth, options.per_node, measured["cores"])
    _, costs = predicted(measured, options, measured["parameters"], measured["macs"])
    for workers in range(1, 9):
        seconds = seconds_of(one_step, costs, workers)["all"] / measured["candidates"]
        rows.append({"network": "measured", "speed": 1.0, "workers": workers, "seconds": seconds})
    for name, (parameters, macs) in NETWORKS.items():
        for speed in (1.0, options.speed):
            search, costs = predicted(measured, options, parameters, macs, speed)
            for workers in (2**power for power in range(11)):
                found = seconds_of(search, costs, workers)
                share = found["network"] / found["all"]
                rows.append({"network": name, "speed": speed, "workers": workers, "seconds": found["all"], "network share": share})
    times = pd.DataFrame(rows)
    draw(options.out, measured, options, times)
    for row in measured["rows"]:
        if row["workers"]:
            guess = float(times[(times["network"] == "measured") & (times["workers"] == row["workers"])]["seconds"].iloc[0])
            print(f"{row['by']}: predicted {1000 * guess:.1f} ms a candidate, measured {1000 * row['candidate_seconds']:.1f}")
    shown = times[times["network"] != "measured"].copy()
    one = shown[shown["workers"] == 1].set_index(["network", "speed"])["seconds"]
    shown["times as fast"] = [one[row["network"], row["speed"]] / row["seconds"] for _, row in shown.iterrows()]
    chosen = shown[shown["workers"].isin([1, 8, 32, 128, 1024])].copy()
    chosen["hours"] = (chosen["seconds"] / 3600).map("{:.3g}".format)
    chosen["times as fast"] = chosen["times as fast"].map("{:.1f}".format)
    chosen["share of the network's way"] = (100 * chosen["network share"]).map("{:.0f} %".format)
    print(to_markdown(chosen[["network", "speed", "workers", "hours", "times as fast", "share of the network's way"]]))
    print(f"wrote {options.out}")
