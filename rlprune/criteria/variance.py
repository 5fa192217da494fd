"""Variance of a filter's weights: a filter whose weights are all alike only averages its inputs. Needs no data."""

from torch import Tensor, nn

from rlprune.criteria.base import Aggregation, Normalization, Reduction, filters
from rlprune.graph import ChannelGraph


class Variance:
    """Channel j of a layer scores the mean over k of (w_jk − w̄_j)²; filters of a single weight score 0.

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
        return self.reduce(graph, {slot: rows.var(dim=1, correction=0) for slot, rows in filters(model, graph).items()})
