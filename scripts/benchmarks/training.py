"""What a training step costs beyond its forward and backward pass, and what pruning does to it.

usage: python scripts/benchmarks/training.py [--models resnet20 resnet56] [--root FOLDER/train] [--batches 30] [--rounds 3]

For each model, images/s in one run, all in turn, the best round of each:
  ours     rlprune's loop: crops, flips, optimizer, schedule and all
  bare     forward and backward pass alone, on one batch that stays in memory, in the same precision and memory format
  usual    torchvision's ImageFolder, DataLoader with 2 workers, float32, plain memory format, the same augmentation and optimizer
  usual =  the same in our precision and memory format
Then a network pruned at random to 28 % of its MACs beside its dense parent, bare, in every way of training that rlprune chooses from: with
torch's batch norm and with rlprune's. The images are made up unless a folder of classes is given.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from rlprune.config import build, shipped
from rlprune.data.base import Augmentation, Normalization
from rlprune.data.batches import Batches
from rlprune.data.files import Geometry, ImageFiles
from rlprune.graph import prune, trace
from rlprune.kernels import careful_kernels
from rlprune.training.execution import choose_execution
from rlprune.training.fit import Recipe, cross_entropy, fit, parameter_groups
from rlprune.training.measure import choose_way, measure_ways

BATCH = 128
MEAN = STD = (0.5, 0.5, 0.5)
SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


def make_images(folder, count):
    pixels = np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    for index, small in enumerate(pixels):
        path = folder / f"class{index % 10}" / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(small).resize((32, 32)).save(path)


def network(name):
    torch.manual_seed(0)
    return build(shipped("model", name, {}), "model", in_channels=3, num_classes=10)


def ours(name, images, execution, device):
    batches = Batches(
        images,
        batch_size=BATCH,
        normalization=Normalization(MEAN, STD),
        augmentation=Augmentation(crop=4, flip=True),
        num_classes=10,
        seed=0,
        device=device,
    )
    recipe = Recipe(SGD, "cosine", (), 0.1, 0, None, None)
    model = network(name).to(device)

    def run():
        start = time.perf_counter()
        fit(model, batches, epochs=1, loss=cross_entropy(0.0), recipe=recipe, execution=execution, description="")
        return len(images) / (time.perf_counter() - start)

    return run


def bare(name, count, execution, device):
    way = execution.training
    model = network(name).to(device).to(memory_format=way.memory_format).train()
    images = torch.randn(BATCH, 3, 32, 32, device=device).contiguous(memory_format=way.memory_format)
    labels = torch.randint(0, 10, (BATCH,), device=device)

    def run():
        start = time.perf_counter()
        for _ in range(count):
            model.zero_grad()
            with execution.autocast(training=True):
                scores = model(images)
            F.cross_entropy(scores.float(), labels).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return count * BATCH / (time.perf_counter() - start)

    return run


def usual(name, root, count, execution, device, *, equal):
    steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    data = datasets.ImageFolder(root, transforms.Compose([transforms.Resize((32, 32)), *steps]))
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True)
    memory_format = execution.training.memory_format if equal else torch.contiguous_format
    model = network(name).to(device).to(memory_format=memory_format).train()
    optimizer = SGD(parameter_groups(model))

    def run():
        batches = iter(loader)
        start, done = None, 0
        for images, labels in batches:
            images, labels = images.to(device).contiguous(memory_format=memory_format), labels.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=equal and execution.training.dtype is not None):
                scores = model(images)
            loss = F.cross_entropy(scores.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if start is None:  # the workers' start is not counted
                start = time.perf_counter()
            else:
                done += len(images)
            if done == BATCH * (count - 1):
                break
        if device.type == "cuda":
            torch.cuda.synchronize()
        return done / (time.perf_counter() - start)

    return run


def compare(names, root, count, rounds, execution, device):
    print(f"\n| model | way | ours | bare | usual | usual = | ours/bare | ours/usual | ours/usual = |\n|{'---|' * 9}")
    files = datasets.ImageFolder(root).samples[: count * BATCH]
    images = ImageFiles([Path(path) for path, _ in files], torch.tensor([label for _, label in files]), Geometry(32, None), 0).load()
    for name in names:
        with tempfile.TemporaryDirectory() as cache:
            example = torch.randn(2, 3, 32, 32, device=device)
            kept = {"cache": Path(cache), "chosen": Path(cache) / "way.json"}
            chosen = choose_way(execution, network(name).to(device), example, batch_size=BATCH, images=10**9, **kept)
        runs = {
            "ours": ours(name, images, chosen, device),
            "bare": bare(name, count, chosen, device),
            "usual": usual(name, root, count, chosen, device, equal=False),
            "usual =": usual(name, root, count, chosen, device, equal=True),
        }
        best = dict.fromkeys(runs, 0.0)
        for _ in range(rounds):
            best = {key: max(best[key], run()) for key, run in runs.items()}
        ratios = [best["ours"] / best[key] for key in ("bare", "usual", "usual =")]
        cells = [name, str(chosen.training), *(f"{rate:.0f}" for rate in best.values()), *(f"{ratio:.2f}" for ratio in ratios)]
        print(f"| {' | '.join(cells)} |", flush=True)


def random_plan(graph, share):
    """Units to keep, as many at random that this share of the MACs is left."""
    shares = np.random.default_rng(0).uniform(0.3, 0.8, len(graph.groups))

    def plan(scale):
        rng = np.random.default_rng(1)
        counts = [max(1, min(g.num_units, round(g.num_units * part * scale))) for g, part in zip(graph.groups, shares, strict=True)]
        return {g.name: rng.permutation(g.num_units)[:count] for g, count in zip(graph.groups, counts, strict=True)}

    low, high = 0.0, 3.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if graph.macs(plan(middle)) > share * graph.macs({}) else (middle, high)
    return plan(low)


def compare_pruned(names, execution, device):
    print("\nimages/s of forward and backward pass, and the ratio to the dense network's")
    print("| model | MACs kept | way | dense | pruned, torch's batch norm | pruned, rlprune's |\n|---|---|---|---|---|---|")
    for name in names:
        dense = network(name).to(device)
        example = torch.randn(2, 3, 32, 32, device=device)
        graph = trace(dense, example)
        plan = random_plan(graph, 0.28)
        small = prune(dense, graph, plan)
        folded, plain = {}, {}
        for _ in range(2):
            for key, net in (("dense", dense), ("pruned", small)):
                folded[key] = faster(folded.get(key, {}), measure_ways(execution, net, example, BATCH))
                with without_folding():
                    plain[key] = faster(plain.get(key, {}), measure_ways(execution, net, example, BATCH))
        for way in map(str, execution.ways):
            parent = max(folded["dense"][way], plain["dense"][way])
            cells = [f"{parent:.0f}", *(f"{rates['pruned'][way]:.0f} ({rates['pruned'][way] / parent:.2f})" for rates in (plain, folded))]
            print(f"| {name} | {graph.macs(plan) / graph.macs({}):.2f} | {way} | {' | '.join(cells)} |", flush=True)


def faster(first, second):
    return {way: max(first.get(way, 0.0), rate) for way, rate in second.items()}


class without_folding:  # noqa: N801 (a context manager)
    """torch's batch norm throughout."""

    def __enter__(self):
        import rlprune.training.measure as module

        self.module = module
        module.careful_kernels = lambda network, device: __import__("contextlib").nullcontext()

    def __exit__(self, *error):
        self.module.careful_kernels = careful_kernels


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--root", help="folder with a folder of images for every class")
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    execution = choose_execution(device=options.device, precision="auto", channels_last="auto", compile=False)
    print(f"{execution.device}, {torch.get_num_threads()} threads, batches of {BATCH} images of 32×32 pixels")
    with tempfile.TemporaryDirectory() as folder:
        if options.root is None:
            make_images(Path(folder), options.batches * BATCH)
        compare(options.models, options.root or folder, options.batches, options.rounds, execution, execution.device)
    compare_pruned(options.models, execution, execution.device)


if __name__ == "__main__":
    main()
