"""The torch calls of a forward pass, and how the shapes of their tensors follow the units of every channel group."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from tqdm import tqdm

from rlprune.errors import UserError
from rlprune.graph import ChannelGraph, Slicer, shapes
from rlprune.graph.calls import operation_name
from rlprune.graph.labels import tensors_in
from rlprune.graph.run import call_model, copy_module, map_tensors


@dataclass(frozen=True)
class Hole:
    """Where a tensor stood among the arguments of a call: how it is made again."""

    number: int
    shape: tuple[int, ...]
    order: tuple[int, ...]  # its dimensions from the outermost in memory to the innermost
    dtype: torch.dtype
    is_weight: bool  # a parameter or buffer, not an activation

    def fill(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Random numbers of this shape from 1 up (products do not fade), laid out in memory as the tensor was."""
        laid = [shape[dim] for dim in self.order]
        whole = not (self.dtype.is_floating_point or self.dtype.is_complex)
        tensor = torch.zeros(laid, dtype=self.dtype, device=device) if whole else 1 + torch.rand(laid, dtype=self.dtype, device=device)
        return tensor.permute([self.order.index(dim) for dim in range(len(shape))])


@dataclass(frozen=True)
class Number:
    """Where a whole number stood, which may count channels: groups of a convolution, sizes of a view."""

    number: int
    shape: tuple[int]  # its value, as if it were the only dimension of a tensor

    def fill(self, shape: Sequence[int], device: torch.device) -> int:
        """Another value."""
        return shape[0]


@dataclass(frozen=True)
class Call:
    """A torch call, with holes for its tensors and whole numbers."""

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    holes: tuple[Hole | Number, ...]

    def arguments(self, shapes: Sequence[Sequence[int]], device: torch.device, copies: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The arguments for tensors of other shapes, in the order of `holes`, as often as asked: activations the same, weights copies."""
        values = [hole.fill(shape, device) for hole, shape in zip(self.holes, shapes, strict=True)]
        found = []
        for number in range(copies):
            own = [
                value.clone() if number and isinstance(value, Tensor) and isinstance(hole, Hole) and hole.is_weight else value
                for hole, value in zip(self.holes, values, strict=True)
            ]
            found.append((_filled(self.args, own), _filled(dict(self.kwargs), own)))
        return found

    @property
    def weight_bytes(self) -> int:
        """Memory of its parameters and buffers."""
        weights = [hole for hole in self.holes if isinstance(hole, Hole) and hole.is_weight]
        return sum(math.prod(hole.shape) * hole.dtype.itemsize for hole in weights)

    @property
    def key(self) -> str:
        """What tells calls apart that take different times."""
        return repr((self.name, self.args, dict(self.kwargs)))


@dataclass(frozen=True)
class Axis:
    """A width that shrinks with units: dimensions of a call's tensors that lose alike.

    `dims` are (hole, dimension, entries lost with a step); `taken` the steps that a unit of each group takes, (group,); the width of
    dimension d is `shape − entries · steps`.
    """

    dims: tuple[tuple[int, int, int], ...]
    taken: tuple[int, ...]


@dataclass(frozen=True)
class Shrinking:
    """A call and the axes along which it shrinks; none where no plan changes it."""

    call: Call
    axes: tuple[Axis, ...]

    def shapes(self, steps: Sequence[int]) -> list[list[int]]:
        """Of all tensors when so many steps are gone from each axis."""
        shapes = [list(hole.shape) for hole in self.call.holes]
        for axis, gone in zip(self.axes, steps, strict=True):
            for hole, dim, entries in axis.dims:
                shapes[hole][dim] -= entries * gone
        return shapes


def is_layer(call: Shrinking) -> bool:
    """A convolution, a linear layer, or what else has a weight of several dimensions."""
    return any(isinstance(hole, Hole) and hole.is_weight and len(hole.shape) > 1 for hole in call.call.holes)


class _Watch(TorchFunctionMode):
    """Writes down every call that returns a tensor; without arithmetic where tensors have shapes alone (device meta)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._weights = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
        self._names: dict[Any, tuple[str, str, bool]] = {}  # function → its name, that of the operation, whether it works in place

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        holes: list[Hole | Number] = []
        kept = _drilled(tuple(args), holes, self._weights), _drilled(dict(kwargs or {}), holes, self._weights)
        if function not in self._names:
            self._names[function] = (resolve_name(function) or getattr(function, "__name__", ""), *operation_name(function))
        name, operation, in_place = self._names[function]
        result = shapes.output(operation, in_place or bool((kwargs or {}).get("inplace")), args, kwargs or {})
        if result is None:
            result = function(*args, **(kwargs or {}))
        tensors = any(isinstance(hole, Hole) for hole in holes)
        if tensors and not name.endswith(".__get__") and any(True for _ in tensors_in(result)):
            self.calls.append(Call(name, function, *kept, tuple(holes)))
        return result


def shrinking_calls(network: nn.Module, graph: ChannelGraph, example: Any, changing: Sequence[int]) -> list[Shrinking]:
    """Every call of a forward pass, and how it shrinks: found by taking one unit from one group after another.

    Args:
        network: that `graph` was traced on, on the device of the inputs, in eval mode.
        graph: its channel graph.
        example: a batch of inputs, as `trace` takes them.
        changing: indices of the groups that may lose units.

    Raises:
        UserError: the network cannot run, or does other things when it is pruned.
    """
    calls = _watched(network, example)
    try:  # shapes are enough, unless the code looks at values
        bare = copy_module(network).to("meta")
        gone = _shapes_lost(bare, graph, map_tensors(example, lambda tensor: tensor.to("meta")), changing, calls)
    except Exception:  # whatever it is: on real numbers it goes well, or is reported
        gone = _shapes_lost(network, graph, example, changing, calls)
    return [Shrinking(call, _axes(lost)) for call, lost in zip(calls, gone, strict=True)]


def _watched(network: nn.Module, example: Any) -> list[Call]:
    watch = _Watch(network)
    with torch.inference_mode(False), torch.no_grad():
        call_model(network, example, watch)
    return watch.calls


def _shapes_lost(
    network: nn.Module, graph: ChannelGraph, example: Any, changing: Sequence[int], calls: Sequence[Call]
) -> list[list[np.ndarray]]:
    """For every call and hole: entries of each dimension that go with one unit of each group, (dimension, group).

    Raises:
        UserError: the calls of a pruned network are others.
    """
    slicer = Slicer(network, graph)
    lost = [[np.zeros((len(hole.shape), len(graph.groups)), dtype=int) for hole in call.holes] for call in calls]
    for group, index in tqdm([(graph.groups[index], index) for index in changing], desc="calls", unit="group", leave=False, delay=1):
        found = _watched(slicer({group.name: np.arange(group.num_units - 1)}), example)
        if [_form(call) for call in found] != [_form(call) for call in calls]:
            raise UserError(f"latency: without a unit of {group.name} the network makes other calls, so no table can predict it")
        for call, other, table in zip(calls, found, lost, strict=True):
            for hole, now, entries in zip(call.holes, other.holes, table, strict=True):
                entries[:, index] = np.subtract(hole.shape, now.shape)
    return lost


def _form(call: Call) -> tuple[str, tuple[int, ...]]:
    """What a call is, whatever the sizes: its name, and how many dimensions its tensors have."""
    return call.name, tuple(len(hole.shape) for hole in call.holes)


def _axes(lost: Sequence[np.ndarray]) -> tuple[Axis, ...]:
    """Dimensions that lose alike, up to a factor, are one axis."""
    found: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
    for hole, table in enumerate(lost):
        for dim, entries in enumerate(table.tolist()):
            if any(entries):
                step = math.gcd(*entries)
                found.setdefault(tuple(entry // step for entry in entries), []).append((hole, dim, step))
    return tuple(Axis(tuple(dims), taken) for taken, dims in found.items())


def _drilled(value: Any, holes: list[Hole | Number], weights: Collection[int]) -> Any:
    """The same nested arguments with holes, which are added to a list; `weights`: ids of parameters and buffers."""
    if isinstance(value, Tensor):
        strides = value.stride() if value.layout == torch.strided else tuple(range(value.ndim, 0, -1))
        order = tuple(sorted(range(value.ndim), key=lambda dim: (-strides[dim], dim)))
        holes.append(Hole(len(holes), tuple(value.shape), order, value.dtype, id(value) in weights))
        return holes[-1]
    if isinstance(value, int) and not isinstance(value, bool):
        holes.append(Number(len(holes), (value,)))
        return holes[-1]
    if isinstance(value, dict):
        return {key: _drilled(item, holes, weights) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return (list if isinstance(value, list) else tuple)(_drilled(item, holes, weights) for item in value)
    return value


def _filled(value: Any, values: Sequence[Any]) -> Any:
    if isinstance(value, Hole | Number):
        return values[value.number]
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_filled(item, values) for item in value)
    return value
