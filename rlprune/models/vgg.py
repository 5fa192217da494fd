"""VGG with batch norm (Simonyan and Zisserman 2014) for 32×32 images."""

from typing import Literal

from torch import Tensor, nn

from rlprune.models.base import Family, initialize, scaled

# Convolutions of each of the five stages; a 2×2 max pooling ends a stage.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(Family):
    """VGG-11, 13, 16 or 19.

    Args:
        depth: 11, 13, 16 or 19.
        width: factor on all hidden channels.
        classifier: `wide`, two hidden layers of 4,096 (RL-Pruner), or `slim`, one linear layer (FPRL, RLP).
        in_channels: channels of an image.
        num_classes: outputs.
    """

    def __init__(self, *, depth: int, width: float, classifier: Literal["wide", "slim"], in_channels: int, num_classes: int) -> None:
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f"depth={depth}: must be one of {', '.join(map(str, STAGES))}")
        layers: list[nn.Module] = []
        channels = in_channels
        for base, repeats in zip(CHANNELS, STAGES[depth], strict=True):
            stage = scaled(base, width)
            for _ in range(repeats):
                layers += [nn.Conv2d(channels, stage, 3, padding=1), nn.BatchNorm2d(stage), nn.ReLU(inplace=True)]
                channels = stage
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes) if classifier == "slim" else _wide(channels, scaled(4096, width), num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        return self.classifier(self.pool(self.features(images)).flatten(1))


def _wide(channels: int, hidden: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(hidden, num_classes),
    )  # fmt: skip
