"""How the dense network of a run is made again."""

import shlex
from dataclasses import dataclass
from typing import Any

from torch import nn

from rlprune.config import build, shipped, shipped_names
from rlprune.errors import UserError


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
        network: nn.Module = build(
            shipped("model", self.model, self.model_settings), "model", in_channels=self.in_channels, num_classes=len(self.class_names)
        )
        return network


def _word(value: Any) -> str:
    """A setting as the command line takes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_word(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
