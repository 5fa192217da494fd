"""Recovery after pruning: fine-tuning and knowledge distillation (RL-Pruner, section 3.4)."""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.data.base import Splits
from rlprune.data.batches import Batches
from rlprune.seeding import derive_seed, seed_globals
from rlprune.training.execution import Execution
from rlprune.training.fit import Loss, OnEpoch, Recipe, cross_entropy, fit, unheard
from rlprune.training.progress import Saver


@dataclass(frozen=True)
class Recovery:
    """How a pruned network regains accuracy.

    `rho` weighs the teacher against the labels (0: plain fine-tuning), `temperature` softens both distributions; `epochs` follow every
    `schedule.period` pruning steps, `final_epochs` every saved level; `control` trains the dense network in the same way for comparison.
    """

    recipe: Recipe
    batch_size: int
    epochs: int
    final_epochs: int
    rho: float
    temperature: float
    control: bool


def distillation(teacher: nn.Module, *, rho: float, temperature: float, execution: Execution) -> Loss:
    """Equations 25 and 26: L = (1 − ρ) CE(student, y) + ρ T² KL(teacher/T ‖ student/T)."""
    labels_alone = cross_entropy(0.0)
    if rho == 0:
        return labels_alone
    teacher.eval().to(memory_format=execution.memory_format(teacher, training=False))
    return Distillation(teacher, labels_alone, rho, temperature, execution)


@dataclass(frozen=True)
class Distillation:
    """The loss of `distillation`, beside that of the labels."""

    teacher: nn.Module
    labels_alone: Loss
    rho: float
    temperature: float
    execution: Execution

    def __call__(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """As every `Loss`."""
        with torch.no_grad(), self.execution.autocast():
            targets = self.teacher(images)
        loss = self.labels_alone(logits, images, labels)
        return distilled(loss, logits, targets, rho=self.rho, temperature=self.temperature)


def distilled(loss: Tensor, logits: Tensor, targets: Tensor, *, rho: float, temperature: float) -> Tensor:
    """The same, from the loss of the labels, and the scores of student and teacher, both of shape (N, classes)."""
    student = F.log_softmax(logits / temperature, dim=1)
    divergence = F.kl_div(student, F.log_softmax(targets.float() / temperature, dim=1), reduction="batchmean", log_target=True)
    return (1 - rho) * loss + rho * temperature**2 * divergence


def training_batches(splits: Splits, batch_size: int, execution: Execution, seed: int, phase: str) -> Batches:
    """Augmented batches of the training split on the device, with random streams of their own."""
    return Batches(
        splits.train,
        batch_size=batch_size,
        normalization=splits.normalization,
        augmentation=splits.augmentation,
        num_classes=len(splits.class_names),
        seed=derive_seed(seed, phase),
        device=execution.device,
    )


def recover(
    network: nn.Module,
    teacher: nn.Module,
    splits: Splits,
    *,
    epochs: int,
    recovery: Recovery,
    execution: Execution,
    seed: int,
    phase: str,
    progress_bar: bool = True,
    saver: Saver | None = None,
    on_epoch: OnEpoch = unheard,
) -> list[float]:
    """Train a pruned network in place; returns the loss of each epoch."""
    execution = replace(execution, compile=False)  # every pruned network would be compiled anew
    seed_globals(derive_seed(seed, phase), "dropout")
    loss = distillation(teacher, rho=recovery.rho, temperature=recovery.temperature, execution=execution)
    batches = training_batches(splits, recovery.batch_size, execution, seed, phase)
    recipe = recovery.recipe
    return fit(
        network, batches,
        epochs=epochs, loss=loss, recipe=recipe, execution=execution, description=phase,
        saver=saver, progress_bar=progress_bar, on_epoch=on_epoch,
    )  # fmt: skip


def epoch_seconds(
    network: nn.Module,
    teacher: nn.Module,
    splits: Splits,
    *,
    recovery: Recovery,
    execution: Execution,
    seed: int,
) -> float:
    """Seconds that one recovery epoch takes, measured on two batches, on which the network is trained."""
    few = splits.train.subset(np.arange(min(len(splits.train), recovery.batch_size * 2)))
    few = few.load()  # starting the workers of a stream would be counted for every batch
    start = time.perf_counter()
    recover(
        network, teacher, replace(splits, train=few),
        epochs=1, recovery=recovery, execution=execution, seed=seed, phase="time an epoch",
    )  # fmt: skip
    return (time.perf_counter() - start) * len(splits.train) / len(few)
