"""Shapes of the commonest operations without any arithmetic: what a symbolic trace spends its time on.

Each function gets the arguments of a call and returns an empty tensor of the result's shape on the meta device, or None where the case is
not plain: torch's own shape functions, which are up to fifty times slower, then do it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CREATIONS = frozenset("zeros ones empty full".split())

_UNARY = frozenset(
    """
    relu relu6 leaky_relu elu celu selu silu hardswish gelu mish tanh hardtanh dropout dropout1d dropout2d dropout3d feature_dropout
    alpha_dropout abs neg square sqrt sin contiguous clone sigmoid hardsigmoid softplus exp log rsqrt reciprocal softmax batch_norm
    instance_norm layer_norm group_norm prelu
    """.split()
)
_BINARY = frozenset("add mul sub div truediv true_divide multiply subtract".split())


def output(name: str, in_place: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of a call, if its shape is known here."""
    if not args or not isinstance(args[0], Tensor | list | tuple):
        return None
    first: Any = args[0]
    if name in _UNARY:
        if not _plain(first) or ("dtype" in kwargs) or (name == "softmax" and len(args) > 3):
            return None
        return first if in_place else _like(first)
    if name in _BINARY:
        return _binary(first, args, kwargs, in_place)
    function = _FUNCTIONS.get(name)
    if function is None or (name != "cat" and not _plain(first)):
        return None
    try:
        return function(args, kwargs)
    except _OtherWordsError:
        return None


class _OtherWordsError(Exception):
    """A call with keywords that are not expected."""


def _plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta and value.dtype.is_floating_point


def _empty(shape: Any, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _like(tensor: Tensor) -> Tensor:
    return _empty(tensor.shape, tensor.dtype)


def _binary(first: Any, args: tuple[Any, ...], kwargs: dict[str, Any], in_place: bool) -> Tensor | None:
    if len(args) != 2 or kwargs or not isinstance(first, Tensor) or not first.dtype.is_floating_point:
        return None
    second = args[1]
    if not isinstance(second, Tensor):
        if not first.is_meta or not isinstance(second, int | float):
            return None
        return first if in_place else _like(first)
    if first.dtype != second.dtype or not (first.is_meta or second.is_meta):
        return None
    if in_place:
        return first if first.is_meta else None
    if first.shape == second.shape:
        return _like(first)
    shape = []
    left, right = first.shape, second.shape
    for back in range(1, max(len(left), len(right)) + 1):
        one = left[-back] if back <= len(left) else 1
        other = right[-back] if back <= len(right) else 1
        if one != other and one != 1 and other != 1:
            return None  # torch says what is wrong
        shape.append(other if one == 1 else one)
    return _empty(shape[::-1], first.dtype)


def _spread(value: Any, dims: int) -> tuple[int, ...] | None:
    if isinstance(value, int):
        return (value,) * dims
    if isinstance(value, tuple | list) and all(isinstance(item, int) for item in value):
        return tuple(value) * dims if len(value) == 1 else tuple(value) if len(value) == dims else None
    return None


def _windows(sizes: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[int] | None:
    dims = len(sizes)
    kernels, strides, paddings, dilations = (_spread(value, dims) for value in (kernel, stride, padding, dilation))
    if kernels is None or strides is None or paddings is None or dilations is None:
        return None
    found = []
    for size, k, s, p, d in zip(sizes, kernels, strides, paddings, dilations, strict=True):
        size = (size + 2 * p - d * (k - 1) - 1) // s + 1
        if size < 1:
            return None
        found.append(size)
    return found


def _bound(args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...], defaults: tuple[Any, ...]) -> list[Any]:
    if not kwargs.keys() <= set(names) and not kwargs.keys() <= _HARMLESS | set(names):
        raise _OtherWordsError
    return [args[i] if i < len(args) else kwargs.get(name, defaults[i]) for i, name in enumerate(names)]


_HARMLESS = frozenset({"bias", "count_include_pad", "divisor_override"})  # they change no shape


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups"), (None, None, None, 1, 0, 1, 1)


def _convolution(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    source, weight, _, stride, padding, dilation, groups = _bound(args, kwargs, *_CONV)
    if not isinstance(weight, Tensor) or source.ndim != weight.ndim or source.shape[1] != weight.shape[1] * int(groups.__index__()):
        return None
    if source.dtype != weight.dtype:
        return None
    sizes = _windows(source.shape[2:], tuple(weight.shape[2:]), stride, padding, dilation)
    return None if sizes is None else _empty((source.shape[0], weight.shape[0], *sizes), source.dtype)


def _linear(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    source, weight = _bound(args, kwargs, ("input", "weight"), (None, None))
    if not isinstance(weight, Tensor) or weight.ndim != 2 or source.shape[-1] != weight.shape[1] or source.dtype != weight.dtype:
        return None
    return _empty((*source.shape[:-1], weight.shape[0]), source.dtype)


def _max_pool(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    source, kernel, stride, padding, dilation, ceil_mode, indices = _bound(args, kwargs, names, (None, None, None, 0, 1, False, False))
    if ceil_mode or indices or source.ndim != 4:
        return None
    sizes = _windows(source.shape[2:], kernel, kernel if stride in (None, []) else stride, padding, dilation)
    return None if sizes is None else _empty((*source.shape[:2], *sizes), source.dtype)


def _average_pool(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode")
    source, kernel, stride, padding, ceil_mode = _bound(args, kwargs, names, (None, None, None, 0, False))
    if ceil_mode or source.ndim != 4:
        return None
    sizes = _windows(source.shape[2:], kernel, kernel if stride in (None, []) else stride, padding, 1)
    return None if sizes is None else _empty((*source.shape[:2], *sizes), source.dtype)


def _adaptive_pool(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    source, size = _bound(args, kwargs, ("input", "output_size"), (None, None))
    sizes = _spread(size, 2)
    return None if sizes is None or source.ndim != 4 else _empty((*source.shape[:2], *sizes), source.dtype)


def _cat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    parts, axis = _bound(args, kwargs, ("tensors", "dim"), (None, 0))
    if not isinstance(parts, list | tuple) or not parts or not isinstance(axis, int) or not all(_plain(part) for part in parts):
        return None
    first = parts[0]
    axis = axis % first.ndim
    shape = list(first.shape)
    for part in parts[1:]:
        if part.dtype != first.dtype or part.ndim != first.ndim:
            return None
        if any(a != b for i, (a, b) in enumerate(zip(shape, part.shape, strict=True)) if i != axis):
            return None
        shape[axis] += part.shape[axis]
    return _empty(shape, first.dtype)


def _mean(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    source, dims, keep = _bound(args, kwargs, ("input", "dim", "keepdim"), (None, None, False))
    if not isinstance(keep, bool) or not isinstance(dims, int | tuple | list) or isinstance(dims, bool) or dims == ():
        return None
    gone = {dim % source.ndim for dim in ([dims] if isinstance(dims, int) else dims)}
    return _empty([1 if i in gone else size for i, size in enumerate(source.shape) if keep or i not in gone], source.dtype)


_FUNCTIONS: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], Tensor | None]] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "linear": _linear,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "cat": _cat,
    "mean": _mean,
    "sum": _mean,
}
