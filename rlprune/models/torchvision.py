"""Any classification or segmentation network of torchvision, by its name there, with fresh weights."""

import difflib
import inspect

import torchvision
from torch import nn

from rlprune.errors import UserError


def network_names() -> list[str]:
    """Every name that `torchvision_network` takes."""
    zoo = torchvision.models
    return sorted([*zoo.list_models(module=zoo), *zoo.list_models(module=zoo.segmentation)])


def torchvision_network(*, name: str, in_channels: int, num_classes: int) -> nn.Module:
    """Build a network; it remembers the side of the images it was made for as `example_side`.

    Args:
        name: as in torchvision, such as `resnet50` or `deeplabv3_resnet50`.
        in_channels: channels of an image; these networks take 3.
        num_classes: outputs.

    Raises:
        UserError: there is no such network, or it does not take such images.
    """
    names = network_names()
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=4)
        known = f"did you mean {', '.join(close)}?" if close else f"names: {', '.join(names)}"
        raise UserError(f"model.name={name}: torchvision has no such network; {known}")
    if in_channels != 3:
        raise UserError(f"model.name={name}: takes images of 3 channels, the data set has {in_channels}")
    settings: dict[str, int | bool | None] = {"num_classes": num_classes, "weights": None}
    builder = torchvision.models.get_model_builder(name)
    if "weights_backbone" in inspect.signature(builder).parameters:
        settings["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        settings |= {"init_weights": True, "aux_logits": False}  # heads that only run in training, and return more than scores
    network: nn.Module = builder(**settings)
    network.example_side = getattr(network, "image_size", None) or _side(name)  # type: ignore[assignment]
    return network


def _side(name: str) -> int:
    """Pixels a side of the images that the published weights take."""
    sizes = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    side = getattr(sizes, "crop_size", None) or getattr(sizes, "resize_size", None) or 224
    return int(side[0] if isinstance(side, list | tuple) else side)
