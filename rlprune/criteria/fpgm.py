"""Filter pruning via geometric median (He et al. 2019): what lies closest to all others is redundant. Needs no data."""

import torch
from torch import Tensor, nn

from rlprune.criteria.base import Aggregation, Normalization, Reduction, filters
from rlprune.graph import ChannelGraph


class FPGM:
    """Channel j of a layer scores Σ_i ‖w_j − w_i‖₂ over the layer's filters (equation 6).

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
        return self.reduce(graph, {slot: _distances(rows) for slot, rows in filters(model, graph).items()})


def _distances(rows: Tensor) -> Tensor:
    """Sum of the Euclidean distances from every row to all others, shape (row,); extra memory (row, row) and two copies of the rows."""
    rows = rows.float()  # there is no cdist for half precision
    centred = rows - rows.mean(dim=0)  # cdist multiplies the squares out, which loses digits far from zero
    return torch.cdist(centred, centred).fill_diagonal_(0).sum(dim=1, dtype=torch.float64)
