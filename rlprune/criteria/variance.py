"""Variance of a filter's weights: a filter whose weights are all alike only averages its inputs. Needs no data."""

from torch import Tensor

from rlprune.criteria.base import FilterCriterion


class Variance(FilterCriterion):
    """Channel j of a layer scores the mean over k of (w_jk − w̄_j)²; filters of a single weight score 0."""

    def by_filter(self, filters: Tensor) -> Tensor:
        """Shape (channel, elements) → (channel,)."""
        return filters.var(dim=1, correction=0)
