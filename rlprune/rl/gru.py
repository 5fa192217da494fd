"""A gated recurrent unit over one long sequence, on the CPU: torch's own spends most of its time between small operations."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sigmoid(x: np.ndarray) -> np.ndarray:
    """In the form that does not overflow."""
    value: np.ndarray = 0.5 + 0.5 * np.tanh(0.5 * x)
    return value


class Recurrence(torch.autograd.Function):
    """What cannot be done for all steps at once, from x, what the inputs say to the three gates.

    With reset r = σ(x_r + W_r h + b_r), update u = σ(x_u + W_u h + b_u) and new n = tanh(x_n + r (W_n h + b_n)), h' = (1 − u) n + u h.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(step, 3 · hidden), (3 · hidden, hidden), (3 · hidden,) → h' of every step, (step, hidden)."""
        inputs, w, b = x.numpy(), weight.numpy(), bias.numpy()
        steps, hidden = len(inputs), w.shape[1]
        h = np.zeros((steps + 1, hidden), dtype=w.dtype)
        gates, new, recurrent = (np.empty((steps, width), dtype=w.dtype) for width in (2 * hidden, hidden, hidden))
        for step in range(steps):
            said = w @ h[step] + b
            gates[step] = sigmoid(inputs[step, : 2 * hidden] + said[: 2 * hidden])
            recurrent[step] = said[2 * hidden :]
            new[step] = np.tanh(inputs[step, 2 * hidden :] + gates[step, :hidden] * recurrent[step])
            h[step + 1] = new[step] + gates[step, hidden:] * (h[step] - new[step])
        ctx.saved = w, h, gates, new, recurrent
        return torch.from_numpy(h[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The slopes of all steps at once, then what each step hands to the one before."""
        w, h, gates, new, recurrent = ctx.saved
        reset, update = np.split(gates, 2, axis=1)
        to_new = (1 - update) * (1 - new**2)  # of h', by what the tanh reads
        slopes = np.stack([to_new * recurrent * reset * (1 - reset), (h[:-1] - new) * update * (1 - update), to_new * reset], axis=1)
        later, at_h, said = gradients[0].numpy(), np.empty_like(new), np.empty_like(slopes)
        ahead = np.zeros_like(h[0])
        for step in reversed(range(len(new))):
            at_h[step] = later[step] + ahead
            np.multiply(at_h[step], slopes[step], out=said[step])
            ahead = said[step].reshape(-1) @ w + at_h[step] * update[step]
        at_input = np.concatenate([said[:, 0], said[:, 1], at_h * to_new], axis=1)
        flat = said.reshape(len(new), -1)
        return torch.from_numpy(at_input), torch.from_numpy(flat.T @ h[:-1]), torch.from_numpy(flat.sum(0))


class GRU(nn.Module):
    """The unit of Cho et al. 2014, as `torch.nn.GRU` computes it and by its names, over one sequence from h = 0.

    Args:
        inputs: features of a step.
        hidden: numbers that it says of every step.
        generator: of the first weights.
    """

    def __init__(self, inputs: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight_ih, self.bias_ih = nn.Parameter(torch.empty(3 * hidden, inputs)), nn.Parameter(torch.empty(3 * hidden))
        self.weight_hh, self.bias_hh = nn.Parameter(torch.empty(3 * hidden, hidden)), nn.Parameter(torch.empty(3 * hidden))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(step, inputs) → (step, hidden)."""
        states: Tensor = Recurrence.apply(F.linear(x, self.weight_ih, self.bias_ih), self.weight_hh, self.bias_hh)
        return states
