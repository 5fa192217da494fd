"""Any classification or segmentation network of torchvision, by its name there."""

import difflib
import inspect
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from rlprune.errors import UserError
from rlprune.provenance import Provenance, mark

SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def network_names() -> list[str]:
    """Every name that `torchvision_network` takes."""
    zoo = torchvision.models
    return sorted([*zoo.list_models(module=zoo), *zoo.list_models(module=zoo.segmentation)])


def torchvision_network(*, name: str, weights: str | None, in_channels: int, num_classes: int) -> nn.Module:
    """Build a network; with published weights, whose classifier is drawn anew where the number of classes is another.

    Args:
        name: as in torchvision, such as `resnet50` or `deeplabv3_resnet50`.
        weights: their name there, such as `IMAGENET1K_V1`, or `DEFAULT`; None draws them.
        in_channels: channels of an image; these networks take 3.
        num_classes: outputs.

    Raises:
        UserError: there is no such network or there are no such weights, they cannot be downloaded, or the images are of another kind.
    """
    names = network_names()
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=4)
        near = f"did you mean {', '.join(close)}?" if close else f"names: {', '.join(names)}"
        raise UserError(f"model.name={name}: torchvision has no such network; {near}")
    if in_channels != 3:
        raise UserError(f"model.name={name}: takes images of 3 channels, the data set has {in_channels}")
    enum = torchvision.models.get_model_weights(name)
    if weights is not None and weights != "DEFAULT" and weights not in enum.__members__:
        raise UserError(f"model.weights={weights}: {name} has no such weights; choose {', '.join(enum.__members__)}, or null")
    network = _build(name, None, num_classes)
    shapes = enum.DEFAULT.transforms()
    if weights is None:
        return mark(network, Provenance(side=getattr(network, "image_size", None) or _side(shapes)))
    chosen = enum[weights]
    published = _download(name, chosen)
    own = network.state_dict()
    fitting = {key: tensor for key, tensor in published.state_dict().items() if key in own and own[key].shape == tensor.shape}
    network.load_state_dict(fitting, strict=False)
    mean, std = tuple(chosen.transforms().mean), tuple(chosen.transforms().std)
    if getattr(published, "transform_input", False):  # they normalise once more; what comes out is ± 1
        mean = std = (0.5, 0.5, 0.5)
    known = Provenance(f"torchvision {name} {chosen.name}", len(fitting) == len(own), _side(chosen.transforms()), mean, std)
    return mark(network, known)


def _build(name: str, weights: Any, num_classes: int) -> nn.Module:
    builder = torchvision.models.get_model_builder(name)
    settings: dict[str, Any] = {"num_classes": num_classes, "weights": weights}
    if "weights_backbone" in inspect.signature(builder).parameters:
        settings["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        settings["init_weights"] = weights is None
        if weights is None:  # published weights come with heads that only run in training, and return more than scores
            settings["aux_logits"] = False
    network: nn.Module = builder(**settings)
    return network


def _download(name: str, weights: Any) -> nn.Module:
    """The network with its published weights, from torch's cache or the internet."""
    folder, file = Path(torch.hub.get_dir()) / "checkpoints", weights.url.rpartition("/")[2]
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(20)
        with torch.random.fork_rng(devices=[]), _weights_only():
            return _build(name, weights, len(weights.meta["categories"]))
    except Exception as error:  # no network, or a broken file, on which torch may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(
            f"model.weights={weights.name}: cannot be downloaded or read ({reason}); fetch {weights.url} and put it at {folder / file}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


@contextmanager
def _weights_only() -> Iterator[None]:
    """Torchvision unpickles whatever lies in torch's cache, code and all, unless torch is told otherwise."""
    before = os.environ.get(SAFE)
    os.environ[SAFE] = "1"
    try:
        yield
    finally:
        os.environ.pop(SAFE)
        if before is not None:
            os.environ[SAFE] = before


def _side(shapes: Any) -> int:
    """Pixels a side of the images that published weights take."""
    side = getattr(shapes, "crop_size", None) or getattr(shapes, "resize_size", None) or 224
    return int(side[0] if isinstance(side, list | tuple) else side)
