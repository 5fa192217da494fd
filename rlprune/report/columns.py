"""The columns that a table can have: what each says of a line for people, and the numbers behind it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlprune.config import suggestion
from rlprune.errors import UserError
from rlprune.report.comparison import Line, interval
from rlprune.report.networks import FINAL
from rlprune.results.published import Published, published_for
from rlprune.results.tables import CONTROL, JOINT, count


@dataclass(frozen=True)
class Column:
    """A column: its heading, what it says of a line, and the numbers behind it, by name, for the CSV.

    Args:
        heading: for people, with the unit.
        text: of a line; empty where it has no such number.
        numbers: of a line.
        meaning: for the legend.
        words: it holds words, not numbers.
    """

    heading: str
    text: Callable[[Line], str]
    numbers: Callable[[Line], dict[str, Any]]
    meaning: str = ""
    words: bool = False


def _measure(key: str, heading: str, show: Callable[[float], str], meaning: str = "", spread: bool = False) -> Column:
    """The mean of a number over seeds, with its standard deviation where asked for and there are several."""

    def text(line: Line) -> str:
        values = line.values(key)
        if not len(values):
            return ""
        some = "" if len(values) == len(line.networks) else f" (n = {len(values)})"
        deviation = f" ± {show(float(np.std(values, ddof=1)))}" if spread and len(values) > 1 else ""
        return f"{show(float(np.mean(values)))}{deviation}{some}"

    def numbers(line: Line) -> dict[str, Any]:
        values = line.values(key)
        found: dict[str, Any] = {f"{key}_mean": line.mean(key)}
        if spread:
            found[f"{key}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return found

    return Column(heading, text, numbers, meaning)


def _difference(key: str, heading: str, meaning: str, bounds: bool = False) -> Column:
    """A mean of differences in points, with its 95 % interval where asked for."""

    def text(line: Line) -> str:
        values = line.against.get(key, np.array([]))
        if not len(values):
            return ""
        low, high = interval(values)
        between = f" [{_signed(low)}, {_signed(high)}]" if len(values) > 1 else " (n = 1)"
        return f"{_signed(float(np.mean(values)))}{between if bounds else ''}"

    def numbers(line: Line) -> dict[str, Any]:
        values = line.against.get(key, np.array([]))
        found: dict[str, Any] = {f"delta_{key}": float(np.mean(values)) if len(values) else math.nan}
        if bounds:
            found |= {f"delta_{key}_{end}": value for end, value in zip(("low", "high"), interval(values), strict=True)}
            found[f"delta_{key}_n"] = len(values)
        return found

    return Column(heading, text, numbers, meaning)


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _removed(key: str) -> Callable[[Line], float]:
    """Share of the dense network's that is gone; NaN where no dense network was measured."""

    def share(line: Line) -> float:
        shares = [1 - network.sizes[key] / network.dense[key] for network in line.networks if network.dense.get(key)]
        return float(np.mean(shares)) if shares and line.kind == FINAL else math.nan

    return share


def _share(key: str, heading: str, of: Callable[[Line], float], meaning: str = "") -> Column:
    def text(line: Line) -> str:
        return "" if math.isnan(of(line)) else f"{100 * of(line):.1f}"

    return Column(heading, text, lambda line: {key: of(line)}, meaning)


def _speedup(line: Line) -> float:
    pairs = [(network.dense.get("latency_ms", math.nan), network.sizes["latency_ms"]) for network in line.networks]
    ratios = [dense / own for dense, own in pairs if own > 0 and not math.isnan(dense)]
    return float(np.mean(ratios)) if ratios and line.kind == FINAL else math.nan


def _label(key: str, heading: str, of: Callable[[Line], str], meaning: str = "") -> Column:
    return Column(heading, of, lambda line: {key: of(line)}, meaning, words=True)


def _settings(line: Line) -> str:
    return ", ".join(f"{key}={value}" for key, value in line.settings.items())


def _hardware(line: Line) -> str:
    return "; ".join(dict.fromkeys(str(network.run.result.get("device", "")) for network in line.networks))


def published(line: Line) -> Published | None:
    """The paper's own numbers of this agent, where model and data set are the same."""
    network = line.networks[0]
    if line.kind != FINAL or network.run.settings.get("dataset.limit") is not None:
        return None
    kept = network.sizes["macs"] / network.dense["macs"] if network.dense.get("macs") else None
    settings = {key.partition(".")[2]: value for key, value in network.run.settings.items() if key.startswith("model.")}
    dataset = network.run.choices["dataset"]
    return published_for(
        network.run.agent, network.run.choices["model"], settings, dataset, kept, network.sizes["sparsity"], choices=network.run.choices
    )


def _published(line: Line) -> str:
    found = published(line)
    if found is None:
        return ""
    top1 = "" if found.top1 is None else f"{found.top1:.2f} "
    gone, what = (found.macs_reduction, "MACs") if found.macs_reduction is not None else (found.sparsity, "channels")
    return f"{top1}({_signed(found.delta or 0.0)}) at {gone:g} % of the {what} removed; {found.source}"


def known_columns(baseline: str) -> dict[str, Column]:
    """Every column that a report can have."""
    seeds = Column("seeds", lambda line: str(len(line.networks)), lambda line: {"seeds": len(line.networks)}, "number of runs in a row")
    return {
        "dataset": _label("dataset", "data", lambda line: line.data),
        "model": _label("model", "model", lambda line: line.model),
        "target": _label("target", "target", lambda line: line.target, "what was asked for; drop: points on the search split"),
        "network": _label("network", "network", lambda line: line.name),
        "settings": _label("settings", "settings", _settings, "where runs of the same name differ"),
        "top1": _measure(
            "top1", "top-1 %", _percent, "test split, after recovery; mean ± standard deviation over seeds, best of its block in bold", True
        ),
        "top5": _measure("top5", "top-5 %", _percent, spread=True),
        "before": _measure("before", "before %", _percent, "top-1 before the last recovery"),
        "delta": _difference("dense", "Δ", "points to the dense network"),
        "delta_control": _difference("control", "Δ to control", f"points to `{CONTROL}`"),
        "delta_baseline": _difference(
            "baseline", f"Δ to {baseline}", f"mean difference to `{baseline}`, paired by seed, with its 95 % t-interval", True
        ),
        "params": _measure("params", "parameters", count),
        "macs": _measure("macs", "MACs", count),
        "macs_removed": _share("macs_removed", "MACs removed %", _removed("macs")),
        "params_removed": _share("params_removed", "parameters removed %", _removed("params")),
        "sparsity": _share("sparsity", "sparsity %", lambda line: line.mean("sparsity"), "share of the prunable channels removed"),
        "latency": _measure("latency_ms", "latency ms", lambda value: f"{value:.2f}", "median of one image, float32"),
        "speedup": Column(
            "speed-up",
            lambda line: "" if math.isnan(_speedup(line)) else f"{_speedup(line):.2f}×",
            lambda line: {"speedup": _speedup(line)},
            "dense latency / latency, both of the same run",
        ),
        "candidates": _measure("candidates", "candidates", lambda value: f"{value:.0f}", "distinct networks that the search measured"),
        "search_minutes": _measure("search_minutes", "search min", lambda value: f"{value:.1f}", "minutes of the search alone"),
        "minutes": _measure("minutes", "total min", lambda value: f"{value:.1f}", "of a whole run, dense training included"),
        "seeds": seeds,
        "published": _label(
            "published", "published", _published, "the paper's own top-1 (Δ) at its MACs or channels removed; same model and data set only"
        ),
        "hardware": _label("hardware", "hardware", _hardware),
        "run": _label("run", "runs", lambda line: ", ".join(str(network.run.folder) for network in line.networks)),
    }  # fmt: skip


SEARCHES = {"candidates", "search_minutes", "minutes"}


def choose_columns(names: Sequence[str], rows: Sequence[str], baseline: str) -> list[Column]:
    """The columns of a table, those of `rows` behind the network.

    Raises:
        UserError: there is no such column.
    """
    known = known_columns(baseline)
    if not names:
        raise UserError(f"columns=[]: name one at least; there are {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UserError(f"columns: {name} is no column{suggestion(name, known)}; there are {', '.join(known)}")
    chosen = []
    for name in names:
        column = known[name] if name not in SEARCHES else _of_searches(known[name])
        if name == "network" and "settings" not in names:  # then the name alone has to tell rows apart
            column = replace(column, text=lambda line: line.label)
        chosen.append(column)
        if name == "network":
            chosen += [_label(key, key, lambda line, key=key: line.keys.get(key, "")) for key in rows]  # type: ignore[misc]
    return chosen


def _of_searches(column: Column) -> Column:
    """A dense network stands in the table once for many runs, so what one of them has cost is not its cost."""
    own = lambda line: line.kind in (FINAL, JOINT)  # noqa: E731
    return Column(
        column.heading,
        lambda line: column.text(line) if own(line) else "",
        lambda line: column.numbers(line) if own(line) else dict.fromkeys(column.numbers(line), math.nan),
        column.meaning,
    )
