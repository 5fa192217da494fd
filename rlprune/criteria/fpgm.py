"""Filter pruning via geometric median (He et al. 2019): what lies closest to all others is redundant. Needs no data."""

import torch
from torch import Tensor

from rlprune.criteria.base import FilterCriterion


class FPGM(FilterCriterion):
    """Channel j of a layer scores Σ_i ‖w_j − w_i‖₂ over the layer's filters (equation 6)."""

    def by_filter(self, filters: Tensor) -> Tensor:
        """Shape (channel, elements) → (channel,)."""
        return _distances(filters)


def _distances(rows: Tensor) -> Tensor:
    """Sum of the Euclidean distances from every row to all others, shape (row,); extra memory (row, row) and two copies of the rows."""
    rows = rows.float()  # there is no cdist for half precision
    centred = rows - rows.mean(dim=0)  # cdist multiplies the squares out, which loses digits far from zero
    return torch.cdist(centred, centred).fill_diagonal_(0).sum(dim=1, dtype=torch.float64)
