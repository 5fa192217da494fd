"""L1 norm of the filter (Li et al. 2017, "minimum weight"): needs no data."""

from torch import Tensor

from rlprune.criteria.base import FilterCriterion


class L1(FilterCriterion):
    """Channel j of a layer scores Σ_k |w_jk|."""

    def by_filter(self, filters: Tensor) -> Tensor:
        """Shape (channel, elements) → (channel,)."""
        return filters.abs().sum(dim=1)
