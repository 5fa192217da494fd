"""The filters behind channels: rows of producing weights."""

import torch
from torch import Tensor, nn

from rlprune.graph.channel_graph import Group


def named_tensor(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its qualified name."""
    module, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(module), leaf)
    return tensor


def by_output_channel(weight: Tensor, dim: int) -> Tensor:
    """A weight with its output channels first and the rest flattened, shape (channel, elements)."""
    return weight.movedim(dim, 0).reshape(weight.shape[dim], -1)


def unit_filters(model: nn.Module, group: Group) -> Tensor:
    """What makes each unit of a group: the filters of all its channels, in all producing layers, behind one another.

    Each layer is scaled to a mean square of 1, as coupled layers may have weights of different sizes.

    Returns:
        A float32 copy on the CPU, shape (unit, elements).
    """
    rows = []
    for member in group.producers:
        filters = by_output_channel(named_tensor(model, member.tensor).detach(), member.dim)[torch.from_numpy(member.units)].flatten(1)
        filters = filters.float().cpu()
        rows.append(filters / filters.square().mean().sqrt().clamp(min=1e-12))
    return torch.cat(rows, dim=1)
