"""A pruned network on disk: what was kept as JSON, the weights as safetensors, no pickled code."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlprune.checkpoint import load_into, load_tensors, save_tensors
from rlprune.config import build, shipped_model
from rlprune.errors import UserError
from rlprune.files import read_json, write_json
from rlprune.graph import prune, trace

FORMAT = 1


@dataclass(frozen=True)
class Origin:
    """How the dense network is made again: a shipped model by its name, and the images it takes."""

    model: str
    settings: dict[str, Any]
    in_channels: int
    image_size: tuple[int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def build(self) -> nn.Module:
        """The dense network, with weights as initialised.

        Raises:
            UserError: this version ships no such model, or the settings do not fit it.
        """
        node = shipped_model(self.model, self.settings)
        return build(node, "model", in_channels=self.in_channels, num_classes=len(self.class_names))

    def example(self) -> torch.Tensor:
        """Two images of zeros and ones to trace with, shape (2, C, H, W)."""
        shape = (self.in_channels, *self.image_size)
        return torch.stack([torch.zeros(shape), torch.ones(shape)])


def save_artefact(folder: Path, network: nn.Module, origin: Origin, kept: dict[str, np.ndarray], ignore: list[str], facts: dict[str, Any]) -> None:
    """Write `plan.json` and `weights.safetensors`; the plan comes last, so that a folder with a plan is whole."""
    tensors = network.state_dict()
    save_tensors(folder / "weights.safetensors", tensors)
    plan = {
        "format": FORMAT,
        "model": origin.model,
        "settings": origin.settings,
        "in_channels": origin.in_channels,
        "image_size": list(origin.image_size),
        "class_names": list(origin.class_names),
        "mean": list(origin.mean),
        "std": list(origin.std),
        "ignore": ignore,
        "keep": {name: units.tolist() for name, units in kept.items()},
        "weights_sha256": hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest(),
        **facts,
    }
    write_json(folder / "plan.json", plan)


def load_artefact(folder: Path) -> tuple[nn.Module, Origin, dict[str, Any]]:
    """Rebuild a pruned network from its folder. No code is taken from the files: a plan only names shipped models.

    Raises:
        UserError: a file is absent, damaged, of a newer version, or does not fit the others; names it.
    """
    path = folder / "plan.json"
    plan = read_json(path)
    if plan.get("format") != FORMAT:
        raise UserError(f"{path}: has format {plan.get('format')}, this version reads {FORMAT}; use the version that wrote it")
    try:
        origin = Origin(
            model=str(plan["model"]),
            settings=dict(plan["settings"]),
            in_channels=int(plan["in_channels"]),
            image_size=(int(plan["image_size"][0]), int(plan["image_size"][1])),
            class_names=tuple(map(str, plan["class_names"])),
            mean=tuple(map(float, plan["mean"])),
            std=tuple(map(float, plan["std"])),
        )
        keep = {str(name): np.array(units, dtype=int) for name, units in plan["keep"].items()}
        ignore, digest = list(map(str, plan["ignore"])), str(plan["weights_sha256"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: lacks or garbles {error}; the file is damaged, use another run") from error
    if not re.fullmatch(r"\w+", origin.model):
        raise UserError(f"{path}: model {origin.model!r} is no name of a shipped model")
    weights = folder / "weights.safetensors"
    tensors, _ = load_tensors(weights)
    if hashlib.sha256(weights.read_bytes()).hexdigest() != digest:
        raise UserError(f"{weights}: does not belong to {path} (its hash differs); copy the whole folder again")
    try:
        dense = origin.build()
        graph = trace(dense, origin.example(), ignore=ignore)
        network = prune(dense, graph, keep)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    load_into(network, tensors, str(weights))
    return network.eval(), origin, plan
