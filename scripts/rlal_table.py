#!/usr/bin/env python
"""Joint training beside the ways around it: one row a run of scripts/cifar10_rlal.sh, and the dense networks that one of them has trained.

usage: python scripts/rlal_table.py FOLDER     of finished runs; the others are passed over
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from rlprune.results.tables import CONTROL, to_markdown


def line(name: str, row: dict[str, Any], top1: float, more: dict[str, str]) -> dict[str, str]:
    """A network's row; Δ in points to a top-1 fraction."""
    return {
        "run": name,
        "MACs": f"{row['macs'] / 1e6:.2f} M",
        "parameters": f"{row['params'] / 1e3:.0f} k",
        "top-1 %": f"{100 * row['top1']:.2f} ± {100 * row['standard_error']:.2f}",
        "Δ": f"{100 * (row['top1'] - top1):+.2f}",
        **{key: more.get(key, "") for key in ("before fine-tuning", "last reward", "candidates", "agent, % of training")},
    }


def lines(folder: Path) -> list[dict[str, str]]:
    """Rows of the table; Δ is to the dense network that was trained for as many epochs in all."""
    runs = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))}
    dense = next((run["rows"] for run in runs.values() if any(row["name"] == CONTROL for row in run["rows"])), None)
    if dense is None:
        raise SystemExit(f"{folder}: no finished run there has a row `{CONTROL}`; run one with recovery.control=true")
    control = next(row for row in dense if row["name"] == CONTROL)
    table = [line(name, row, control["top1"], {}) for name, row in (("dense", dense[0]), (CONTROL, control))]
    for name, run in runs.items():
        before = next(row for row in run["rows"] if row["name"].startswith("pruned"))
        reward = pd.read_csv(folder / name / "metrics.csv")["reward"].iloc[-1]
        seconds = run["seconds"]
        share = f"{100 * seconds['search'] / seconds['training']:.0f}" if "training" in seconds else ""
        more = {"before fine-tuning": f"{100 * before['top1']:.2f}", "last reward": f"{reward:.3f}", "agent, % of training": share}
        table.append(line(name, run["rows"][-1], control["top1"], more | {"candidates": str(run["search"]["candidates"])}))
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    print(to_markdown(pd.DataFrame(lines(parser.parse_args().folder))))
