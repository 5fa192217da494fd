"""The runs of a paper's table in the rows that its grid has, finished, failed or missing, beside what the paper prints."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlprune.errors import UserError
from rlprune.grid import RUN, Cell, plain_value, same, typed, word_of
from rlprune.report.collect import FINISHED, UNREADABLE, Run, find_runs, is_number
from rlprune.report.layouts import Layout
from rlprune.report.networks import networks_of, plain, settings_of
from rlprune.results.published import Published, found_by, read_published
from rlprune.results.tables import CONTROL, JOINT

NOT_ROWS = ("seed", "model", "model.name", "dataset", "like")  # keys of a grid that make no row: they say which network, or which seed
TRAINED = ("pruned", "from scratch")


@dataclass(frozen=True)
class Grid:
    """A preset's runs.

    Args:
        name: of the preset.
        folder: in which they are.
        cells: one a run.
        choices: names that the preset chooses for all.
    """

    name: str
    folder: Path
    cells: Sequence[Cell]
    choices: Mapping[str, str]


@dataclass
class Row:
    """A row of the table: runs that differ in their seed alone.

    Args:
        block: which network, as the paper's table is divided.
        pattern: key → value of the grid, without network and seed.
        settings: in which its runs differ from others of the same pattern.
        told: keys whose values its runs take from those that they follow.
        expected: folder name → seed, of the grid.
        runs: that are there, finished or not.
    """

    block: tuple[str, ...]
    pattern: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)
    told: frozenset[str] = frozenset()
    expected: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    @property
    def finished(self) -> list[Run]:
        """Runs with a result."""
        return [run for run in self.runs if run.state == FINISHED]

    @property
    def label(self) -> str:
        """`mcq (reward=flops)`."""
        told = {**self.pattern, **self.settings}
        more = [f"{key.rpartition('.')[2]}={value}" for key, value in told.items() if key not in ("agent", "trained")]
        name = self.pattern.get("agent", "run")
        name += ", from scratch" if self.pattern.get("trained") == TRAINED[1] else ""
        return f"{name} ({', '.join(more)})" if more else name


@dataclass(frozen=True)
class Block:
    """A part of the table: what the paper prints of a network, and rows of runs; `absent` are those of a part of which none was started."""

    key: tuple[str, ...]
    published: list[Published]
    rows: list[Row]
    absent: list[Row]

    def numbers(self, run: Run) -> dict[float, dict[str, float]]:
        """`numbers_of` a run; where it was trained and pruned at once its dense network is that of another run, trained alone as long."""
        found = numbers_of(run)
        known: dict[str, float] = {}
        for other in (other for row in self.rows for other in row.finished if other.dense_seed == run.dense_seed):
            known |= next((n for n in numbers_of(other).values() if not math.isnan(n["dense"])), {})
        for numbers in found.values():
            if math.isnan(numbers["dense"]) and known:
                for name in ("", "_top5"):
                    numbers[f"dense{name}"] = known[f"dense{name}"]
                    numbers[f"delta{name}"] = numbers[name.removeprefix("_") or "top1"] - known[f"dense{name}"]
        return found

    def ordered(self) -> list[Published | Row]:
        """Every published row with the runs that do the same behind it; then the others."""
        found: list[Published | Row] = []
        for entry in self.published:
            same = bool(found) and isinstance(found[-1], Published) and _method(found[-1]) == _method(entry)
            if not same and found and isinstance(found[-1], Published):
                found += self._doing(found[-1])
            found.append(entry)
        if found and isinstance(found[-1], Published):
            found += self._doing(found[-1])
        return found + [row for row in self.rows if not any(row is other for other in found)]

    def _doing(self, entry: Published) -> list[Row]:
        wanted = found_by(entry)
        return [row for row in self.rows if wanted and all(same(row.pattern.get(key), typed(value)) for key, value in wanted.items())]


def _method(entry: Published) -> tuple[Any, ...]:
    return entry.method, entry.variant, tuple(found_by(entry).items())


# -- rows ------------------------------------------------------------------------------------------------------------------------------


def make_blocks(layout: Layout, grids: Sequence[Grid], patterns: Sequence[str] | None) -> tuple[list[Block], list[Run], list[str]]:
    """The parts of a table, all runs in it, and what to know of runs that are in none of its rows.

    Args:
        layout: of the table.
        grids: whose runs it shows.
        patterns: globs over run folders; None: the grids' own folders.

    Raises:
        UserError: no run matches.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    by_name: dict[str, Row] = {}
    for grid in grids:
        for cell in grid.cells:
            values = {**grid.choices, **cell.all_values}
            row = _row(rows, _block(layout, values), _pattern(cell), cell.told)
            row.expected |= {} if patterns is not None else {cell.name: values.get("seed", "")}
            by_name[f"{grid.name}/{cell.name}"] = row
    found = find_runs(patterns if patterns is not None else [str(grid.folder) for grid in grids])
    if patterns is not None and not found:
        raise UserError(f"runs={','.join(patterns)}: no run matches; leave it out for those of experiment={grids[0].name}")
    runs, notes = [_usable(run) for run in found], []
    for run in runs:
        if run.command == "sensitivity":
            continue
        known = by_name.get(f"{run.folder.parent.name}/{run.folder.name}")
        if known is None and not run.choices:
            notes.append(f"{run.folder.name}: {run.state}: {run.why}")
            continue
        if known is None or run.state == FINISHED or (run.choices and "trained" not in known.pattern):
            like = known or _like(run, list(rows.values()))
            known = _row(rows, _block(layout, _facts(run)), like.pattern, like.told)
        known.runs.append(run)
    shown = [part for row in rows.values() for part in _parted(row, notes)]
    return _make_parts(layout, shown), runs, notes


def _make_parts(layout: Layout, rows: Sequence[Row]) -> list[Block]:
    printed = [entry for entry in read_published() if entry.source in layout.published]
    keys = dict.fromkeys([*(_block(layout, _facts_of(entry)) for entry in printed), *(row.block for row in rows)])
    models = list(dict.fromkeys(key[0] for key in keys))
    patterns = list(dict.fromkeys(tuple(row.pattern.items()) for row in rows))  # in the grid's order, as its rows are the first
    blocks = []
    for key in sorted(keys, key=lambda key: models.index(key[0])):  # a network's data sets beside each other
        own = sorted((row for row in rows if row.block == key), key=lambda row: patterns.index(tuple(row.pattern.items())))
        begun = any(row.runs for row in own)
        entries = [entry for entry in printed if _block(layout, _facts_of(entry)) == key]
        blocks.append(Block(key, entries, own if begun else [], [] if begun else own))
    return blocks


def _usable(run: Run) -> Run:
    """The run; as one that cannot be read where its result lacks what a table shows."""
    if run.state != FINISHED:
        again = "; delete that folder and start its line again" if run.state == UNREADABLE else ""
        return replace(run, why=f"{run.why}{again}")
    if run.command == "sensitivity":
        return run
    try:
        numbers_of(run), control_of(run), networks_of(run)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError) as error:
        why = f"result.json lacks or garbles {error}; delete that folder and start its line again"
        return replace(run, state=UNREADABLE, why=why, result={})
    return run


def _row(rows: dict[tuple[Any, ...], Row], block: tuple[str, ...], pattern: Mapping[str, str], told: Iterable[str]) -> Row:
    key = (block, tuple(sorted((name, plain_value(value)) for name, value in pattern.items())))
    return rows.setdefault(key, Row(block, dict(pattern), told=frozenset(told)))


def _parted(row: Row, notes: list[str]) -> list[Row]:
    """A row for every setting that its finished runs differ in, seeds apart; the same run twice counts once."""
    told = [_settings(run, row.told) for run in row.finished]
    keys = [key for key in dict.fromkeys(key for settings in told for key in settings) if len({s[key] for s in told if key in s}) > 1]
    alike: dict[tuple[str | None, ...], list[Run]] = {}
    for run, settings in zip(row.finished, told, strict=True):
        alike.setdefault(tuple(settings.get(key) for key in keys), []).append(run)
    if not alike:
        return [row]
    parts: list[Row] = []
    for values, runs in sorted(alike.items(), key=lambda item: -sum(run.folder.name in row.expected for run in item[1])):
        kept: dict[tuple[Any, ...], Run] = {}
        for run in sorted(runs, key=lambda run: run.written):
            older = kept.pop((run.seed, run.dense_seed, run.source), None)
            notes += [] if older is None else [f"{older.folder.name} repeats {run.folder.name} and does not count a second time"]
            kept[run.seed, run.dense_seed, run.source] = run
        settings = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
        parts.append(Row(row.block, row.pattern, settings, row.told, {} if parts else row.expected, list(kept.values())))
    parts[0].runs += [run for run in row.runs if run.state != FINISHED]
    return parts


def _settings(run: Run, told: Iterable[str]) -> dict[str, str]:
    """What may tell runs of one row apart, but for what they take from the runs that they follow."""
    model = {key: plain(value) for key, value in run.settings.items() if key.startswith("model.") and key != "model._target_"}
    names = {group: run.choices[group] for group in ("model", "dataset") if group in run.choices}
    return {
        key: value
        for key, value in (names | model | settings_of(run)).items()
        if key not in told and not key.startswith(("run.", "agent.run"))
    }


def _block(layout: Layout, values: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(values.get("model.name") or values.get("model", "") if key == "model" else values.get(key, "") for key in layout.blocks)


def _pattern(cell: Cell) -> dict[str, str]:
    """What makes a run's row; of a training from scratch whose architecture it takes."""
    values = cell.all_values
    if "like" in values:
        return {"agent": cell.names["like"].partition("-")[0], "trained": TRAINED[1]}
    return {key: value for key, value in values.items() if key not in NOT_ROWS and RUN not in value}


def _like(run: Run, rows: Sequence[Row]) -> Row:
    """The row with the most telling pattern that a run has; one of its agent alone where none fits."""
    facts, name = _facts(run), f"_{run.folder.name}_"
    fits = lambda key, value: same(facts[key], value) if key in facts else f"_{word_of(key, value)}_" in name  # noqa: E731
    fitting = [row for row in rows if all(fits(key, value) for key, value in row.pattern.items())]
    alone = Row((), {key: facts[key] for key in ("agent", "trained") if key in facts})
    return max(fitting, key=lambda row: len(row.pattern), default=alone)


def _facts(run: Run) -> dict[str, str]:
    """Choices and settings of a run, and those that it has taken over from the run that it follows."""
    settings = {key: typed(value) for key, value in {**run.source_settings, **run.settings}.items()}
    facts = {**settings, **run.choices}
    if run.command == "train" and run.result:
        facts |= {"agent": str(run.result.get("like_agent", "")), "trained": TRAINED[1]}
        facts["model"] = run.choices.get("model", "")
    return facts


def _facts_of(entry: Published) -> dict[str, str]:
    name = {"model.name": str(entry.model_settings["name"])} if "name" in entry.model_settings else {}
    return {"model": entry.model, "dataset": entry.dataset, **name}


# -- numbers ---------------------------------------------------------------------------------------------------------------------------


def numbers_of(run: Run) -> dict[float, dict[str, float]]:
    """Of every level that a run has saved, in percent of channels: the numbers that cells may show; NaN for what it does not say."""
    rows = run.result["rows"]
    dense, found = rows[0], {}
    for row in rows if run.command == "prune" else [rows[-1] | {"level": 1.0}]:
        if row["level"] > 0:
            found[round(100 * row["level"], 3)] = _numbers(run, row, dense)
    return found


def _numbers(run: Run, row: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, float]:
    percent = {name: 100 * _number(row.get(name)) for name in ("top1", "top5", "sparsity")}
    joint = dense["name"] == JOINT  # as large as the dense network, and no dense network
    whole = {name: math.nan if joint else 100 * _number(dense.get(name)) for name in ("top1", "top5")}
    rewards = run.table("metrics.csv").get("reward")
    return {
        "top1": percent["top1"], "top5": percent["top5"], "channels": percent["sparsity"],
        "dense": whole["top1"], "dense_top5": whole["top5"],
        "delta": percent["top1"] - whole["top1"], "delta_top5": percent["top5"] - whole["top5"],
        "macs": 100 * (1 - row["macs"] / dense["macs"]), "params": 100 * (1 - row["params"] / dense["params"]),
        "macs_x": dense["macs"] / row["macs"], "params_x": dense["params"] / row["params"],
        "candidates": _number((run.result.get("search") or {}).get("candidates")),
        "reward": math.nan if rewards is None or not len(rewards) else float(rewards.iloc[-1]),
    }  # fmt: skip


def control_of(run: Run) -> dict[str, float] | None:
    """The dense network that trained on for as long as the pruned one recovered; None where the run has not trained it."""
    rows = run.result["rows"]
    return next((_numbers(run, row, rows[0]) for row in rows if row["name"] == CONTROL), None)


def printed_numbers(entry: Published) -> dict[str, float]:
    """What a paper prints, under the names of `numbers_of`."""
    macs, params = (_number(value) for value in (entry.macs_reduction, entry.params_reduction))
    names = ("dense", "top1", "delta", "dense_top5", "delta_top5")
    return {name: _number(getattr(entry, name)) for name in names} | {
        "macs": macs, "params": params, "macs_x": 1 / (1 - macs / 100), "params_x": 1 / (1 - params / 100),
        "channels": _number(entry.sparsity),
    }  # fmt: skip


def _number(value: Any) -> float:
    return float(value) if is_number(value) else math.nan
