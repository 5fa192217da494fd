"""What Adam remembers, as lists of tensors: it can be saved without pickling an object."""

import torch
from torch import Tensor


def moments(optimizer: torch.optim.Adam) -> list[dict[str, Tensor]]:
    """Of each parameter: steps taken and moving averages; empty before the first step."""
    return [dict(optimizer.state[parameter]) for group in optimizer.param_groups for parameter in group["params"] if optimizer.state]


def load_moments(optimizer: torch.optim.Adam, saved: list[dict[str, Tensor]]) -> None:
    """Continue with copies of what `moments` returned."""
    copies = {number: {name: tensor.clone() for name, tensor in each.items()} for number, each in enumerate(saved)}
    optimizer.load_state_dict({"state": copies, "param_groups": optimizer.state_dict()["param_groups"]})
