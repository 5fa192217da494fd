"""Batch norm over a batch that several processes share, on any device: statistics and gradients are those of the whole batch.

torch's SyncBatchNorm runs on CUDA alone, exchanges modules, and does not reach networks that call `F.batch_norm` themselves, as timm's do.
Here that call is what is replaced. With counts n_r, means m_r and variances v_r of the processes' parts, the whole batch has

    m = Σ n_r m_r / n,    v = Σ n_r (v_r + (m_r − m)²) / n,    dx = γ/σ · (g − (Σ g + x̂ Σ g·x̂) / n),

where the sums behind dx go over all processes (Ioffe and Szegedy 2015). torch's kernels do the passes over memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlprune.distributed import Group


class SyncBatchNorm(TorchFunctionMode):
    """Inside of this context batch norms in training take their statistics over the batches of all processes.

    Args:
        group: the processes.
        counts: whether this process's images count; those that stand in for an empty part do not.
    """

    def __init__(self, group: Group, *, counts: bool) -> None:
        super().__init__()
        self.group, self.counts = group, counts

    def __torch_function__(self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Every call of a torch function comes here first."""
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,  # noqa: A002 (torch's name, which callers may use)
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        kind = torch.float64 if input.dtype == torch.float64 else torch.float32
        channels = input.shape[1]
        weight = input.new_ones(channels, dtype=kind) if weight is None else weight.to(kind)
        bias = input.new_zeros(channels, dtype=kind) if bias is None else bias.to(kind)
        normalized: Tensor = _Synchronized.apply(input, weight, bias, running_mean, running_var, momentum, eps, self.group, self.counts)
        return normalized


class _Synchronized(torch.autograd.Function):
    """Batch norm of this process's part; gradients of scale and shift are those of the part alone, to be added up like all others."""

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
        group: Group,
        counts: bool,
    ) -> Tensor:
        mean, variance, count = _whole(images, group, counts)
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
        ctx.save_for_backward(images, weight, mean, (variance + eps).rsqrt(), count)
        ctx.group, ctx.counts = group, counts
        normalized: Tensor = torch.native_batch_norm(images, weight, bias, mean, variance, False, 0.0, eps)[0]
        return normalized

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, deviation, count = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=_memory_format(images))
        # Σ g·x̂ and Σ g of this part; both kernels take 1/σ as it is
        _, for_weight, for_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, images, weight, None, None, mean, deviation, True, 0.0, [False, True, True]
        )
        sums = torch.stack([for_weight, for_bias])
        ctx.group.sum(sums)
        if not ctx.counts:  # they stand for no image: nothing depends on them
            return torch.zeros_like(images), for_weight, for_bias, *[None] * 6
        slope = weight * deviation
        tilt = -slope * deviation * sums[0] / count
        shift = -slope * sums[1] / count - tilt * mean
        back = _affine(gradient, slope, shift)
        back.addcmul_(images, tilt.to(images.dtype).view(1, -1, *[1] * (images.ndim - 2)))
        return back, for_weight, for_bias, *[None] * 6


def _whole(images: Tensor, group: Group, counts: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of every channel over all processes, and the values a channel that they go over, a scalar."""
    mean, variance = _moments(images)
    channels = len(mean)
    parts = mean.new_zeros(group.size, 2 * channels + 1)  # a row a process; in their sum each row is that of its process
    positions = images.numel() // channels if counts else 0
    parts[group.rank] = torch.cat([mean, variance, mean.new_full((1,), positions)])
    group.sum(parts)
    means, variances, number = parts[:, :channels], parts[:, channels:-1], parts[:, -1:]
    count = number.sum()
    mean = (number * means).sum(0) / count
    variance = (number * (variances + (means - mean).square())).sum(0) / count
    return mean, variance, count


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of (N, C, ...)."""
    kind = torch.float64 if images.dtype == torch.float64 else torch.float32
    if images.device.type == "cpu":  # many times as fast there as the general reduction
        zeros, ones = (images.new_full((images.shape[1],), value, dtype=kind) for value in (0.0, 1.0))
        mean, variance = torch.batch_norm_update_stats(images, zeros, ones, 0.0)
        return mean, variance
    dims = [dim for dim in range(images.ndim) if dim != 1]
    variance, mean = torch.var_mean(images.to(kind), dims, correction=0)
    return mean, variance


def _affine(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    result: Tensor = torch.native_batch_norm(images, scale, shift, zeros, ones, False, 0.0, 0.0)[0]
    return result


def _memory_format(images: Tensor) -> torch.memory_format:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(images.ndim, torch.contiguous_format)
    return last if images.is_contiguous(memory_format=last) else torch.contiguous_format
