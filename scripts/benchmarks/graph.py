"""Tracing and removing channels, beside Torch-Pruning, in one process: ratios, the best of several runs each.

    pip install -e ".[bench]"
    python scripts/benchmarks/graph.py                      # all CNNs of torchvision
    python scripts/benchmarks/graph.py resnet50 densenet201

Graph: rlprune.trace; torch_pruning's DependencyGraph().build_dependency and its groups. Removal: half of the units of every group, by
rlprune.prune, which leaves the network alone, and by MetaPruner.step with random importance, which does not. Images are 224×224, batch 1.
"""

import argparse
import copy
import resource
import statistics
import subprocess
import sys
import time
import warnings

import numpy as np
import torch
import torchvision
from torch import nn

import rlprune

CNNS = ("alexnet", "convnext", "densenet", "efficientnet", "googlenet", "inception", "mnasnet", "mobilenet", "regnet", "resnet", "resnext",
        "shufflenet", "squeezenet", "vgg", "wide_resnet")  # fmt: skip
HUGE = ("regnet_y_128gf", "convnext_large", "efficientnet_v2_l", "efficientnet_b7")  # gigabytes, and nothing new


def names():
    every = torchvision.models.list_models(module=torchvision.models)
    return [name for name in every if name.startswith(CNNS) and name not in HUGE]


def make(name):
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, weights=None, **settings).eval()
    if hasattr(network, "aux_logits"):  # heads that only run in training
        network.aux1 = network.aux2 = network.AuxLogits = None
        network.aux_logits = False
    return network


def seconds(function, repeats):
    """The best of several runs; the result of the last."""
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def theirs_graph(network, example):
    import torch_pruning as tp

    graph = tp.DependencyGraph().build_dependency(network, example_inputs=example)
    return list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))


def theirs_removal(network, example):
    import torch_pruning as tp

    outputs = [module for module in network.modules() if isinstance(module, nn.Linear) and module.out_features == 1000]
    outputs += [network.classifier[1]] if type(network).__name__ == "SqueezeNet" else []
    pruner = tp.pruner.MetaPruner(network, example, importance=tp.importance.RandomImportance(), pruning_ratio=0.5, ignored_layers=outputs)
    start = time.perf_counter()
    pruner.step()
    return time.perf_counter() - start


def attempt(function, *args):
    try:
        return function(*args), ""
    except Exception as error:
        return None, type(error).__name__


def compare(name, example, repeats):
    network = make(name)
    ours, graph = seconds(lambda: rlprune.trace(network, example), repeats)
    theirs, failed = attempt(lambda: seconds(lambda: theirs_graph(network, example), max(1, repeats - 2))[0])
    keep = {group.name: np.arange(0, group.num_units, 2) for group in graph.groups}
    cut, _ = seconds(lambda: rlprune.prune(network, graph, keep), repeats)
    removal, failed_removal = attempt(theirs_removal, copy.deepcopy(network), example)
    ratios = [None if value is None else value / mine for value, mine in ((theirs, ours), (removal, cut))]
    columns = [f"{ours * 1e3:8.1f}", failed or f"{theirs * 1e3:8.1f}", "" if ratios[0] is None else f"{ratios[0]:6.1f}"]
    columns += [f"{cut * 1e3:8.1f}", failed_removal or f"{removal * 1e3:8.1f}", "" if ratios[1] is None else f"{ratios[1]:6.1f}"]
    print(f"| {name:20} | " + " | ".join(f"{column:>10}" for column in columns) + " |", flush=True)
    return ratios


def chain(layers, width):
    steps = [nn.Conv2d(3, width, 3, padding=1)]
    for _ in range(layers - 1):
        steps += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
    return nn.Sequential(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()


def scaling(repeats):
    example = torch.randn(1, 3, 8, 8)
    print("\nA chain of conv-bn-relu, microseconds a layer:")
    for layers, width in ((10, 16), (100, 16), (1000, 16), (100, 64), (100, 256)):
        network = chain(layers, width)
        best, _ = seconds(lambda network=network: rlprune.trace(network, example), repeats)
        print(f"  {layers:5} layers of {width:4} channels: {best / layers * 1e6:6.0f}")


MEMORY = """
import re, sys
import numpy as np, torch, torchvision, rlprune
def status(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
def extra(function):  # Linux: forget the peak so far
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    return function(), status("VmHWM") - before
warm = torchvision.models.resnet18(); rlprune.prune(warm, rlprune.trace(warm, torch.randn(1, 3, 64, 64)), {})
network = torchvision.models.get_model(sys.argv[1], weights=None).eval()
size = sum(p.numel() * p.element_size() for p in network.parameters())
example = torch.randn(1, 3, 224, 224)
graph, traced = extra(lambda: rlprune.trace(network, example))
keep = {g.name: np.arange(0, g.num_units, 2) for g in graph.groups}
small, cut = extra(lambda: rlprune.prune(network, graph, keep))
print(f"  {sys.argv[1]:14} {size / 2**20:6.0f} MiB: trace {traced / size:5.2f}, removal {cut / size:5.2f}")
"""


def memory():
    print("\nAdditional peak memory as a share of the network's own:")
    for name in ("resnet50", "vgg16_bn", "densenet201"):
        subprocess.run([sys.executable, "-c", MEMORY, name], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names in torchvision; all CNNs if none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    print(f"| {'network':20} | trace ms   | their ms   | ratio      | prune ms   | their ms   | ratio      |")
    print("|" + "-" * 22 + "|" + ("-" * 12 + "|") * 6)
    example = torch.randn(1, 3, 224, 224)
    found = [compare(name, example, options.repeats) for name in options.networks or names()]
    for column, title in enumerate(("graph", "removal")):
        ratios = [ratios[column] for ratios in found if ratios[column] is not None]
        if ratios:
            middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
            print(f"{title}: median {middle:.1f}× faster, from {least:.1f}× to {most:.1f}×, {len(ratios)} of {len(found)} networks")
    if not options.networks:
        scaling(options.repeats)
        memory()
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
