"""L2 norm of the filter (as in He et al. 2018, soft filter pruning): needs no data."""

import torch
from torch import Tensor, nn

from rlprune.criteria.base import Aggregation, Normalization, Reduction, filters
from rlprune.graph import ChannelGraph


class L2:
    """Channel j of a layer scores (Σ_k w_jk²)^½.

    Args:
        aggregation: over the channels of a unit, see `Reduction`.
        normalization: inside a group, see `Reduction`.
    """

    calibration_images = 0

    def __init__(self, *, aggregation: Aggregation, normalization: Normalization) -> None:
        self.reduce = Reduction(aggregation, normalization)

    def scores(
        self, model: nn.Module, graph: ChannelGraph, images: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Images and labels are not used."""
        return self.reduce(graph, {slot: torch.linalg.vector_norm(rows, dim=1) for slot, rows in filters(model, graph).items()})
