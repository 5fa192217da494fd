"""Layers that compute the same as torch's where those are slow or fail on a CPU, for training pruned networks.

Batch norm: torch's sums up each channel in a table with a row for every thread, (threads, channels) of float32. Where the channels are no
multiple of 16, rows share cache lines, and two cores that write to one line wait for each other: a pruned ResNet-56 then trains at half of
the speed that it reaches with the batch norm here, and slower than its dense parent (two cores; scripts/benchmarks/training.py). In
channels_last a map of C channels and P positions is the same memory as one of k·C channels and P/k positions. With k·C a multiple of 16
torch's kernels run at full speed on it; what they sum up for the k copies of a channel is put together afterwards.

Strided 1×1 convolutions with fewer than 16 input channels: the weight gradient of oneDNN in channels_last writes past its memory on maps
of some 50 pixels a side and more (torch 2.15), and the process dies. Taking the pixels of the stride first is the same convolution. Code
that calls `F.conv2d` itself is out of reach.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LINE = 16  # float32 numbers in a cache line of 64 bytes


@contextmanager
def careful_kernels(network: nn.Module, device: torch.device, *, folded: bool = True) -> Iterator[None]:
    """Let a network's layers run as above inside of this context, where it pays.

    `folded=False` leaves batch norms alone, as a compiler has kernels of its own for them. Copies that are made of the network inside of
    the context keep what replaces its layers.
    """
    layers = _replaced(network, device, folded)
    for layer, forward in layers:
        layer.forward = partial(forward, layer)
    try:
        yield
    finally:
        for layer, _ in layers:
            del layer.forward


def _replaced(network: nn.Module, device: torch.device, folded: bool) -> list[tuple[nn.Module, Callable[..., Tensor]]]:
    """Layers that get another forward pass; those that a user has given one keep it."""
    if device.type != "cpu":
        return []
    folded = folded and torch.get_num_threads() > 1
    found: list[tuple[nn.Module, Callable[..., Tensor]]] = []
    for module in network.modules():
        kind = getattr(type(module), "forward", None)  # compiled modules have none
        if "forward" in vars(module):
            continue
        if isinstance(module, nn.BatchNorm2d) and kind is nn.BatchNorm2d.forward and folded and module.num_features % LINE:
            found.append((module, _batch_norm))
        elif isinstance(module, nn.Conv2d) and kind is nn.Conv2d.forward and _fails(module):
            found.append((module, _convolution))
    return found


def _fails(layer: nn.Conv2d) -> bool:
    strided = layer.kernel_size == (1, 1) and layer.stride != (1, 1)
    return strided and layer.in_channels < LINE and layer.groups == 1 and layer.padding in ((0, 0), "valid")


def _convolution(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """A strided 1×1 convolution; (N, C, H, W) → (N, C', H', W')."""
    if images.ndim != 4:
        return nn.Conv2d.forward(layer, images)
    last = images.is_contiguous(memory_format=torch.channels_last)
    seen = images[:, :, :: layer.stride[0], :: layer.stride[1]]
    seen = seen.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    return F.conv2d(seen, layer.weight, layer.bias)


def _batch_norm(layer: nn.BatchNorm2d, images: Tensor) -> Tensor:
    """Batch norm in training; (N, C, H, W) → the same shape."""
    if images.ndim != 4 or (layer.weight is not None and layer.weight.dtype in (torch.bfloat16, torch.float16)):
        return nn.BatchNorm2d.forward(layer, images)
    fold = LINE // math.gcd(LINE, images.shape[1])
    positions = images.numel() // max(1, images.shape[1])
    folds = fold > 1 and positions > fold and positions % fold == 0 and images.is_contiguous(memory_format=torch.channels_last)
    plain = layer.momentum is not None and (layer.running_mean is None) == (layer.running_var is None)
    if not (folds and plain and layer.training):
        return nn.BatchNorm2d.forward(layer, images)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    channels = images.shape[1]
    kind = torch.float64 if images.dtype == torch.float64 else torch.float32
    weight = images.new_ones(channels, dtype=kind) if layer.weight is None else layer.weight
    bias = images.new_zeros(channels, dtype=kind) if layer.bias is None else layer.bias
    normalized: Tensor = _Folded.apply(images, weight, bias, layer.running_mean, layer.running_var, layer.momentum, layer.eps, fold)
    return normalized


class _Folded(torch.autograd.Function):
    """Batch norm of a channels_last map through one of `fold` times as many channels."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        fold: int,
    ) -> Tensor:
        wide = _fold(images, fold)
        zeros, ones = weight.new_zeros(wide.shape[1]), weight.new_ones(wide.shape[1])
        means, variances = (part.view(fold, -1) for part in torch.batch_norm_update_stats(wide, zeros, ones, 0.0))
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        if running_mean is not None and running_var is not None:
            positions = images.numel() // images.shape[1]
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (positions / (positions - 1))).to(running_var.dtype), momentum)
        deviation = (variance + eps).rsqrt()
        scale = deviation * weight
        ctx.save_for_backward(images, weight, mean, deviation)
        ctx.fold = fold
        normalized = _affine(wide, scale.repeat(fold), (bias - mean * scale).repeat(fold))
        result = torch.empty(0, dtype=images.dtype)  # no view, as an activation may work in place
        return result.set_(normalized.untyped_storage(), 0, images.shape, images.stride())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, deviation = ctx.saved_tensors
        positions, fold = images.numel() // images.shape[1], ctx.fold
        wide, change = _fold(images, fold), _fold(gradient.contiguous(memory_format=torch.channels_last), fold)
        statistics = (mean.repeat(fold), deviation.repeat(fold))
        sums = torch.ops.aten.native_batch_norm_backward(
            change, wide, weight.repeat(fold), None, None, *statistics, True, 0.0, [False, True, True]
        )
        for_weight, for_bias = (part.view(fold, -1).sum(0) for part in sums[1:])  # Σ g·x̂ and Σ g
        # dx = a·g − a/P · (Σ g + x̂ · Σ g·x̂), with a = weight/σ
        slope = weight * deviation
        tilt = (-slope * deviation * for_weight / positions).to(wide.dtype)  # the small term is the one that may be rounded
        shift = -slope * for_bias / positions - tilt * mean
        back = _affine(change, slope.repeat(fold), shift.repeat(fold))
        back.addcmul_(wide, tilt.repeat(fold).view(1, -1, 1, 1))
        return _unfold(back, images), for_weight, for_bias, None, None, None, None, None


def _fold(images: Tensor, fold: int) -> Tensor:
    """(N, C, H, W) in channels_last → (1, fold · C, N·H·W / fold, 1), the same memory."""
    return images.permute(0, 2, 3, 1).reshape(1, -1, 1, fold * images.shape[1]).permute(0, 3, 1, 2)


def _unfold(wide: Tensor, images: Tensor) -> Tensor:
    """Back to the shape of `images`, the same memory."""
    count, channels, height, width = images.shape
    return wide.permute(0, 2, 3, 1).reshape(count, height, width, channels).permute(0, 3, 1, 2)


def _affine(wide: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """A scale and a shift for every channel: batch norm with mean 0 and variance 1, the fastest kernel there is for it."""
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    result: Tensor = torch.native_batch_norm(wide, scale, shift, zeros, ones, False, 0.0, 0.0)[0]
    return result
