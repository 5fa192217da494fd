"""ShuffleNetV2 (Ma et al. 2018) for 32×32 images: the stem keeps the side, and no pooling follows it."""

import torch
from torch import Tensor, nn

from rlprune.models.base import Family, initialize, scaled

# Channels of the stem, of three stages and of the last convolution (table 5), by width.
CHANNELS = {
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}
REPEATS = (4, 8, 4)


class ShuffleUnit(nn.Module):
    """Half of the channels go through three convolutions, the others pass; then both halves are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_branch(channels // 2, channels // 2, 1))
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels, H, W) → (N, channels, H, W)."""
        passed, worked = images.chunk(2, dim=1)
        return self.shuffle(torch.cat([passed, self.branch(worked)], dim=1))


class DownUnit(nn.Module):
    """Two branches at half the side, each with all inputs and half of the outputs; then both are shuffled."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(*_depthwise(in_channels, 2), *_pointwise(in_channels, channels // 2))
        self.branch = nn.Sequential(*_branch(in_channels, channels // 2, 2))
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, channels, H / 2, W / 2)."""
        return self.shuffle(torch.cat([self.shortcut(images), self.branch(images)], dim=1))


class ShuffleNetV2(Family):
    """Three stages of units that split and shuffle.

    Args:
        width: 0.5, 1, 1.5 or 2, the published networks; any other is a factor on all hidden channels of the second, each rounded to the
            nearest even number, at least 2.
        in_channels: channels of an image.
        num_classes: outputs.
    """

    def __init__(self, *, width: float, in_channels: int, num_classes: int) -> None:
        super().__init__()
        stem, *stages, last = CHANNELS.get(width) or [2 * scaled(base // 2, width) for base in CHANNELS[1.0]]
        layers = [*_pointwise(in_channels, stem, kernel=3)]
        channels = stem
        for stage, repeats in zip(stages, REPEATS, strict=True):
            layers += [DownUnit(channels, stage), *(ShuffleUnit(stage) for _ in range(repeats - 1))]
            channels = stage
        self.features = nn.Sequential(*layers, *_pointwise(channels, last))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(last, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        return self.linear(self.pool(self.features(images)).flatten(1))


def _branch(in_channels: int, channels: int, stride: int) -> list[nn.Module]:
    return [*_pointwise(in_channels, channels), *_depthwise(channels, stride), *_pointwise(channels, channels)]


def _pointwise(in_channels: int, channels: int, kernel: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False), nn.BatchNorm2d(channels)]
