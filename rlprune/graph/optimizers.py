"""Carrying an optimizer over to a pruned network."""

from typing import Any

import torch
from torch import Tensor, nn

from rlprune.errors import UserError
from rlprune.graph.channel_graph import ChannelGraph, Keep
from rlprune.graph.labels import tensors_in
from rlprune.graph.surgery import Slices


def rebind(optimizer: torch.optim.Optimizer, model: nn.Module, pruned: nn.Module, graph: ChannelGraph, keep: Keep) -> None:
    """Let an optimizer of `model` go on with `pruned`, which is `prune(model, graph, keep)`.

    Every parameter is exchanged for its pruned self, in its own parameter group; what the optimizer keeps for it (momentum, Adam's
    moments) is cut down alike. Step counts, learning rates and schedulers stay. Nothing of the old network is left in it.

    Args:
        optimizer: any torch optimizer whose state lies along its parameters; changed in place.
        model: the network before pruning.
        pruned: the network after it.
        graph: the channel graph of `model`.
        keep: the plan.

    Raises:
        UserError: the optimizer holds parameters of another network, or state that no parameter's shape explains; it is unchanged then.
    """
    slices = Slices(graph, keep)
    expected = graph.after(keep).known_shapes
    for name, tensor in pruned.named_parameters():
        if list(tensor.shape) != expected.get(name, [])[: tensor.ndim]:
            raise UserError(f"{name}: is not what prune(model, graph, keep) makes of it; pass that network and the same keep")
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    heirs = dict(pruned.named_parameters())
    held = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    strangers = [tensor for tensor in held if id(tensor) not in names]
    if strangers:
        shape = tuple(strangers[0].shape)
        raise UserError(
            f"optimizer: {len(strangers)} of its parameters are not the network's (the first has shape {shape}); rebind it once a prune"
        )
    inside = {key: value for key, value in vars(optimizer).items() if key not in ("param_groups", "state", "defaults")}
    if any(id(tensor) in names for tensor in tensors_in(inside)):
        raise UserError(f"optimizer: {type(optimizer).__name__} keeps parameters in places of its own; make a new optimizer")
    state: dict[Tensor, Any] = {}
    for tensor in held:
        if tensor in optimizer.state:
            name = names[id(tensor)]
            kept = optimizer.state[tensor]
            state[heirs[name]] = {key: _cut(slices, name, key, value, tensor, type(optimizer).__name__) for key, value in kept.items()}
    for group in optimizer.param_groups:
        group["params"] = [heirs[names[id(tensor)]] for tensor in group["params"]]
    optimizer.state.clear()
    optimizer.state.update(state)


def _cut(slices: Slices, name: str, key: str, value: Any, parameter: Tensor, kind: str) -> Any:
    """One entry of a parameter's state."""
    if not isinstance(value, Tensor | list | tuple | dict) or (isinstance(value, Tensor) and value.numel() <= 1):
        return value
    if not isinstance(value, Tensor) or value.ndim != parameter.ndim or not _along(value, parameter):
        raise UserError(f"optimizer: {kind} keeps {key!r} for {name} in a form that cannot be cut with it; make a new optimizer")
    return slices.cut(name, value, match=False)


def _along(value: Tensor, parameter: Tensor) -> bool:
    """Whether every dimension is the parameter's, or of size one."""
    return all(size in (1, own) for size, own in zip(value.shape, parameter.shape, strict=True))
