"""What a criterion is, and the one reduction that all of them share."""

from typing import Protocol

import torch
from torch import Tensor, nn

from rlprune.graph import ChannelGraph, Group


class Criterion(Protocol):
    """Ranks the units of every group: what scores lowest is removed first."""

    calibration_images: int
    """Training images that `scores` reads; 0 where it needs no data."""

    def scores(self, model: nn.Module, graph: ChannelGraph, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Group name → float64 scores on the CPU, shape (unit,). `model` stays as it was."""
        ...


def unit_means(group: Group, by_channel: dict[str, Tensor]) -> Tensor:
    """A unit scores the mean over the channels it has in its producing layers.

    Args:
        group: the group.
        by_channel: scores of the output channels of each producing weight, by its qualified name, shape (channel,).
    """
    total = torch.zeros(group.num_units, dtype=torch.float64)
    for member in group.producers:
        total += by_channel[member.tensor].double().cpu()[torch.from_numpy(member.units)].sum(dim=1)
    return total / group.channels_per_unit


def by_output_channel(weight: Tensor, dim: int) -> Tensor:
    """A weight with its output channels first and the rest flattened, shape (channel, elements)."""
    return weight.movedim(dim, 0).flatten(1)


def producing_weights(graph: ChannelGraph) -> dict[str, int]:
    """Qualified name → dimension of output channels, for every weight that produces prunable channels."""
    return {member.tensor: member.dim for group in graph.groups for member in group.producers}
