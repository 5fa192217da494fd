"""Random scores: the control that any criterion must beat. Needs no data."""

import torch
from torch import Tensor, nn

from rlprune.criteria.base import Aggregation, Normalization, Reduction, producing_slots
from rlprune.graph import ChannelGraph
from rlprune.seeding import torch_generator


class Random:
    """Every channel scores a number out of [0, 1).

    Args:
        seed: of the run. The same seed and numbers of units left give the same scores; after a prune there are new ones.
        aggregation: over the channels of a unit, see `Reduction`.
        normalization: inside a group, see `Reduction`.
    """

    calibration_images = 0

    def __init__(self, *, seed: int, aggregation: Aggregation, normalization: Normalization) -> None:
        self.seed = seed
        self.reduce = Reduction(aggregation, normalization)

    def scores(
        self, model: nn.Module, graph: ChannelGraph, images: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Images, labels and the model's weights are not used."""
        generator = torch_generator(self.seed, f"random criterion, units {graph.num_units.tolist()}")
        drawn = {slot: torch.rand(graph.size(*slot), generator=generator, dtype=torch.float64) for slot in producing_slots(graph)}
        return self.reduce(graph, drawn)
