"""Agents beside one baseline, paired by seed: mean and standard deviation over seeds, and the mean difference with its 95 % t-interval.

usage: python scripts/paired.py FOLDER [BASELINE]
FOLDER holds a run folder for every agent and seed, NAME-SEED, each with its result.json; BASELINE is one of the names (uniform).
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from rlprune.results.tables import CONTROL, count, to_markdown

T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # Student's t by degrees of freedom


def read(folder):
    """One line for every network of every run."""
    lines = []
    for path in sorted(Path(folder).glob("*-*/result.json")):
        name, _, seed = path.parent.name.rpartition("-")
        result = json.loads(path.read_text())
        dense = result["rows"][0]
        for row in result["rows"]:
            kind = "dense" if row is dense else CONTROL if row["name"] == CONTROL else name
            state = "" if row["level"] == 0 else row["name"].partition(" ")[0]
            level = "" if row["level"] == 0 else what_goes(result, row["level"])
            lines.append({"agent": kind, "seed": int(seed), "state": state, "dense": dense["top1"]} | row | {"level": level})
            lines[-1] |= {"candidates": result["search"]["candidates"], "minutes": result["seconds"]["search"] / 60}
    return pd.DataFrame(lines)


def what_goes(result, level):
    """Of a level on the way to a sparsity: its channels removed; of a search with budgets: the shares that are kept at most."""
    asked = {key.partition(".")[2]: target["asked"] for key, target in result.get("targets", {}).items()}
    if asked and "sparsity" not in asked:
        return ", ".join(f"{100 * share:g} % of {name}" for name, share in asked.items()).replace("macs", "MACs")
    return f"{100 * level:.0f} % removed"


def interval(differences):
    """Mean and 95 % interval, points."""
    if len(differences) < 2:
        return f"{100 * np.mean(differences):+.2f} (n = 1)"
    half = T95[len(differences) - 1] * np.std(differences, ddof=1) / len(differences) ** 0.5
    return f"{100 * np.mean(differences):+.2f} ± {100 * half:.2f}"


def by_seed(frame, pruned):
    """Accuracy before or after recovery."""
    return frame[(frame["state"] == "pruned") == pruned].groupby("seed")["top1"].first()


def line_of(frame, agent, level, baseline):
    mine = frame[(frame["agent"] == agent) & (frame["level"] == level)]
    theirs = frame[(frame["agent"] == baseline) & (frame["level"] == level)]
    after, before, other = by_seed(mine, False), by_seed(mine, True), by_seed(theirs, False)
    paired = (after - other).dropna() if level and agent != baseline else pd.Series(dtype=float)
    spread = f" ± {100 * after.std():.2f}" if len(after) > 1 else ""
    return {
        "network": agent,
        "level": level,
        "top-1 %, pruned": f"{100 * before.mean():.2f}" if len(before) else "",
        "top-1 %": f"{100 * after.mean():.2f}{spread}",
        "Δ": f"{100 * (after - mine.groupby('seed')['dense'].first()).mean():+.2f}",
        f"Δ to {baseline}": interval(paired) if len(paired) else "",
        "seeds": len(after),
        "MACs": count(mine["macs"].mean()),
        "parameters": count(mine["params"].mean()),
        "candidates": f"{mine['candidates'].mean():.0f}" if level else "",
        "search min": f"{mine['minutes'].mean():.1f}" if level else "",
    }


def main():
    baseline = sys.argv[2] if len(sys.argv) > 2 else "uniform"
    frame = read(sys.argv[1])
    agents = sorted(set(frame["agent"]) - {"dense", CONTROL}, key=lambda name: (name != baseline, name))
    lines = [line_of(frame, name, "", baseline) for name in ("dense", CONTROL) if name in set(frame["agent"])]
    lines += [line_of(frame, agent, level, baseline) for level in sorted(set(frame["level"]) - {""}) for agent in agents]
    print(to_markdown(pd.DataFrame(lines)))


if __name__ == "__main__":
    main()
