"""A pruned network on disk: what was kept as JSON, the weights as safetensors, no pickled code."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlprune.checkpoint import load_into, load_tensors, save_tensors
from rlprune.errors import UserError
from rlprune.files import read_json, write_json
from rlprune.graph import ChannelGraph, prune, trace
from rlprune.results.origin import Origin

FORMAT = 1


@dataclass(frozen=True)
class Artefact:
    """A pruned network, where it came from, what its plan says, and the dense network with its graph, whose weights are others."""

    network: nn.Module
    origin: Origin
    plan: dict[str, Any]
    dense: nn.Module
    graph: ChannelGraph
    keep: dict[str, np.ndarray]


def save_artefact(
    folder: Path,
    *,
    before: nn.Module | None,
    after: nn.Module,
    origin: Origin,
    keep: dict[str, np.ndarray],
    ignore: list[str],
    facts: dict[str, Any],
) -> None:
    """Write the weights before and after recovery and `plan.json`, which comes last: a folder with a plan is whole.

    Args:
        folder: where to write.
        before: the pruned network; None where it never had the dense network's weights.
        after: the same network after its recovery.
        origin: of the dense network.
        keep: units of the dense network that stay, by group.
        ignore: layers that were left alone as asked; the groups are found again with it.
        facts: further entries of the plan.
    """
    if before is not None:
        save_tensors(folder / "before_recovery.safetensors", before.state_dict())
    save_tensors(folder / "weights.safetensors", after.state_dict())
    plan = {
        "format": FORMAT,
        "origin": asdict(origin),
        "keep": {name: units.tolist() for name, units in keep.items()},
        "ignore": ignore,
        "weights_sha256": _digest(folder / "weights.safetensors"),
        **facts,
    }
    write_json(folder / "plan.json", plan)


def load_artefact(folder: Path, make: Callable[[Origin], nn.Module] = Origin.build) -> Artefact:
    """Rebuild a pruned network from its folder. No code is taken from the files: a plan only names shipped models.

    Args:
        folder: with plan.json and weights.safetensors.
        make: makes the dense network, whatever its weights; for networks of the user's own.

    Raises:
        UserError: a file is absent, damaged, of a newer version, or does not fit the others; names it.
    """
    found = load_architecture(folder, make)
    _load(found.network, folder / "weights.safetensors", found.plan)
    found.network.eval()
    return found


def load_architecture(folder: Path, make: Callable[[Origin], nn.Module] = Origin.build) -> Artefact:
    """Rebuild a pruned network from its plan alone, as `load_artefact` does; its weights are cut out of what `make` has drawn.

    Raises:
        UserError: the plan is absent, damaged, of a newer version, or does not fit the dense network; names it.
    """
    path = folder / "plan.json"
    plan, origin, keep = read_plan(path)
    try:
        dense = make(origin)
        graph = trace(dense, torch.zeros(2, *origin.shape), ignore=map(str, plan["ignore"]), prove=False)
        network = prune(dense, graph, keep)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Artefact(network, origin, plan, dense, graph, keep)


def load_levels(folder: Path, dense: nn.Module, graph: ChannelGraph) -> tuple[nn.Module, nn.Module]:
    """The networks before and after recovery of one saved level, cut out of the dense network at hand."""
    plan, _, keep = read_plan(folder / "plan.json")
    before, after = prune(dense, graph, keep), prune(dense, graph, keep)
    load_into(before, load_tensors(folder / "before_recovery.safetensors")[0], str(folder / "before_recovery.safetensors"))
    _load(after, folder / "weights.safetensors", plan)
    return before.eval(), after.eval()


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The pruned network of a run folder, or of an artefact folder in it, in eval mode.

    It takes images normalised with the `mean` and `std` that `plan.json` names, and runs no code from the files.

    Args:
        path: the folder.
        model: the dense network, for a class of your own (its weights do not matter); None builds the shipped model that the plan names.

    Raises:
        UserError: a file is absent or damaged, or `model` is another network.
    """
    folder = find_artefact(Path(path))
    return (load_artefact(folder) if model is None else load_artefact(folder, lambda origin: model)).network


def find_artefact(path: Path, key: str = "run") -> Path:
    """The folder that holds plan.json: the path itself, or `pruned` in it.

    Args:
        path: of a run, or of an artefact in it.
        key: that named it, for the message.

    Raises:
        UserError: there is none.
    """
    for folder in (path, path / "pruned"):
        if (folder / "plan.json").is_file():
            return folder
    raise UserError(f"{key}={path}: has no pruned/plan.json; name the folder of a finished `rlprune prune`")


def read_plan(path: Path) -> tuple[dict[str, Any], Origin, dict[str, np.ndarray]]:
    """A plan, its origin and its kept units, checked for form.

    Raises:
        UserError: the plan is absent, damaged, or of another format.
    """
    plan = read_json(path)
    if plan.get("format") is not FORMAT:
        raise UserError(f"{path}: has format {plan.get('format')}, this version reads {FORMAT}; use the version that wrote it")
    try:
        raw = plan["origin"]
        origin = Origin(
            model=str(raw["model"]),
            model_settings=dict(raw["model_settings"]),
            dataset=str(raw["dataset"]),
            dataset_settings=dict(raw["dataset_settings"]),
            in_channels=int(raw["in_channels"]),
            image_size=(int(raw["image_size"][0]), int(raw["image_size"][1])),
            class_names=tuple(map(str, raw["class_names"])),
            mean=tuple(map(float, raw["mean"])),
            std=tuple(map(float, raw["std"])),
        )
        keep = {str(name): np.array(units, dtype=int) for name, units in plan["keep"].items()}
        str(plan["weights_sha256"]), list(plan["ignore"])
        wrong = _wrong_entry(plan, origin)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: lacks or garbles {error}; the file is damaged, use another run") from error
    if wrong is not None:
        raise UserError(f"{path}: {wrong}; the file is damaged, use another run")
    return plan, origin, keep


def _wrong_entry(plan: dict[str, Any], origin: Origin) -> str | None:
    """The first entry whose value cannot be."""
    checks = {
        "in_channels": 1 <= origin.in_channels <= 1024,
        "image_size": all(1 <= size <= 8192 for size in origin.image_size),
        "class_names": len(origin.class_names) >= 1,
        "mean": len(origin.mean) == origin.in_channels and all(math.isfinite(value) for value in origin.mean),
        "std": len(origin.std) == origin.in_channels and all(math.isfinite(value) and value > 0 for value in origin.std),
        "seed": type(plan["seed"]) is int and plan["seed"] >= 0,
        "dense_seed": type(plan.get("dense_seed", 0)) is int and plan.get("dense_seed", 0) >= 0,
        "sparsity": isinstance(plan["sparsity"], float) and 0 <= plan["sparsity"] < 1,
    }
    return next((f"{name} has an impossible value" for name, holds in checks.items() if not holds), None)


def _load(network: nn.Module, path: Path, plan: dict[str, Any]) -> None:
    tensors, _ = load_tensors(path)
    if _digest(path) != plan["weights_sha256"]:
        raise UserError(f"{path}: does not belong to {path.parent / 'plan.json'} (its hash differs); copy the whole folder again")
    load_into(network, tensors, str(path))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
