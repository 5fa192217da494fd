"""What Adam remembers, as lists of tensors: it can be saved without pickling an object; and what learning too fast comes to."""

import math

import torch
from torch import Tensor

from rlprune.errors import UserError


def finite(value: float, *rates: str) -> float:
    """A loss or an action of a network that learns, as it is.

    Args:
        value: the number.
        rates: settings that are too high where it is none.

    Raises:
        UserError: it is not finite.
    """
    if not math.isfinite(value):
        raise UserError(
            f"agent.{rates[0]}: the agent's networks are no longer finite; lower {' or '.join(f'agent.{key}' for key in rates)}"
        )
    return value


def moments(optimizer: torch.optim.Adam) -> list[dict[str, Tensor]]:
    """Of each parameter: steps taken and moving averages; empty before the first step."""
    return [dict(optimizer.state[parameter]) for group in optimizer.param_groups for parameter in group["params"] if optimizer.state]


def load_moments(optimizer: torch.optim.Adam, saved: list[dict[str, Tensor]]) -> None:
    """Continue with copies of what `moments` returned."""
    copies = {number: {name: tensor.clone() for name, tensor in each.items()} for number, each in enumerate(saved)}
    optimizer.load_state_dict({"state": copies, "param_groups": optimizer.state_dict()["param_groups"]})
