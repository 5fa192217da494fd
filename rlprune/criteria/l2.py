"""L2 norm of the filter (as in He et al. 2018, soft filter pruning): needs no data."""

import torch
from torch import Tensor

from rlprune.criteria.base import FilterCriterion


class L2(FilterCriterion):
    """Channel j of a layer scores (Σ_k w_jk²)^½."""

    def by_filter(self, filters: Tensor) -> Tensor:
        """Shape (channel, elements) → (channel,)."""
        return torch.linalg.vector_norm(filters, dim=1)
