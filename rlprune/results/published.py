"""What the papers report: numbers that a table may show beside a run of the same method, network and data set."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rlprune.config import conf_dir, plain_settings, shipped, shipped_names, suggestion
from rlprune.errors import UserError

NEAR = 5.0  # points between two operating points that may stand side by side
DATASETS = ("cifar10", "cifar100", "imagenet")  # whose images are those of the papers; a folder of images may hold anything
LIMITS = {"dense": (0, 100), "top1": (0, 100), "delta": (-100, 100), "dense_top5": (0, 100), "delta_top5": (-100, 100)}
LIMITS |= dict.fromkeys(("sparsity", "macs_reduction", "params_reduction"), (0, 100))


@dataclass(frozen=True)
class Published:
    """A row of a paper's table. Accuracies and reductions are in percent, as printed; None where the paper does not say.

    Args:
        source: paper and table.
        method: the paper's name for it.
        model: our choice of that name.
        dataset: likewise.
        agent: our agent that does the same with its default settings; None where there is none.
        variant: the row's label beside the method's name.
        choices: of other groups, such as reward or criterion, that make the row what it is.
        settings: key → value by which a paper's table finds the run that does the same, where agent and choices do not say it.
        model_settings: those that are not the shipped ones; a value of None stands for any, as the paper does not say.
        dense: top-1 of the dense network.
        top1: of the pruned one.
        delta: of both, points.
        dense_top5: top-5 of the dense network.
        delta_top5: points.
        sparsity: channels removed.
        macs_reduction: of the dense network's.
        params_reduction: likewise.
        note: what to know before quoting; it begins with `anomaly` where the print contradicts itself.
    """

    source: str
    method: str
    model: str
    dataset: str
    agent: str | None = None
    variant: str | None = None
    choices: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    model_settings: dict[str, Any] = field(default_factory=dict)
    dense: float | None = None
    top1: float | None = None
    delta: float | None = None
    dense_top5: float | None = None
    delta_top5: float | None = None
    sparsity: float | None = None
    macs_reduction: float | None = None
    params_reduction: float | None = None
    note: str | None = None


def read_published() -> list[Published]:
    """Every row of the shipped conf/published.yaml, in its order.

    Raises:
        UserError: the file is absent, or a row is not what it must be; names it.
    """
    return list(_read(conf_dir() / "published.yaml"))


def published_for(
    agent: str,
    model: str,
    model_settings: Mapping[str, Any],
    dataset: str,
    macs_share_kept: float | None,
    sparsity: float | None,
    *,
    choices: Mapping[str, str] | None = None,
) -> Published | None:
    """The row of the same agent, network and data set whose operating point is nearest; None where none is within 5 points.

    The point is the reduction of MACs; the channel sparsity where the paper, or the caller, says only that, and no row is near by its MACs.
    Of equally near rows the first in the file is taken.

    Args:
        agent: name of the choice.
        model: likewise.
        model_settings: its settings, as in config.yaml or an artefact's origin.
        dataset: name of the choice; all of its images are taken to be used.
        macs_share_kept: MACs of the pruned network over those of the dense one.
        sparsity: share of the channels removed.
        choices: names chosen in other groups, as in result.json; with it, rows of another reward or criterion are passed over.
    """
    point = {
        "macs_reduction": None if macs_share_kept is None else 100 * (1 - macs_share_kept),
        "sparsity": None if sparsity is None else 100 * sparsity,
    }
    same = [entry for entry in _read(conf_dir() / "published.yaml") if (entry.agent, entry.model, entry.dataset) == (agent, model, dataset)]
    if not same:
        return None
    defaults, near = plain_settings(shipped("model", model, {})), []
    for entry in same:
        if not _same_settings(entry.model_settings, defaults, model_settings):
            continue
        if choices is not None and any(choices.get(group) != name for group, name in entry.choices.items()):
            continue
        distance = _distance(entry, point)
        if distance is not None and distance[1] <= NEAR + 1e-9:
            near.append((distance, entry))
    return min(near, key=lambda found: found[0])[1] if near else None


def _distance(entry: Published, point: Mapping[str, float | None]) -> tuple[int, float] | None:
    """Rank of the best measure that a row and a run have in common, and the points between them; None where they have none."""
    for rank, name in enumerate(("macs_reduction", "sparsity")):
        theirs, ours = getattr(entry, name), point[name]
        if theirs is not None and ours is not None:
            return rank, abs(float(theirs) - ours)
    return None


def _same_settings(theirs: Mapping[str, Any], defaults: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether a run's settings are a row's; what is None in the row may be anything."""
    wanted = {key: theirs.get(key, default) for key, default in defaults.items() if key not in theirs or theirs[key] is not None}
    return all(ours.get(key, defaults[key]) == value for key, value in wanted.items())


def found_by(entry: Published) -> dict[str, Any]:
    """The keys and values of a run that does what a row did; empty where we have no such agent."""
    if entry.settings or entry.agent is None:
        return entry.settings
    return {"agent": entry.agent, **entry.choices}


# -- the file --------------------------------------------------------------------------------------------------------------------------


@cache  # a report asks for every row of every run
def _read(path: Path) -> tuple[Published, ...]:
    try:
        blocks = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); install rlprune again") from error
    return tuple(entry for block in blocks for entry in _entries(path, block))


def _entries(path: Path, block: dict[str, Any]) -> Iterator[Published]:
    """The rows of one block, each with what the block says for all."""
    shared = {key: value for key, value in block.items() if key != "rows"}
    for row in block["rows"]:
        values = _completed(shared | row)
        wrong = _wrong(values)
        if wrong is not None:
            raise UserError(f"{path}: {shared.get('source')}, {row}: {wrong}")
        yield Published(**values)


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """Papers print two of dense, pruned and difference: the third follows."""
    dense, top1, delta = (values.get(key) for key in ("dense", "top1", "delta"))
    try:
        if delta is None and dense is not None and top1 is not None:
            values["delta"] = round(top1 - dense, 2)
        elif top1 is None and dense is not None and delta is not None:
            values["top1"] = round(dense + delta, 2)
        elif dense is None and top1 is not None and delta is not None:
            values["dense"] = round(top1 - delta, 2)
    except TypeError:  # no numbers, which the check names
        pass
    return values


def _wrong(values: dict[str, Any]) -> str | None:
    """The first thing that a row must not be."""
    names = [item.name for item in dataclasses.fields(Published)]
    for name in values:
        if name not in names:
            return f"{name}: no such key{suggestion(name, names)}"
    for name in ("source", "method", "model", "dataset"):
        if not isinstance(values.get(name), str):
            return f"{name}: is missing"
    if values["dataset"] not in DATASETS:
        return f"dataset={values['dataset']}: must be one of {', '.join(DATASETS)}"
    for group, name in [("agent", values.get("agent")), ("model", values["model"]), *values.get("choices", {}).items()]:
        if name is not None and name not in shipped_names(group):
            return f"{group}={name}: is not shipped"
    try:
        shipped("model", values["model"], values.get("model_settings", {}))
    except UserError as error:
        return str(error)
    for name, (low, high) in LIMITS.items():
        value = values.get(name)
        if value is not None and not (type(value) in (int, float) and low <= value <= high):
            return f"{name}={value}: must be a number from {low} to {high}"
    if values.get("delta") is None:
        return "delta: cannot be known; give two of dense, top1 and delta, or delta alone"
    if all(values.get(name) is None for name in ("sparsity", "macs_reduction", "params_reduction")):
        return "sparsity, macs_reduction, params_reduction: one must be given"
    return None
