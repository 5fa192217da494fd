"""Batch norms merged into the convolutions before them: the same outputs but for rounding, with fewer passes over memory.

In eval mode γ (w ∗ x + b − μ) / σ + β is a convolution itself, with weights w γ / σ and bias (b − μ) γ / σ + β; so it is for linear layers.
Candidates are measured that way, 1.2 to 1.6 times as fast (scripts/benchmarks/search.py). `rlprune.export` does it for good.
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
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FOLDABLE = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def mergeable(network: nn.Module, example: Tensor, kinds: tuple[type[nn.Module], ...] = CONVOLUTIONS) -> tuple[Pair, ...]:
    """The pairs that can be merged without changing this network's outputs, or those of networks pruned from it.

    A pair is a layer whose output a batch norm reads, each called once. That nothing else reads it is proved on a copy in float64
    with other weights; pairs that fail the proof are left out. What happens for some images only is not seen: ask the trace's doubts.

    Args:
        network: any; it is not changed.
        example: images, shape (n, C, H, W).
        kinds: of layers, out of `FOLDABLE`.
    """
    try:
        double = copy_module(network).double().eval()
        _disturb(double)
        pairs = _observed(double, example.double(), kinds)
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
            if type(conv) in FOLDABLE and type(norm) in NORMS and "forward" not in vars(norm):
                before.append((norm, conv, dict(conv._parameters)))
                conv._parameters.update(folded(conv, norm))
                norm.forward = _identity
        yield
    finally:
        for norm, conv, parameters in before:
            conv._parameters.update(parameters)
            del norm.forward


def folded(layer: Any, norm: Any) -> dict[str, Tensor]:
    """Weight and bias of a layer that does the work of the batch norm behind it as well; of a network in eval mode."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    shift = -norm.running_mean * scale if bias is None else (bias.detach() - norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach()
    if type(layer) in TRANSPOSED:  # (inputs, outputs of a group, ...), the groups one behind the other in the inputs
        by_group = scale.view(layer.groups, 1, -1).expand(-1, len(weight) // layer.groups, -1).reshape(len(weight), -1)
        return {"weight": weight.detach() * by_group.view(*by_group.shape, *[1] * (weight.ndim - 2)), "bias": shift}
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


def _observed(network: nn.Module, example: Tensor, kinds: tuple[type[nn.Module], ...]) -> list[Pair]:
    """Batch norms that read what a layer returned, by one pass."""
    names = {module: name for name, module in network.named_modules(remove_duplicate=True)}
    outputs: list[tuple[nn.Module, Tensor, int]] = []  # kept, so that no other tensor takes a place in memory
    pairs: list[tuple[nn.Module, nn.Module]] = []
    calls: dict[nn.Module, int] = {}

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if type(module) in kinds:
            outputs.append((module, output, output._version))
        else:
            pairs.extend(
                (layer, module)
                for layer, tensor, version in outputs
                if inputs and tensor is inputs[0] and tensor._version == version and module.num_features == _channels(layer)
            )

    plain = [
        module
        for module in names
        if (type(module) in kinds or (type(module) in NORMS and module.running_mean is not None)) and "forward" not in vars(module)
    ]
    handles = [module.register_forward_hook(watch) for module in plain if not module._forward_hooks and not module._forward_pre_hooks]
    try:
        network(example)
    finally:
        for handle in handles:
            handle.remove()
    return [(names[conv], names[norm]) for conv, norm in pairs if calls[conv] == calls[norm] == 1]


def _channels(layer: Any) -> int:
    """Of what it returns."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


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
