"""MobileNetV2 (Sandler et al. 2018) for 32×32 images: the stem and the stage of 24 channels keep the side."""

from torch import Tensor, nn

from rlprune.models.base import Family, initialize, scaled_by_8

STEM, LAST = 32, 1280
# Expansion t, channels c, repeats n, and stride s of the first block (table 2); 32×32 images enter the last stages at 4×4.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; a residual where shapes agree."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == channels
        self.layers = nn.Sequential(
            *(_conv(in_channels, hidden, 1, 1, 1) if expansion > 1 else ()),
            *_conv(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, channels, H / stride, W / stride)."""
        return images + self.layers(images) if self.residual else self.layers(images)


class MobileNetV2(Family):
    """Seventeen inverted residuals between two convolutions.

    Args:
        width: factor on all channels, also the last 1,280, each rounded to the nearest multiple of 8, at least 8 and at most 10 % down.
        in_channels: channels of an image.
        num_classes: outputs.
    """

    def __init__(self, *, width: float, in_channels: int, num_classes: int) -> None:
        super().__init__()
        channels, last = scaled_by_8(STEM, width), scaled_by_8(LAST, width)
        layers = _conv(in_channels, channels, 3, 1, 1)
        for expansion, base, repeats, stride in STAGES:
            stage = scaled_by_8(base, width)
            for b in range(repeats):
                layers.append(InvertedResidual(channels, stage, expansion, stride if b == 0 else 1))
                channels = stage
        self.features = nn.Sequential(*layers, *_conv(channels, last, 1, 1, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.linear = nn.Linear(last, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        return self.linear(self.dropout(self.pool(self.features(images)).flatten(1)))


def _conv(in_channels: int, channels: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(inplace=True),
    ]
