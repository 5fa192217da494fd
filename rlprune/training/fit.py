"""The training loop: one for dense training, fine-tuning and distillation."""

import bisect
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rlprune.data.batches import Batches
from rlprune.errors import UserError
from rlprune.kernels import careful_kernels
from rlprune.seeding import seed_globals
from rlprune.training.execution import Execution
from rlprune.training.progress import Average, Progress, Saver, everything
from rlprune.training.team import Team

log = logging.getLogger(__name__)
TELL_SECONDS = 20  # epochs that take longer get a line each
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (N, classes) in float32, images, labels (N,) or (N, classes)) → mean loss."""


@dataclass(frozen=True)
class StepLoss:
    """A batch's loss where more than one forward pass of class scores is asked for: `step` is (network, batch) → mean loss."""

    step: Callable[[nn.Module, Any], Tensor]


class Epochs(Protocol):
    """Batches of a training: `rlprune.data.batches.Batches` makes those of images and labels."""

    def __len__(self) -> int: ...

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]: ...  # noqa: D102


OnEpoch = Callable[[int, Mapping[str, float]], object]
"""Called with an epoch that is done, from 1, its mean `loss` and the `learning_rate` that it came to."""


def unheard(epoch: int, values: Mapping[str, float]) -> None:
    """Nobody is told of an epoch."""


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
    return partial(_cross_entropy, label_smoothing)


def _cross_entropy(label_smoothing: float, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


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


class Trainer:
    """A training in place that goes on an epoch at a time.

    Losses are summed on the device and read once an epoch, so that no step waits for the host.

    Args:
        model: any network of class scores, or any at all where a loss is a `StepLoss`.
        batches: of its training images.
        epochs: to train.
        recipe: optimizer and schedule.
        execution: device, precision, memory format.
        description: what it is called.
        saver: keeps the state now and then, and hands it back in a training that goes on.
        on_epoch: told of every epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Epochs,
        *,
        epochs: int,
        recipe: Recipe,
        execution: Execution,
        description: str,
        saver: Saver | None = None,
        on_epoch: OnEpoch = unheard,
    ) -> None:
        self.model, self.batches, self.recipe, self.execution = model, batches, recipe, execution
        self.description, self.saver, self.on_epoch = description, saver, on_epoch
        self._memory_format = execution.memory_format(model, training=True)
        model.to(memory_format=self._memory_format).train()
        optimizer = recipe.optimizer(parameter_groups(model))
        self.progress = Progress(
            network=model,
            optimizer=optimizer,
            scheduler=make_scheduler(optimizer, recipe, epochs, len(batches)),
            average=None if recipe.ema is None else Average(model, recipe.ema),
            total=torch.zeros((), device=execution.device),
            identity="" if saver is None else f"{saver.identity} {type(optimizer).__name__} {execution.training} {execution.device.type}",
            epochs=epochs,
            batches=len(batches),
        )
        self._forward = torch.compile(model) if execution.compile else model

    @property
    def done(self) -> bool:
        """No epoch is left."""
        return self.progress.epoch == self.progress.epochs

    def epoch(self, loss: Loss | StepLoss, advance: Callable[[], object]) -> float:
        """Train to the end of the epoch that it is in; returns its mean loss.

        Args:
            loss: of a batch.
            advance: called behind every batch.

        Raises:
            UserError: the loss or a weight is no longer finite, or another process has failed.
        """
        progress, started = self.progress, time.monotonic()
        if self.execution.team is not None:
            self._call_others(self.execution.team, loss)
        self._steps(loss, advance)
        progress.end_epoch()
        if time.monotonic() - started > TELL_SECONDS:
            log.info("%s: epoch %d/%d, loss %.4f", self.description, progress.epoch, progress.epochs, progress.losses[-1])
        _require_finite(self.model, progress.losses[-1], f"{self.description}, epoch {progress.epoch}")
        rate = float(progress.optimizer.param_groups[0]["lr"])
        self.on_epoch(progress.epoch, {"loss": progress.losses[-1], "learning_rate": rate})  # before a state is saved that is behind it
        return progress.losses[-1]

    def finish(self) -> None:
        """Give the network the average of its weights, where there is one, and put it in eval mode."""
        if self.progress.average is not None:
            self.progress.average.write_back()
        self.model.eval()

    def follow(self, tensors: dict[str, Tensor], facts: dict[str, Any], loss: Loss) -> None:
        """This process's part in an epoch of rank 0's, from the state that rank 0 is in."""
        self.progress.identity = facts["identity"]
        self.progress.take(tensors | _prefixed(self.model), facts)
        self._steps(loss, lambda: None)

    def _call_others(self, team: Team, loss: Loss | StepLoss) -> None:
        """Every epoch they start anew from the state here, so that whatever happens between two epochs happens here alone."""
        if isinstance(loss, StepLoss):
            raise UserError(f"torchrun: {self.description} takes a loss of whole batches, which cannot be split; start it without torchrun")
        tensors, facts = replace(self.progress, average=None).state()
        for name in _prefixed(self.model):  # the network itself goes anyway
            del tensors[name]
        recipe = replace(self.recipe, ema=None)
        team.call(follow_epoch, self.model, self.batches, self.progress.epochs, recipe, self.execution, tensors, facts, loss)

    def _steps(self, loss: Loss | StepLoss, advance: Callable[[], object]) -> None:
        """The batches that an epoch has left."""
        progress, execution, team = self.progress, self.execution, self.execution.team
        self.model.to(memory_format=self._memory_format).train()
        if team is None:
            batches = self.batches.epoch(progress.epoch, start=progress.batch)
        else:
            batches = cast(Batches, self.batches).epoch(progress.epoch, start=progress.batch, part=team.part)
        with careful_kernels(self.model, execution.device, folded=not execution.compile and team is None):
            for batch in batches:
                self._step(batch, loss)
                progress.batch += 1
                advance()
                if self.saver is not None and progress.batch < len(self.batches):
                    self.saver.save_if_due(progress)

    def _loss(self, batch: Any, loss: Loss | StepLoss) -> Tensor:
        if isinstance(loss, StepLoss):
            with self.execution.autocast(training=True):
                return loss.step(self.model, batch)
        images, labels = batch
        images = images.contiguous(memory_format=self._memory_format)
        with self.execution.autocast(training=True):
            logits = self._forward(images)
        return loss(logits.float(), images, labels)

    def _step(self, batch: Any, loss: Loss | StepLoss) -> None:
        """One update; nothing in it waits for the device."""
        progress, team = self.progress, self.execution.team
        if team is None:
            value = self._loss(batch, loss)
            progress.optimizer.zero_grad(set_to_none=True)
            value.backward()
        else:
            batches = cast(Batches, self.batches)
            seed_globals(batches.seed, f"dropout {progress.epoch} {progress.batch}")  # all go the same way through a network that draws one
            progress.optimizer.zero_grad(set_to_none=True)
            value = team.backward(partial(self._loss, batch, loss), self.model, batches.count(progress.batch))
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(progress.network.parameters(), self.recipe.clip_norm)
        progress.optimizer.step()
        progress.scheduler.step()
        if progress.average is not None:
            progress.average.update(progress.steps + 1)
        progress.total += value.detach()


def fit(
    model: nn.Module,
    batches: Epochs,
    *,
    epochs: int,
    loss: Loss | StepLoss,
    recipe: Recipe,
    execution: Execution,
    description: str,
    saver: Saver | None = None,
    progress_bar: bool = True,
    on_epoch: OnEpoch = unheard,
) -> list[float]:
    """Train in place to the end and return the mean loss of each epoch.

    Args:
        model: as those that follow, of a `Trainer`.
        batches: see there.
        epochs: see there.
        loss: of a batch.
        recipe: see there.
        execution: see there.
        description: of the progress bar.
        saver: see there.
        progress_bar: whether there is one.
        on_epoch: told of every epoch.

    Raises:
        UserError: the loss or a weight is no longer finite.
    """
    if epochs == 0:
        return []
    trainer = Trainer(
        model, batches, epochs=epochs, recipe=recipe, execution=execution, description=description, saver=saver, on_epoch=on_epoch
    )
    progress = trainer.progress
    if saver is not None:
        saver.restore(progress)
    silent = not progress_bar or "TQDM_DISABLE" in os.environ  # tqdm reads it only where nothing is said
    bar = tqdm(total=epochs * len(batches), initial=progress.steps, desc=description, unit="batch", leave=False, disable=silent)
    with bar:
        while not trainer.done:
            trainer.epoch(loss, bar.update)
            bar.set_postfix(epoch=f"{progress.epoch}/{epochs}", loss=f"{progress.losses[-1]:.3f}")
            if saver is not None:
                saver.save_if_due(progress)
    trainer.finish()
    return progress.losses


def follow_epoch(
    model: nn.Module,
    batches: Epochs,
    epochs: int,
    recipe: Recipe,
    execution: Execution,
    tensors: dict[str, Tensor],
    facts: dict[str, Any],
    loss: Loss,
) -> None:
    """What the others do while rank 0 trains for an epoch; arguments as of `Trainer` and `Trainer.follow`."""
    Trainer(model, batches, epochs=epochs, recipe=recipe, execution=execution, description="").follow(tensors, facts, loss)


def _prefixed(model: nn.Module) -> dict[str, Tensor]:
    """The network's tensors under their names in the state of a training."""
    return {f"network.{name}": tensor for name, tensor in everything(model).items()}


def _require_finite(model: nn.Module, loss: float, where: str) -> None:
    floats = [tensor for tensor in everything(model).values() if tensor.is_floating_point()]
    if not (math.isfinite(loss) and all(bool(torch.isfinite(tensor).all()) for tensor in floats)):
        raise UserError(f"{where}: the loss or a weight is no longer finite (loss {loss}); lower optimizer.lr or set clip_norm=1.0")
