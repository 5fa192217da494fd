"""One table over many runs."""

import glob
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rlprune.errors import UserError
from rlprune.files import read_json
from rlprune.results.tables import count


def collect(pattern: str) -> tuple[pd.DataFrame, list[str]]:
    """Rows of every finished prune run that a glob finds, and one line for each run that cannot be used.

    Raises:
        UserError: the glob finds no finished run.
    """
    folders = sorted({path.parent for found in glob.glob(pattern, recursive=True) for path in _markers(Path(found))})
    lines: list[dict[str, Any]] = []
    skipped = []
    for folder in folders:
        if not _is_prune(folder):
            continue
        if not (folder / "result.json").exists():
            error = _failure(folder)
            skipped.append(f"{folder}: {error}")
            continue
        try:
            result = read_json(folder / "result.json")
            lines += [_line(folder, result, row) for row in result["rows"]]
        except (UserError, KeyError, TypeError) as error:
            skipped.append(f"{folder}: result.json cannot be read ({error})")
    if not lines:
        raise UserError(f"runs={pattern}: no finished prune run there; try runs='outputs/prune/*'")
    return pd.DataFrame(lines), skipped


def _failure(folder: Path) -> str:
    try:
        return (
            str(read_json(folder / "failed.json").get("error", "failed"))
            if (folder / "failed.json").exists()
            else "no result.json: unfinished"
        )
    except UserError:
        return "failed, and failed.json is damaged"


def _is_prune(folder: Path) -> bool:
    try:
        return "agent" in yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, TypeError, ValueError):
        return False


def _markers(path: Path) -> list[Path]:
    """What shows that a path is a run, or a sweep: a folder of runs."""
    if path.name == "result.json":
        return [path]
    names = ("result.json", "failed.json", "config.yaml")
    return [folder / name for folder in (path, *path.glob("*/")) for name in names if (folder / name).is_file()]


def _line(folder: Path, result: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    rows = result["rows"]
    return {
        "model": result["choices"]["model"],
        "dataset": result["choices"]["dataset"],
        "agent": result["choices"]["agent"],
        "seed": result["seed"],
        "network": row["name"],
        "top1": row["top1"],
        "standard_error": row["standard_error"],
        "n": row["n"],
        "delta": row["top1"] - rows[0]["top1"],
        "params": row["params"],
        "macs": row["macs"],
        "sparsity": row["sparsity"],
        "latency_ms": row["latency_ms"],
        "candidates": result["search"]["candidates"],
        "minutes": result["seconds"]["search"] / 60,
        "run": str(folder),
    }


def for_people(frame: pd.DataFrame) -> pd.DataFrame:
    """Percent, millions and minutes."""
    return pd.DataFrame(
        {
            "model": frame["model"],
            "dataset": frame["dataset"],
            "agent": frame["agent"],
            "seed": frame["seed"],
            "network": frame["network"],
            "top-1 %": [
                f"{100 * top1:.2f} ± {100 * error:.2f}" for top1, error in zip(frame["top1"], frame["standard_error"], strict=True)
            ],
            "Δ": [f"{100 * delta:+.2f}" for delta in frame["delta"]],
            "n": frame["n"],
            "parameters": frame["params"].map(count),
            "MACs": frame["macs"].map(count),
            "sparsity %": [f"{100 * value:.1f}" for value in frame["sparsity"]],
            "latency ms": [f"{value:.2f}" for value in frame["latency_ms"]],
            "candidates": frame["candidates"],
            "search min": [f"{value:.1f}" for value in frame["minutes"]],
            "run": frame["run"],
        }
    )
