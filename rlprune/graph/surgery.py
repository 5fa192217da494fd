"""Removing and zeroing channels."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlprune.errors import UserError
from rlprune.graph.channel_graph import ChannelGraph, Keep
from rlprune.graph.run import copy_module


def prune(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """A smaller network of the same class: only the kept units of each group remain.

    The original is untouched. Hooks, dtype, device, memory format, requires_grad, train or eval mode and shared weights are kept.

    Args:
        model: the network that `graph` was traced on.
        graph: its channel graph.
        keep: kept unit indices by group name; absent groups stay whole.

    Raises:
        UserError: an unknown group, or a list that is empty, out of range or has duplicates.
    """
    sliced = _sliced_tensors(model, graph, keep, own=True)
    memo: dict[int, Any] = {}
    for name, tensor in _named_tensors(model):
        memo[id(tensor)] = sliced[name]
    pruned = copy_module(model, memo)
    _patch(pruned, graph)
    return pruned


def mask(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """A copy of the network with the removed units' weights set to zero; shapes stay."""
    masked = copy_module(model)
    tensors = dict(_named_tensors(masked))
    with torch.no_grad():
        for (name, dim), gone in graph.removed_entries(keep).items():
            if not name.endswith("running_var"):  # a variance of zero would divide by almost nothing
                tensors[name].index_fill_(dim, torch.from_numpy(np.flatnonzero(gone)).to(tensors[name].device), 0)
    return masked


class Slicer:
    """Builds many small networks of one big one quickly: a single copy of the module tree whose tensors are exchanged.

    Each call invalidates the network that the call before returned. Weights that no plan touches are shared with the original.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self._source, self._graph = model, graph
        memo: dict[int, Any] = {id(tensor): tensor for _, tensor in _named_tensors(model)}
        self._skeleton = copy_module(model, memo).eval()
        owners = dict(self._skeleton.named_modules())
        # Every place that holds a tensor, so that shared weights are exchanged in all of them.
        name_of = {id(tensor): name for name, tensor in _named_tensors(model)}
        self._places: dict[str, list[tuple[dict[str, Any], str]]] = {}
        for module in owners.values():
            for holder in (module._parameters, module._buffers):
                for key, tensor in holder.items():
                    if tensor is not None and id(tensor) in name_of:  # compiled modules hand out new objects
                        self._places.setdefault(name_of[id(tensor)], []).append((holder, key))

    def __call__(self, keep: Keep) -> nn.Module:
        """The network with only the kept units, in eval mode, for inference alone."""
        for name, tensor in _sliced_tensors(self._source, self._graph, keep, own=False).items():
            for holder, key in self._places.get(name, []):
                holder[key] = tensor
        _patch(self._skeleton, self._graph)
        return self._skeleton


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _sliced_tensors(model: nn.Module, graph: ChannelGraph, keep: Keep, *, own: bool) -> dict[str, Tensor]:
    """Every parameter and buffer without the removed entries; `own`: as new parameters, sharing nothing."""
    _require_match(model, graph)
    gone = graph.removed_entries(keep)
    dims: dict[str, list[tuple[int, np.ndarray]]] = {}
    for (name, dim), removed in gone.items():
        dims.setdefault(name, []).append((dim, removed))
    tensors = {}
    for name, tensor in _named_tensors(model):
        result = tensor.detach()
        for dim, removed in dims.get(name, []):
            stays = np.ones(result.shape[dim], dtype=bool)
            stays[: len(removed)] = ~removed
            result = result.index_select(dim, torch.from_numpy(np.flatnonzero(stays)).to(result.device))
        if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
            result = result.contiguous(memory_format=torch.channels_last)
        if own:
            result = result.clone() if result.data_ptr() == tensor.data_ptr() else result
        if isinstance(tensor, nn.Parameter):
            result = nn.Parameter(result, requires_grad=tensor.requires_grad and own)
        tensors[name] = result
    return tensors


def _require_match(model: nn.Module, graph: ChannelGraph) -> None:
    """A graph fits the network it was traced on, and those of the same shapes."""
    shapes = {name: tensor.shape for name, tensor in _named_tensors(model)}
    for row, name in enumerate(graph.cost.names):
        expected = [int(size[row]) for size in graph.cost.sizes]
        shape = shapes.get(name)
        if shape is None or list(shape) != expected[: len(shape)]:
            raise UserError(f"{name}: is not as the graph knows it; trace this network again, or use graph.after(keep) for a pruned one")


def _patch(model: nn.Module, graph: ChannelGraph) -> None:
    """Make the sizes that modules keep as attributes agree with their weights; what a module says now is not trusted."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.modules.conv._ConvNd) and isinstance(weight, Tensor):
            _patch_convolution(module, weight, graph, f"{name}.weight" if name else "weight")
        elif isinstance(module, nn.Linear) and isinstance(weight, Tensor):
            module.out_features, module.in_features = weight.shape
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            vector = next((v for v in (weight, module.running_mean) if v is not None), None)
            if vector is not None:
                module.num_features = len(vector)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.numel()


def _patch_convolution(module: nn.modules.conv._ConvNd, weight: Tensor, graph: ChannelGraph, name: str) -> None:
    first, second = weight.shape[:2]
    if name in graph.depthwise:
        module.out_channels = first
        module.groups = module.in_channels = first // graph.depthwise[name]
    elif name in graph.grouped:
        module.out_channels, module.in_channels = first, second * graph.grouped[name]
    elif module.groups == 1:
        module.out_channels, module.in_channels = (second, first) if module.transposed else (first, second)
