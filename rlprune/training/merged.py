"""Batch norms merged into the convolutions before them: the same outputs but for rounding, with fewer passes over memory.

In eval mode γ (w ∗ x + b − μ) / σ + β is a convolution itself, with weights w γ / σ and bias (b − μ) γ / σ + β. Candidates are measured
that way, 1.2 to 1.6 times as fast (scripts/benchmarks/search.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from rlprune.graph.run import copy_module
from rlprune.graph.verify import TOLERANCE

Pair = tuple[str, str]
"""Names of a convolution and of the batch norm behind it."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def mergeable(network: nn.Module, example: Tensor) -> tuple[Pair, ...]:
    """The pairs that can be merged without changing this network's outputs, or those of networks pruned from it.

    A pair is a convolution whose output a batch norm reads, each called once. That nothing else reads it is proved on a copy in float64
    with other weights; pairs that fail the proof are left out. What happens for some images only is not seen: ask the trace's doubts.

    Args:
        network: any; it is not changed.
        example: images, shape (n, C, H, W).
    """
    try:
        double = copy_module(network).double().eval()
        _disturb(double)
        pairs = _observed(double, example.double())
        wanted = double(example.double())
        return _proved(double, example.double(), wanted, pairs) if isinstance(wanted, Tensor) else ()
    except Exception:  # the user's own code, in a precision that it may not know
        return ()


@contextmanager
def merged(network: nn.Module, pairs: Sequence[Pair]) -> Iterator[None]:
    """Let a network in eval mode run with the pairs merged inside of this context; those it does not have are passed over."""
    modules = dict(network.named_modules())
    before: list[tuple[Any, Any, dict[str, Any]]] = []
    try:
        for conv_name, norm_name in pairs:
            conv, norm = cast(Any, modules.get(conv_name)), cast(Any, modules.get(norm_name))
            if type(conv) in CONVOLUTIONS and type(norm) in NORMS and "forward" not in vars(norm):
                before.append((norm, conv, dict(conv._parameters)))
                conv._parameters.update(_convolution(conv, norm))
                norm.forward = _identity
        yield
    finally:
        for norm, conv, parameters in before:
            conv._parameters.update(parameters)
            del norm.forward


def _convolution(conv: Any, norm: Any) -> dict[str, Tensor]:
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    weight, bias = conv._parameters["weight"], conv._parameters["bias"]
    shift = -norm.running_mean * scale if bias is None else (bias.detach() - norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach()
    return {"weight": weight.detach() * scale.view(-1, *[1] * (weight.ndim - 1)), "bias": shift}


def _identity(images: Tensor) -> Tensor:
    return images


def _disturb(network: nn.Module) -> None:
    """Other weights and statistics, as a fresh norm, or a path that is switched off by a zero, would hide what reads a convolution."""
    generator = torch.Generator().manual_seed(0)
    for tensor in network.parameters():
        scale = float(tensor.std()) if tensor.numel() > 1 else 0.0
        tensor.add_((0.1 * (scale or 1.0) * torch.randn(tensor.shape, generator=generator)).to(tensor))
    for norm in network.modules():
        if type(norm) in NORMS and norm.running_mean is not None:
            for name, tensor in norm.state_dict().items():
                if name != "num_batches_tracked":
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))


def _observed(network: nn.Module, example: Tensor) -> list[Pair]:
    """Batch norms that read what a convolution returned, by one pass."""
    names = {module: name for name, module in network.named_modules(remove_duplicate=True)}
    outputs: list[tuple[nn.Module, Tensor, int]] = []  # kept, so that no other tensor takes a place in memory
    pairs: list[tuple[nn.Module, nn.Module]] = []
    calls: dict[nn.Module, int] = {}

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if type(module) in CONVOLUTIONS:
            outputs.append((module, output, output._version))
        else:
            pairs.extend(
                (conv, module) for conv, tensor, version in outputs if inputs and tensor is inputs[0] and tensor._version == version
            )

    plain = [
        module
        for module in names
        if (type(module) in CONVOLUTIONS or (type(module) in NORMS and module.running_mean is not None)) and "forward" not in vars(module)
    ]
    handles = [module.register_forward_hook(watch) for module in plain if not module._forward_hooks and not module._forward_pre_hooks]
    try:
        network(example)
    finally:
        for handle in handles:
            handle.remove()
    return [(names[conv], names[norm]) for conv, norm in pairs if calls[conv] == calls[norm] == 1]


def _proved(network: nn.Module, example: Tensor, wanted: Tensor, pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """The pairs that change nothing: all of them, or the proved ones of either half."""
    with merged(network, pairs):
        found = network(example)
    if float((found - wanted).abs().max()) <= TOLERANCE * max(float(wanted.abs().max()), TOLERANCE):
        return tuple(pairs)
    if len(pairs) == 1:
        return ()
    middle = len(pairs) // 2
    return _proved(network, example, wanted, pairs[:middle]) + _proved(network, example, wanted, pairs[middle:])
