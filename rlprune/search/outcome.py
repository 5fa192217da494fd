"""What a search has come to: its targets, and the networks that its table compares."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import trange

from rlprune.checkpoint import load_tensors, save_tensors, tensors_checksum
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph
from rlprune.results.artefact import load_levels
from rlprune.results.finish import Tested
from rlprune.results.record import Clock, History
from rlprune.results.tables import CONTROL, JOINT
from rlprune.search.runner import Recover
from rlprune.search.schedule import Size, Targets
from rlprune.training.dense import Dense
from rlprune.training.progress import everything

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
    kept: Path,
    resume: bool,
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
        kept: file that keeps the control behind its last whole recovery.
        resume: take up what is in it.
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
        begun_from = tensors_checksum(first.network.state_dict())
        with clock.phase("control"):
            done = _restore_control(kept, network, begun_from) if resume else 0
            for number in trange(done, len(history.recoveries), desc=CONTROL, unit="recovery", leave=False):
                phase, epochs = history.recoveries[number]
                recover(network, first.network, epochs, phase)
                _keep_control(kept, network, {"begun_from": begun_from, "done": number + 1})
        networks.insert(1, Tested(CONTROL, network, 0.0, 0.0, macs))
    for level in {entry["sparsity"]: entry for entry in history.levels}.values():  # `pruned` may be a level as well
        before, after = load_levels(run_dir / level["folder"], dense.network, graph)
        percent = f"{100 * level['sparsity']:.0f} %"
        networks.append(Tested(f"pruned {percent}", before, level["level"], level["sparsity"], level["macs"]))
        if level["recovered"]:
            networks.append(Tested(f"recovered {percent}", after, level["level"], level["sparsity"], level["macs"]))
    return networks, first


def _keep_control(path: Path, network: nn.Module, facts: dict[str, int]) -> None:
    """Write the control behind a recovery; a run is worth more than this file, so a full disk does not end it."""
    try:
        save_tensors(path, everything(network), facts)
    except OSError as error:
        log.warning("%s: the control cannot be saved (%s); a kill would lose it", path, error)


def _restore_control(path: Path, network: nn.Module, begun_from: int) -> int:
    """Give the network what a killed run has kept of the control; the number of its recoveries that are done."""
    if not path.exists():
        return 0
    try:
        tensors, facts = load_tensors(path)
        own = everything(network)
        if facts["begun_from"] != begun_from or any(tensors[name].shape != tensor.shape for name, tensor in own.items()):
            raise ValueError("it began from another network")
    except (UserError, KeyError, ValueError) as error:
        log.warning("%s: cannot be used (%s); training the control from its start", path, error)
        return 0
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    return int(facts["done"])
