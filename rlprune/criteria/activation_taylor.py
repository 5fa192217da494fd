"""Activation Taylor importance (FPRL, equations 11–13, after Molchanov et al. 2017).

For one example, Σ over space of h_i · ∂C/∂h_i is the derivative of its loss by a factor on feature map i. So the output of every producing
layer is multiplied by ones, one for each example and channel, and the gradients of these are the products. The layer's own output meets
them, whatever works in place behind it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from rlprune.criteria.base import (
    Aggregation,
    Calibration,
    Mode,
    Normalization,
    Reduction,
    calibrating,
    gradients,
    producing_slots,
    require_calibration,
    require_data,
)
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph
from rlprune.graph.filters import by_output_channel, named_tensor
from rlprune.graph.labels import Slot

WEIGHT_AT = {f"conv{kind}{dims}d": 1 for kind in ("", "_transpose") for dims in (1, 2, 3)} | {"linear": 1, "embedding": 1, "bilinear": 2}
"""Functions whose output has the channels of a weight, and the place of that weight among their arguments."""


class ActivationTaylor:
    """Feature map i scores the mean over examples of |mean over space of h_i · ∂C/∂h_i|, L2-normalised inside its layer.

    Sums over space stand for means: the factor between them belongs to the layer, and its L2 norm takes it out. A layer that is called
    several times adds the calls up inside an example, as a removed filter is missing in all of them. The maps that an entry of a grouped
    transposed convolution makes, one in every group, are scored one by one and added.

    Where there is no such output (`x @ self.w`), or its first axis does not hold the examples, Σ_k w_ik · ∂C/∂w_ik of one example is the
    same number, as h_i is linear in its weights; it takes a pass for each example. A bias counts where a layer of torch owns it, that of
    a raw weight does not.

    Args:
        mode: whether batch norm uses its running statistics (`eval`) or the calibration batch's (`train`); statistics are never changed.
        calibration_images: training images for the gradient.
        aggregation: over the channels of a unit, see `Reduction`.
        normalization: inside a group, on top of that inside the layer, see `Reduction`.
    """

    def __init__(self, *, mode: Mode, calibration_images: int, aggregation: Aggregation, normalization: Normalization) -> None:
        require_calibration(mode, calibration_images)
        self.mode, self.calibration_images = mode, calibration_images
        self.reduce = Reduction(aggregation, normalization)

    def scores(
        self, model: nn.Module, graph: ChannelGraph, images: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One forward and backward pass, and one for each example where a weight asks for it; weights outside the loss score 0.

        Raises:
            UserError: there are no images or labels, or mode=train meets a weight that asks for passes of single examples.
        """
        return self.scores_on(model, graph, require_data(images, labels, "activation_taylor"))

    def scores_on(self, model: nn.Module, graph: ChannelGraph, calibration: Calibration) -> dict[str, Tensor]:
        """The same, by the loss of other examples."""
        slots, device = producing_slots(graph), calibration.device
        weights = {name: named_tensor(model, name) for name, _ in slots}
        with calibrating(model, weights.values(), "eval", device):
            mixed = _mixed(model, weights, calibration)
        with calibrating(model, weights.values(), self.mode, device):
            found, single = _by_gates(model, slots, {name: w for name, w in weights.items() if name not in mixed}, calibration)
        if single and self.mode == "train":
            layer = single[0][0].rpartition(".")[0] or single[0][0]
            raise UserError(f"criterion.mode=train: the outputs of {layer} cannot be told apart by example; type criterion.mode=eval")
        if single:
            biases = {slot: bias for slot in single if (bias := _bias(model, slot)) is not None}
            with calibrating(model, [*weights.values(), *biases.values()], "eval", device):
                found |= _by_example(model, {slot: weights[slot[0]] for slot in single}, biases, calibration)
        return self.reduce(graph, {slot: _normalized(found[slot]) for slot in slots})


class _Gates(TorchFunctionMode):
    """Multiplies what producing layers return by ones, kept in `ones` by the weight's name, shape (example, channel).

    `unfit` names weights with an output whose first axis cannot hold the examples; it goes on as it is.
    """

    def __init__(self, weights: Mapping[str, Tensor], examples: int) -> None:
        super().__init__()
        self.names = {id(weight): name for name, weight in weights.items()}
        self.examples = examples
        self.ones: dict[str, Tensor] = {}
        self.kinds: dict[str, str] = {}
        self.unfit: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        kind = getattr(func, "__name__", "")
        place = WEIGHT_AT.get(kind)
        if place is None:
            return result
        weight = kwargs.get("weight", args[place] if len(args) > place else None)
        name = self.names.get(id(weight))
        return result if name is None else self._gated(result, name, kind, weight)

    def _gated(self, result: Tensor, name: str, kind: str, weight: Tensor) -> Tensor:
        axis = result.ndim - weight.ndim + 1 if kind.startswith("conv") else result.ndim - 1
        channels, rows = result.shape[axis], result.shape[0]
        known = self.ones.get(name)
        alike = known is None or (known.shape[1] == channels and self.kinds[name] == kind)
        if axis == 0 or rows % self.examples or not alike:
            self.unfit.add(name)
            return result
        if known is None:
            self.kinds[name] = kind
            known = self.ones[name] = result.new_ones(self.examples, channels).requires_grad_()
        shape = [rows, *[1] * (result.ndim - 1)]
        shape[axis] = channels
        return result * known.repeat_interleave(rows // self.examples, dim=0).view(shape)

    def explains(self, slot: Slot, weight: Tensor) -> bool:
        """Whether the ones of a weight stand for the channels along that dimension of it."""
        name, dim = slot
        if name not in self.ones or name in self.unfit:
            return False
        if self.kinds[name].startswith("conv_transpose"):  # (in, out / groups); whole groups go by their inputs
            return dim == 1 or (dim == 0 and self.ones[name].shape[1] > weight.shape[1])
        return dim == (1 if self.kinds[name] == "embedding" else 0)


def _mixed(model: nn.Module, weights: Mapping[str, Tensor], calibration: Calibration) -> set[str]:
    """Weights of layers whose first axis does not hold the examples one after the other: the loss of the second reaches the first's rows.

    Norms without running statistics tie examples together themselves: then their order along the first axis is taken on trust.
    """
    if len(calibration) < 2:
        return set()
    gates = _Gates(weights, 2)
    with gates:
        loss = calibration.part(0, 2).of_last(model)
    if any(isinstance(module, _BatchNorm) and module.running_mean is None for module in model.modules()):
        return gates.unfit
    found = gradients(loss, gates.ones.values())
    return gates.unfit | {name for name, gradient in zip(gates.ones, found, strict=True) if gradient is not None and gradient[0].any()}


def _by_gates(
    model: nn.Module, slots: Sequence[Slot], gated: Mapping[str, Tensor], calibration: Calibration
) -> tuple[dict[Slot, Tensor], list[Slot]]:
    """Scores of the entries of slots, shape (entry,), from one pass, and the slots that need a pass for each example."""
    weights = {name: named_tensor(model, name) for name, _ in slots}
    gates = _Gates(gated, len(calibration))
    with gates:
        loss = calibration.total(model)  # of which an example's products hold its own loss only
    left = {slot: weights[slot[0]] for slot in slots if not gates.explains(slot, weights[slot[0]])}
    products = gradients(loss, [*gates.ones.values(), *left.values()])
    by_name = dict(zip(gates.ones, products, strict=False))
    scores, single = {}, []
    for slot, gradient in zip(left, products[len(gates.ones) :], strict=True):
        if gradient is None:
            scores[slot] = weights[slot[0]].new_zeros(weights[slot[0]].shape[slot[1]])
        else:
            single.append(slot)
    for slot in slots:
        if slot not in left:
            weight, gradient = weights[slot[0]], by_name[slot[0]]
            channels = gates.ones[slot[0]].shape[1]
            maps = weight.new_zeros(channels) if gradient is None else gradient.abs().mean(dim=0)
            scores[slot] = _by_entry(maps, weight, slot[1]) if gates.kinds[slot[0]].startswith("conv_transpose") else maps
    return scores, single


def _by_entry(maps: Tensor, weight: Tensor, dim: int) -> Tensor:
    """Feature maps of a transposed convolution, shape (channel,) → entries of its weight (in, out / groups) along `dim`."""
    by_group = maps.view(-1, weight.shape[1])  # (group, channel of a group)
    if dim == 1:
        return by_group.sum(dim=0)
    return by_group.sum(dim=1).repeat_interleave(weight.shape[0] // len(by_group))


def _bias(model: nn.Module, slot: Slot) -> Tensor | None:
    """The bias that one of torch's layers adds to the channels along this dimension of its weight."""
    name, dim = slot
    owner = model.get_submodule(name.rpartition(".")[0])
    if not isinstance(owner, _ConvNd | nn.Linear | nn.Bilinear) or name.rpartition(".")[2] != "weight":
        return None
    bias: Tensor | None = owner.bias
    fits = bias is not None and dim == int(isinstance(owner, _ConvTransposeNd)) and len(bias) == owner.weight.shape[dim]
    return bias if fits else None


def _by_example(
    model: nn.Module, weights: Mapping[Slot, Tensor], biases: Mapping[Slot, Tensor], calibration: Calibration
) -> dict[Slot, Tensor]:
    """Mean over examples of |Σ_k w_ik · ∂C/∂w_ik + b_i · ∂C/∂b_i|, shape (entry,)."""
    scores = {slot: weight.new_zeros(weight.shape[slot[1]]) for slot, weight in weights.items()}
    for index in range(len(calibration)):
        loss = calibration.part(index, index + 1).loss(model)
        found = gradients(loss, [*weights.values(), *biases.values()])
        by_bias = dict(zip(biases, found[len(weights) :], strict=True))
        for (slot, weight), gradient in zip(weights.items(), found, strict=False):
            products = torch.zeros_like(weight) if gradient is None else weight.detach() * gradient
            total, slope = by_output_channel(products, slot[1]).sum(dim=1), by_bias.get(slot)
            scores[slot] += (total if slope is None else total + biases[slot].detach() * slope).abs() / len(calibration)
    return scores


def _normalized(scores: Tensor) -> Tensor:
    """Divided by their L2 norm; zeros stay."""
    scores = scores.double()
    norm = torch.linalg.vector_norm(scores)
    return scores / norm if norm > 0 else scores
