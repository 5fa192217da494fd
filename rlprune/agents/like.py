"""The sizes of another run, filled with other units: the baseline of methods that choose units themselves."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from rlprune.agents.base import Stateless, StepTask
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph
from rlprune.plan import read_sealed


class Like(Stateless):
    """Takes as many units from every channel group as a finished run took; the criterion says which. One candidate a step.

    Several steps share the groups out in network order: with as many steps as groups, each step prunes one group alone. Where the schedule
    leaves their number open there are as many as the run took, so that both recover equally often.

    Args:
        run: folder of the run, or of an artefact in it.

    Raises:
        UserError: no run is named, or its plan is damaged.
        ValueError: the run has no plan.
    """

    candidates_per_step = 1
    decides_size = True

    def __init__(self, *, run: str | None) -> None:
        if run is None:
            raise UserError("agent.run: name the run whose sizes are taken, agent.run=outputs/prune/RUN")
        self.run, self.kept, self.steps = run, _kept_units(run), _steps(run)

    def check(self, network: nn.Module, graph: ChannelGraph, example: Tensor) -> None:
        """Refuse a run of another network before this one is trained.

        Raises:
            UserError: the channel groups are others, or have more units there.
        """
        sizes = {group.name: group.num_units for group in graph.groups}
        for name, units in self.kept.items():
            if name not in sizes:
                raise UserError(
                    f"agent.run={self.run}: has the channel group {name}, this network has not; "
                    "name a run of the same model with the same ignore=[...]"
                )
            if max(units) >= sizes[name]:
                raise UserError(
                    f"agent.run={self.run}: keeps unit {max(units)} of the channel group {name}, which has {sizes[name]} units here; "
                    "name a run of the same model and width"
                )
        for name in sizes:
            if name not in self.kept:
                raise UserError(
                    f"agent.run={self.run}: has no channel group {name}; name a run of the same model, or ignore=[{name}], as it did"
                )

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """The candidate with the other run's sizes in the groups of this step."""
        groups = task.graph.groups
        counts = np.zeros(len(groups), dtype=int)
        for index in np.array_split(np.arange(len(groups)), task.steps)[task.step]:
            counts[index] = max(0, groups[index].num_units - len(self.kept[groups[index].name]))
        return task.evaluate_counts(counts)


def _kept_units(run: str) -> dict[str, list[int]]:
    """Units that a run's smallest network, or an artefact, keeps of every group."""
    plans = [folder / "plan.json" for folder in (Path(run), Path(run) / "pruned")]
    path = next((plan for plan in plans if plan.is_file()), None)
    if path is None:
        raise ValueError(f"run={run}: has no pruned/plan.json; name the folder of a finished `rlprune prune`")
    kept = read_sealed(path).get("keep")
    if not (isinstance(kept, dict) and kept and all(map(_are_units, kept.values()))):
        raise UserError(f"{path}: lacks or garbles keep; the file is damaged, use another run")
    return kept


def _steps(run: str) -> int | None:
    """Pruning steps of a run, or of that in whose folder an artefact is; None where nothing says it."""
    metrics = [folder / "metrics.csv" for folder in (Path(run), Path(run).resolve().parent)]
    path = next((path for path in metrics if path.is_file()), None)
    return None if path is None else max(len(path.read_bytes().splitlines()) - 1, 0) or None


def _are_units(units: Any) -> bool:
    """Distinct indices, one at least."""
    return isinstance(units, list) and all(type(unit) is int and unit >= 0 for unit in units) and 0 < len(units) == len(set(units))
