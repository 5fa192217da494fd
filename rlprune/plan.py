"""plan.json, which describes a pruned network: its format, the hash of itself, and those of the files beside it. Imports no torch."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlprune.errors import UserError
from rlprune.files import read_json, write_json

FORMAT = 2  # 1 had no hash but that of the weights
PACKAGES = ("rlprune", "torch", "torchvision")
AGAIN = "copy the whole folder again"


def write_plan(path: Path, entries: Mapping[str, Any], files: list[str]) -> None:
    """Write a plan atomically.

    Args:
        path: plan.json.
        entries: what it tells.
        files: names of the files beside it that belong to it.
    """
    plan = {
        "format": FORMAT,
        **entries,
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "hashes": {name: hash_file(path.parent / name) for name in files},
    }
    plan = json.loads(json.dumps(plan, allow_nan=False))  # tuples are lists then, as they are when it is read
    write_json(path, plan | {"sha256": hash_entries(plan)})


def read_sealed(path: Path) -> dict[str, Any]:
    """The entries of a plan that is as it was written; one of format 1 gets the `hashes` that it would have.

    Raises:
        UserError: the plan is absent, damaged, changed, or of another format.
    """
    plan = read_json(path)
    found = plan.get("format")
    known = type(found) is int and 1 <= found <= FORMAT
    if type(found) is int and found > FORMAT:
        raise UserError(
            f"{path}: was written by a newer version (format {found}, this one reads up to {FORMAT}); pip install --upgrade rlprune"
        )
    if not known:
        raise UserError(f"{path}: has format {found}, this version reads 1 to {FORMAT}; the file is damaged, {AGAIN}")
    if found == 1:
        return plan | {"hashes": {"weights.safetensors": plan.get("weights_sha256")}}
    try:
        whole = plan.get("sha256") == hash_entries(plan)
    except (ValueError, RecursionError):  # NaN, which a plan never holds, or thousands of brackets
        whole = False
    if not whole:
        raise UserError(f"{path}: is not as it was written (its hash differs); {AGAIN}")
    return plan


def hash_entries(plan: Mapping[str, Any]) -> str:
    """SHA-256 of everything in a plan but `sha256` itself: of its JSON with sorted keys, without spaces, ASCII alone.

    Raises:
        ValueError: a number is not finite.
    """
    entries = {key: value for key, value in plan.items() if key != "sha256"}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def plan_hash(plan: Mapping[str, Any]) -> str:
    """What names a plan: its own hash, or that of its entries where its format has none.

    Raises:
        ValueError: a number is not finite.
    """
    return str(plan["sha256"]) if "sha256" in plan else hash_entries(plan)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        UserError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
    return digest.hexdigest()


def check_files(folder: Path, hashes: Mapping[str, str], needed: str) -> None:
    """Compare the files beside a plan with their hashes, before anything in them is read.

    Args:
        folder: of the plan.
        hashes: by file name.
        needed: the file that must be there; others may have been left behind, but are not to be others.

    Raises:
        UserError: a file differs; names it.
    """
    for name, expected in hashes.items():
        path = folder / name
        if (name == needed or path.is_file()) and hash_file(path) != expected:
            raise UserError(f"{path}: is truncated or was changed (its hash is not the one in plan.json); {AGAIN}")
