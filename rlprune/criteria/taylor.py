"""Weight Taylor importance (RL-Pruner, equations 21–24; first order of LeCun et al. 1989)."""

from typing import Literal

import torch
from torch import Tensor, nn

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
    require_choice,
    require_data,
)
from rlprune.graph import ChannelGraph
from rlprune.graph.filters import by_output_channel, named_tensor

Products = Literal["sum_of_abs", "abs_of_sum"]


class WeightTaylor:
    """Channel j of a layer scores Σ_k |w_jk · ∂L/∂w_jk|, or |Σ_k w_jk · ∂L/∂w_jk|.

    Args:
        reduction: `sum_of_abs`, the default of the paper's code, or `abs_of_sum`. The second vanishes for a convolution before a batch norm
            in train mode, as scaling its filters then changes nothing, so it asks for mode=eval.
        mode: whether batch norm uses its running statistics (`eval`) or the calibration batch's (`train`); statistics are never changed.
        calibration_images: training images for the gradient; 100 in the paper.
        aggregation: over the channels of a unit, see `Reduction`.
        normalization: inside a group, see `Reduction`.
    """

    def __init__(
        self, *, reduction: Products, mode: Mode, calibration_images: int, aggregation: Aggregation, normalization: Normalization
    ) -> None:
        require_choice("reduction", reduction, Products)
        require_calibration(mode, calibration_images)
        if reduction == "abs_of_sum" and mode == "train":
            raise ValueError("mode=train: reduction=abs_of_sum is zero for every layer before a batch norm in train mode; use mode=eval")
        self.reduction, self.mode, self.calibration_images = reduction, mode, calibration_images
        self.reduce = Reduction(aggregation, normalization)

    def scores(
        self, model: nn.Module, graph: ChannelGraph, images: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One forward and backward pass in the network's precision; weights outside the loss score 0.

        Raises:
            UserError: there are no images or labels.
        """
        return self.scores_on(model, graph, require_data(images, labels, "taylor"))

    def scores_on(self, model: nn.Module, graph: ChannelGraph, calibration: Calibration) -> dict[str, Tensor]:
        """The same, by the loss of other examples."""
        slots = producing_slots(graph)
        weights = {name: named_tensor(model, name) for name, _ in slots}
        with calibrating(model, weights.values(), self.mode, calibration.device):
            found = dict(zip(weights, gradients(calibration.loss(model), weights.values()), strict=True))
        by_slot = {}
        for name, dim in slots:
            weight, gradient = weights[name].detach(), found[name]
            products = by_output_channel(torch.zeros_like(weight) if gradient is None else weight * gradient, dim)
            by_slot[name, dim] = products.abs().sum(dim=1) if self.reduction == "sum_of_abs" else products.sum(dim=1).abs()
        return self.reduce(graph, by_slot)
