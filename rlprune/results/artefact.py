"""A pruned network on disk: what was kept as JSON, the weights as safetensors, no pickled code."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlprune.checkpoint import load_into, load_tensors, save_tensors
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph, prune, trace
from rlprune.memory import require_memory
from rlprune.plan import check_files, read_sealed, write_plan
from rlprune.results.origin import Origin, read_origin

WEIGHTS, BEFORE = "weights.safetensors", "before_recovery.safetensors"


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
        save_tensors(folder / BEFORE, before.state_dict())
    save_tensors(folder / WEIGHTS, after.state_dict())
    plan = {"origin": asdict(origin), "keep": {name: units.tolist() for name, units in keep.items()}, "ignore": ignore, **facts}
    write_plan(folder / "plan.json", plan, [WEIGHTS] if before is None else [WEIGHTS, BEFORE])


def load_artefact(folder: Path, make: Callable[[Origin], nn.Module] = Origin.build) -> Artefact:
    """Rebuild a pruned network from its folder. No code is taken from the files: a plan only names shipped models.

    Args:
        folder: with plan.json and weights.safetensors.
        make: makes the dense network, whatever its weights; for networks of the user's own.

    Raises:
        UserError: a file is absent, damaged, of a newer version, or does not fit the others; names it.
    """
    plan, origin, keep = read_plan(folder / "plan.json")
    require_memory((folder / WEIGHTS).stat().st_size if (folder / WEIGHTS).is_file() else 0, str(folder / WEIGHTS), "copy it again")
    check_files(folder, plan["hashes"], WEIGHTS)  # before a network is built for them
    found = _build(folder / "plan.json", plan, origin, keep, make)
    load_into(found.network, load_tensors(folder / WEIGHTS)[0], str(folder / WEIGHTS))
    found.network.eval()
    return found


def load_architecture(folder: Path, make: Callable[[Origin], nn.Module] = Origin.build) -> Artefact:
    """Rebuild a pruned network from its plan alone, as `load_artefact` does; its weights are cut out of what `make` has drawn.

    Raises:
        UserError: the plan is absent, damaged, of a newer version, or does not fit the dense network; names it.
    """
    path = folder / "plan.json"
    return _build(path, *read_plan(path), make)


def _build(path: Path, plan: dict[str, Any], origin: Origin, keep: dict[str, np.ndarray], make: Callable[[Origin], nn.Module]) -> Artefact:
    try:
        dense = make(origin)
        graph = trace(dense, torch.zeros(2, *origin.shape), ignore=plan["ignore"], prove=False)
        network = prune(dense, graph, keep)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Artefact(network, origin, plan, dense, graph, keep)


def load_levels(folder: Path, dense: nn.Module, graph: ChannelGraph) -> tuple[nn.Module, nn.Module]:
    """The networks before and after recovery of one saved level, cut out of the dense network at hand."""
    plan, _, keep = read_plan(folder / "plan.json")
    before, after = prune(dense, graph, keep), prune(dense, graph, keep)
    for network, name in ((before, BEFORE), (after, WEIGHTS)):
        check_files(folder, plan["hashes"], name)
        load_into(network, load_tensors(folder / name)[0], str(folder / name))
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
    folder = find_artefact(Path(path), "path")
    return (load_artefact(folder) if model is None else load_artefact(folder, lambda origin: model)).network


def find_artefact(path: Path, key: str = "run") -> Path:
    """The folder that holds plan.json: the path itself, `pruned` in it, or the folder of the plan that is named.

    Args:
        path: of a run, of an artefact in it, or of its plan.json; `~` is the user's home.
        key: that named it, for the message.

    Raises:
        UserError: there is none.
    """
    with suppress(RuntimeError):  # the home of a user that is not there
        path = path.expanduser()
    if path.name == "plan.json" and path.is_file():
        return path.parent
    for folder in (path, path / "pruned"):
        if (folder / "plan.json").is_file():
            return folder
    raise UserError(f"{key}={path}: has no pruned/plan.json; name the folder of a finished `rlprune prune`")


def read_plan(path: Path) -> tuple[dict[str, Any], Origin, dict[str, np.ndarray]]:
    """A plan, its origin and its kept units, checked for form.

    Raises:
        UserError: the plan is absent, damaged, changed, or of another format.
    """
    plan = read_sealed(path)
    try:
        wrong = _wrong_entry(plan)
        if wrong is not None:
            raise ValueError(f"{wrong} has an impossible value")
        origin = read_origin(plan["origin"])
        keep = {name: np.array(units, dtype=int) for name, units in plan["keep"].items()}
    except KeyError as error:
        raise UserError(f"{path}: lacks {error}; the file is damaged, use another run") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: is garbled ({error}); the file is damaged, use another run") from error
    return plan, origin, keep


def _wrong_entry(plan: dict[str, Any]) -> str | None:
    """The first entry whose value cannot be."""
    keep, hashes, ignore = plan["keep"], plan["hashes"], plan["ignore"]
    checks = {
        "keep": isinstance(keep, dict) and all(map(_are_units, keep.values())),
        "ignore": isinstance(ignore, list) and all(isinstance(name, str) for name in ignore),
        "hashes": isinstance(hashes, dict) and WEIGHTS in hashes and all(_is_hash(*item) for item in hashes.items()),
        "seed": _is_seed(plan["seed"]),
        "dense_seed": _is_seed(plan.get("dense_seed", 0)),
        "sparsity": isinstance(plan["sparsity"], float) and 0 <= plan["sparsity"] < 1,
    }
    return next((name for name, holds in checks.items() if not holds), None)


def _are_units(units: Any) -> bool:
    """Distinct indices, one at least; the graph says which there are."""
    return isinstance(units, list) and all(type(unit) is int and unit >= 0 for unit in units) and 0 < len(units) == len(set(units))


def _is_hash(name: str, value: Any) -> bool:
    """Of a file in the same folder."""
    plain = name.isascii() and name.isprintable() and len(name) < 256 and not set(name) & set("/\\")
    return plain and name not in ("", ".", "..") and isinstance(value, str)


def _is_seed(value: Any) -> bool:
    return type(value) is int and value >= 0
