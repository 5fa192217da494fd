"""The networks that a run has measured, labelled by what makes them comparable: model, data, target and settings."""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rlprune.config import conf_dir, shipped_names
from rlprune.errors import UserError
from rlprune.files import read_json
from rlprune.report.collect import Run, is_number
from rlprune.results.tables import CONTROL, JOINT

DENSE, FINAL = "dense", "final"
NOT_SETTINGS = (  # may differ between the seeds of one line: names, machines, and what makes no difference to a network
    "seed", "dense_seed", "resume", "device", "compile", "channels_last", "training.save_minutes", "dataset.memory_gb",
    "dataset.num_workers", "dataset.root", "recovery.control", "search.execution", "checkpoint", "like", "agent.run",
)  # fmt: skip
NOT_GROUPS = ("paths.", "tracker.", "evaluator.", "model.")  # likewise; a model's settings are part of its label
NOT_DATA = ("crop", "flip", "resized_crop", "memory_gb", "num_workers", "mean", "std")
"""Settings of a data set that say how it is trained on or read, not what is in it."""
OF_SOURCE = ("agent.", "budget.", "schedule.", "reward.")  # settings that tell runs apart which others follow
NAMED = ("criterion", "reward", "recovery")  # groups whose choice says more than the settings in it


@dataclass(frozen=True)
class Network:
    """One network of one run. Accuracies and shares are fractions; what a run does not say is NaN.

    Args:
        run: that measured it.
        kind: dense, `dense + same recovery epochs`, jointly trained, or final: what a run leaves at a target.
        model: the choice, with the settings that differ from the shipped ones.
        data: label of data set and splits; numbers of different data are never compared.
        name: of the line: the agent, or the kind.
        target: what was asked for; empty for dense networks.
        before: accuracy before the last recovery.
        sizes: top1, top5, params, macs, sparsity, latency_ms.
        dense: the same numbers of the dense network of that run; empty where it measured none.
        weights: the file of the dense network, and the seed of its split.
        recovery: epochs that the network recovered in all; NaN where that is unknown.
    """

    run: Run
    kind: str
    model: str
    data: str
    name: str
    target: str
    before: float
    sizes: Mapping[str, float]
    dense: Mapping[str, float]
    weights: tuple[str, int | None]
    recovery: float

    @property
    def cost(self) -> dict[str, float]:
        """Distinct candidates and minutes of the search, minutes of the whole run."""
        seconds = self.run.result.get("seconds") or {}
        whole = sum(_number(value) for value in seconds.values()) if seconds else math.nan
        return {
            "candidates": _number((self.run.result.get("search") or {}).get("candidates")),
            "search_minutes": _number(seconds.get("search")) / 60,
            "minutes": whole / 60,
        }


# -- networks of a run -----------------------------------------------------------------------------------------------------------------


def networks_of(run: Run) -> list[Network]:
    """The dense network, its control and what is left at every target, of a finished `prune` or `train`."""
    result, rows = run.result, run.result["rows"]
    first = rows[0] if rows[0]["name"] in (DENSE, "published", "checkpoint") else None
    common: dict[str, Any] = {
        "run": run,
        "model": _model_label(run),
        "data": data_label(run),
        "dense": {} if first is None else _sizes(first),
        "weights": (Path(str(result.get("dense") or "")).name, run.dense_seed),
        "recovery": recovery_epochs(run),
    }
    if run.result.get("like"):
        common["dense"] = _dense_of(Path(str(run.result["like"])))
    found = []
    levels: dict[float, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["level"] > 0:
            levels[row["level"]].append(row)
        else:
            kind = row["name"] if row["name"] in (CONTROL, JOINT) else DENSE
            found.append(Network(kind=kind, name=kind, target="", before=math.nan, sizes=_sizes(row), **common))
    last = max(levels, default=0.0)
    for level, both in levels.items():
        before = _number(both[0]["top1"]) if len(both) > 1 else math.nan
        target = _target(run, level, level == last)
        found.append(Network(kind=FINAL, name=_name(run), target=target, before=before, sizes=_sizes(both[-1]), **common))
    return found


def _dense_of(folder: Path) -> dict[str, float]:
    """The dense network of another run; empty where it cannot be read."""
    try:
        first = _result_of(folder)["rows"][0]
        return _sizes(first) if first["name"] == DENSE else {}
    except (KeyError, TypeError, IndexError, AttributeError):
        return {}


def _result_of(folder: Path | None) -> Mapping[str, Any]:
    """result.json of another run; empty where it cannot be read."""
    try:
        return {} if folder is None else read_json(folder / "result.json")
    except UserError:
        return {}


def _sizes(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: _number(row.get(key)) for key in ("top1", "top5", "standard_error", "n", "params", "macs", "sparsity", "latency_ms")}


def _number(value: Any) -> float:
    """NaN for what is no finite number."""
    return float(value) if is_number(value) else math.nan


def _target(run: Run, level: float, last: bool) -> str:
    """What a network was to be: a level on the way is a sparsity, the last one meets all targets."""
    asked = run.result.get("like_targets" if run.command == "train" else "targets") or {}
    if not last:
        return f"sparsity {_percent(level)}"
    if run.agent == "like" and not asked:  # as large as the run it follows, which was told how large
        asked = _result_of(run.source).get("targets") or {}
    level_of = _number(run.result["rows"][-1]["sparsity"]) if run.command == "train" and "schedule.sparsity" in asked else math.nan
    if level_of < asked.get("schedule.sparsity", {}).get("asked", 0) - 0.005:  # the architecture of a level on the way, not of the last one
        return f"sparsity {_percent(round(level_of, 2))}"
    words = {
        "schedule.sparsity": "sparsity {}",
        "budget.macs": "MACs ≤ {}",
        "budget.params": "parameters ≤ {}",
        "budget.latency": "latency ≤ {}",
    }
    parts = [text.format(_percent(asked[key]["asked"])) for key, text in words.items() if key in asked]
    parts += [f"drop ≤ {run.settings['budget.max_drop']:g}" for _ in [0] if run.settings.get("budget.max_drop") is not None]
    if not parts and run.command == "prune" and not asked and "schedule.sparsity" not in run.settings:
        return f"sparsity {_percent(level)}"  # of a version that did not keep its targets
    return ", ".join(parts) or "free"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _name(run: Run) -> str:
    """The agent; for what follows another run, also that run's."""
    if run.command == "train":
        return f"{run.result.get('like_agent') or 'pruned'}, from scratch"
    if run.agent != "like":
        return run.agent
    try:
        source = str(_result_of(run.source)["choices"]["agent"])
    except (KeyError, TypeError):
        source = "another run" if run.source is None else run.source.name
    return f"like {source}"


def recovery_epochs(run: Run) -> float:
    """Epochs that the smallest network recovered in all; NaN where that is unknown."""
    said = (run.result.get("search") or {}).get("recovery_epochs")
    if said is not None:
        return _number(said)
    metrics = run.table("metrics.csv")
    epochs, final = (_number(run.settings.get(f"recovery.{key}")) for key in ("epochs", "final_epochs"))
    if "recovery_seconds" not in metrics:
        return math.nan
    rounds = int((metrics["recovery_seconds"] > 0).sum())
    saved = min(rounds, len({row["level"] for row in run.result["rows"] if row["level"] > 0}))
    return saved * final + (rounds - saved) * epochs


# -- what belongs together -------------------------------------------------------------------------------------------------------------


def data_label(run: Run) -> str:
    """Data set and number of images: the same label, the same data; roots of different names are different data."""
    splits = run.result.get("splits") or {}
    root = _own_settings(run, "dataset").get("root")
    name = run.choices["dataset"] + (f" {Path(str(root)).name}" if root else "")
    special = {key: value for key, value in _changed(run, "dataset").items() if key not in (*NOT_DATA, "root")}
    words = [f"{key}={plain(value)}" for key, value in sorted(special.items())]
    sizes = "/".join(str(splits.get(part, "?")) for part in ("train", "search", "test"))
    return f"{name} ({', '.join([*words, f'{sizes} images'])})"


def _model_label(run: Run) -> str:
    words = [f"{key}={plain(value)}" for key, value in sorted(_changed(run, "model").items())]
    return run.choices["model"] + (f" ({', '.join(words)})" if words else "")


def _changed(run: Run, group: str) -> dict[str, Any]:
    """Settings of a model or data set that are not the shipped ones."""
    known = run.choices[group] in shipped_names(group)  # a file may name anything, a path among them
    shipped = _shipped(str(conf_dir() / group / f"{run.choices[group]}.yaml")) if known else {}
    own = _own_settings(run, group)
    return {key: value for key, value in own.items() if key != "_target_" and shipped.get(key) != value and not _open(shipped.get(key))}


def _own_settings(run: Run, group: str) -> Mapping[str, Any]:
    """Of a run's model or data set; a training that was told to be like a run has taken them from there."""
    if run.result.get("like"):
        return run.result.get(f"{group}_settings") or {}
    return {key.partition(".")[2]: value for key, value in run.settings.items() if key.startswith(f"{group}.")}


@cache  # a report asks for it run by run
def _shipped(path: str) -> Mapping[str, Any]:
    return (yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}) if os.path.isfile(path) else {}


def _open(value: Any) -> bool:
    """A shipped value that another setting fills in."""
    return isinstance(value, str) and "${" in value


def plain(value: Any) -> str:
    """As it would be typed, in one line."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        return f"[{','.join(map(plain, value))}]"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return " ".join(str(value).split())


def settings_of(run: Run) -> dict[str, str]:
    """All that may tell runs of one agent apart, as it would be typed."""
    named = {group: run.choices[group] for group in NAMED if group in run.choices}
    flat = {
        key: plain(value)
        for key, value in run.settings.items()
        if key not in NOT_SETTINGS and not key.startswith(NOT_GROUPS) and not key.endswith("_target_")
    }
    if run.source is not None:
        theirs = run.source_settings
        flat |= {f"run.{key}": plain(value) for key, value in theirs.items() if key.startswith(OF_SOURCE) and not key.endswith("_target_")}
        flat |= {} if theirs else {"agent.run": str(run.source)}
    if run.settings.get("checkpoint") is not None:
        named["checkpoint"] = Path(str(run.settings["checkpoint"])).name
    return named | flat


def value_of(run: Run, key: str) -> str:
    """A choice, a setting, or the seed; empty where a run has no such key."""
    if key in run.choices:
        return run.choices[key]
    if key in run.settings:
        return plain(run.settings[key])
    return ""


def group_setting(runs: Iterable[Run], key: str) -> str | None:
    """A setting within a group; None where the key is no group of settings in any run."""
    return next((name for run in runs for name in run.settings if name.startswith(f"{key}.")), None)
