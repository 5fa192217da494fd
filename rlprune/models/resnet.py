"""ResNets for 32×32 images (He et al. 2016): three narrow stages of section 4.2, or the four wide stages made for ImageNet."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.models.base import Family, initialize, scaled

# Kind of block and blocks of each of the four wide stages.
STAGES: dict[int, tuple[Literal["basic", "bottleneck"], tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
}
CHANNELS = (64, 128, 256, 512)


class PadShortcut(nn.Module):
    """Option A: subsample and pad with zero channels, without parameters."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, extra // 2, extra - extra // 2

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C + extra, H / stride, W / stride)."""
        return F.pad(images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a residual."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or in_channels != channels:
            if shortcut == "A":
                self.shortcut = PadShortcut(stride, channels - in_channels)
            else:
                self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, channels, H / stride, W / stride)."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(images))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a residual; the last has 4 times the channels of the others."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or in_channels != 4 * channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, 4 * channels, 1, stride, bias=False), nn.BatchNorm2d(4 * channels))

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, 4 · channels, H / stride, W / stride)."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(hidden)) + self.shortcut(images))


class CifarResNet(Family):
    """ResNet-20, 32, 44, 56, 110 and any other depth 6n + 2.

    Args:
        depth: layers with weights on the longest path.
        width: factor on the 16, 32, 64 channels of the stages.
        shortcut: `B`, 1×1 convolutions where shapes change (the pruning papers' choice), or `A`, zero padding.
        in_channels: channels of an image.
        num_classes: outputs.
    """

    def __init__(self, *, depth: int, width: float, shortcut: Literal["A", "B"], in_channels: int, num_classes: int) -> None:
        super().__init__()
        if not 8 <= depth <= 1202 or (depth - 2) % 6:
            raise ValueError(f"depth={depth}: must be 6n + 2, such as 20, 32, 44, 56 or 110, and at most 1202")
        stages = [scaled(channels, width) for channels in (16, 32, 64)]
        self.conv1 = nn.Conv2d(in_channels, stages[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stages[0])
        blocks = (depth - 2) // 6
        before = [stages[0], *stages]
        layers = [
            nn.Sequential(
                *(BasicBlock(before[i] if b == 0 else stages[i], stages[i], 2 if i and b == 0 else 1, shortcut) for b in range(blocks))
            )
            for i in range(3)
        ]
        self.layer1, self.layer2, self.layer3 = layers
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(stages[2], num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.linear(self.pool(hidden).flatten(1))


class ResNet(Family):
    """ResNet-18, 34 or 50 with a 3×3 stem and no pooling behind it.

    Args:
        depth: 18, 34 or 50.
        width: factor on all hidden channels, each rounded to the nearest integer.
        in_channels: channels of an image.
        num_classes: outputs.
    """

    def __init__(self, *, depth: int, width: float, in_channels: int, num_classes: int) -> None:
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f"depth={depth}: must be one of {', '.join(map(str, STAGES))}")
        kind, repeats = STAGES[depth]
        channels = scaled(CHANNELS[0], width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        stages: list[nn.Module] = []
        for i, blocks in enumerate(repeats):
            stage, layers = scaled(CHANNELS[i], width), list[nn.Module]()
            for b in range(blocks):
                stride = 2 if i and b == 0 else 1
                layers.append(BasicBlock(channels, stage, stride, "B") if kind == "basic" else Bottleneck(channels, stage, stride))
                channels = stage if kind == "basic" else 4 * stage
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        return self.linear(self.pool(hidden).flatten(1))
