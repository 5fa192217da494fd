"""What a criterion is, and what several of them share: filters, reduction to units, a pass over calibration images that leaves no trace."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from rlprune.errors import UserError
from rlprune.graph import ChannelGraph, Group
from rlprune.graph.filters import by_output_channel, named_tensor
from rlprune.graph.labels import Slot
from rlprune.kernels import careful_kernels

Aggregation = Literal["mean", "sum", "max", "first"]
Normalization = Literal["none", "l2", "mean", "max"]
Mode = Literal["eval", "train"]


class Criterion(Protocol):
    """Ranks the units of every group: what scores lowest is removed first.

    One that takes gradients may also have `scores_on(model, graph, calibration)`, which takes those of any `Calibration`: for networks that
    return something else than class scores.
    """

    calibration_images: int
    """Training images that `scores` reads; 0 where it needs no data, and is called without."""

    def scores(
        self, model: nn.Module, graph: ChannelGraph, images: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Group name → float64 scores ≥ 0 on the CPU, shape (unit,). `model` stays as it was.

        Raises:
            UserError: the criterion needs images and labels, and got none.
        """
        ...


# -- from channels to units ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reduction:
    """Scores of channels → scores of units.

    Args:
        aggregation: how a unit's score comes from those of its channels in the producing layers: their `mean`, `sum` or `max`, or the mean
            over the channels that it has in the `first` of these layers, in network order.
        normalization: what the scores of a group are divided by afterwards, so that one ranking over all groups makes sense: `none`, their
            `l2` norm (Molchanov et al. 2017), their `mean` or their `max`. A group of zeros stays so.
    """

    aggregation: Aggregation
    normalization: Normalization

    def __post_init__(self) -> None:
        require_choice("aggregation", self.aggregation, Aggregation)
        require_choice("normalization", self.normalization, Normalization)

    def __call__(self, graph: ChannelGraph, by_slot: Mapping[Slot, Tensor]) -> dict[str, Tensor]:
        """Group name → scores, shape (unit,), from those of the entries of every producing slot, shape (entry,)."""
        return {group.name: self.units(self.by_unit(group, by_slot)) for group in graph.groups}

    @staticmethod
    def by_unit(group: Group, by_slot: Mapping[Slot, Tensor]) -> list[Tensor]:
        """The scores of each producing layer's channels, shape (unit, channels of a unit)."""
        return [by_slot[member.tensor, member.dim].double().cpu()[torch.from_numpy(member.units)] for member in group.producers]

    def units(self, layers: Sequence[Tensor]) -> Tensor:
        """Scores of one group's units, shape (unit,), from those of each layer's channels, shape (unit, channels of a unit)."""
        channels = layers[0] if self.aggregation == "first" else torch.cat(list(layers), dim=1)
        if self.aggregation == "max":
            return self._normalized(channels.amax(dim=1))
        total = channels.sum(dim=1)
        return self._normalized(total if self.aggregation == "sum" else total / channels.shape[1])

    def _normalized(self, scores: Tensor) -> Tensor:
        if self.normalization == "none":
            return scores
        scale = {"l2": torch.linalg.vector_norm, "mean": torch.mean, "max": torch.amax}[self.normalization](scores)
        return scores / scale if scale > 0 else scores


def producing_slots(graph: ChannelGraph) -> list[Slot]:
    """(Qualified name, dimension of the output channels) of every weight that produces prunable channels; tied weights have two."""
    return list(dict.fromkeys((member.tensor, member.dim) for group in graph.groups for member in group.producers))


def filters(model: nn.Module, graph: ChannelGraph) -> dict[Slot, Tensor]:
    """The filters of every producing layer, without gradient, shape (channel, elements)."""
    return {(name, dim): by_output_channel(named_tensor(model, name).detach(), dim) for name, dim in producing_slots(graph)}


class FilterCriterion(ABC):
    """A criterion that looks at one layer's filters and at nothing else.

    Args:
        aggregation: over the channels of a unit, see `Reduction`.
        normalization: inside a group, see `Reduction`.
    """

    calibration_images = 0

    def __init__(self, *, aggregation: Aggregation, normalization: Normalization) -> None:
        self.reduce = Reduction(aggregation, normalization)

    @abstractmethod
    def by_filter(self, filters: Tensor) -> Tensor:
        """Scores of a layer's filters, shape (channel, elements) → (channel,)."""

    def scores(
        self, model: nn.Module, graph: ChannelGraph, images: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Images and labels are not used."""
        return self.reduce(graph, {slot: self.by_filter(rows) for slot, rows in filters(model, graph).items()})


# -- calibration -------------------------------------------------------------------------------------------------------------------------


class Calibration(Protocol):
    """Training examples, and the loss that gradients are taken of, in forward passes over all of them."""

    @property
    def device(self) -> torch.device:
        """Of the examples."""

    def __len__(self) -> int: ...

    def loss(self, model: nn.Module) -> Tensor:
        """Mean over the examples."""

    def total(self, model: nn.Module) -> Tensor:
        """Their sum, or a multiple of it."""

    def of_last(self, model: nn.Module) -> Tensor:
        """A scalar that only the outputs of the last example go into."""

    def part(self, start: int, stop: int) -> "Calibration":
        """Some of the examples."""


@dataclass(frozen=True)
class Labelled:
    """Images with labels, and the cross-entropy of class scores."""

    images: Tensor
    labels: Tensor

    @property
    def device(self) -> torch.device:
        """Of the images."""
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def loss(self, model: nn.Module) -> Tensor:
        """Mean over the images."""
        return F.cross_entropy(model(self.images).float(), self.labels)

    def total(self, model: nn.Module) -> Tensor:
        """Sum over the images."""
        return F.cross_entropy(model(self.images).float(), self.labels, reduction="sum")

    def of_last(self, model: nn.Module) -> Tensor:
        """Cross-entropy of the last image."""
        return F.cross_entropy(model(self.images)[-1:].float(), self.labels[-1:])

    def part(self, start: int, stop: int) -> "Labelled":
        """Some of the images."""
        return Labelled(self.images[start:stop], self.labels[start:stop])


# -- passes over calibration images ------------------------------------------------------------------------------------------------------


def require_data(images: Tensor | None, labels: Tensor | None, criterion: str) -> Labelled:
    """Images with labels, of which there must be some.

    Raises:
        UserError: there are none.
    """
    if images is None or labels is None or len(images) == 0:
        raise UserError(f"criterion={criterion}: scores by gradients on images with labels; pass some, or take one without, criterion=l1")
    return Labelled(images, labels)


def require_calibration(mode: str, calibration_images: int) -> None:
    """Check the settings of a criterion that reads images.

    Raises:
        ValueError: one is out of range.
    """
    require_choice("mode", mode, Mode)
    if calibration_images < 1:
        raise ValueError(f"calibration_images={calibration_images}: must be ≥ 1")


def require_choice(name: str, value: str, kind: object) -> None:
    """Check a setting that takes one of a few words.

    Raises:
        ValueError: it is none of them.
    """
    if value not in get_args(kind):
        raise ValueError(f"{name}={value}: must be one of {', '.join(get_args(kind))}")


@contextmanager
def calibrating(model: nn.Module, tensors: Iterable[Tensor], mode: str, device: torch.device) -> Iterator[None]:
    """Passes inside of this context may take gradients for `tensors`, frozen ones too; behind it the model is as it was.

    Only norms with running statistics follow `mode`; all else is in eval mode, as dropout would draw from the run's random numbers, and
    some networks return more than class scores while they train.
    """
    modes = [(module, module.training) for module in model.modules()]
    frozen = [tensor for tensor in tensors if not tensor.requires_grad]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        model.eval()
        for module, _ in modes:
            if isinstance(module, _NormBase):
                module.training = mode == "train"
        for tensor in frozen:
            tensor.requires_grad_(True)
        with torch.enable_grad(), careful_kernels(model, device):
            yield
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer  # a forward pass may have put another tensor there
            buffer.copy_(value)
        for module, training in modes:
            module.training = training


def gradients(loss: Tensor, tensors: Iterable[Tensor]) -> list[Tensor | None]:
    """Gradients of a scalar, None for tensors that it does not depend on. `.grad` stays as it is."""
    wanted = list(tensors)
    if not wanted or not loss.requires_grad:
        return [None] * len(wanted)
    return list(torch.autograd.grad(loss, wanted, allow_unused=True))
