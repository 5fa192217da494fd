"""What an exported file takes over from the artefact that it was made of, and what is told of it."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from rlprune.cost import count_params
from rlprune.errors import UserError
from rlprune.export.export import SUFFIXES, Exported
from rlprune.plan import plan_hash
from rlprune.results.artefact import Artefact
from rlprune.results.record import FORMAT
from rlprune.results.tables import count


def default_target(folder: Path, format: str) -> Path:  # noqa: A002 (as on the command line)
    """`export/` in the folder of the run, the file called as the artefact; in the artefact's own folder where that was copied alone.

    Args:
        folder: of the artefact.
        format: onnx or torch_export.

    Raises:
        UserError: that folder is a link, which may lead anywhere.
    """
    whole = folder.resolve()
    alone = not any((whole.parent / name).is_file() for name in ("result.json", "config.yaml"))
    target = (folder if alone else folder.parent) / "export"
    if target.is_symlink():
        raise UserError(f"{target}: is a link; name the file, out=FILE")
    return target / f"{'pruned' if alone else whole.name}{SUFFIXES[format]}"


def metadata_of(artefact: Artefact) -> dict[str, str]:
    """What whoever runs the file needs to know; lists as JSON."""
    origin, plan = artefact.origin, artefact.plan
    told = {"class_names": origin.class_names, "mean": origin.mean, "std": origin.std, "image_size": origin.image_size}
    return {
        **{name: json.dumps(value) for name, value in told.items()},
        "model": origin.model,
        "dataset": origin.dataset,
        "plan_sha256": plan_hash(plan),
    }


def size_table(artefact: Artefact, exported: Exported, dense_bytes: int | None) -> pd.DataFrame:
    """Sizes before and after; parameters are the networks', the file's bytes those that were written."""
    sizes = {
        "dense": (dense_bytes, count_params(artefact.dense), artefact.graph.macs({})),
        "pruned": (exported.file_bytes, count_params(artefact.network), artefact.graph.macs(artefact.keep)),
    }
    rows = [
        {"network": name, "file bytes": f"{written:,}", "parameters": count(params), "MACs": count(macs)}
        for name, (written, params, macs) in sizes.items()
        if written is not None
    ]
    return pd.DataFrame(rows)


def result_of(exported: Exported, artefact: Artefact, dense_bytes: int | None) -> dict[str, Any]:
    """Entries of result.json."""
    return {
        "format": FORMAT,
        "file": str(exported.path),
        "file_format": exported.format,
        "file_bytes": exported.file_bytes,
        "dense_file_bytes": dense_bytes,
        "params": count_params(artefact.network),
        "macs": artefact.graph.macs(artefact.keep),
        "dense_params": count_params(artefact.dense),
        "dense_macs": artefact.graph.macs({}),
        "folded_norms": exported.folded,
        "images": exported.check.images,
        "largest_difference": exported.check.difference,
        "largest_score": exported.check.scale,
        "agreement": exported.check.agreement,
        "plan_sha256": plan_hash(artefact.plan),
    }
