"""Removing and zeroing channels."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlprune.errors import UserError
from rlprune.graph.channel_graph import ChannelGraph, Keep, width_after
from rlprune.graph.run import copy_module, named_tensors


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
    _require_types(model, graph)
    tensors = named_tensors(dict(model.named_modules()))
    _require_match(tensors, graph)
    slices = Slices(graph, keep)
    memo: dict[int, Any] = {}
    for name, tensor in tensors:
        result = slices.cut(name, tensor.detach())
        if result.data_ptr() == tensor.data_ptr():
            result = result.clone()
        memo[id(tensor)] = nn.Parameter(result, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else result
    pruned = copy_module(model, memo)
    patch(dict(pruned.named_modules()), graph, keep)
    return pruned


@torch.no_grad()
def graft(small: nn.Module, large: nn.Module, graph: ChannelGraph, keep: Keep) -> None:
    """The reverse of `prune`: put the tensors of a pruned network where they were cut out of the large one, in place.

    What the small network does not have stays as it is in the large one.

    Args:
        small: of the shapes that `prune(large, graph, keep)` has, with weights of its own.
        large: the network that takes them.
        graph: the channel graph of `large`.
        keep: units of `large` that `small` has, by group name.

    Raises:
        UserError: as `prune`.
    """
    tensors = dict(named_tensors(dict(large.named_modules())))
    _require_match(list(tensors.items()), graph)
    slices = Slices(graph, keep)
    for name, tensor in named_tensors(dict(small.named_modules())):
        if name in slices.renumbered:  # channel numbers of the small network
            continue
        target, places = tensors[name], dict(slices.dims.get(name, ()))
        if not places:
            target.copy_(tensor)
            continue
        axes = [places[dim] if dim in places else torch.arange(size) for dim, size in enumerate(target.shape)]
        index = tuple(axis.to(target.device).view([-1 if d == dim else 1 for d in range(target.ndim)]) for dim, axis in enumerate(axes))
        target[index] = tensor.detach()


def mask(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """A copy of the network with the removed units' weights set to zero; shapes stay, outputs are those of the pruned network.

    Raises:
        UserError: an unknown group, or a list that is empty, out of range or has duplicates.
    """
    _require_types(model, graph)
    masked = copy_module(model)
    tensors = dict(named_tensors(dict(masked.named_modules())))
    _require_match(list(tensors.items()), graph)
    zeroed = _zeroed(graph)
    with torch.no_grad():
        for (name, dim), gone in graph.removed_entries(keep).items():
            if (name, dim) in zeroed:
                tensors[name].index_fill_(dim, torch.from_numpy(np.flatnonzero(gone)).to(tensors[name].device), 0)
    return masked


def _zeroed(graph: ChannelGraph) -> set[tuple[str, int]]:
    """(tensor, dim) of weights that are zeroed with their units: not running statistics, indices, or what may be a divisor."""
    roles = {(member.tensor, member.dim): member.role for group in graph.groups for member in group.members}
    return {slot for slot, role in roles.items() if role in ("out", "in", "channel")}


class Slices:
    """Cuts tensors down to what a plan keeps."""

    def __init__(self, graph: ChannelGraph, keep: Keep) -> None:
        self.dims: dict[str, list[tuple[int, Tensor]]] = {}
        self._scratch: Tensor | None = None  # for what lies between two cuts: fresh memory costs more than the copy itself
        positions: dict[int, Tensor] = {}
        gone = graph.removed_entries(keep)  # where the same entries go, by the same mask
        for (name, dim), removed in gone.items():
            if id(removed) not in positions:
                positions[id(removed)] = torch.from_numpy(np.flatnonzero(~removed))
            self.dims.setdefault(name, []).append((dim, positions[id(removed)]))
        self.renumbered = {}
        for buffer in graph.indices:
            removed = graph.removed_from(keep, buffer)
            if removed.any():
                self.renumbered[buffer.tensor] = torch.from_numpy(np.cumsum(~removed) - 1)

    def cut(self, name: str, tensor: Tensor, *, match: bool = True) -> Tensor:
        """The kept entries of a tensor by this name; itself if all are kept.

        `match=False`: of a tensor that belongs to it, such as an optimizer's state, which may have dimensions of size one.
        """
        result = tensor
        if name not in self.dims and name not in self.renumbered:
            return tensor
        dims = [(dim, kept.to(tensor.device)) for dim, kept in self.dims.get(name, ()) if match or tensor.shape[dim] > 1]
        if len(dims) == 2 and tensor.is_contiguous() and tensor.device.type == "cpu" and tensor.numel() > 1024:
            result, dims = self._first_cut(tensor, *min(dims, key=lambda item: item[0])), [max(dims, key=lambda item: item[0])]
        for dim, kept in dims:
            result = result.index_select(dim, kept)
        if name in self.renumbered and match:
            numbers = self.renumbered[name].to(tensor.device)
            result = numbers[result.long()].to(tensor.dtype)
        if tensor.ndim == 4 and result is not tensor and _channels_last(tensor):
            result = result.contiguous(memory_format=torch.channels_last)
        return result

    def _first_cut(self, tensor: Tensor, dim: int, kept: Tensor) -> Tensor:
        shape = (*tensor.shape[:dim], len(kept), *tensor.shape[dim + 1 :])
        numel = math.prod(shape)
        if self._scratch is None or self._scratch.numel() < numel or self._scratch.dtype != tensor.dtype:
            self._scratch = torch.empty(numel, dtype=tensor.dtype)
        return torch.index_select(tensor, dim, kept, out=self._scratch[:numel].view(shape))


def _channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


class Slicer:
    """Builds many small networks of one big one quickly: a single copy of the module tree whose tensors are exchanged.

    Each call invalidates the network that the call before returned. Weights that no plan touches are shared with the original.

    Args:
        model: the network that `graph` was traced on.
        graph: its channel graph.
        multiple: every group that loses units keeps so many, or a multiple of it, or all; those beyond the plan's have weights of zero.
            Widths that kernels like can run faster than narrower ones. None: nothing is cut, and all that goes is zeroed.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, *, multiple: int | None = 1) -> None:
        self._graph, self._tensors, self._multiple = graph, named_tensors(dict(model.named_modules())), multiple
        _require_match(self._tensors, graph)
        self._zeroed = _zeroed(graph)
        memo: dict[int, Any] = {id(tensor): tensor for _, tensor in self._tensors}
        self._skeleton = copy_module(model, memo).eval()
        # Every place that holds a tensor, so that shared weights are exchanged in all of them.
        name_of = {id(tensor): name for name, tensor in self._tensors}
        self._places: dict[str, list[tuple[dict[str, Any], str]]] = {}
        for module in self._skeleton.modules():
            for holder in (module._parameters, module._buffers):
                for key, tensor in holder.items():
                    if tensor is not None and id(tensor) in name_of:  # compiled modules hand out new objects
                        self._places.setdefault(name_of[id(tensor)], []).append((holder, key))

    def __call__(self, keep: Keep) -> nn.Module:
        """The network with only the kept units, and zeros that pad them, in eval mode, for inference alone."""
        cut = keep if self._multiple == 1 else self._padded(keep)
        slices, zeros = Slices(self._graph, cut), {} if cut is keep else self._zeros(keep, cut)
        for name, tensor in self._tensors:
            result = slices.cut(name, tensor.detach())
            if name in zeros:
                result = result.clone() if result.data_ptr() == tensor.data_ptr() else result
                for dim, entries in zeros[name]:
                    result.index_fill_(dim, entries.to(result.device), 0)
            held = nn.Parameter(result, requires_grad=False) if isinstance(tensor, nn.Parameter) else result
            for holder, key in self._places.get(name, []):  # the same object, as copies must share what this shares
                holder[key] = held
        patch(dict(self._skeleton.named_modules()), self._graph, cut)
        return self._skeleton

    def _padded(self, keep: Keep) -> dict[str, np.ndarray]:
        """The plan's units and the first others, up to the multiple."""
        padded = {}
        for group, units in zip(self._graph.groups, self._graph.check(keep).values(), strict=True):
            others = np.setdiff1d(np.arange(group.num_units), units, assume_unique=True)
            more = len(others) if self._multiple is None else -len(units) % self._multiple
            padded[group.name] = np.concatenate([units, others[:more]])
        return padded

    def _zeros(self, keep: Keep, padded: Keep) -> dict[str, list[tuple[int, Tensor]]]:
        """Entries of the cut tensors that are zero: (dim, indices) by tensor name."""
        cut = self._graph.removed_entries(padded)
        found: dict[str, list[tuple[int, Tensor]]] = {}
        for (name, dim), gone in self._graph.removed_entries(keep).items():
            entries = np.flatnonzero(gone[~cut[name, dim]] if (name, dim) in cut else gone)
            if len(entries) and (name, dim) in self._zeroed:
                found.setdefault(name, []).append((dim, torch.from_numpy(entries)))
        return found


def _require_types(model: object, graph: object) -> None:
    if not isinstance(model, nn.Module) or not isinstance(graph, ChannelGraph):
        got = f"a {type(model).__name__} and a {type(graph).__name__}"
        raise UserError(f"pass the network, its channel graph, and what to keep, in this order; got {got}")


def _require_match(tensors: list[tuple[str, Tensor]], graph: ChannelGraph) -> None:
    """A graph fits the network it was traced on, and those of the same shapes."""
    shapes = {name: tensor.shape for name, tensor in tensors}
    strange = next((name for name in shapes if name not in graph.known_shapes), None)
    if strange is not None:
        raise UserError(f"{strange}: the graph does not know it; trace this network again")
    for name, expected in graph.known_shapes.items():
        shape = shapes.get(name)
        if shape is None or list(shape) != expected[: len(shape)]:
            raise UserError(f"{name}: is not as the graph knows it; trace this network again, or use graph.after(keep) for a pruned one")


def patch(modules: Mapping[str, nn.Module], graph: ChannelGraph, keep: Keep) -> None:
    """Make the sizes that modules keep as attributes agree with their weights; what a module says now is not trusted."""
    for name, module in modules.items():
        if not isinstance(module, _PATCHED):
            continue
        state = module.__dict__  # nn.Module.__setattr__ is slow, and these are plain numbers
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.modules.conv._ConvNd) and isinstance(weight, Tensor):
            _patch_convolution(module, weight, graph, f"{name}.weight" if name else "weight")
        elif isinstance(module, nn.Linear) and isinstance(weight, Tensor):
            state["out_features"], state["in_features"] = weight.shape
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            vector = next((v for v in (weight, module.running_mean) if v is not None), None)
            if vector is not None:
                state["num_features"] = vector.shape[0]
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.numel()
        elif isinstance(module, nn.Embedding) and isinstance(weight, Tensor):
            module.embedding_dim = weight.shape[1]
        elif isinstance(module, nn.Bilinear) and isinstance(weight, Tensor):
            module.out_features, module.in1_features, module.in2_features = weight.shape
    counts = dict(zip((group.name for group in graph.groups), graph.counts(keep).tolist(), strict=True))
    for width in graph.widths:
        setattr(modules[width.module], width.attribute, width_after(width, counts))


_PATCHED = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.PReLU, nn.Embedding, nn.Bilinear)


def _patch_convolution(module: nn.modules.conv._ConvNd, weight: Tensor, graph: ChannelGraph, name: str) -> None:
    first, second = weight.shape[:2]
    state = module.__dict__
    if name in graph.grouped:
        out_width, in_width = graph.grouped[name]
        groups = first // (in_width if module.transposed else out_width)
        state["groups"], state["out_channels"], state["in_channels"] = groups, groups * out_width, groups * in_width
    else:
        widths = (second * module.groups, first) if module.transposed else (first, second * module.groups)
        state["out_channels"], state["in_channels"] = widths
