"""Which shipped model a file of weights belongs to."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rlprune.checkpoint import MisfitError, fit_names
from rlprune.config import build, conf_dir, shipped, word_choices


def fitting_model(tensors: Mapping[str, Tensor]) -> str:
    """What to choose for these weights, as the end of a message; empty where no shipped model of width 1 fits them."""
    images = next((tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 4), None)
    classes = next((tensor.shape[0] for tensor in reversed(list(tensors.values())) if tensor.ndim == 2), None)
    if images is None or classes is None:
        return ""
    for path in sorted((conf_dir() / "model").glob("*.yaml")):
        for settings in _variants(shipped("model", path.stem, {})):
            with torch.device("meta"):
                network = build(shipped("model", path.stem, settings), "model", in_channels=images, num_classes=classes)
            with contextlib.suppress(MisfitError):
                fit_names(network, tensors, "")
                words = " ".join([f"model={path.stem}", *(f"model.{key}={value}" for key, value in settings.items())])
                return f" (they fit {words} with {classes} classes{f' and images of {images} channels' if images != 3 else ''})"
    return ""


def _variants(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What to set in a family's yaml: nothing first, then every combination of its choices of words."""
    if "width" not in node:  # a network of another library, by its name there
        return
    words = word_choices(node)
    yield {}
    for values in itertools.product(*words.values()):
        changed = {key: value for key, value in zip(words, values, strict=True) if value != node[key]}
        if changed:
            yield changed
