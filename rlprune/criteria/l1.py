"""L1 norm of the filter (Li et al. 2017, "minimum weight"): needs no data."""

from torch import Tensor, nn

from rlprune.criteria.base import by_output_channel, producing_weights, unit_means
from rlprune.graph import ChannelGraph


class L1:
    """Unit j of a layer scores Σ_k |w_jk|."""

    calibration_images = 0

    def scores(self, model: nn.Module, graph: ChannelGraph, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Images and labels are not used."""
        parameters = dict(model.named_parameters())
        by_channel = {
            name: by_output_channel(parameters[name].detach(), dim).abs().sum(dim=1) for name, dim in producing_weights(graph).items()
        }
        return {group.name: unit_means(group, by_channel) for group in graph.groups}
