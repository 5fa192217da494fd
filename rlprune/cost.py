"""Closed-form MACs and parameters of any plan, and measured latency."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class CostModel:
    """Sizes of every parameter and buffer as linear functions of the units removed from each group.

    `sizes[d]` is the dense size of dimension d, shape (tensor,), 1 where a tensor has fewer dimensions; `removed[d]` says how much of it
    one unit of each group takes, shape (tensor, group); `uses` is how often each element multiplies for one example, shape (tensor,).
    """

    names: tuple[str, ...]  # parameters and buffers, by qualified name
    is_parameter: np.ndarray
    sizes: tuple[np.ndarray, ...]
    removed: tuple[np.ndarray, ...]
    uses: np.ndarray
    fixed_macs: float

    def numels(self, counts: np.ndarray) -> np.ndarray:
        """Elements of every parameter after `counts` units were removed from each group, shape (tensor,)."""
        numels = np.ones(len(self.uses))
        for size, per_unit in zip(self.sizes, self.removed, strict=True):
            numels = numels * (size - per_unit @ counts)
        return numels

    def macs(self, counts: np.ndarray) -> int:
        """Multiply-accumulates of convolutions and linear layers for one example."""
        return round(float(self.numels(counts) @ self.uses) + self.fixed_macs)

    def params(self, counts: np.ndarray) -> int:
        """Parameters; buffers are not counted."""
        return round(float(self.numels(counts) @ self.is_parameter))

    @staticmethod
    def build(
        shapes: Mapping[str, tuple[int, ...]],
        parameters: Collection[str],
        uses: Mapping[str, float],
        taken: Mapping[tuple[str, int, int], int],
        num_groups: int,
        fixed_macs: float,
    ) -> "CostModel":
        """From dense shapes, uses by tensor name, and what a unit takes: (tensor, dim, group) → entries."""
        names = list(shapes)
        row = {name: index for index, name in enumerate(names)}
        depth = max((len(shape) for shape in shapes.values()), default=1)
        sizes = tuple(np.array([shapes[n][d] if d < len(shapes[n]) else 1 for n in names], dtype=float) for d in range(depth))
        removed = tuple(np.zeros((len(names), num_groups)) for _ in range(depth))
        for (name, dim, group), entries in taken.items():
            if name in row:
                removed[dim][row[name], group] = entries
        is_parameter = np.array([name in parameters for name in names], dtype=float)
        return CostModel(tuple(names), is_parameter, sizes, removed, np.array([uses.get(name, 0.0) for name in names]), fixed_macs)


def count_params(model: nn.Module) -> int:
    """Parameters of a network; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.inference_mode()
def measure_latency(model: nn.Module, example: Tensor, *, repeats: int = 30) -> float:
    """Median seconds of one forward pass in float32 on `example`'s device, after a warm-up of three."""
    training = model.training
    model.eval()
    seconds = []
    for index in range(repeats + 3):
        if example.is_cuda:
            torch.cuda.synchronize(example.device)
        start = time.perf_counter()
        model(example)
        if example.is_cuda:
            torch.cuda.synchronize(example.device)
        if index >= 3:
            seconds.append(time.perf_counter() - start)
    model.train(training)
    return float(np.median(seconds))
