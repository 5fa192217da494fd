"""Weight Taylor importance (RL-Pruner, equations 21–24; first order of LeCun et al. 1989)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.criteria.base import by_output_channel, producing_weights, unit_means
from rlprune.graph import ChannelGraph
from rlprune.kernels import careful_kernels


class WeightTaylor:
    """Unit j of a layer scores Σ_k |w_jk · ∂L/∂w_jk|, or |Σ_k w_jk · ∂L/∂w_jk|.

    Args:
        reduction: `sum_of_abs`, the default of the paper's code, or `abs_of_sum`. The second vanishes for a convolution before a batch norm
            in train mode, as scaling its filters then changes nothing, so it asks for mode=eval.
        mode: whether batch norm uses its running statistics (`eval`) or the calibration batch's (`train`); statistics are never changed.
        calibration_images: training images for the gradient; 100 in the paper.
    """

    def __init__(self, *, reduction: Literal["sum_of_abs", "abs_of_sum"], mode: Literal["eval", "train"], calibration_images: int) -> None:
        if reduction == "abs_of_sum" and mode == "train":
            raise ValueError("mode=train: reduction=abs_of_sum is zero for every layer before a batch norm in train mode; use mode=eval")
        if calibration_images < 1:
            raise ValueError(f"calibration_images={calibration_images}: must be ≥ 1")
        self.reduction, self.mode, self.calibration_images = reduction, mode, calibration_images

    def scores(self, model: nn.Module, graph: ChannelGraph, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One forward and backward pass in float32."""
        parameters = dict(model.named_parameters())
        weights = {name: parameters[name] for name in producing_weights(graph)}
        gradients = dict(zip(weights, self._gradients(model, list(weights.values()), images, labels), strict=True))
        by_channel = {}
        for name, dim in producing_weights(graph).items():
            products = by_output_channel(weights[name].detach() * gradients[name], dim)
            by_channel[name] = products.abs().sum(dim=1) if self.reduction == "sum_of_abs" else products.sum(dim=1).abs()
        return {group.name: unit_means(group, by_channel) for group in graph.groups}

    def _gradients(self, model: nn.Module, weights: list[Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        modes = [(module, module.training) for module in model.modules()]
        frozen = [weight for weight in weights if not weight.requires_grad]
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()} if self.mode == "train" else {}
        try:
            model.train(self.mode == "train")
            for weight in frozen:
                weight.requires_grad_(True)
            with torch.enable_grad(), careful_kernels(model, images.device):
                loss = F.cross_entropy(model(images).float(), labels)
                found = torch.autograd.grad(loss, weights, allow_unused=True)
                return tuple(torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True))
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
            for module, training in modes:
                module.training = training
