"""What the families share: scaled widths and initial weights."""

from torch import nn

MOST_CHANNELS = 1 << 20  # of a layer; whether a network fits into memory is another question


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, to the nearest integer, at least 1.

    Raises:
        ValueError: the width is not positive, or a layer would have millions of channels.
    """
    _check(channels, width)
    return max(1, round(channels * width))


def scaled_by_8(channels: int, width: float) -> int:
    """`channels` times `width`, to the nearest multiple of 8, at least 8, and never more than 10 % less than asked for (MobileNets).

    Raises:
        ValueError: the width is not positive.
    """
    _check(channels, width)
    nearest = max(8, int(channels * width / 8 + 0.5) * 8)
    return nearest if nearest >= 0.9 * channels * width else nearest + 8


class Family(nn.Module):
    """A shipped family, which knows its own rule of first weights, so that a smaller network of it is drawn by it as well."""

    def reset_parameters(self) -> None:
        """Draw its convolutions anew; its other layers are drawn by their own rule, as when the network is made."""
        initialize(self)


def initialize(network: nn.Module) -> None:
    """Draw the weights of convolutions (He et al. 2015, by outputs); their biases start at zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _check(channels: int, width: float) -> None:
    if width <= 0:
        raise ValueError(f"width={width}: must be > 0")
    if channels * width > MOST_CHANNELS:
        raise ValueError(f"width={width}: makes layers of {channels * width:.0f} channels; make it smaller")
