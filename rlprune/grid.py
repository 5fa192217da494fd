"""Grids of runs: what a preset of a paper's table consists of, a folder each, and how a line narrows it or adds to it."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlprune.errors import UserError

KEYS = ("each", "runs")
SPECIAL = ("follows", "with")
RUN = "{run}"  # in a value: the folder of the run that is followed


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Args:
        values: key → value as it would be typed: what makes it this run.
        names: key → how the folder's name says it.
        fixed: further settings that belong to it, which are not in its name.
        source: the run that this one follows; it has the values of that one beside its own.
    """

    values: Mapping[str, str]
    names: Mapping[str, str]
    fixed: Mapping[str, str] = field(default_factory=dict)
    source: "Cell | None" = None

    @property
    def all_values(self) -> dict[str, str]:
        """Its own and those of the run that it follows."""
        return {**(self.source.all_values if self.source else {}), **self.values}

    @property
    def all_names(self) -> dict[str, str]:
        """How names say its values and those of the run that it follows."""
        return {**(self.source.all_names if self.source else {}), **self.names}

    @property
    def depth(self) -> int:
        """How many runs stand before it, each following the one before."""
        return 0 if self.source is None else 1 + self.source.depth

    @property
    def told(self) -> set[str]:
        """Keys whose values it takes from the run that it follows."""
        return {key for key, value in {**self.fixed, **self.values}.items() if RUN in value}

    @property
    def name(self) -> str:
        """Of its folder: `resnet56_mcq_seed-0`."""
        words = [*self._words(("seed",), inside=False), *self._words(("seed",), inside=True)]
        return re.sub(r"[^\w.+-]+", "-", "_".join(words)) or "run"

    def _words(self, last: Sequence[str], *, inside: bool) -> list[str]:
        own = [word for key, word in self.names.items() if (key in last) == inside and word]
        return [*(self.source._words(last, inside=inside) if self.source else []), *own]

    def overrides(self, folder: str) -> dict[str, str]:
        """What a line is told for it, without what makes the run that it follows another one than itself.

        Args:
            folder: of the grid.
        """
        if self.source is None:
            return {**self.fixed, **self.values}
        run = f"{folder}/{self.source.name}"
        own = {key: value.replace(RUN, run) for key, value in {**self.fixed, **self.values}.items()}
        return {**_inherited(self.source.overrides(folder), own), **own}

    def without(self, keys: Iterable[str]) -> "Cell":
        """The same run without further settings of these keys."""
        keys = set(keys)
        source = None if self.source is None else self.source.without(keys)
        return replace(self, fixed={key: value for key, value in self.fixed.items() if key not in keys}, source=source)

    def with_value(self, key: str, value: str) -> "Cell | None":
        """The same run with another value for a key; None where the value it has is its own kind's and not the grid's to change.

        A choice takes the settings of the former one with it.
        """
        if key not in self.values:
            source = None if self.source is None else self.source.with_value(key, value)
            return None if source is None else replace(self, source=source)
        if self.source is not None:
            return None
        values, names, fixed = (
            {name: old for name, old in kept.items() if not name.startswith(f"{key}.")} for kept in (self.values, self.names, self.fixed)
        )
        return replace(self, values=values | {key: value}, names=names | {key: word_of(key, value)}, fixed=fixed)


def _inherited(theirs: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Of the settings of a followed run those that a run takes over: not those of a choice that it replaces."""
    replaced = tuple(f"{key}." for key in own if "." not in key)
    return {key: value for key, value in theirs.items() if not (replaced and key.startswith(replaced))}


# -- from yaml -------------------------------------------------------------------------------------------------------------------------


def read_grid(grid: Any) -> list[Cell]:
    """The runs of a preset's `grid`, those of one seed together.

    A grid has `runs`, a list of mappings: key → value, list of values, or mapping of names → values. Every combination is a run, and each
    of them goes with each combination of `each`. Two keys have a meaning of their own: `with` holds settings that are not in the runs'
    names, and `follows` makes runs that follow those above with these values: they take them over, and `{run}` in a value is the folder
    of the run that is followed.

    Raises:
        UserError: it is no such thing; names its key.
    """
    if not isinstance(grid, Mapping) or not set(grid) <= set(KEYS) or not isinstance(grid.get("runs"), Sequence) or not grid["runs"]:
        raise UserError(f"grid={grid}: must have runs, a list of mappings key: value or values, and may have each, one that all share")
    cells: list[Cell] = []
    for common_values, common_names in _product(grid.get("each") or {}, "grid.each"):
        found: list[Cell] = []
        for number, block in enumerate(grid["runs"]):
            found += _block(block, f"grid.runs[{number}]", found, common_values, common_names)
        cells += found
    _check_names(cells)
    return cells


def _block(block: Any, key: str, before: Sequence[Cell], values: Mapping[str, str], names: Mapping[str, str]) -> Iterator[Cell]:
    if not isinstance(block, Mapping):
        raise UserError(f"{key}={block}: must be a mapping, such as {{agent: [mcq, uniform]}}")
    for name in SPECIAL:
        if not isinstance(block.get(name, {}), Mapping):
            raise UserError(f"{key}.{name}={block[name]}: must be a mapping, such as {{agent: mcq}}")
    fixed = {str(name): typed(value) for name, value in block.get("with", {}).items()}
    axes = {name: value for name, value in block.items() if name not in SPECIAL}
    followed = block.get("follows")
    if followed is None:
        for own, words in _product(axes, key):
            yield Cell({**own, **values}, {**words, **names}, fixed)
        return
    wanted = {name: _typed_list(value) for name, value in followed.items()}
    sources = [cell for cell in before if all(_among(cell, name, allowed) for name, allowed in wanted.items())]
    if not sources:
        raise UserError(f"{key}.follows={followed}: no run above it has these values")
    for source in sources:
        for own, words in _product(axes, key):
            yield Cell(own, {name: word for name, word in words.items() if RUN not in own[name]}, fixed, source)


def _product(axes: Any, key: str) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Every combination: values, and what the folder's name says of each."""
    if not isinstance(axes, Mapping):
        raise UserError(f"{key}={axes}: must be a mapping, such as {{seed: [0, 1, 2]}}")
    choices = []
    for name, value in axes.items():
        if isinstance(value, Mapping):
            choices.append([(str(name), typed(item), str(word)) for word, item in value.items()])
        else:
            choices.append([(str(name), text, word_of(str(name), text)) for text in _typed_list(value)])
        if not choices[-1]:
            raise UserError(f"{key}.{name}: is empty; name a value")
    for combination in itertools.product(*choices):
        yield {name: value for name, value, _ in combination}, {name: word for name, _, word in combination}


def _typed_list(value: Any) -> list[str]:
    return [typed(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else [typed(value)]


def typed(value: Any) -> str:
    """A plain value as it would be typed behind `key=`."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)


def word_of(key: str, value: str) -> str:
    """How a folder's name says a value: a choice its name, a setting also what it is of."""
    return value if "." not in key and key != "seed" else f"{key.rpartition('.')[2]}-{value}"


def _check_names(cells: Sequence[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.name in seen:
            raise UserError(f"grid: two runs are called {cell.name}: {dict(seen[cell.name].all_values)} and {dict(cell.all_values)}")
        seen[cell.name] = cell


# -- narrowed, and added to ------------------------------------------------------------------------------------------------------------


def narrowed(cells: Sequence[Cell], wanted: Mapping[str, Sequence[str]], name: str) -> list[Cell]:
    """The runs that a line asks for.

    For a key of the grid, values that it has, or names of them, narrow it to the runs that have them; a value that it does not have takes
    the place of those that it has, so that a further seed, or another data set, adds runs. Of any other key, several values make several
    runs of each.

    Args:
        cells: the whole grid.
        wanted: key → values, as typed.
        name: of the preset, for messages.

    Raises:
        UserError: no run is left.
    """
    left, found = list(cells), {}
    for key, values in wanted.items():
        known = dict.fromkeys(cell.all_values[key] for cell in cells if key in cell.all_values)
        if not known:
            if len(values) > 1:
                left = [
                    replace(cell, values={**cell.values, key: value}, names={**cell.names, key: word_of(key, value)})
                    for cell, value in itertools.product(left, values)
                ]
            continue
        found[key] = known
        kept = [cell for cell in left if _among(cell, key, values)]
        for value in values:
            here = any(_among(cell, key, [value]) for cell in cells)
            changed = [cell.with_value(key, value) for cell in left if not here and key in cell.all_values]
            kept += _without_repeats(cell for cell in changed if cell is not None)
        left = kept
    if not left:
        asked = " ".join(f"{key}={','.join(values)}" for key, values in wanted.items() if key in found)
        there = "; ".join(f"{key}={','.join(values)}" for key, values in found.items())
        raise UserError(f"experiment={name}: {asked} leaves no run of its grid, which has {there}; drop one of them")
    return left


def _among(cell: Cell, key: str, values: Sequence[str]) -> bool:
    """Whether a run has one of these values, numbers in whatever way of writing, or one that is called so."""
    has, name = cell.all_values.get(key), cell.all_names.get(key)
    return has is not None and any(same(has, value) or name == value for value in values)


def same(one: str | None, other: str | None) -> bool:
    """Whether two values as typed mean the same: 1.0 and 1 do."""
    return plain_value(one) == plain_value(other)


def plain_value(text: str | None) -> str | None:
    """Numbers in one way of writing."""
    try:
        return None if text is None else f"{float(text):g}"
    except ValueError:
        return text


def _without_repeats(cells: Iterable[Cell]) -> list[Cell]:
    return list({cell.name: cell for cell in reversed(list(cells))}.values())[::-1]
