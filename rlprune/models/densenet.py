"""DenseNet-BC (Huang et al. 2017) for 32×32 images: the blocks made for ImageNet behind a 3×3 stem."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.models.base import Family, initialize, scaled

# Layers of each of the four dense blocks.
BLOCKS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32)}
GROWTH = 32  # channels that a layer adds
STEM = 64


class DenseLayer(nn.Module):
    """A 1×1 convolution to 4 × growth channels and a 3×3 to `growth`, each behind its batch norm; the input is passed on in front."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, in_channels + growth, H, W)."""
        hidden = self.conv1(F.relu(self.bn1(images)))
        return torch.cat([images, self.conv2(F.relu(self.bn2(hidden)))], dim=1)


class Transition(nn.Module):
    """Fewer channels, and half the side."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, channels, H / 2, W / 2)."""
        return self.pool(self.conv(F.relu(self.bn(images))))


class DenseNet(Family):
    """DenseNet-121 or 169; between blocks half of the channels go, rounded down.

    Args:
        depth: 121 or 169.
        width: factor on the growth rate and the stem, each rounded to the nearest integer; all other channels follow from them.
        in_channels: channels of an image.
        num_classes: outputs.
    """

    def __init__(self, *, depth: int, width: float, in_channels: int, num_classes: int) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth={depth}: must be one of {', '.join(map(str, BLOCKS))}")
        growth, channels = scaled(GROWTH, width), scaled(STEM, width)
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        for i, repeats in enumerate(BLOCKS[depth]):
            if i:
                layers.append(Transition(channels, max(1, channels // 2)))
                channels = max(1, channels // 2)
            layers += [DenseLayer(channels + n * growth, growth) for n in range(repeats)]
            channels += repeats * growth
        self.features = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        hidden = F.relu(self.bn(self.features(self.conv(images))))
        return self.linear(self.pool(hidden).flatten(1))
