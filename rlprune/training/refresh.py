"""What a pruned network may get before it is looked at: new batch-norm statistics, a brief recovery, or fine-tuning layer by layer."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from rlprune.agents.base import Finetuning
from rlprune.data.base import sample
from rlprune.kernels import careful_kernels
from rlprune.seeding import numpy_generator
from rlprune.setup import Setup
from rlprune.training.fit import Recipe
from rlprune.training.recover import Recovery, recover

BATCH = 256  # images at once, at most; the statistics are the mean over the batches


class Recalibration:
    """Gives batch norms the statistics that a network has now, measured on training images without augmentation.

    What pruning does to a network's statistics hides how good its weights still are (Li et al. 2020, EagleEye: adaptive batch norm).

    Args:
        setup: data and device.
        images: training images to measure on, drawn once.
        seed: of the run.
    """

    def __init__(self, setup: Setup, images: int, seed: int) -> None:
        chosen = sample(setup.splits.train, images, numpy_generator(seed, "recalibration")).load().to(setup.execution.device)
        pixels = setup.splits.normalization(chosen.pixels)
        self.batches = pixels.tensor_split(math.ceil(len(pixels) / BATCH))  # of equal size, as they weigh alike
        self.execution = setup.execution

    def __call__(self, network: nn.Module) -> None:
        """Exchange the statistics; weights, modes, and whatever else shares the old buffers stay as they are."""
        memory_format = self.execution.memory_format(network, training=False)
        network.to(memory_format=memory_format)

        def run() -> None:
            with careful_kernels(network, self.execution.device), self.execution.autocast():
                for batch in self.batches:
                    network(batch.contiguous(memory_format=memory_format))

        renew_statistics(network, run)


def renew_statistics(network: nn.Module, run: Callable[[], object]) -> None:
    """Give batch norms the mean statistics over the forward passes of `run`; the network is in eval mode behind it."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]
    if not norms:
        return
    network.eval()
    before = [(norm, norm.momentum, dict(norm._buffers)) for norm in norms]
    for norm in norms:
        for name, buffer in norm._buffers.items():  # new ones: a candidate shares its buffers with the network it is cut from
            norm._buffers[name] = None if buffer is None else torch.zeros_like(buffer)
        norm.train()
        norm.momentum = None  # the plain mean over the batches
    try:
        with torch.no_grad():
            run()
    finally:
        for norm, momentum, buffers in before:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and not norm.num_batches_tracked:  # it does not run here
                norm._buffers.update(buffers)
        network.eval()


class BriefRecovery:
    """Trains a copy of a candidate for some batches, always the same ones, so that it is judged by what recovery makes of it.

    Args:
        setup: data and device.
        recovery: how it recovers.
        teacher: for distillation.
        batches: training batches a candidate.
        seed: of the run.
    """

    def __init__(self, setup: Setup, recovery: Recovery, teacher: nn.Module, batches: int, seed: int) -> None:
        images = sample(setup.splits.train, batches * recovery.batch_size, numpy_generator(seed, "brief recovery"))
        self.splits = replace(setup.splits, train=images.load())
        self.recovery, self.teacher, self.execution, self.seed = recovery, teacher, setup.execution, seed

    def __call__(self, network: nn.Module) -> nn.Module:
        """The trained copy."""
        trained = copy.deepcopy(network).requires_grad_(True)
        recover(
            trained, self.teacher, self.splits,
            epochs=1, recovery=self.recovery, execution=self.execution, seed=self.seed, phase="brief recovery", progress_bar=False,
        )  # fmt: skip
        return trained


class FineTuning:
    """Trains a network on the labels behind every action of an episode (FPRL, Algorithm 1, line 12).

    Args:
        setup: data and device.
        recovery: batch size, optimizer and bound of the gradient; the rate is that of the fine-tuning, and constant.
        seed: of the run.
    """

    def __init__(self, setup: Setup, recovery: Recovery, seed: int) -> None:
        self.setup, self.recovery, self.seed = setup, recovery, seed

    def __call__(self, network: nn.Module, finetuning: Finetuning, phase: str) -> None:
        """Train in place; the images of a phase are always the same ones."""
        splits = self.setup.splits
        if finetuning.batches is not None:
            images = sample(splits.train, finetuning.batches * self.recovery.batch_size, numpy_generator(self.seed, phase))
            splits = replace(splits, train=images.load())
        recipe = at_constant_rate(self.recovery.recipe, finetuning.lr)
        recover(
            network, network, splits,
            epochs=finetuning.epochs, recovery=replace(self.recovery, recipe=recipe, rho=0.0), execution=self.setup.execution,
            seed=self.seed, phase=phase, progress_bar=False,
        )  # fmt: skip


def at_constant_rate(recipe: Recipe, lr: float) -> Recipe:
    """The same optimizer and bound of the gradient, at one learning rate."""
    optimizer = partial(_at_rate, recipe.optimizer, lr)
    return replace(recipe, optimizer=optimizer, lr_schedule="constant", lr_milestones=(), warmup_epochs=0)


def _at_rate(
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], lr: float, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    return optimizer([{**group, "lr": lr} for group in groups])
