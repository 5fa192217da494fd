"""GoogLeNet (Szegedy et al. 2015) for 32×32 images, in RL-Pruner's edition: batch norm, and two 3×3 convolutions for each 5×5."""

import torch
from torch import Tensor, nn

from rlprune.models.base import Family, initialize, scaled

STEM = (64, 64, 192)
# Of each block: 1×1; before and after the 3×3; before and after the 5×5; behind the pooling. A pooling that halves comes before a stage.
STAGES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class Inception(nn.Module):
    """Four branches side by side.

    Args:
        in_channels: channels of the input.
        channels: six numbers, in the order of `STAGES`.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        point, before3, after3, before5, after5, pooled = channels
        self.branch1 = nn.Sequential(*_conv(in_channels, point, 1))
        self.branch3 = nn.Sequential(*_conv(in_channels, before3, 1), *_conv(before3, after3, 3))
        self.branch5 = nn.Sequential(*_conv(in_channels, before5, 1), *_conv(before5, after5, 3), *_conv(after5, after5, 3))
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), *_conv(in_channels, pooled, 1))
        self.out_channels = point + after3 + after5 + pooled

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H, W)."""
        return torch.cat([self.branch1(images), self.branch3(images), self.branch5(images), self.branch_pool(images)], dim=1)


class GoogLeNet(Family):
    """Three convolutions and nine Inception blocks; all convolutions have biases, as RL-Pruner's counts tell.

    Args:
        width: factor on all hidden channels, each rounded to the nearest integer.
        in_channels: channels of an image.
        num_classes: outputs.
    """

    def __init__(self, *, width: float, in_channels: int, num_classes: int) -> None:
        super().__init__()
        stem = [scaled(channels, width) for channels in STEM]
        before = [in_channels, *stem]
        self.stem = nn.Sequential(*(layer for i in range(len(stem)) for layer in _conv(before[i], stem[i], 3)))
        channels, layers = stem[-1], list[nn.Module]()
        for stage in STAGES:
            layers.append(nn.MaxPool2d(3, 2, padding=1))
            for block in stage:
                inception = Inception(channels, tuple(scaled(branch, width) for branch in block))
                layers.append(inception)
                channels = inception.out_channels
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout()
        self.linear = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        hidden = self.features(self.stem(images))
        return self.linear(self.dropout(self.pool(hidden).flatten(1)))


def _conv(in_channels: int, channels: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
