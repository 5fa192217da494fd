"""Where the time of a candidate goes, and how our search compares with a plain rendition of the published loop.

usage: python scripts/benchmarks/search.py [MODEL] [--images 1024] [--split 5000] [--candidates 12] [--plain 3] [--only a,b,c,d,e]

a: our evaluator against the bare forward passes of the same small networks on the same resident batches.
b: ours against a plain loop. For every candidate it scores anew, copies the network deeply, removes one filter at a time, and evaluates in
   float32 and batches of 128 through a DataLoader over PIL images, on the whole search split (--split images); ours scores once a step,
   slices, merges batch norms, and evaluates in the device's fast precision on so many resident images (--images). Both measure the same
   candidates, in turn, and must agree on every network's parameter count.
c: how many of the MCQ agent's candidates the allocation cache answers: 100 a step on the channel graphs of ResNet-20 and ResNet-56, with a
   made-up accuracy and no forward pass.
d: candidates run sliced, padded and masked, as search.execution=auto measures them.
e: where the time of a search by episodes goes (DDPG and AMC, 30 episodes to half of the MACs, no fine-tuning): evaluating, learning, rest.

Images, labels and weights are random: speed does not ask. Times are the best of their rounds in milliseconds, as others may use the machine
too, and mean something as ratios within one run.
"""

import argparse
import copy
import time
from dataclasses import replace
from functools import partialmethod
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from rlprune.config import build, conf_dir, load_yaml, shipped
from rlprune.data.base import Images, Normalization
from rlprune.graph import Slicer, prune, trace
from rlprune.rl.ddpg import ActorCritic
from rlprune.search.allocate import allocate, turns_by_share
from rlprune.search.execution import measure_executions
from rlprune.search.limits import Goal, Room
from rlprune.search.schedule import Size, Targets, make_schedule
from rlprune.search.task import Environment, Task
from rlprune.seeding import numpy_generator
from rlprune.training.evaluate import Evaluator
from rlprune.training.execution import choose_execution
from rlprune.training.merged import mergeable

NORMALIZATION = Normalization((0.5,) * 3, (0.25,) * 3)
PLAIN_BATCH = 128


class Stopwatch:
    """Milliseconds by name, the best of all rounds."""

    def __init__(self):
        self.best = {}

    def __call__(self, name, function, *arguments):
        start = time.perf_counter()
        value = function(*arguments)
        self.best[name] = min(self.best.get(name, float("inf")), 1000 * (time.perf_counter() - start))
        return value

    def __getitem__(self, name):
        return self.best[name]


class Bench:
    """A network, its graph, random images, and candidates that a first step to a sixteenth of the channels leads to."""

    def __init__(self, model, count, split, candidates):
        torch.manual_seed(0)
        self.model = model
        self.network = build(shipped("model", model, {}), "model", in_channels=3, num_classes=10).eval()
        pixels, labels = torch.randint(0, 255, (split, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (split,))
        self.whole = Images(pixels, labels)
        self.execution = choose_execution(device="cpu", precision="auto", channels_last="auto", compile=False)
        self.images = NORMALIZATION(pixels[:count]).contiguous(memory_format=torch.channels_last)
        pairs = mergeable(self.network, self.images[:2])
        self.evaluator = Evaluator(self.whole, NORMALIZATION, self.execution, pairs=pairs).first(count)
        self.graph = trace(self.network, self.images[:2])
        self.criterion = build(load_yaml(conf_dir() / "criterion" / "taylor.yaml"), "criterion")
        self.order = {name: torch.argsort(values).numpy() for name, values in self.scores().items()}
        generator, graph = np.random.default_rng(0), self.graph
        shares = graph.num_units * graph.channels_per_unit / graph.num_channels
        noisy = [np.maximum(0, shares + 0.04 * generator.standard_normal(len(shares))) for _ in range(candidates)]
        room = Room(graph, [np.arange(units, 0, -1) for units in graph.num_units])
        goal = Goal(graph.num_channels - graph.num_channels // 16, float("inf"), float("inf"), True)
        self.plans = [allocate(turns_by_share(row, np.zeros(len(row)), room), room, goal) for row in noisy]

    def scores(self):
        """Of every unit, on 100 images, as the published loop."""
        return self.criterion.scores(self.network, self.graph, self.images[:100], self.whole.labels[:100])

    def keep(self, counts):
        """The units that stay."""
        return {group.name: self.order[group.name][gone:] for group, gone in zip(self.graph.groups, counts, strict=True)}


# -- a: ours and bare forward passes ------------------------------------------------------------------------------------------------------


def time_ours(bench, clock):
    slicer = Slicer(bench.network, bench.graph)
    for _ in range(3):
        clock("score", bench.scores)
    for counts in bench.plans:
        small = prune(bench.network, bench.graph, bench.keep(counts)).to(memory_format=torch.channels_last)
        clock("bare forward", bare_forward, bench, small)
        candidate = clock("slice", slicer, bench.keep(counts))
        clock("evaluate", bench.evaluator.accuracy, candidate)


def bare_forward(bench, small):
    with torch.inference_mode(), bench.execution.autocast():
        for batch in bench.images.split(bench.evaluator.batch_size):
            small(batch)


def our_milliseconds(clock, per_step):
    return clock["slice"] + clock["evaluate"] + clock["score"] / per_step


def report_ours(clock, per_step):
    ours, bare = our_milliseconds(clock, per_step), clock["bare forward"]
    print("a: ours")
    print(f"   slice {clock['slice']:.1f}, evaluate {clock['evaluate']:.1f}, scores {clock['score']:.1f} shared by {per_step}: {ours:.1f}")
    print(f"   {1000 / ours:.2f} candidates/s; bare forward passes {bare:.1f}, {1000 / bare:.2f}/s: ours over bare {bare / ours:.3f}")


# -- b: the plain loop --------------------------------------------------------------------------------------------------------------------


class Pictures(Dataset):
    """PIL images and labels, as torchvision's CIFAR-10 gives them."""

    def __init__(self, images):
        self.pixels, self.labels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy(), images.labels.tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(NORMALIZATION.mean, NORMALIZATION.std)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def plain_accuracy(network, loader):
    correct = 0
    with torch.no_grad():
        for images, labels in loader:
            correct += int((network(images).argmax(1) == labels).sum())
    return correct / len(loader.dataset)


def one_filter_at_a_time(network, graph, order, counts):
    """A deep copy from which every unit is cut on its own, out of the tensors of its group alone."""
    small = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
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


def time_plain(bench, clock, candidates, workers):
    pictures = Pictures(bench.whole)
    few = Subset(pictures, range(len(bench.evaluator)))
    slicer = Slicer(bench.network, bench.graph)
    for counts in bench.plans[:candidates]:
        clock("plain score", bench.scores)
        small = clock("plain copy and remove", one_filter_at_a_time, bench.network, bench.graph, bench.order, counts)
        ours = slicer(bench.keep(counts))
        assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in ours.parameters()) == bench.graph.cost.params(counts)
        for count in workers:
            clock(f"plain evaluate {count}", plain_accuracy, small, DataLoader(pictures, PLAIN_BATCH, num_workers=count))
            clock(f"plain evaluate few {count}", plain_accuracy, small, DataLoader(few, PLAIN_BATCH, num_workers=count))
        clock("b: slice", slicer, bench.keep(counts))  # again, in turn with the plain loop
        clock("b: evaluate", bench.evaluator.accuracy, ours)
        clock("b: bare forward", bare_forward, bench, ours)


def report_plain(bench, clock, per_step, workers):
    ours = clock["b: slice"] + clock["b: evaluate"] + clock["plain score"] / per_step
    work, split, used = clock["plain score"] + clock["plain copy and remove"], len(bench.whole), len(bench.evaluator)
    print("b: the plain loop")
    print(f"   score {clock['plain score']:.1f}, copy and remove {clock['plain copy and remove']:.1f}; ours {ours:.1f} in turn with it")
    for count in workers:
        whole, few = clock[f"plain evaluate {count}"], clock[f"plain evaluate few {count}"]
        print(f"   {count} workers: evaluate {whole:.0f} on {split} images, {few:.0f} on {used}")
        print(f"      the plain loop on {split}, ours on {used}: {(work + whole) / ours:.1f} times")
        print(f"      both on {used}: {(work + few) / ours:.1f} times")
    print(f"   both on {used} resident images in {bench.execution.dtype}: {(work + clock['b: bare forward']) / ours:.2f} times")
    rate, drawn = hit_rate(bench.model, 75, 0.75)
    whole = clock[f"plain evaluate {workers[0]}"]
    ratio = (work + whole) / ours / (1 - rate)
    print(f"   a whole search of 75 steps, {drawn} candidates drawn, of which the cache knows {rate:.3f}: {ratio:.1f} times")


# -- c: the allocation cache --------------------------------------------------------------------------------------------------------------


class StubTask(Task):
    """A step whose candidates are not run: accuracy falls with the share of units that each group has lost, squared."""

    def _accuracy(self, slicer, keep):
        sensitivity = np.random.default_rng(0).exponential(4, len(self.graph.groups))
        dense = [counts[0] for counts in self.environment.kept_counts.values()]
        lost = 1 - np.array([len(keep[group.name]) for group in self.graph.groups]) / dense
        return round(1024 * float(np.exp(-(sensitivity * lost**2).mean()))) / 1024


def schedule_of(graph, steps, sparsity):
    none = np.zeros(len(graph.groups))
    dense = Size(graph.num_channels, graph.cost.macs(none), graph.cost.params(none))
    targets, smallest = Targets(sparsity, None, None, None), replace(dense, channels=int(graph.channels_per_unit.sum()))
    return make_schedule(targets=targets, steps=steps, period=1, save_at=[], dense=dense, smallest=smallest), dense


def hit_rate(model, steps, sparsity):
    """Share of candidates that were measured before, within their step, and how many were drawn."""
    network = build(shipped("model", model, {}), "model", in_channels=3, num_classes=10).eval()
    graph = trace(network, torch.zeros(2, 3, 32, 32), prove=False)
    plugins = (("agent", "mcq"), ("criterion", "l1"), ("reward", "accuracy"))
    agent, criterion, reward = (build(load_yaml(conf_dir() / group / f"{name}.yaml"), group) for group, name in plugins)
    schedule, dense = schedule_of(graph, steps, sparsity)
    kept_counts = {group.name: np.arange(group.num_units, 0, -1) for group in graph.groups}
    environment = Environment(None, reward, criterion.scores, dense, schedule.goals, kept_counts)
    carry, ledger = None, environment.ledger
    for step in range(steps):
        task = StubTask(environment, network, graph, step, carry)
        chosen = agent.decide(task, numpy_generator(0, f"agent/{step + 1}"))
        network, graph, carry = prune(network, graph, chosen.keep), graph.after(chosen.keep), chosen.carry
    return ledger.repeated / (ledger.repeated + ledger.distinct), ledger.repeated + ledger.distinct


def report_cache():
    print("c: candidates that the allocation cache answers, repeated / (repeated + distinct)")
    for model in ("resnet20", "resnet56"):
        for steps, sparsity in ((10, 0.5), (75, 0.75)):
            rate, drawn = hit_rate(model, steps, sparsity)
            print(
                f"   {model}, {steps} steps to {100 * sparsity:.0f} %: {rate:.3f} of {drawn}, {1 / (1 - rate):.2f} drawn for each measured"
            )


# -- d: sliced, padded, masked ------------------------------------------------------------------------------------------------------------


def report_executions(bench):
    print("d: milliseconds a candidate, built and evaluated, best of three")
    for steps in (1, 10):
        schedule, _ = schedule_of(bench.graph, steps, 0.5)
        seconds = measure_executions(bench.network, bench.graph, bench.evaluator, schedule)
        times = ", ".join(f"{name} {1000 * value:.1f}" for name, value in seconds.items())
        print(f"   50 % of the channels, {'in one step' if steps == 1 else f'step {steps // 2 + 1} of {steps}'}: {times}")


# -- e: episodes ---------------------------------------------------------------------------------------------------------------------------


class Summed:
    """A function with the seconds of all its calls."""

    def __init__(self, function):
        self.function, self.seconds, self.calls = function, 0.0, 0

    def __call__(self, *arguments, **keywords):
        start = time.perf_counter()
        try:
            return self.function(*arguments, **keywords)
        finally:
            self.seconds, self.calls = self.seconds + time.perf_counter() - start, self.calls + 1


def report_episodes(bench):
    print("e: seconds of a search by episodes")
    graph, reward = bench.graph, build(load_yaml(conf_dir() / "reward" / "accuracy.yaml"), "reward")
    none = np.zeros(len(graph.groups))
    dense = Size(graph.num_channels, graph.cost.macs(none), graph.cost.params(none))
    goal = Goal(float("inf"), dense.macs // 2, float("inf"), True)
    kept_counts = {group.name: np.arange(group.num_units, 0, -1) for group in graph.groups}
    for name, settings in (("ddpg", {"episodes": 30}), ("amc", {"episodes": 30, "warmup": 10})):
        agent = build(load_yaml(conf_dir() / "agent" / f"{name}.yaml") | settings, "agent")
        measure, update = Summed(lambda network: bench.evaluator.accuracy(network).top1), Summed(ActorCritic.update)
        environment = Environment(measure, reward, lambda network, graph: bench.scores(), dense, (goal,), kept_counts)
        task, start = Task(environment, bench.network, graph, 0), time.perf_counter()
        with mock.patch.object(ActorCritic, "update", partialmethod(update)):
            agent.decide(task, numpy_generator(0, "agent/1"))
        whole, ledger = time.perf_counter() - start, environment.ledger
        rest = whole - measure.seconds - update.seconds
        print(f"   {name}: {whole:.1f} in all, {ledger.distinct} candidates and {ledger.repeated} repeated, {update.calls} updates")
        print(f"      evaluating {measure.seconds / whole:.3f}, learning {update.seconds / whole:.3f}, rest {rest / whole:.3f} of it")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="resnet20")
    parser.add_argument("--images", type=int, default=1024, help="that ours measures a candidate on")
    parser.add_argument("--split", type=int, default=5000, help="images of the search split, on which the plain loop does")
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--plain", type=int, default=3, help="candidates of the plain loop")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2], help="of the plain loop's DataLoader")
    parser.add_argument("--only", default="a,b,c,d,e")
    options = parser.parse_args()
    bench = Bench(options.model, options.images, options.split, max(options.candidates, options.plain))
    clock, parts = Stopwatch(), options.only.split(",")
    per_step = build(load_yaml(conf_dir() / "agent" / "mcq.yaml"), "agent").candidates_per_step
    print(f"{options.model}, {options.images} images, {bench.execution.dtype or torch.float32}, {torch.get_num_threads()} threads")
    if "a" in parts:
        time_ours(bench, clock)
        report_ours(clock, per_step)
    if "b" in parts:
        time_plain(bench, clock, options.plain, options.workers)
        report_plain(bench, clock, per_step, options.workers)
    if "c" in parts:
        report_cache()
    if "d" in parts:
        report_executions(bench)
    if "e" in parts:
        report_episodes(bench)


if __name__ == "__main__":
    main()
