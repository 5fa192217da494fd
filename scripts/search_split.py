"""Accuracy of every level that runs have saved, on their whole search split: for tuning, as it leaves the test split alone.

usage: python scripts/search_split.py FOLDER [FOLDER ...]     run folders of `rlprune prune` on an image folder or a built-in data set
"""

import sys
from pathlib import Path

import pandas as pd

from rlprune.config import build, shipped
from rlprune.data.base import Normalization, split
from rlprune.results.artefact import load_artefact
from rlprune.results.tables import to_markdown
from rlprune.training.evaluate import Evaluator
from rlprune.training.execution import choose_execution

EXECUTION = choose_execution(device="auto", precision="auto", channels_last="auto", compile=False)
EVALUATORS = {}


def evaluator(origin, seed):
    """Of the search split that a network's own run had."""
    key = (origin.dataset, str(origin.dataset_settings), seed)
    if key not in EVALUATORS:
        node = shipped("dataset", origin.dataset, origin.dataset_settings)
        dataset = build(node, "dataset", cache_dir=Path("outputs/cache"), data_dir=Path("outputs/data"))
        EVALUATORS[key] = Evaluator(split(dataset, seed).search, Normalization(origin.mean, origin.std), EXECUTION)
    return EVALUATORS[key]


def line(folder):
    levels = [load_artefact(path.parent) for path in folder.glob("pruned*/plan.json")]
    cells = {"run": folder.name}
    for level in sorted(levels, key=lambda level: level.plan["sparsity"]):
        accuracy = evaluator(level.origin, level.plan["dense_seed"]).accuracy(level.network.to(EXECUTION.device)).top1
        cells[f"{100 * level.plan['sparsity']:.0f} %"] = f"{100 * accuracy:.2f} ({level.plan['macs'] / 1e6:.1f} M MACs)"
    return cells


def main():
    print(to_markdown(pd.DataFrame([line(Path(name)) for name in sys.argv[1:]]).fillna("")))


if __name__ == "__main__":
    main()
