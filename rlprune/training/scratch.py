"""First weights of a pruned network, for training its architecture from scratch."""

import torch
from torch import Tensor, nn

from rlprune.errors import UserError
from rlprune.graph.run import named_tensors


@torch.no_grad()
def draw_weights(network: nn.Module, wide: nn.Module) -> list[str]:
    """Give a pruned network first weights as if it had been built at its widths, in place, from torch's global generator.

    The variance of first weights goes with a layer's inputs or outputs (He et al. 2015). Those that were drawn for the wide network and cut
    out of it have its variance: too small by the share of the inputs, or outputs, that stayed. So

    - a module in which anything was cut is initialised again with its `reset_parameters`, inner modules before those that hold them, as
      constructors do: torch's layers draw by torch's rule, shipped families then by their own, which they have as a method;
    - a tensor that the constructor set to one value, such as zeros for a bias or a last batch norm's weight, has that value again;
    - a module in which nothing was cut stays as the constructor drew it, which was for these very sizes.

    Networks of other libraries whose constructors draw otherwise than their layers' `reset_parameters` come out by the latter.

    Args:
        network: what was cut out of `wide`.
        wide: as its constructor made it, with no training.

    Returns:
        Tensors that were cut and drawn, in modules without `reset_parameters`: they stay as cut.

    Raises:
        UserError: a module's `reset_parameters` fails.
    """
    fresh = dict(named_tensors(dict(wide.named_modules())))
    cut = {name: tensor for name, tensor in named_tensors(dict(network.named_modules())) if tensor.shape != fresh[name].shape}
    before = {name: tensor.clone() for name, tensor in cut.items()}
    for name, module in reversed(list(network.named_modules())):  # what holds others comes before them
        if any(tensor_name.startswith(f"{name}." if name else "") for tensor_name in cut):
            _reset(name, module)
    kept = []
    for name, tensor in cut.items():
        if _constant(fresh[name]):
            tensor.copy_(fresh[name].flatten()[0])
        elif torch.equal(tensor, before[name]):
            kept.append(name)
    return kept


def _reset(name: str, module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if not callable(reset):
        return
    try:
        reset()
    except Exception as error:  # the user's own code
        raise UserError(f"model: {name or type(module).__name__}.reset_parameters() fails ({type(error).__name__}: {error})") from error


def _constant(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())
