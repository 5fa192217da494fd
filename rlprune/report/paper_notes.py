"""What to know of a paper's table: on what it was measured, what is missing, and where it was made."""

from collections.abc import Sequence

from rlprune.report.collect import FINISHED, Run
from rlprune.report.networks import FINAL, Network, networks_of
from rlprune.report.paper import Block

LISTED = 6  # runs that are named where they are missing


def notes_on(blocks: Sequence[Block], runs: Sequence[Run]) -> list[str]:
    """Lines below a table.

    Args:
        blocks: of the table.
        runs: all in it.
    """
    return [*_compared(blocks), *_holes(blocks), *_made(runs)]


def _compared(blocks: Sequence[Block]) -> list[str]:
    """On which network and data each part was measured, and whether they are the paper's."""
    found = []
    printed = {(entry.model, entry.dataset) for block in blocks for entry in block.published}
    for block in blocks:
        networks = [network for row in block.rows for run in row.finished for network in networks_of(run) if network.kind == FINAL]
        by_label: dict[str, list[Network]] = {}
        for network in networks:
            by_label.setdefault(f"{network.model} on {network.data}", []).append(network)
        for label, own in by_label.items():
            dense = sorted({f"{100 * network.dense['top1']:.2f}" for network in own if network.dense})
            theirs = "(" not in own[0].model and {(run.choices.get("model"), run.choices.get("dataset")) for run in _runs(own)} <= printed
            why = "" if not printed or theirs else "; not the paper's network or data: compare rows from here with each other"
            found.append(f"{', '.join(block.key)}, here: {label}, dense {', '.join(dense) or '?'} %{why}")
    return found


def _runs(networks: Sequence[Network]) -> list[Run]:
    return [network.run for network in networks]


def _holes(blocks: Sequence[Block]) -> list[str]:
    """Runs that failed, with their words, and those that are missing."""
    rows = [row for block in blocks for row in (*block.rows, *block.absent)]
    found = [f"{run.folder.name}: {run.state}: {run.why}" for row in rows for run in row.runs if run.state != FINISHED]
    missing: list[str] = []
    for row in rows:
        there = {run.folder.name for run in row.runs}
        seeds = set() if row.pattern.get("trained") else {str(run.seed) for run in row.runs}  # a seed's levels are trainings of their own
        missing += [folder for folder, seed in row.expected.items() if folder not in there and seed not in seeds]
    if missing:
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        found.append(f"not run: {', '.join(missing[:LISTED])}{more}; the preset's line again does what is missing")
    return found


def _made(runs: Sequence[Run]) -> list[str]:
    """Hardware and versions."""
    done = [run for run in runs if run.state == FINISHED]
    devices = dict.fromkeys(str(run.result.get("device")) for run in done)
    versions = dict.fromkeys(", ".join(f"{name} {number}" for name, number in (run.result.get("versions") or {}).items()) for run in done)
    return [f"{len(done)} runs on {'; '.join(devices)}; {'; '.join(versions)}"] if done else []
