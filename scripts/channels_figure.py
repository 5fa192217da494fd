"""Kept and pruned units of every group: groups pruned one by one, each in a run of its own, beside the entire network in one run.

usage: python scripts/channels_figure.py OUT.png --individual RUN [RUN ...] --entire RUN     run folders of `rlprune prune`
"""

import argparse
from pathlib import Path

import pandas as pd

from rlprune.errors import UserError
from rlprune.results.artefact import find_artefact, read_plan
from rlprune.results.plots import plot_channels


def bars(run):
    """(group, kept, pruned) of a run's smallest network, in network order."""
    folder = find_artefact(Path(run)).resolve()
    _, _, keep = read_plan(folder / "plan.json")
    layers = pd.read_csv(folder.parent / "layers.csv")
    dense = layers[layers["step"] == 0]
    return [(name, len(keep[name]), units - len(keep[name])) for name, units in zip(dense["group"], dense["units"], strict=True)]


def searched(run):
    """The groups that a run's episodes were about, where it had some."""
    path = find_artefact(Path(run)).resolve().parent / "episodes.csv"
    episodes = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    return set(episodes.get("group", []))


def only_bar(run):
    """Of the one group that a run pruned, or could prune and left whole."""
    found = bars(run)
    pruned = found if len(found) == 1 else [bar for bar in found if bar[2] > 0]
    pruned = pruned or [bar for bar in found if bar[0] in searched(run)]
    if len(pruned) != 1:
        raise UserError(f"--individual {run}: pruned {len(pruned)} groups; name runs that pruned one each")
    return pruned[0]


def panels(individual, entire):
    """Title → bars; in network order, without the groups that no individual run has pruned."""
    whole, alone = bars(entire), {}
    for run in individual:
        name, *units = only_bar(run)
        if name in alone or name not in [bar[0] for bar in whole]:
            why = "another individual run pruned it, too" if name in alone else f"{entire} has no such group"
            raise UserError(f"--individual {run}: pruned {name}; {why}")
        alone[name] = (name, *units)
    return {"individual groups": [alone[bar[0]] for bar in whole if bar[0] in alone], "entire network": whole}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--individual", nargs="+", required=True, metavar="RUN", help="runs that pruned one channel group each")
    parser.add_argument("--entire", required=True, metavar="RUN", help="run that pruned the whole network")
    arguments = parser.parse_args()
    try:
        plot_channels(arguments.out, panels(arguments.individual, arguments.entire))
    except (UserError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
