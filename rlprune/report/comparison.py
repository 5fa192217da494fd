"""What runs have measured, made comparable: networks of equal settings are one line over seeds, differences are paired by seed."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from rlprune.report.collect import Run
from rlprune.report.networks import DENSE, FINAL, Network, settings_of, value_of
from rlprune.results.tables import CONTROL, JOINT


@dataclass
class Line:
    """Networks that differ in their seed alone: a row of the table."""

    model: str
    data: str
    target: str
    kind: str
    name: str
    keys: dict[str, str]  # the values that got a column of their own
    settings: dict[str, str]  # in which it differs from other lines of the same name
    networks: list[Network]
    label: str = ""  # the name, with as much of the settings as tells it from others of its name
    against: dict[str, np.ndarray] = field(default_factory=dict)  # differences in points: to the dense network, the control, the baseline

    def values(self, key: str) -> np.ndarray:
        """A number of every network that has it, shape (networks,)."""
        found = [network.before if key == "before" else {**network.sizes, **network.cost}.get(key, math.nan) for network in self.networks]
        return np.array([value for value in found if not math.isnan(value)])

    def mean(self, key: str) -> float:
        """The mean of a number over the networks that have it; NaN where none has."""
        values = self.values(key)
        return float(np.mean(values)) if len(values) else math.nan

    @property
    def sized(self) -> bool:
        """The target says how large the network is, so that a higher accuracy is better."""
        return any(word in self.target for word in ("sparsity", "MACs", "parameters"))

    @property
    def block(self) -> tuple[str, str, str]:
        """Lines that may be compared with each other."""
        return self.data, self.model, self.target


def rivals(lines: Sequence[Line]) -> list[list[Line]]:
    """Of every block of pruned networks of one size those over the most seeds, where there are several: one may be called the best."""
    found = []
    for _, block in _grouped([line for line in lines if line.kind == FINAL and line.sized], lambda line: line.block):
        most = max(len(line.networks) for line in block)
        equal = [line for line in block if len(line.networks) == most]
        found += [equal] if len(equal) > 1 else []
    return found


def interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's t-interval of a mean of paired differences; NaN for fewer than two."""
    if len(differences) < 2:
        return math.nan, math.nan
    half = float(stats.t.ppf((1 + level) / 2, len(differences) - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return float(np.mean(differences)) - half, float(np.mean(differences)) + half


# -- lines of the table --------------------------------------------------------------------------------------------------------------


def _differing(runs: Sequence[Run], ignore: Iterable[str]) -> list[dict[str, str]]:
    """For each run the settings in which these runs are not all alike; those that follow from the choice in their group are left to it.

    A setting that a run does not have was not there in its version, and tells nothing apart.
    """
    all_settings = [settings_of(run) for run in runs]
    keys = list(dict.fromkeys(key for settings in all_settings for key in settings))
    differ = {key for key in keys if _several(all_settings, key)}
    by_choice = {
        group: [[settings for settings in all_settings if settings.get(group) == name] for name in {s.get(group) for s in all_settings}]
        for group in {key.partition(".")[0] for key in differ} & differ
    }
    differ = {
        key for key in differ if "." not in key or any(_several(same, key) for same in by_choice.get(key.partition(".")[0], [all_settings]))
    }
    differ -= set(ignore)
    return [{key: settings[key] for key in keys if key in differ and key in settings} for settings in all_settings]


def _several(all_settings: Iterable[Mapping[str, str]], key: str) -> bool:
    return len({settings[key] for settings in all_settings if key in settings}) > 1


def make_lines(networks: Sequence[Network], *, rows: Sequence[str], average: Sequence[str], baseline: str) -> tuple[list[Line], list[str]]:
    """Networks that differ in their seed alone become a line; says what was left out or is not alike.

    Args:
        networks: of all runs.
        rows: keys that get a column of their own beside model, target and agent.
        average: settings that may differ within a line.
        baseline: the agent that others are compared with.
    """
    notes: list[str] = []
    lines: list[Line] = []
    average = [*average, *(key for network in networks for key in settings_of(network.run) if key.partition(".")[0] in average)]
    for (data, model, target, kind, name), members in _grouped(networks, lambda n: (n.data, n.model, n.target, n.kind, n.name)):
        ignore = {*average, *rows} | (set() if kind == FINAL else _not_of_dense(members))
        differences = _differing([network.run for network in members], ignore)
        if kind == CONTROL and len({network.recovery for network in members}) > 1:  # steps and periods say how often, too
            differences = [
                settings | {"recovery epochs": f"{network.recovery:g}"} for network, settings in zip(members, differences, strict=True)
            ]
        by_line: dict[tuple[Any, ...], list[Network]] = defaultdict(list)
        for network, settings in zip(members, differences, strict=True):
            keys = {key: value_of(network.run, key) for key in rows} if kind == FINAL else {}
            by_line[tuple(sorted(keys.items())), tuple(settings.items())].append(network)
        for (keys_, settings_), alike in by_line.items():
            kept = _one_a_seed(alike, notes) if kind == FINAL else _one_a_file(alike)
            lines.append(Line(model, data, target, kind, name, dict(keys_), dict(settings_), kept))
    _compare(lines, baseline, networks)
    _label(lines)
    return lines, notes


def _label(lines: Sequence[Line]) -> None:
    """Give every line a short name that no other line of its model and target has."""
    for _, same in _grouped(lines, lambda line: (*line.block, line.kind, line.name)):
        told = [line.keys | line.settings for line in same]
        keys = list(dict.fromkeys(key for values in told for key in values))
        enough = next(([key] for key in keys if len({values.get(key) for values in told}) == len(same)), keys)
        for line, values in zip(same, told, strict=True):
            extra = ", ".join(f"{key.rpartition('.')[2]}={values[key]}" for key in enough if key in values and len(same) > 1)
            line.label = f"{line.name} ({extra})" if extra else line.name


def _grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> list[tuple[Any, list[Any]]]:
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())


def _not_of_dense(networks: Sequence[Network]) -> set[str]:
    """Settings that a dense network does not depend on; its control recovers, a jointly trained one is searched on, too."""
    keep: tuple[str, ...] = ("training.", "checkpoint")
    keep += ("recovery.", "recovery") if networks[0].kind == CONTROL else ()
    keep += ("agent.", "search.", "schedule.", "budget.", "criterion", "reward") if networks[0].kind == JOINT else ()
    return {key for network in networks for key in settings_of(network.run) if not key.startswith(keep)}


def _one_a_seed(networks: list[Network], notes: list[str]) -> list[Network]:
    """The newest run of every pair of seeds: the same run twice is not two."""
    kept = []
    for _, same in _grouped(networks, lambda network: (network.run.seed, network.run.dense_seed)):
        *older, newest = sorted(same, key=lambda network: network.run.written)
        kept.append(newest)
        notes += [f"{network.run.folder} repeats {newest.run.folder} and does not count a second time" for network in older]
    return kept


def _one_a_file(networks: list[Network]) -> list[Network]:
    """Every dense network once, however many runs have pruned it."""
    return [
        same[0] for _, same in _grouped(networks, lambda network: (network.weights, network.recovery if network.kind == CONTROL else 0))
    ]


# -- differences -----------------------------------------------------------------------------------------------------------------------


def _compare(lines: Sequence[Line], baseline: str, networks: Sequence[Network]) -> None:
    """Fill `against`, in points; pairs share their seeds and their dense network."""
    controls = [network for network in networks if network.kind == CONTROL]
    own = {network.run.folder: network for network in controls}
    for line in lines:
        pairs: dict[str, list[float]] = {"dense": [], "control": []}
        for network in line.networks:
            top1 = network.sizes["top1"]
            if network.dense and line.kind != DENSE:
                pairs["dense"].append(top1 - network.dense["top1"])
            control = own.get(network.run.folder) or next((other for other in controls if _recovered_alike(network, other)), None)
            if control is not None and line.kind != CONTROL:
                pairs["control"].append(top1 - control.sizes["top1"])
        if line.kind == FINAL and line.name != baseline:
            pairs["baseline"] = _paired(line, _baseline_line(line, lines, baseline))
        line.against = {key: 100 * np.array(values) for key, values in pairs.items() if values}


def _recovered_alike(network: Network, control: Network) -> bool:
    """The same dense network, and as many epochs in the same way."""
    same = [(other.data, other.model, other.weights, other.recovery) for other in (network, control)]
    return same[0] == same[1] and not any(_several(map(_recipe, (network.run, control.run)), key) for key in _recipe(network.run))


def _recipe(run: Run) -> dict[str, str]:
    spent = ("recovery.epochs", "recovery.final_epochs")  # which `Network.recovery` counts
    return {key: value for key, value in settings_of(run).items() if key.partition(".")[0] == "recovery" and key not in spent}


def _baseline_line(line: Line, lines: Sequence[Line], baseline: str) -> Line | None:
    """The baseline's line in the same block; of several that with the same settings, columns and dense networks."""
    found = [other for other in lines if other.kind == FINAL and other.block == line.block and other.name == baseline]
    if len(found) > 1:
        mine = settings_of(line.networks[0].run) | line.keys
        alike = lambda other: sum(mine.get(key) == value for key, value in (settings_of(other.networks[0].run) | other.keys).items())  # noqa: E731
        scores = [alike(other) for other in found]
        best = [other for other, score in zip(found, scores, strict=True) if score == max(scores)]
        found = best[:1]
    return found[0] if found else None


def _paired(line: Line, other: Line | None) -> list[float]:
    """Differences of runs with the same seeds on the same dense network."""
    if other is None:
        return []
    theirs = {(network.run.seed, network.run.dense_seed): network for network in other.networks}
    pairs = [(network, theirs[seeds]) for network in line.networks if (seeds := (network.run.seed, network.run.dense_seed)) in theirs]
    return [mine.sizes["top1"] - their.sizes["top1"] for mine, their in pairs if _same_weights(mine, their)]


def _same_weights(one: Network, other: Network) -> bool:
    """They started from the same dense network, or one of them from none."""
    return one.weights == other.weights or "" in (one.weights[0], other.weights[0])
