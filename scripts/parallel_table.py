"""A table over the runs of scripts/parallel_search.sh: whether they came to the same network, and how long their searches took.

usage: python scripts/parallel_table.py FOLDER
"""

import hashlib
import json
import re
import sys
from pathlib import Path

import pandas as pd

from rlprune.results.tables import to_markdown

ANSWERS = re.compile(r"workers: (\d+) answers, ([\d.]+) ms each; the search waited ([\d.]+) s")
lines = []
for path in sorted(Path(sys.argv[1]).glob("*/result.json")):
    result, steps = json.loads(path.read_text(encoding="utf-8")), pd.read_csv(path.parent / "metrics.csv")
    weights = hashlib.sha256((path.parent / "pruned/weights.safetensors").read_bytes()).hexdigest()[:8]
    said = ANSWERS.findall((path.parent / "log.txt").read_text(encoding="utf-8"))
    candidates, seconds = int(steps["candidates"].sum()), float(steps["search_seconds"].sum())
    answers, each, waited = said[-1] if said else ("", "", "")
    lines.append({
        "run": path.parent.name, "top-1 %": f"{100 * result['rows'][-1]['top1']:.2f}", "weights": weights,
        "candidates": candidates, "search s": f"{seconds:.1f}", "ms a candidate": f"{1000 * seconds / candidates:.0f}",
        "answers": answers, "ms of a worker an answer": each, "waited s": waited,
        "ms of the search a candidate": f"{1000 * (seconds - float(waited)) / candidates:.1f}" if waited else "",
    })  # fmt: skip
print(to_markdown(pd.DataFrame(lines)))
