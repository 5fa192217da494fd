"""Scales of the batch norms (Liu et al. 2017, network slimming): needs no data."""

import logging

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from rlprune.criteria.base import Aggregation, Normalization, Reduction, filters
from rlprune.graph import ChannelGraph, Group
from rlprune.graph.filters import named_tensor

log = logging.getLogger(__name__)


class BNScale:
    """A unit scores |γ| of the norms that its channels pass: batch norms, and instance and group norms with a γ for each channel.

    Groups without one have no γ: they score the L1 norm of their filters, and a warning names them once.

    Args:
        aggregation: over the γ of a unit, where `first` is its first norm; over its filters where there is no γ. See `Reduction`.
        normalization: inside a group, see `Reduction`.
    """

    calibration_images = 0

    def __init__(self, *, aggregation: Aggregation, normalization: Normalization) -> None:
        self.reduce = Reduction(aggregation, normalization)
        self._warned = False

    def scores(
        self, model: nn.Module, graph: ChannelGraph, images: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Images and labels are not used."""
        scales = {group.name: _scales(model, group) for group in graph.groups}
        without = [name for name, found in scales.items() if not found]
        if without and not self._warned:
            self._warned = True
            log.warning(
                "criterion=bn_scale: no batch norm with a scale behind %s; scored by the L1 norm of its filters", ", ".join(without)
            )
        norms = {slot: rows.abs().sum(dim=1) for slot, rows in filters(model, graph).items()} if without else {}
        return {group.name: self.reduce.units(scales[group.name] or self.reduce.by_unit(group, norms)) for group in graph.groups}


def _scales(model: nn.Module, group: Group) -> list[Tensor]:
    """|γ| of every norm of a group, shape (unit, channels of a unit)."""
    found = []
    for member in group.members:
        if member.role == "channel" and member.tensor.rpartition(".")[2] == "weight":
            owner = model.get_submodule(member.tensor.rpartition(".")[0])
            if isinstance(owner, _NormBase | nn.GroupNorm):
                found.append(named_tensor(model, member.tensor).detach().abs().double().cpu()[member.units])
    return found
