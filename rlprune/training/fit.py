"""The training loop: one for dense training, fine-tuning and distillation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rlprune.data.batches import Batches
from rlprune.errors import UserError
from rlprune.training.execution import Execution

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (N, classes) in float32, images, labels (N,)) → mean loss."""


@dataclass(frozen=True)
class Recipe:
    """How weights are updated.

    `optimizer` makes an optimizer of parameter groups; `lr_schedule` is `one_cycle` (peak at 30 % of the steps), `cosine` or `constant`;
    `clip_norm` bounds the gradient's norm, None leaves it.
    """

    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    lr_schedule: str
    clip_norm: float | None


def cross_entropy(label_smoothing: float) -> Loss:
    """Cross-entropy with label smoothing."""

    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    return loss


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for weights of convolutions and linear layers alone: biases and norms have one dimension."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if parameter.ndim > 1]
    plain = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [group for group in ({"params": decayed}, {"params": plain, "weight_decay": 0.0}) if group["params"]]


def make_scheduler(optimizer: torch.optim.Optimizer, name: str, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A learning-rate schedule over all steps of a training.

    Raises:
        UserError: an unknown name.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if name == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=steps + 1, cycle_momentum=False)
    if name == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if name == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
    raise UserError(f"lr_schedule={name}: unknown; choose one_cycle, cosine or constant")


def fit(
    model: nn.Module, batches: Batches, *, epochs: int, loss: Loss, recipe: Recipe, execution: Execution, description: str
) -> list[float]:
    """Train in place and return the mean loss of each epoch.

    Losses are summed on the device and read once an epoch, so that no step waits for the host.

    Raises:
        UserError: the loss or a weight is no longer finite.
    """
    if epochs == 0:
        return []
    optimizer = recipe.optimizer(parameter_groups(model))
    scheduler = make_scheduler(optimizer, recipe.lr_schedule, epochs * len(batches))
    memory_format = execution.memory_format(model, training=True)
    model.to(memory_format=memory_format).train()
    forward = torch.compile(model) if execution.compile else model
    history = []
    with tqdm(total=epochs * len(batches), desc=description, unit="batch", leave=False) as bar:
        for epoch in range(epochs):
            total = torch.zeros((), device=execution.device)
            for images, labels in batches:
                images = images.contiguous(memory_format=memory_format)
                with execution.autocast():
                    logits = forward(images)
                value = loss(logits.float(), images, labels)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                if recipe.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                optimizer.step()
                scheduler.step()
                total += value.detach()
                bar.update()
            history.append(float(total) / len(batches))
            bar.set_postfix(epoch=f"{epoch + 1}/{epochs}", loss=f"{history[-1]:.3f}")
            _require_finite(model, history[-1], f"{description}, epoch {epoch + 1}")
    model.eval()
    return history


def _require_finite(model: nn.Module, loss: float, where: str) -> None:
    finite = torch.isfinite(torch.tensor(loss)) and all(
        bool(torch.isfinite(tensor).all()) for tensor in _floats(model.state_dict().values())
    )
    if not finite:
        raise UserError(f"{where}: the loss or a weight is no longer finite (loss {loss}); lower optimizer.lr or set clip_norm=1.0")


def _floats(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    return (tensor for tensor in tensors if tensor.is_floating_point())
