"""Weights on disk, without pickled code."""

import argparse
import errno
import json
import pathlib
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rlprune.errors import UserError
from rlprune.files import write_atomically
from rlprune.memory import require_memory

TENSOR = "__tensor__"  # stands for a tensor in JSON values


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors as safetensors, atomically; `metadata` is kept as JSON in the header."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    storages = Counter(tensor.untyped_storage().data_ptr() for tensor in plain.values())
    for name, tensor in plain.items():  # the format has no shared memory
        storage = tensor.untyped_storage()
        if storages[storage.data_ptr()] > 1 or storage.nbytes() != tensor.nbytes:
            plain[name] = tensor.clone()
    # One key, as safetensors writes several in any order, and equal tensors should be equal files.
    facts = json.loads(json.dumps(dict(metadata or {}), allow_nan=False))  # as they are when they are read
    header = {"rlprune": json.dumps({"seal": _seal(plain, facts), "metadata": facts})}

    def write(temporary: Path) -> None:
        try:
            save_file(plain, temporary, header)
        except SafetensorError as error:  # what a full disk looks like from there
            raise OSError(errno.EIO, str(error), str(path)) from error

    write_atomically(path, write)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and metadata that `save_tensors` wrote.

    Raises:
        UserError: the file is absent, truncated or not safetensors, or does not fit into memory.
    """
    _require_room(path, "")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            ours = json.loads(header.get("rlprune", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not a whole safetensors file ({error}); copy or train it again") from error
    renamed = "rlprune" not in header and any('"seal"' in value for value in header.values())  # the one key is what is damaged
    if renamed or not isinstance(ours, dict) or not _is_whole(tensors, ours):
        raise UserError(f"{path}: is damaged (its checksum differs); copy or train it again")
    metadata = ours.get("metadata", {})
    return tensors, metadata if isinstance(metadata, dict) else {}


def _seal(tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> int:
    """Changes with anything that a file holds."""
    forms = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}
    return zlib.crc32(json.dumps([forms, facts], sort_keys=True).encode(), tensors_checksum(tensors))


def _is_whole(tensors: Mapping[str, Tensor], ours: dict[str, Any]) -> bool:
    """Whether a file is as it was written; those of others, which have no checksum, are taken as they are."""
    if "seal" in ours:
        return bool(ours["seal"] == _seal(tensors, ours.get("metadata", {})))
    return bool(ours.get("crc32", 0) == (tensors_checksum(tensors) if "crc32" in ours else 0))  # older files: of the tensors alone


def _require_room(path: Path, subject: str) -> None:
    """Refuse what is no plain file, and one that claims more than memory holds, as a file of holes may."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"{subject}{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{subject}{path}: is no file; name a .safetensors or .pt file")
    require_memory(found.st_size, f"{subject}{path}", "copy or train it again")


def packed(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """JSON values of nested dicts and lists that also hold tensors, which go to `tensors` under names that begin with `name`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, Mapping):
        return {key: packed(item, tensors, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [packed(item, tensors, f"{name}.{place}") for place, item in enumerate(value)]
    return value


def unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse of `packed`.

    Raises:
        KeyError: a tensor is missing.
    """
    if isinstance(value, dict):
        return tensors[value[TENSOR]] if TENSOR in value else {key: unpacked(item, tensors) for key, item in value.items()}
    return [unpacked(item, tensors) for item in value] if isinstance(value, list) else value


def tensors_checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of names and values."""
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(name.encode(), checksum)
        if tensors[name].numel():  # an empty array's stride may be 0, which cannot be viewed as bytes
            checksum = zlib.crc32(tensors[name].cpu().reshape(-1).view(torch.uint8).numpy().data, checksum)
    return checksum


WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "state", "params", "weights", "state_dict_ema", "model_ema")
# Plain values that training scripts keep beside the weights.
HARMLESS: list[Any] = [argparse.Namespace, pathlib.PosixPath, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]
HARMLESS += [type(np.dtype(np.int64)), getattr(np, "_core", np).multiarray.scalar]
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # of DataParallel, torch.compile, Lightning


def read_metadata(path: Path) -> dict[str, Any]:
    """What `save_tensors` wrote beside the tensors, without reading these; empty for files of others."""
    try:
        with safe_open(path, framework="pt") as file:
            ours = json.loads((file.metadata() or {}).get("rlprune", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError):
        return {}
    metadata = ours.get("metadata") if isinstance(ours, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state dict from safetensors or from a torch file, never running code from it.

    Plain state dicts, `{"state_dict": ...}` and its kin, and prefixes such as `module.` that all keys share, are understood.

    Raises:
        UserError: the file is absent, damaged, or holds no state dict.
    """
    if path.is_dir():
        raise UserError(f"checkpoint={path}: is a folder; name the .safetensors or .pt file in it")
    if path.suffix == ".safetensors":
        return load_tensors(path)
    return _load_torch(path), {}


def _load_torch(path: Path) -> dict[str, Tensor]:
    _require_room(path, "checkpoint=")
    try:
        _refuse_compressed(path)
        with torch.serialization.safe_globals(HARMLESS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"checkpoint={path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch.load raises many kinds for damaged or foreign files
        raise UserError(
            f"checkpoint={path}: is damaged or holds more than plain weights ({type(error).__name__}); "
            "save a state dict: torch.save(model.state_dict(), path)"
        ) from error
    while isinstance(loaded, dict) and (inner := next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), dict)), None)):
        loaded = inner
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        raise UserError(f"checkpoint={path}: holds no state dict; save torch.save(model.state_dict(), path)")
    return loaded


def _refuse_compressed(path: Path) -> None:
    """Refuse an archive that unfolds to more than it takes, which those of torch never do.

    Raises:
        ValueError: this one does.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("it is compressed")


def without_prefix(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names the model has for them, where wrappers have put a prefix before every name."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != "n_averaged" or name in expected}  # of AveragedModel
    for prefix in PREFIXES * len(PREFIXES):
        renamed = {name if name in expected else name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        if len(renamed) == len(tensors):
            tensors = renamed
    return tensors


class MisfitError(UserError):
    """Weights of another architecture; keeps them, unless the message says already which model they fit."""

    def __init__(self, message: str, tensors: Mapping[str, Tensor] | None) -> None:
        super().__init__(message)
        self.tensors = tensors


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy a state dict into a model, all of it or nothing.

    Raises:
        MisfitError: keys are missing or unexpected, or shapes differ; names the first of each.
        UserError: a value is not finite, or no plain number.
    """
    fitted = fit_names(model, tensors, source)
    expected = model.state_dict()
    for name, tensor in fitted.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex() or tensor.is_quantized:
            raise UserError(f"{source}: {name} is no plain tensor of real numbers")
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise UserError(
                f"{source}: {name} is of type {tensor.dtype}, the model's is {expected[name].dtype}; save the weights it trained"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor.to(expected[name].dtype)).all():
            raise UserError(f"{source}: {name} holds values that are not finite; train it again")
    model.load_state_dict(fitted, strict=False)


def fit_names(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors by the names that the model has for them; values are not looked at.

    Raises:
        MisfitError: keys are missing or unexpected, or shapes differ; names the first of each.
    """
    expected = model.state_dict()
    tensors = without_prefix(tensors, expected)
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in expected]
    misshapen = {
        name: (tuple(tensors[name].shape), tuple(value.shape))
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    }
    classes = {(found[0], wanted[0]) for found, wanted in misshapen.values() if found[1:] == wanted[1:] and found}
    if not missing and not unexpected and len(classes) == 1 and len(misshapen) <= 4 and _outputs(expected) in misshapen:
        ((found, wanted),) = classes
        first = next(iter(misshapen))
        raise MisfitError(
            f"{source}: fits this model with {found} classes, here it has {wanted} ({first} has shape {misshapen[first][0]}, not "
            f"{misshapen[first][1]}); choose the data set with the {found} classes it was trained on",
            None,
        )
    shapes = [f"{name} {found}, not {wanted}" for name, (found, wanted) in misshapen.items()]
    problems = [
        f"{len(names)} {kind} (first: {names[0]})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", shapes))
        if names
    ]
    if problems:
        raise MisfitError(
            f"{source}: holds weights of another architecture: {', '.join(problems)}; choose the model it was saved from", tensors
        )
    return tensors


def _outputs(state: Mapping[str, Tensor]) -> str | None:
    """The last weight, which makes the class scores."""
    return next((name for name in reversed(list(state)) if state[name].ndim > 1), None)
