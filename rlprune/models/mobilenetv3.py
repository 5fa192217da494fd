"""MobileNetV3 (Howard et al. 2019), large and small, with the strides made for ImageNet; as in torchvision, or as in RL-Pruner."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from rlprune.models.base import Family, initialize, scaled_by_8

STEM = 16
# Of each block: kernel, expanded channels, channels, squeeze-and-excitation, hard swish (or ReLU), stride (tables 1 and 2).
LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
SMALL = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
BLOCKS = {"large": LARGE, "small": SMALL}
HEADS = {("large", "torchvision"): 1280, ("small", "torchvision"): 1024, ("large", "paper"): 1280, ("small", "paper"): 1280}
EXPANDED = {("large", 13): 672}  # RL-Pruner's block 14, where the table has 960

Norm = Callable[[int], nn.Module]
# torchvision's batch norm follows the authors' TensorFlow.
NORMS: dict[str, Norm] = {"torchvision": partial(nn.BatchNorm2d, eps=0.001, momentum=0.01), "paper": nn.BatchNorm2d}


class SqueezeExcite(nn.Module):
    """A factor for each channel, from the means of all channels."""

    def __init__(self, channels: int, squeezed: int, norm: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1, bias=not norm),
            *([nn.BatchNorm2d(squeezed)] if norm else []),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, channels, 1, bias=not norm),
            nn.Hardsigmoid(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels, H, W) → (N, channels, H, W)."""
        return images * self.layers(images)


class Block(nn.Module):
    """Expand, filter each channel, weigh the channels, project.

    `torchvision`: a residual where shapes agree; no expansion where it would change nothing. `paper`: always an expansion, a residual that
    convolutions bring to shape where it must be, and the activation once more behind the sum.
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        channels: int,
        kernel: int,
        stride: int,
        excite: bool,
        swish: bool,
        variant: Literal["paper", "torchvision"],
    ) -> None:
        super().__init__()
        paper, norm = variant == "paper", NORMS[variant]
        act: type[nn.Module] = nn.Hardswish if swish else nn.ReLU
        squeezed = max(8, expanded // 4) if paper else scaled_by_8(expanded // 4, 1.0)
        self.layers = nn.Sequential(
            *([*_conv(in_channels, expanded, 1, norm), act()] if paper or in_channels != expanded else []),
            *_conv(expanded, expanded, kernel, norm, stride, expanded),
            act(),
            *([SqueezeExcite(expanded, squeezed, norm=paper)] if excite else []),
            *_conv(expanded, channels, 1, norm),
        )
        self.residual = paper or (stride == 1 and in_channels == channels)
        self.shortcut = nn.Sequential(*(_shortcut(in_channels, channels, stride, norm) if paper else []))
        self.act = act() if paper else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, channels, H / stride, W / stride)."""
        hidden = self.layers(images)
        return self.act(hidden + self.shortcut(images)) if self.residual else hidden


class MobileNetV3(Family):
    """MobileNetV3-Large or Small. 32×32 images are 1×1 behind the last stride.

    Args:
        size: `large` or `small`.
        variant: `torchvision`, the published network with torchvision's counts, or `paper`, that of RL-Pruner's authors: squeeze and
            excitation without biases and with batch norm, convolutions on residuals that change shape, an activation behind every
            residual, 672 instead of 960 channels in the large one's block 14, and a head of 1,280 without biases and with batch norm.
        width: factor on all channels, each rounded to the nearest multiple of 8, at least 8 and at most 10 % down.
        in_channels: channels of an image.
        num_classes: outputs.
    """

    def __init__(
        self,
        *,
        size: Literal["large", "small"],
        variant: Literal["paper", "torchvision"],
        width: float,
        in_channels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        if size not in BLOCKS:
            raise ValueError(f"size={size}: must be one of {', '.join(BLOCKS)}")
        if variant not in NORMS:
            raise ValueError(f"variant={variant}: must be one of {', '.join(NORMS)}")
        norm, channels = NORMS[variant], scaled_by_8(STEM, width)
        layers: list[nn.Module] = [*_conv(in_channels, channels, 3, norm, stride=2), nn.Hardswish()]
        for i, (kernel, expanded, base, excite, swish, stride) in enumerate(BLOCKS[size]):
            if variant == "paper":
                expanded = EXPANDED.get((size, i), expanded)
            stage = scaled_by_8(base, width)
            layers.append(Block(channels, scaled_by_8(expanded, width), stage, kernel, stride, excite, swish, variant))
            channels = stage
        self.features = nn.Sequential(*layers, *_conv(channels, 6 * channels, 1, norm), nn.Hardswish())
        self.pool = nn.AdaptiveAvgPool2d(1)
        head = scaled_by_8(HEADS[size, variant], width)
        first = nn.Linear(6 * channels, head, bias=variant != "paper")
        between = [nn.BatchNorm1d(head)] if variant == "paper" else []
        self.classifier = nn.Sequential(first, *between, nn.Hardswish(), nn.Dropout(0.2), nn.Linear(head, num_classes))
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        return self.classifier(self.pool(self.features(images)).flatten(1))


def _conv(in_channels: int, channels: int, kernel: int, norm: Norm, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, norm(channels)]


def _shortcut(in_channels: int, channels: int, stride: int, norm: Norm) -> list[nn.Module]:
    """RL-Pruner's: filters where the side changes, then a 1×1 convolution where the channels do, with a bias if behind filters."""
    layers = _conv(in_channels, in_channels, 3, norm, stride, in_channels) if stride != 1 else []
    if in_channels != channels:
        layers += [nn.Conv2d(in_channels, channels, 1, bias=stride != 1), norm(channels)]
    return layers
