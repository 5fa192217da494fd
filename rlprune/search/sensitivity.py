"""What each channel group costs when it is pruned alone: top-1 on the search split, group by group and share by share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from torch import nn
from tqdm import tqdm

from rlprune.errors import UserError
from rlprune.files import write_text
from rlprune.graph import ChannelGraph, Slicer
from rlprune.results.record import FORMAT, Clock, Identity, environment, write_result
from rlprune.results.sensitivity import plot_curves, plot_sensitivity, sensitivity_text
from rlprune.search.candidates import as_it_is
from rlprune.search.ledger import Ledger
from rlprune.search.measure import Score
from rlprune.search.resume import forget_states, keep_measured
from rlprune.search.task import ranked
from rlprune.setup import Setup
from rlprune.training.evaluate import Evaluator


@dataclass(frozen=True)
class Subject:
    """A network whose groups are pruned one at a time: `dense` or `pruned`, its channel graph, and where its weights are from."""

    name: str
    network: nn.Module
    graph: ChannelGraph
    source: str
    step: int = 0  # nothing goes for good


@dataclass
class SensitivityJob:
    """One run of `rlprune sensitivity`; what a killed one has measured is not measured again.

    Args:
        subjects: the networks, whose groups have the same names.
        shares: of the units of a group that go, in (0, 1).
        score: ranks the units; what scores lowest goes first.
        evaluator: of the search split.
        refresh: what a network gets before it is measured.
        setup: data and device.
        identity: whose result this is.
        facts: further entries of result.json.
        clock: seconds so far.
    """

    subjects: Sequence[Subject]
    shares: Sequence[float]
    score: Score
    evaluator: Evaluator
    setup: Setup
    identity: Identity
    refresh: Callable[[nn.Module], object] = as_it_is
    facts: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)

    def run(self) -> pd.DataFrame:
        """Measure everything and write it, result.json last; the rows of sensitivity.csv."""
        require_units([subject.graph for subject in self.subjects], self.identity.choices["model"])
        run_dir, rows, whole = self.identity.run_dir, [], {}
        states = run_dir / "checkpoint"
        with tqdm(total=sum(map(self._candidates, self.subjects)), unit="cand", leave=False) as bar:
            for subject in self.subjects:
                with self.clock.phase("score"):
                    scores = self.score(subject.network, subject.graph)
                orders = ranked([scores[group.name].numpy() for group in subject.graph.groups])
                ledger = Ledger(on_measure=partial(_advance, bar))
                path = states / f"measured-{subject.name}.json"
                with self.clock.phase("measure"), keep_measured(path, ledger, subject, f"{subject.name} network"):
                    rows += self._rows(subject, orders, ledger, bar)
                whole[subject.name] = ledger.measured[0].accuracy
        frame = pd.DataFrame(rows)
        with self.clock.phase("plots"):
            plot_sensitivity(run_dir / "sensitivity.png", frame)
            plot_curves(run_dir / "curves.png", frame)
        write_text(run_dir / "sensitivity.csv", frame.to_csv(index=False))
        write_text(run_dir / "table.md", sensitivity_text(frame, len(self.evaluator)) + "\n")
        (run_dir / "failed.json").unlink(missing_ok=True)  # of an earlier attempt
        write_result(run_dir, self._result(whole))
        forget_states(states)
        return frame

    def _candidates(self, subject: Subject) -> int:
        """Distinct ones: the whole network, and each group without as many units as a share asks for."""
        return 1 + sum(len(set(removed_counts(group.num_units, self.shares)) - {0}) for group in subject.graph.groups)

    def _rows(self, subject: Subject, orders: Sequence[np.ndarray], ledger: Ledger, bar: Any) -> list[dict[str, Any]]:
        """Of one network, in network order."""
        slicer, rows = Slicer(subject.network, subject.graph), []
        bar.set_description(f"{subject.name} whole")
        whole = ledger.accuracy([], partial(self._accuracy, slicer, {}, lambda network: self.evaluator.accuracy(network).top1))
        for index, (group, order) in enumerate(zip(subject.graph.groups, orders, strict=True)):
            if group.num_units == 1:  # one unit stays
                continue
            bar.set_description(f"{subject.name} {group.name}")
            alike = self.evaluator.alike({member.tensor for member in group.members})  # what comes before the group is computed once
            accuracies = {0: whole}
            for share, removed in zip(self.shares, removed_counts(group.num_units, self.shares), strict=True):
                if removed not in accuracies:
                    keep = {group.name: np.sort(order[removed:])}
                    measure = partial(self._accuracy, slicer, keep, alike)
                    accuracies[removed] = ledger.accuracy([np.array([index]), keep[group.name]], measure)
                rows.append(
                    {
                        "network": subject.name,
                        "group": group.name,
                        "units": group.num_units,
                        "removed": removed,
                        "share": share,
                        "accuracy": accuracies[removed],
                        "drop": whole - accuracies[removed],
                    }
                )
        return rows

    def _accuracy(self, slicer: Slicer, keep: dict[str, np.ndarray], measure: Callable[[nn.Module], float]) -> float:
        network = slicer(keep)
        self.refresh(network)
        return measure(network)

    def _result(self, whole: dict[str, float]) -> dict[str, Any]:
        splits = self.setup.splits
        return {
            "format": FORMAT,
            "command": self.identity.command,
            "choices": self.identity.choices,
            "seed": self.identity.seed,
            "dense_seed": self.setup.dense_seed,
            "networks": [
                {
                    "name": subject.name,
                    "source": subject.source,
                    "search_top1": whole[subject.name],
                    "params": subject.graph.params({}),
                    "macs": subject.graph.macs({}),
                }
                for subject in self.subjects
            ],
            "shares": list(self.shares),
            "candidates": sum(map(self._candidates, self.subjects)),
            **self.facts,
            "splits": {"train": len(splits.train), "search": len(splits.search), "search_used": len(self.evaluator)},
            "training": str(self.setup.execution.training),
            "seconds": self.clock.seconds,
            **environment(self.setup.execution.device),
        }


def require_units(graphs: Sequence[ChannelGraph], model: str) -> None:
    """Refuse networks without a channel group that can lose a unit.

    Raises:
        UserError: says why the layers keep their channels.
    """
    if all(group.num_units == 1 for graph in graphs for group in graph.groups):
        reasons = "; ".join(dict.fromkeys(f"{frozen.layer}: {frozen.reason}" for graph in graphs for frozen in graph.frozen))
        raise UserError(f"model={model}: no channel can be removed ({reasons or 'every group has one unit left'})")


def removed_counts(units: int, shares: Sequence[float]) -> list[int]:
    """How many of a group's units each share is: the nearest number, the greater of two, but never all."""
    return [min(units - 1, math.floor(share * units + 0.5)) for share in shares]


def _advance(bar: Any, accuracy: float) -> None:
    bar.update()
