"""The runs of a paper's table in the rows that its grid has, finished, failed or missing, beside what the paper prints."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlprune.config import conf_dir, suggestion
from rlprune.errors import UserError
from rlprune.grid import RUN, Cell, typed, word_of
from rlprune.report.collect import FINISHED, Run, find_runs, is_number
from rlprune.results.published import Published, found_by, read_published
from rlprune.results.tables import CONTROL

SMALL = "_small"  # what the name of a preset's edition for CPUs ends in
NOT_ROWS = ("seed", "model", "model.name", "dataset", "like")  # keys of a grid that make no row: they say which network, or which seed
KINDS = ("levels", "list", "scratch", "layers", "sensitivity")
TRAINED = ("pruned", "from scratch")


@dataclass(frozen=True)
class Layout:
    """How a paper lays a table out.

    Args:
        title: of the table.
        kind: one of KINDS.
        published: sources of the rows that the paper prints.
        runs: names of the experiments, without their edition.
        blocks: keys that make a part of the table: model, or model and dataset.
        levels: channel sparsities, percent.
        cells: names of numbers.
    """

    title: str
    kind: str
    runs: tuple[str, ...]
    published: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ("model",)
    levels: tuple[float, ...] = ()
    cells: tuple[str, ...] = ()


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
        expected: folder name → seed, of the grid.
        runs: that are there, finished or not.
    """

    block: tuple[str, ...]
    pattern: Mapping[str, str]
    expected: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    @property
    def finished(self) -> list[Run]:
        """Runs with a result."""
        return [run for run in self.runs if run.state == FINISHED]

    @property
    def label(self) -> str:
        """`mcq (reward=flops)`."""
        more = [f"{key.rpartition('.')[2]}={value}" for key, value in self.pattern.items() if key not in ("agent", "trained")]
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


def same(one: str | None, other: str | None) -> bool:
    """Whether two values as typed mean the same: 1.0 and 1 do."""
    return plain_value(one) == plain_value(other)


def plain_value(text: str | None) -> str | None:
    """Numbers in one way of writing."""
    try:
        return None if text is None else f"{float(text):g}"
    except ValueError:
        return text


# -- layouts ---------------------------------------------------------------------------------------------------------------------------


def table_names() -> list[str]:
    """What `table=` takes, without editions."""
    return list(_layouts())


def read_layout(table: str) -> Layout:
    """The layout of a table, whichever edition of it.

    Raises:
        UserError: there is no such table.
    """
    layouts, name = _layouts(), table.removesuffix(SMALL)
    if name not in layouts:
        near = suggestion(table, [*layouts, *(f"{known}{SMALL}" for known in layouts)])
        raise UserError(
            f"table={table}: no such table{near}; choose one of {', '.join(layouts)}, or its small edition, such as {name}{SMALL}"
        )
    settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in layouts[name].items()}
    edition = SMALL if table.endswith(SMALL) else ""
    settings["runs"] = tuple(f"{run}{edition}" for run in settings.get("runs", (name,)))
    return Layout(**settings)


def _layouts() -> dict[str, dict[str, Any]]:
    path = conf_dir() / "tables.yaml"
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); install rlprune again") from error


# -- rows ------------------------------------------------------------------------------------------------------------------------------


def make_blocks(layout: Layout, grids: Sequence[Grid], patterns: Iterable[str] | None) -> tuple[list[Block], list[Run]]:
    """The parts of a table, and all runs in it.

    Args:
        layout: of the table.
        grids: whose runs it shows.
        patterns: globs over run folders; None: the grids' own folders.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    by_name: dict[str, Row] = {}
    for grid in grids:
        for cell in grid.cells:
            values = {**grid.choices, **cell.all_values}
            row = _row(rows, _block(layout, values), _pattern(cell))
            row.expected[cell.name] = values.get("seed", "")
            by_name[f"{grid.name}/{cell.name}"] = row
    runs = find_runs(patterns if patterns is not None else [str(grid.folder) for grid in grids])
    for run in runs:
        if run.command == "sensitivity":
            continue
        known = by_name.get(f"{run.folder.parent.name}/{run.folder.name}")
        if known is None or run.choices:
            pattern = known.pattern if known is not None else _pattern_of(run, [row.pattern for row in rows.values()])
            known = _row(rows, _block(layout, _facts(run)), pattern)
        known.runs.append(run)
    printed = [entry for entry in read_published() if entry.source in layout.published]
    keys = dict.fromkeys([*(_block(layout, _facts_of(entry)) for entry in printed), *(row.block for row in rows.values())])
    models = list(dict.fromkeys(key[0] for key in keys))
    blocks = []
    for key in sorted(keys, key=lambda key: models.index(key[0])):  # a network's data sets beside each other
        own = [row for row in rows.values() if row.block == key]
        begun = any(row.runs for row in own)
        entries = [entry for entry in printed if _block(layout, _facts_of(entry)) == key]
        blocks.append(Block(key, entries, own if begun else [], [] if begun else own))
    return blocks, runs


def _row(rows: dict[tuple[Any, ...], Row], block: tuple[str, ...], pattern: Mapping[str, str]) -> Row:
    key = (block, tuple(sorted((name, plain_value(value)) for name, value in pattern.items())))
    return rows.setdefault(key, Row(block, dict(pattern)))


def _block(layout: Layout, values: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(values.get("model.name") or values.get("model", "") if key == "model" else values.get(key, "") for key in layout.blocks)


def _pattern(cell: Cell) -> dict[str, str]:
    """What makes a run's row; of a training from scratch whose architecture it takes."""
    values = cell.all_values
    if "like" in values:
        return {"agent": cell.names["like"].partition("-")[0], "trained": TRAINED[1]}
    return {key: value for key, value in values.items() if key not in NOT_ROWS and RUN not in value}


def _pattern_of(run: Run, patterns: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
    """The most telling pattern that a run has; its agent alone where none fits."""
    facts, name = _facts(run), f"_{run.folder.name}_"
    fits = lambda key, value: same(facts[key], value) if key in facts else f"_{word_of(key, value)}_" in name  # noqa: E731
    fitting = [pattern for pattern in patterns if all(fits(key, value) for key, value in pattern.items())]
    return max(fitting, key=len) if fitting else {key: facts[key] for key in ("agent", "trained") if key in facts}


def _facts(run: Run) -> dict[str, str]:
    """Choices and settings of a run, and those that it has taken over from the run that it follows."""
    settings = {key: typed(value) for key, value in {**run.source_settings, **run.settings}.items()}
    facts = {**settings, **run.choices}
    if run.command == "train":
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
    whole = {name: 100 * _number(dense.get(name)) for name in ("top1", "top5")}
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
