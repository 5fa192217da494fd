"""A table over the runs of scripts/latency_budget.sh: what was bounded, latency as predicted and measured, and accuracy.

The networks of all runs on one model are timed again, by turns, as those of different runs had different neighbours on the machine.

usage: python scripts/latency_table.py FOLDER
"""

import json
import sys
from pathlib import Path

import pandas as pd
import torch

from rlprune.latency.build import measure_networks
from rlprune.results.artefact import load_artefact
from rlprune.results.tables import count, to_markdown

runs = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(sys.argv[1]).glob("*/result.json"))}
lines = []
for network in dict.fromkeys(name.partition("-")[0] for name in runs):
    mine = {name: result for name, result in runs.items() if name.partition("-")[0] == network}
    found = {name: load_artefact(Path(sys.argv[1]) / name / "pruned") for name in mine}
    first = next(iter(found.values()))
    example = torch.randn(1, *first.origin.shape)
    seconds = measure_networks({"dense": first.dense, **{name: artefact.network for name, artefact in found.items()}}, example)
    dense = next(iter(mine.values()))["rows"][0]
    lines.append({"network": network, "bound": "dense", "top-1 %": f"{100 * dense['top1']:.2f}", "MACs": count(dense["macs"]),
                  "parameters": count(dense["params"]), "measured ms": f"{1e3 * seconds['dense']:.2f}"})  # fmt: skip
    for name, result in mine.items():
        last, predicted = result["rows"][-1], result["latency"]["predicted"]
        share, measured = predicted["pruned"] / predicted["dense"], seconds[name] / seconds["dense"]
        lines.append({
            "network": network, "bound": name.partition("-")[2], "top-1 %": f"{100 * last['top1']:.2f}", "MACs": count(last["macs"]),
            "parameters": count(last["params"]), "measured ms": f"{1e3 * seconds[name]:.2f}", "of dense, predicted": f"{share:.3f}",
            "of dense, measured": f"{measured:.3f}", "error %": f"{100 * (share / measured - 1):+.1f}",
        })  # fmt: skip
print(to_markdown(pd.DataFrame(lines).fillna("")))
