"""What a search has come to: its targets, and the networks that its table compares."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rlprune.graph import ChannelGraph
from rlprune.results.artefact import load_levels
from rlprune.results.finish import Tested
from rlprune.results.record import Clock, History
from rlprune.results.tables import CONTROL, JOINT
from rlprune.search.runner import Recover
from rlprune.search.schedule import Size, Targets
from rlprune.training.dense import Dense

log = logging.getLogger(__name__)


def targets_reached(history: History, targets: Targets, dense: Size) -> dict[str, dict[str, float]]:
    """What was asked for and what the smallest network that was saved reaches; says which does not hold."""
    level = next(level for level in history.levels if level["folder"] == "pruned")
    reached = {
        "schedule.sparsity": (targets.sparsity, level["sparsity"]),
        "budget.macs": (targets.macs, level["macs"] / dense.macs),
        "budget.params": (targets.params, level["params"] / dense.params),
        "budget.latency": (targets.latency, level.get("latency", 0.0) / (dense.latency or 1.0)),
    }
    found = {key: {"asked": asked, "reached": got} for key, (asked, got) in reached.items() if asked is not None}
    for key, target in found.items():
        short = target["asked"] - target["reached"] if key == "schedule.sparsity" else target["reached"] - target["asked"]
        if short > 1e-9:
            log.warning("%s=%g: not reached; the network saved has %.4f", key, target["asked"], target["reached"])
    return found


def compared(
    history: History,
    dense: Dense,
    graph: ChannelGraph,
    *,
    run_dir: Path,
    recover: Recover,
    control: bool,
    clock: Clock,
    trained: list[float] | None = None,
    reference: Callable[[], Dense] | None = None,
) -> tuple[list[Tested], Dense]:
    """The rows of the table, and the network of the first of them: dense, its control, and every level as it was saved.

    Beside joint training the dense network is another one, trained alone in the same way, unless no control is wanted.

    Args:
        history: of the search.
        dense: the network that was pruned.
        graph: its channel graph.
        run_dir: of the run.
        recover: how pruned networks have recovered.
        control: whether the dense network is trained likewise, for comparison.
        clock: seconds so far.
        trained: losses of joint training, where `dense` was trained so.
        reference: then makes the dense network that stands beside it.
    """
    macs = graph.cost.macs(np.zeros(len(graph.groups)))
    networks = [Tested("dense" if trained is None else JOINT, dense.network, 0.0, 0.0, macs)]
    first = dense if trained is None else replace(dense, losses=trained)
    if trained is not None and control and reference is not None:
        with clock.phase("dense"):
            first = reference()
        networks.insert(0, Tested("dense", first.network, 0.0, 0.0, macs))
    if control and history.recoveries:
        network = copy.deepcopy(first.network)
        with clock.phase("control"):
            for phase, epochs in tqdm(history.recoveries, desc=CONTROL, unit="recovery", leave=False):
                recover(network, first.network, epochs, phase)
        networks.insert(1, Tested(CONTROL, network, 0.0, 0.0, macs))
    for level in {entry["sparsity"]: entry for entry in history.levels}.values():  # `pruned` may be a level as well
        before, after = load_levels(run_dir / level["folder"], dense.network, graph)
        percent = f"{100 * level['sparsity']:.0f} %"
        networks.append(Tested(f"pruned {percent}", before, level["level"], level["sparsity"], level["macs"]))
        if level["recovered"]:
            networks.append(Tested(f"recovered {percent}", after, level["level"], level["sparsity"], level["macs"]))
    return networks, first
