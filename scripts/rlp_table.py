#!/usr/bin/env python
"""One row a run: size, top-1 and what removal alone has cost; for runs that went layer by layer (scripts/cifar10_rlp.sh).

usage: python scripts/rlp_table.py RUN [RUN ...]
"""

import argparse
import json
from pathlib import Path

import pandas as pd


def line(run: Path) -> dict[str, str]:
    """A run's row; compression against its dense network, top-1 on the test split before and after the last fine-tuning."""
    result = json.loads((run / "result.json").read_text())
    dense, last = result["rows"][0], result["rows"][-1]
    before = next((row for row in result["rows"] if row["name"].startswith("pruned")), last)
    steps = pd.read_csv(run / "metrics.csv")
    starts = [dense["search_top1"], *steps["accuracy_recovered"][:-1]]
    return {
        "run": run.name,
        "channels gone %": f"{100 * last['sparsity']:.1f}",
        "parameters": f"{last['params'] / 1e3:.0f} k (÷{dense['params'] / last['params']:.2f})",
        "MACs": f"{last['macs'] / 1e6:.2f} M (÷{dense['macs'] / last['macs']:.2f})",
        "lost by removal": f"{100 * (starts - steps['accuracy_pruned']).sum():.2f}",
        "before": f"{100 * before['top1']:.2f}",
        "top-1 %": f"{100 * last['top1']:.2f}",
        "Δ": f"{100 * (last['top1'] - dense['top1']):+.2f}",
        "candidates": str(result["search"]["candidates"]),
        "search min": f"{result['seconds']['search'] / 60:.1f}",
    }


def main() -> None:
    """Print the table of finished runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs; those that are not finished are passed over")
    table = pd.DataFrame([line(run) for run in parser.parse_args().runs if (run / "result.json").is_file()])
    print(f"| {' | '.join(table.columns)} |\n|{' --- |' * len(table.columns)}")
    for row in table.itertuples(index=False):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
