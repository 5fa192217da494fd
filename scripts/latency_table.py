"""A table over the runs of scripts/latency_budget.sh: what was bounded, predicted and measured latency, and accuracy.

usage: python scripts/latency_table.py FOLDER
"""

import json
import sys
from pathlib import Path

import pandas as pd

from rlprune.results.tables import count, to_markdown

lines = []
for path in sorted(Path(sys.argv[1]).glob("*/result.json")):
    result = json.loads(path.read_text(encoding="utf-8"))
    network, _, name = path.parent.name.partition("-")
    dense, last, latency = result["rows"][0], result["rows"][-1], result["latency"]
    predicted, measured = latency["predicted"], latency["measured"]
    if not any(line["network"] == network for line in lines):
        lines.append({"network": network, "bound": "dense", "top-1 %": f"{100 * dense['top1']:.2f}", "MACs": count(dense["macs"]),
                      "parameters": count(dense["params"]), "predicted ms": f"{1e3 * predicted['dense']:.2f}",
                      "measured ms": f"{1e3 * measured['dense']:.2f}", "measured share": "1.00"})  # fmt: skip
    lines.append({
        "network": network, "bound": name, "top-1 %": f"{100 * last['top1']:.2f}", "MACs": count(last["macs"]),
        "parameters": count(last["params"]), "predicted ms": f"{1e3 * predicted['pruned']:.2f}",
        "measured ms": f"{1e3 * measured['pruned']:.2f}", "measured share": f"{measured['pruned'] / measured['dense']:.2f}",
        "error %": f"{100 * latency['error']:+.1f}",
    })  # fmt: skip
print(to_markdown(pd.DataFrame(lines).fillna("")))
