"""How the dense network of a run is made again."""

import math
import shlex
from dataclasses import dataclass
from typing import Any

from torch import nn

from rlprune.errors import UserError
from rlprune.memory import LARGEST_SIDE, bounded_weights
from rlprune.shipped import make_shipped, shipped_names

MOST_PIXELS = 4 * LARGEST_SIDE**2  # of an image, over all channels


@dataclass(frozen=True)
class Origin:
    """How the dense network is made again, and the images it takes: names of shipped choices and their settings."""

    model: str
    model_settings: dict[str, Any]
    dataset: str
    dataset_settings: dict[str, Any]
    in_channels: int
    image_size: tuple[int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (C, H, W)."""
        return (self.in_channels, *self.image_size)

    @property
    def network_name(self) -> str:
        """The choice, and which of several networks it stands for: `resnet20`, `torchvision resnet50`."""
        return " ".join([self.model, *(str(self.model_settings[key]) for key in ("name", "target") if self.model_settings.get(key))])

    def build(self) -> nn.Module:
        """The dense network, with weights as initialised.

        Raises:
            UserError: this version ships no such model, or the settings do not fit it.
        """
        if self.model == "custom" or self.model not in shipped_names("model"):
            settings = {key: value for key, value in self.model_settings.items() if value is not None and self.model == "custom"}
            words = [f"model={self.model}", *(shlex.quote(f"model.{key}={_word(value)}") for key, value in settings.items())]
            raise UserError(
                f"model={self.model}: is not shipped with this version, and code is never taken from a file; name the network again: "
                f"{' '.join(words)} beside the folder, or rlprune.load(FOLDER, model=NETWORK)"
            )
        sizes = {"in_channels": self.in_channels, "num_classes": len(self.class_names)}
        settings = self.model_settings | dict.fromkeys({"weights"} & set(self.model_settings))  # nothing is fetched because a file says so
        with bounded_weights(f"model={self.model}"):
            network: nn.Module = make_shipped("model", self.model, settings, **sizes)
        return network


def read_origin(raw: Any) -> Origin:
    """An origin as a plan has it; nothing is converted, so that what was not written is not read.

    Raises:
        KeyError: an entry is missing.
        TypeError: it is no mapping.
        ValueError: an entry has an impossible value; names it.
    """
    channels, size, classes = raw["in_channels"], raw["image_size"], raw["class_names"]
    checks = {
        **{name: isinstance(raw[name], str) for name in ("model", "dataset")},
        **{name: isinstance(raw[name], dict) for name in ("model_settings", "dataset_settings")},
        "in_channels": type(channels) is int and 1 <= channels <= 1024,
        "image_size": isinstance(size, list) and len(size) == 2 and all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in size),
        "in_channels and image_size": type(channels) is int and isinstance(size, list) and channels * math.prod(size) <= MOST_PIXELS,
        "class_names": isinstance(classes, list) and len(classes) >= 1 and all(isinstance(name, str) for name in classes),
    }
    wrong = next((name for name, holds in checks.items() if not holds), None)
    wrong = wrong or next((name for name in ("mean", "std") if not _are_numbers(raw[name], channels)), None)
    if wrong is None and min(raw["std"]) <= 0:
        wrong = "std"
    if wrong is not None:
        raise ValueError(f"origin: {wrong} has an impossible value")
    return Origin(
        **{name: raw[name] for name in ("model", "model_settings", "dataset", "dataset_settings", "in_channels")},
        image_size=(size[0], size[1]),
        class_names=tuple(classes),
        mean=tuple(map(float, raw["mean"])),
        std=tuple(map(float, raw["std"])),
    )


def _are_numbers(values: Any, count: int) -> bool:
    """Finite ones, so many of them."""
    if not isinstance(values, list) or len(values) != count:
        return False
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _word(value: Any) -> str:
    """A setting as the command line takes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_word(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
