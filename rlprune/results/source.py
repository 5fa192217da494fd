"""The run that an artefact comes from, as its result.json tells it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlprune.errors import UserError
from rlprune.files import read_json


@dataclass(frozen=True)
class SourceRun:
    """Of the run that pruned a network; what nothing tells is None.

    Args:
        agent: that decided.
        seed: of the run.
        targets: what was asked and reached, as in result.json.
        level: of the network's row, a fraction.
        row: the network's row in result.json, after recovery where it had one.
    """

    agent: str | None
    seed: int
    targets: dict[str, Any] | None
    level: float
    row: dict[str, Any] | None

    def facts(self) -> dict[str, Any]:
        """Entries of another run's result.json that put it beside this one."""
        return {
            "like_agent": self.agent,
            "like_seed": self.seed,
            "like_targets": self.targets,
            "like_level": self.level,
            "like_row": self.row,
        }


def read_source(folder: Path, plan: dict[str, Any]) -> SourceRun:
    """The run in whose folder an artefact lies.

    Args:
        folder: of the artefact.
        plan: its plan.
    """
    try:
        result = read_json(folder.resolve().parent / "result.json")
        rows = [row for row in result["rows"] if all(row[key] == plan[key] for key in ("sparsity", "macs", "params"))]
        row = {key: rows[-1][key] for key in ("name", "level", "top1", "standard_error", "n")} if rows else None
    except (UserError, KeyError, TypeError, IndexError):  # copied without its run, or unfinished: the plan is enough
        result, row = {}, None
    agent = plan.get("agent")
    targets = result.get("targets", result.get("like_targets")) if row is not None else None
    level = plan["sparsity"] if row is None else row["level"]
    return SourceRun(None if agent is None else str(agent), plan["seed"], targets, level, row)
