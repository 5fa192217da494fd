"""A user's loss, training step and metric, or what stands for them: how networks are trained, measured, and what gradients are taken of."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.agents.base import Finetuning
from rlprune.api.data import Examples, Minibatches
from rlprune.criteria.base import Criterion
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph
from rlprune.graph.labels import tensors_in
from rlprune.graph.run import call, map_tensors
from rlprune.kernels import careful_kernels
from rlprune.search.measure import Score
from rlprune.search.returned import number, shown
from rlprune.seeding import derive_seed, seed_globals
from rlprune.training.execution import Execution
from rlprune.training.fit import Recipe, StepLoss, fit
from rlprune.training.recover import Recovery, distilled
from rlprune.training.refresh import at_constant_rate, renew_statistics

Loss = Callable[[Any, Any], Tensor]
"""(outputs, targets) → scalar to minimise."""
TrainingStep = Callable[[nn.Module, Any, nn.Module], Tensor]
"""(network, batch, teacher) → scalar to minimise; the teacher is in eval mode."""
Metric = Callable[[nn.Module, Iterable[Any]], Any]
"""(network in eval mode, batches) → number, higher is better."""


def pair(batch: Any, instead: str) -> tuple[Any, Any]:
    """Inputs and targets of a batch.

    Raises:
        UserError: it is something else; says what to pass `instead`.
    """
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise UserError(f"train_data: its batches are no pairs (inputs, targets), but a {type(batch).__name__}; pass {instead}")
    return batch[0], batch[1]


def _classifies(outputs: Any, targets: Any) -> bool:
    """Whether outputs are scores of classes, and targets their numbers: (N, classes) and (N,)."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return False
    return outputs.ndim == 2 and targets.shape == outputs.shape[:1] and not targets.is_floating_point() and outputs.is_floating_point()


# -- the metric ------------------------------------------------------------------------------------------------------------------------


def top1(network: nn.Module, batches: Iterable[Any]) -> float:
    """Share of the examples whose class ranks first.

    Raises:
        UserError: the network returns something else than class scores.
    """
    correct = count = 0
    for batch in batches:
        inputs, targets = pair(batch, "metric=")
        logits = call(network, inputs)
        if not _classifies(logits, targets):
            raise UserError(
                f"metric: the network returns {shown(logits)} for targets {shown(targets)}, and top-1 accuracy takes scores of shape "
                "(N, classes) and class numbers of shape (N,); pass metric=, a function (network, batches) → number"
            )
        hits = (logits.argmax(dim=1) == targets) & torch.isfinite(logits).all(dim=1)  # what is not finite ranks nothing
        correct, count = correct + int(hits.sum()), count + len(targets)
    return correct / count


def measured(metric: Metric, batches: Iterable[Any], network: nn.Module) -> float:
    """A network's metric.

    Raises:
        UserError: it is no finite number.
    """
    network.eval()
    with torch.no_grad():
        value = metric(network, batches)
    network.eval()
    finite = number(value)
    if not math.isfinite(finite):
        raise UserError(f"metric: returned {shown(value)}; return one finite number, higher is better")
    return finite


# -- the loss of a batch -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch.

    Args:
        loss: of outputs; None: cross-entropy.
        training_step: what takes its place in training; None: the loss, with distillation where outputs are class scores.
        rho: weight of the teacher.
        temperature: of both distributions.
    """

    loss: Loss | None
    training_step: TrainingStep | None
    rho: float
    temperature: float

    def step(self, teacher: nn.Module, network: nn.Module, batch: Any) -> Tensor:
        """What a training minimises."""
        if self.training_step is not None:
            return _scalar(self.training_step(network, batch, teacher), "training_step")
        inputs, targets = pair(batch, "training_step=")
        outputs = call(network, inputs)
        value = self._of_outputs(outputs, targets)
        if self.rho == 0 or not _classifies(outputs, targets):
            return value
        with torch.no_grad():
            wanted = call(teacher, inputs)
        return distilled(value, outputs.float(), wanted, rho=self.rho, temperature=self.temperature)

    def plain(self, teacher: nn.Module, network: nn.Module, batch: Any) -> Tensor:
        """What a criterion takes gradients of: the loss of the outputs, unless there is nothing but a training step."""
        if self.training_step is not None and self.loss is None:
            return self.step(teacher, network, batch)
        inputs, targets = pair(batch, "training_step= without loss=")
        return self._of_outputs(call(network, inputs), targets)

    def _of_outputs(self, outputs: Any, targets: Any) -> Tensor:
        if self.loss is not None:
            return _scalar(self.loss(outputs, targets), "loss")
        if not isinstance(outputs, Tensor):
            raise UserError(f"loss: the network returns {shown(outputs)}, and cross-entropy takes one tensor; pass loss= or training_step=")
        try:
            return F.cross_entropy(outputs.float(), targets)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason, met = str(error).strip().partition("\n")[0], f"outputs {shown(outputs)} with targets {shown(targets)}"
            raise UserError(f"loss: cross-entropy refuses {met} ({reason}); pass loss= or training_step=") from error


def _scalar(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UserError(f"{name}: returned {shown(value)}; return the loss as a tensor of one number")
    return value.reshape(())


def finite(value: Tensor, name: str) -> Tensor:
    """The same loss.

    Raises:
        UserError: it is not finite, or nothing in the network can lower it.
    """
    if not bool(torch.isfinite(value)):
        raise UserError(f"{name}: returned {value.item()} on a batch of train_data; it must be finite")
    if not value.requires_grad:
        raise UserError(f"{name}: its value does not depend on a weight that can be trained; is it computed without gradients?")
    return value


# -- what gradients are taken of ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchCalibration:
    """One batch of so many examples, and its mean loss: see `rlprune.criteria.base.Calibration`."""

    batch: Any
    size: int
    of: Callable[[nn.Module, Any], Tensor]
    name: str
    device: torch.device

    def __len__(self) -> int:
        return self.size

    def loss(self, model: nn.Module) -> Tensor:
        """Mean over the examples."""
        return finite(self.of(model, self.batch), self.name)

    def total(self, model: nn.Module) -> Tensor:
        """Sum over the examples."""
        return self.size * self.loss(model)

    def of_last(self, model: nn.Module) -> Tensor:
        """A fixed sum of what the network returns for the last example, whatever the loss mixes."""
        seen: list[Any] = []
        handle = model.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
        try:
            self.of(model, self.batch)
        finally:
            handle.remove()
        found = [tensor for tensor in tensors_in(seen) if tensor.is_floating_point() and tensor.ndim and len(tensor) == self.size]
        if not found:
            raise UserError(
                f"criterion: the network returns no tensor with an entry for each of {self.size} examples; use criterion=taylor"
            )
        last = [tensor[-1].flatten().float() for tensor in found]
        return torch.stack([(values * torch.cos(torch.arange(len(values), device=values.device))).sum() for values in last]).sum()

    def part(self, start: int, stop: int) -> "BatchCalibration":
        """Some of the examples."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor[start:stop] if tensor.ndim and len(tensor) == self.size else tensor

        return replace(self, batch=map_tensors(self.batch, cut), size=stop - start)


def make_score(criterion: Criterion, examples: Examples, loss: BatchLoss, teacher: nn.Module, seed: int) -> Score:
    """The criterion, on the training examples that a call of this seed calibrates it with."""
    if criterion.calibration_images == 0:
        return lambda network, graph: criterion.scores(network, graph)
    if not hasattr(criterion, "scores_on"):
        raise UserError(f"criterion: {type(criterion).__name__} has no scores_on, which any loss and data need; see rlprune.criteria.base")
    chosen = examples.draw(criterion.calibration_images, seed, "calibration")
    name = "loss" if loss.training_step is None or loss.loss is not None else "training_step"
    batch = chosen.whole(seed, "calibration")
    calibration = BatchCalibration(batch, len(chosen), partial(loss.plain, teacher), name, examples.device)

    def score(network: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
        seed_globals(seed, "calibration")  # a training step may draw
        scores: dict[str, Tensor] = criterion.scores_on(network, graph, calibration)
        return scores

    return score


# -- training ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Learner:
    """Trains pruned networks on a user's examples.

    Args:
        loss: of their batches.
        examples: to train on.
        recovery: how.
        execution: device and precision.
        seed: of all streams.
        progress_bar: whether there is one.
    """

    loss: BatchLoss
    examples: Examples
    recovery: Recovery
    execution: Execution
    seed: int
    progress_bar: bool

    def recover(self, network: nn.Module, teacher: nn.Module, epochs: int, phase: str) -> None:
        """Train a pruned network in place."""
        self._fit(network, teacher, self.examples, epochs, self.recovery.recipe, phase, self.loss, self.progress_bar)

    def finetune(self, teacher: nn.Module, network: nn.Module, finetuning: Finetuning, phase: str) -> None:
        """Train a network of an episode in place, on the targets alone; the examples of a phase are always the same ones."""
        count = None if finetuning.batches is None else finetuning.batches * self.examples.batch_size
        examples, recipe = self.examples.draw(count, self.seed, phase), at_constant_rate(self.recovery.recipe, finetuning.lr)
        self._fit(network, teacher, examples, finetuning.epochs, recipe, phase, replace(self.loss, rho=0.0), False)

    def briefly(self, teacher: nn.Module, batches: int) -> Callable[[nn.Module], nn.Module]:
        """What trains a copy of a candidate for some batches, always the same ones."""
        examples = self.examples.draw(batches * self.examples.batch_size, self.seed, "brief recovery")

        def trained(network: nn.Module) -> nn.Module:
            result = copy.deepcopy(network).requires_grad_(True)
            self._fit(result, teacher, examples, 1, self.recovery.recipe, "brief recovery", self.loss, False)
            return result

        return trained

    def renewing(self, teacher: nn.Module, count: int) -> Callable[[nn.Module], None]:
        """What gives batch norms the statistics that a network has now, over so many training examples, by the loss's forward pass."""
        chosen = self.examples.draw(count, self.seed, "recalibration")
        parts = np.array_split(np.arange(len(chosen)), math.ceil(len(chosen) / chosen.batch_size))  # of equal size, as they weigh alike
        batches = [chosen.subset(part).whole(self.seed, "recalibration") for part in parts]

        def renew(network: nn.Module) -> None:
            def run() -> None:
                with careful_kernels(network, self.execution.device):
                    for batch in batches:
                        self.loss.plain(teacher, network, batch)

            renew_statistics(network, run)

        return renew

    def rehearse(self, network: nn.Module, teacher: nn.Module) -> None:
        """One training step of a copy, so that what does not fit is refused before the search.

        Raises:
            UserError: the loss or the training step does not return what it must.
        """
        copied, batch = copy.deepcopy(network).train(), self.examples.first(self.examples.batch_size)
        value = self.loss.step(teacher, copied, batch)
        finite(value, "loss" if self.loss.training_step is None else "training_step").backward()

    def _fit(
        self,
        network: nn.Module,
        teacher: nn.Module,
        examples: Examples,
        epochs: int,
        recipe: Recipe,
        phase: str,
        loss: BatchLoss,
        progress_bar: bool,
    ) -> None:
        seed_globals(derive_seed(self.seed, phase), "dropout")
        teacher.eval()
        fit(
            network, Minibatches(examples, derive_seed(self.seed, phase)),
            epochs=epochs, loss=StepLoss(partial(loss.step, teacher)), recipe=recipe, execution=self.execution, description=phase,
            progress_bar=progress_bar,
        )  # fmt: skip
        network.zero_grad(set_to_none=True)
