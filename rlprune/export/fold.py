"""Batch norms folded into the layers before them, for good."""

import torch
from torch import Tensor, nn

from rlprune.errors import UserError
from rlprune.graph.run import copy_module
from rlprune.graph.verify import TOLERANCE
from rlprune.training.merged import FOLDABLE, folded, mergeable


@torch.no_grad()
def fold_norms(network: nn.Module, example: Tensor) -> tuple[nn.Module, int]:
    """A copy in eval mode whose convolutions, transposed ones too, and linear layers do the work of the batch norms behind them; how many.

    Each fold, and the whole, is proved in float64 to change no output.

    Args:
        network: it is not changed.
        example: images, shape (n, C, H, W).

    Raises:
        UserError: the network asks its batch norms for more than to be called.
    """
    pairs = mergeable(network, example, FOLDABLE)
    whole = copy_module(network).eval().double()
    small = copy_module(whole)
    modules = dict(small.named_modules())
    for layer, norm in pairs:
        for name, tensor in folded(modules[layer], modules[norm]).items():
            setattr(modules[layer], name, nn.Parameter(tensor, requires_grad=False))
    gone = {id(modules[norm]) for _, norm in pairs}
    for module in list(small.modules()):
        for name, child in module._modules.items():
            if id(child) in gone:
                module._modules[name] = nn.Identity()
    try:
        difference, scale = _difference(small, whole, example.double())
    except Exception as error:  # the user's own code, which may look at a batch norm's attributes
        raise UserError(f"fold_bn=true: the network cannot run without its batch norms ({error}); leave them in") from error
    if not difference <= TOLERANCE * scale:
        raise UserError(f"fold_bn=true: changes the outputs by {difference:.1e}; leave the batch norms in")
    types = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    for name, tensor in [*small.named_parameters(), *small.named_buffers()]:
        tensor.data = tensor.data.to(types.get(name, example.dtype))  # rounded once, at the end
    return small, len(pairs)


def _difference(network: nn.Module, other: nn.Module, example: Tensor) -> tuple[float, float]:
    wanted = other(example)
    return float((network(example) - wanted).abs().max()), max(float(wanted.abs().max()), 1.0)
