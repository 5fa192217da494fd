"""The one place where the test split is opened: once, for the last table, after every decision was made."""

from collections.abc import Mapping

import torch
from torch import nn
from tqdm import tqdm

from rlprune.cost import measure_latency
from rlprune.data.base import Dataset, Pictures, limited, require_labels
from rlprune.errors import UserError
from rlprune.setup import Setup
from rlprune.training.evaluate import Accuracy, Evaluator
from rlprune.training.execution import Execution


def open_test_split(dataset: Dataset, num_classes: int, shape: tuple[int, ...]) -> Pictures:
    """Read the test images.

    Raises:
        UserError: labels or pixels do not fit the network.
    """
    images = dataset.hold(limited(dataset.read_test(), dataset.limit))
    require_labels(images, num_classes, "test")
    if images.shape != shape:
        raise UserError(f"dataset: test images have shape {images.shape}, the network takes {shape}")
    return images


def final_test(networks: Mapping[str, nn.Module], setup: Setup) -> dict[str, Accuracy]:
    """Accuracy of every network on the test split."""
    images = open_test_split(setup.dataset, len(setup.origin.class_names), setup.origin.shape)
    evaluator = Evaluator(images, setup.splits.normalization, setup.execution)
    measured = {}
    for name, network in networks.items():
        with tqdm(total=len(images), desc=f"test split: {name}", unit="img", leave=False) as bar:
            measured[name] = evaluator.accuracy(network, advance=bar.update)
    return measured


def latency_ms(network: nn.Module, shape: tuple[int, ...], execution: Execution) -> float:
    """Median milliseconds for one image in float32."""
    network.to(memory_format=torch.contiguous_format)
    return 1000 * measure_latency(network, torch.zeros(1, *shape, device=execution.device))
