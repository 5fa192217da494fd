"""The training loop: one for dense training, fine-tuning and distillation."""

import bisect
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rlprune.data.batches import Batches
from rlprune.errors import UserError
from rlprune.kernels import careful_kernels
from rlprune.training.execution import Execution
from rlprune.training.progress import Average, Progress, Saver, everything

log = logging.getLogger(__name__)
TELL_SECONDS = 20  # epochs that take longer get a line each
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (N, classes) in float32, images, labels (N,) or (N, classes)) → mean loss."""


@dataclass(frozen=True)
class Recipe:
    """How weights are updated.

    Args:
        optimizer: makes an optimizer of parameter groups.
        lr_schedule: `one_cycle` (peak at 30 % of the steps), `cosine`, `step` (times `lr_gamma` at each of `lr_milestones`) or `constant`.
        lr_milestones: epochs after which `step` lowers the rate.
        lr_gamma: the factor it is lowered by.
        warmup_epochs: over which the rate rises from zero, times the schedule; `one_cycle` has a warm-up of its own.
        clip_norm: bound of the gradient's norm; None leaves it.
        ema: decay of the moving average of the weights that becomes the result; None takes the weights themselves.
    """

    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    lr_schedule: str
    lr_milestones: tuple[int, ...]
    lr_gamma: float
    warmup_epochs: float
    clip_norm: float | None
    ema: float | None


def cross_entropy(label_smoothing: float) -> Loss:
    """Cross-entropy with label smoothing."""

    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    return loss


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for weights of convolutions and linear layers alone: biases and norms have one dimension.

    Raises:
        UserError: there is nothing to train.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError(f"model: {type(model).__name__} has no weights to train; set requires_grad on some")
    decayed = [parameter for parameter in parameters if parameter.ndim > 1]
    plain = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [group for group in ({"params": decayed}, {"params": plain, "weight_decay": 0.0}) if group["params"]]


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, epochs: int, batches: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A learning-rate schedule over all steps of a training, `batches` an epoch.

    Raises:
        UserError: an unknown name.
    """
    steps, warm = epochs * batches, recipe.warmup_epochs * batches
    if recipe.lr_schedule == "one_cycle":
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=steps + 1, cycle_momentum=False)
    milestones = [epoch * batches for epoch in recipe.lr_milestones]
    shapes: dict[str, Callable[[int], float]] = {
        "cosine": lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)),
        "step": lambda step: recipe.lr_gamma ** bisect.bisect_right(milestones, step),
        "constant": lambda step: 1.0,
    }
    if recipe.lr_schedule not in shapes:
        raise UserError(f"lr_schedule={recipe.lr_schedule}: unknown; choose one_cycle, {', '.join(shapes)}")
    shape = shapes[recipe.lr_schedule]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shape(step) * (min(1.0, (step + 1) / warm) if warm else 1.0))


def fit(
    model: nn.Module,
    batches: Batches,
    *,
    epochs: int,
    loss: Loss,
    recipe: Recipe,
    execution: Execution,
    description: str,
    saver: Saver | None = None,
    progress_bar: bool = True,
) -> list[float]:
    """Train in place and return the mean loss of each epoch.

    Losses are summed on the device and read once an epoch, so that no step waits for the host.

    Args:
        model: any network of class scores.
        batches: of its training images.
        epochs: to train.
        loss: of a batch.
        recipe: optimizer and schedule.
        execution: device, precision, memory format.
        description: of the progress bar.
        saver: keeps the state now and then, and hands it back in a training that goes on.
        progress_bar: whether there is one.

    Raises:
        UserError: the loss or a weight is no longer finite.
    """
    if epochs == 0:
        return []
    memory_format = execution.memory_format(model, training=True)
    model.to(memory_format=memory_format).train()
    optimizer = recipe.optimizer(parameter_groups(model))
    progress = Progress(
        network=model,
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, recipe, epochs, len(batches)),
        average=None if recipe.ema is None else Average(model, recipe.ema),
        total=torch.zeros((), device=execution.device),
        identity="" if saver is None else f"{saver.identity} {type(optimizer).__name__} {execution.training} {execution.device.type}",
        epochs=epochs,
        batches=len(batches),
    )
    if saver is not None:
        saver.restore(progress)
    forward = torch.compile(model) if execution.compile else model
    bar = tqdm(total=epochs * len(batches), initial=progress.steps, desc=description, unit="batch", leave=False, disable=not progress_bar)
    with careful_kernels(model, execution.device, folded=not execution.compile), bar:
        while progress.epoch < epochs:
            started = time.monotonic()
            for images, labels in batches.epoch(progress.epoch, start=progress.batch):
                _step(progress, forward, images.contiguous(memory_format=memory_format), labels, loss, recipe.clip_norm, execution)
                progress.batch += 1
                bar.update()
                if saver is not None and progress.batch < len(batches):
                    saver.save_if_due(progress)
            progress.end_epoch()
            if time.monotonic() - started > TELL_SECONDS:
                log.info("%s: epoch %d/%d, loss %.4f", description, progress.epoch, epochs, progress.losses[-1])
            bar.set_postfix(epoch=f"{progress.epoch}/{epochs}", loss=f"{progress.losses[-1]:.3f}")
            _require_finite(model, progress.losses[-1], f"{description}, epoch {progress.epoch}")
            if saver is not None:
                saver.save_if_due(progress)
    if progress.average is not None:
        progress.average.write_back()
    model.eval()
    return progress.losses


def _step(
    progress: Progress,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    clip_norm: float | None,
    execution: Execution,
) -> None:
    """One update; nothing in it waits for the device."""
    with execution.autocast(training=True):
        logits = forward(images)
    value = loss(logits.float(), images, labels)
    progress.optimizer.zero_grad(set_to_none=True)
    value.backward()
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(progress.network.parameters(), clip_norm)
    progress.optimizer.step()
    progress.scheduler.step()
    if progress.average is not None:
        progress.average.update(progress.steps + 1)
    progress.total += value.detach()


def _require_finite(model: nn.Module, loss: float, where: str) -> None:
    floats = [tensor for tensor in everything(model).values() if tensor.is_floating_point()]
    if not (math.isfinite(loss) and all(bool(torch.isfinite(tensor).all()) for tensor in floats)):
        raise UserError(f"{where}: the loss or a weight is no longer finite (loss {loss}); lower optimizer.lr or set clip_norm=1.0")
