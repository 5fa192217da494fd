"""Actor and critic: small fully connected networks, on the CPU, whose weights come from a generator of their own."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Bound = Literal["sigmoid", "clip"]
LAST = 3e-3  # bound of an output layer's first weights, so that what it says at the start is near the middle (Lillicrap et al. 2016)
SPREAD = 5.0  # bound of a Gaussian policy's log σ, on either side


class Perceptron(nn.Module):
    """Linear layers with ReLU between them: (N, inputs) → (N, outputs).

    Args:
        inputs: features that it reads.
        hidden: widths of the hidden layers.
        generator: of the first weights.
        outputs: that it has.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], generator: torch.Generator, outputs: int = 1) -> None:
        super().__init__()
        widths = [inputs, *hidden, outputs]
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, *sizes) for sizes in pairwise(widths))
        for depth, (layer, width) in enumerate(zip(self.layers, widths[:-1], strict=True)):
            bound = LAST if depth == len(hidden) else width**-0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) → (N, outputs)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        output: Tensor = self.layers[-1](x)
        return output


class Bounded(torch.autograd.Function):
    """Cuts off at 0 and `most`; backwards, a gradient shrinks with what is left of the way that it pushes (Hausknecht and Stone 2016).

    Where a sigmoid is full its slope is gone, and a policy that ran there before the critic knew anything would stay. Here it comes back
    at full speed, and one that has left the range is pulled in.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, most: float) -> Tensor:
        """[0, `most`]."""
        ctx.save_for_backward(x)
        ctx.most = most
        return x.clamp(0, most)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Of a loss: where it is negative, the way is up."""
        (x,), (gradient,) = ctx.saved_tensors, gradients
        return gradient * torch.where(gradient < 0, ctx.most - x, x) / ctx.most, None


class Actor(nn.Module):
    """A deterministic policy μ(s): (N, feature) → (N, 1) in [0, `most`].

    Args:
        num_features: of an observation.
        hidden: widths of the hidden layers.
        most: largest action.
        bound: what keeps actions in their range: a `sigmoid`, or `clip`, see `Bounded`.
        generator: of the first weights.
    """

    def __init__(self, num_features: int, hidden: Sequence[int], most: float, bound: Bound, generator: torch.Generator) -> None:
        super().__init__()
        self.body, self.most, self.bound = Perceptron(num_features, hidden, generator), most, bound

    def forward(self, observations: Tensor) -> Tensor:
        """Actions."""
        if self.bound == "sigmoid":
            return torch.sigmoid(self.body(observations)) * self.most
        actions: Tensor = Bounded.apply(self.most * (0.5 + self.body(observations)), self.most)
        return actions


class GaussianActor(nn.Module):
    """A stochastic policy π(a | s): a Gaussian, squashed into [0, `most`] by tanh (Haarnoja et al. 2018, appendix C).

    Args:
        num_features: of an observation.
        hidden: widths of the hidden layers.
        most: largest action.
        generator: of the first weights.
    """

    def __init__(self, num_features: int, hidden: Sequence[int], most: float, generator: torch.Generator) -> None:
        super().__init__()
        self.body, self.most = Perceptron(num_features, hidden, generator, outputs=2), most

    def gaussian(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log σ before the squashing, each (N, 1)."""
        mean, log_std = self.body(observations).split(1, dim=1)
        return mean, SPREAD * torch.tanh(log_std / SPREAD)

    def squash(self, x: Tensor) -> Tensor:
        """ℝ → [0, `most`]."""
        return self.most * (0.5 + 0.5 * torch.tanh(x))

    def forward(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions that standard-normal noise draws, and log π of them as a density over [0, `most`]; each (N, 1).

        The density of the Gaussian is divided by the slope of the squashing, most / 2 · (1 − tanh² x), in a form that does not overflow.
        """
        mean, log_std = self.gaussian(observations)
        x = mean + log_std.exp() * noise
        log_gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = math.log(2 * self.most) - 2 * (x + F.softplus(-2 * x))
        return self.squash(x), log_gaussian - log_slope


class Critic(nn.Module):
    """A value Q(s, a): (N, feature), (N, 1) → (N, 1)."""

    def __init__(self, num_features: int, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.body = Perceptron(num_features + 1, hidden, generator)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q values."""
        value: Tensor = self.body(torch.cat([observations, actions], dim=1))
        return value


@torch.no_grad()
def soft_update(targets: Iterable[Tensor], sources: Iterable[Tensor], tau: float) -> None:
    """θ' ← τ θ + (1 − τ) θ', in place (Lillicrap et al. 2016)."""
    torch._foreach_lerp_(list(targets), list(sources), tau)
