"""The runs that a glob finds: what the finished ones have measured, and how far the others have come. Reads files, trusts none."""

import glob
import io
import math
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from rlprune.errors import UserError
from rlprune.files import is_held, read_json, read_text, read_yaml
from rlprune.results.record import FORMAT

MARKERS = ("result.json", "failed.json", "config.yaml")
REPORTED = ("prune", "train", "sensitivity")
FINISHED, RUNNING, UNFINISHED, FAILED, UNREADABLE = "finished", "in progress", "unfinished", "failed", "not readable"


@dataclass(frozen=True)
class Run:
    """One run folder.

    Args:
        folder: as the glob found it.
        command: prune, train or sensitivity.
        state: finished, in progress (a process works on it), unfinished, failed, or not readable.
        why: what is known of a run that is not finished.
        choices: names chosen in each config group; some of them for a run without result.json.
        settings: config.yaml, flat: `agent.noise_std` → 0.04.
        result: result.json; empty where there is none that can be used.
    """

    folder: Path
    command: str
    state: str
    why: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False, compare=False)  # that were read

    @property
    def seed(self) -> int | None:
        """Of the run; None where nothing says it."""
        seed = self.result.get("seed", self.settings.get("seed"))
        return seed if isinstance(seed, int) else None

    @property
    def dense_seed(self) -> int | None:
        """Of the search split and the dense network."""
        seed = self.result.get("dense_seed", self.settings.get("dense_seed"))
        return seed if isinstance(seed, int) else self.seed

    @property
    def agent(self) -> str:
        """The choice; empty for a training."""
        return self.choices.get("agent", "")

    @cached_property
    def written(self) -> int:
        """When its result was, in nanoseconds; 0 where it is gone by now."""
        try:
            return (self.folder / "result.json").stat().st_mtime_ns
        except OSError:
            return 0

    @cached_property
    def source(self) -> Path | None:
        """Folder of the run whose architecture this one has taken; None where it has found its own."""
        source = self.result.get("like") or (self.settings.get("agent.run") if self.agent == "like" else None)
        return None if source is None else Path(str(source))

    @cached_property
    def source_settings(self) -> Mapping[str, Any]:
        """config.yaml of that run, flat; empty where it cannot be read."""
        return {} if self.source is None else _config(self.source)[1]

    def table(self, name: str) -> pd.DataFrame:
        """metrics.csv, layers.csv, episodes.csv or sensitivity.csv; empty where it is absent, damaged or being written."""
        if name not in self.tables:
            try:
                self.tables[name] = read_table(self.folder / name)
            except (OSError, ValueError, OverflowError):  # pandas' errors of parsing are ValueErrors
                self.tables[name] = pd.DataFrame()
        return self.tables[name]


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file.

    Raises:
        OSError, ValueError, OverflowError: it is absent, or damaged.
    """
    return pd.read_csv(io.StringIO(read_text(path)))


def find_runs(patterns: Iterable[str]) -> list[Run]:
    """Runs of `prune`, `train` and `sensitivity` that globs find, in the order of their folders, each once.

    A match is a run folder, a file in it, or a folder of runs such as a sweep's.

    Args:
        patterns: globs; `**` goes through folders of any depth. A folder that is there is meant as it stands, brackets and all.
    """
    folders: dict[str, Path] = {}  # by where links lead in the end
    for folder in (folder for pattern in patterns for found in _matches(_literal(pattern)) for folder in _run_folders(found)):
        known = folders.setdefault(os.path.realpath(folder), folder)
        if len(str(folder)) < len(str(known)):
            folders[os.path.realpath(folder)] = folder
    runs = [_read(folder) for folder in sorted(folders.values(), key=_natural)]
    return [run for run in runs if run is not None]


def _literal(pattern: str) -> str:
    """A glob in which the folders that it begins with, as far as they are there, stand for themselves."""
    head, rest = "", pattern
    while rest:
        part, slash, after = rest.partition(os.sep)
        if not os.path.lexists(f"{head}{part}{slash}"):
            break
        head, rest = f"{head}{part}{slash}", after
    return glob.escape(head) + rest


def _matches(pattern: str) -> Iterator[str]:
    """What a glob finds. Unlike Python's, `**` enters no folder twice: links may lead round in circles."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    place = parts.index("**")
    above, rest = os.sep.join(parts[:place]) or ("/" if pattern.startswith("/") else ""), parts[place + 1 :]
    for top in glob.iglob(above) if above else [""]:
        for folder in _folders(top):
            yield from _matches(os.path.join(glob.escape(folder), *rest)) if any(rest) else [folder or os.curdir]


def _folders(top: str) -> Iterator[str]:
    """A folder and all below, the nearest first, each once; hidden ones are left out."""
    waiting, seen = deque([top]), set()
    while waiting:
        folder = waiting.popleft()
        if (real := os.path.realpath(folder)) not in seen:
            seen.add(real)
            yield folder
            waiting += [os.path.join(folder, name) for name in _folders_in(folder or os.curdir) if not name.startswith(".")]


def _folders_in(folder: str) -> list[str]:
    """Names; none where one may not look."""
    names = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # a link to itself
                names += [entry.name] if entry.is_dir() else []
    return sorted(names)


def _run_folders(found: str) -> list[Path]:
    """Folders with a marker among what one match of a glob stands for."""
    head, name = os.path.split(found)
    if name in MARKERS:
        return [Path(head)]
    below = [os.path.join(found, name) for name in _folders_in(found)]
    return [Path(folder) for folder in (found, *below) if any(os.path.isfile(os.path.join(folder, marker)) for marker in MARKERS)]


def _natural(path: Path) -> list[Any]:
    """Sorts run 2 before run 10."""
    return [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in re.split(r"(\d+)", str(path)) if word]


def _read(folder: Path) -> Run | None:
    """The run in a folder; None where it is one of another command."""
    text, settings, config = _config(folder)
    choices = dict(word.split("=", 1) for word in text.partition("\n")[0].lstrip("# ").split() if "=" in word)
    known: dict[str, Any] = {"folder": folder, "choices": choices, "settings": settings}
    command = "sensitivity" if "shares" in config else "prune" if "agent" in config or "agent" in choices else "train"
    if not os.path.isfile(folder / "result.json"):
        if "agent" not in config and "resume" not in config and not os.path.isfile(folder / "failed.json"):
            return None
        if "runs" in config or ("run" in config and "resume" not in config) or "verify" in config:
            return None  # report, evaluate, bench and inspect leave nothing that a report shows
        state, why = _progress(folder)
        return Run(command=command, state=state, why=why, **known)
    try:
        result = read_json(folder / "result.json")
        command = str(result.get("command"))
        if command not in REPORTED:
            return None
        if (newer := _newer(result)) is not None:
            return Run(command=command, state=UNREADABLE, why=newer, **known)
        _check(result)
        return Run(command=command, state=FINISHED, result=result, **known | {"choices": choices | result["choices"]})
    except UserError as error:
        return Run(command=command, state=UNREADABLE, why=str(error), **known)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return Run(command=command, state=UNREADABLE, why=f"result.json lacks or garbles {error}; the file is damaged", **known)


def _config(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """config.yaml: its text, its settings, flat, and as it stands; empty where it cannot be read."""
    try:
        config = read_yaml(folder / "config.yaml")
        return read_text(folder / "config.yaml"), _flat(config), config
    except (OSError, ValueError):
        return "", {}, {}


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _progress(folder: Path) -> tuple[str, str]:
    """State of a run without result.json, and what is known of it."""
    if is_held(folder / "config.yaml"):
        return RUNNING, how_far(folder)
    if (folder / "failed.json").is_file():
        try:
            return FAILED, _line(str(read_json(folder / "failed.json").get("error", "failed")))
        except UserError:
            return FAILED, "failed, and failed.json is damaged"
    far = how_far(folder)
    return UNFINISHED, f"no result.json: unfinished{', ' if far else ''}{far}"


def _line(text: str, most: int = 500) -> str:
    """Text as one line of a list."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]} …"


def how_far(folder: Path) -> str:
    """What metrics.csv says of a search that goes on; empty where it says nothing yet."""
    try:
        last = read_table(folder / "metrics.csv").iloc[-1]
        return (
            f"step {last['step']:.0f} done, {100 * last['sparsity']:.1f} % of the channels gone, "
            f"{100 * last['accuracy_recovered']:.2f} % on the search split"
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""


def _newer(result: Mapping[str, Any]) -> str | None:
    """Why a result of a later version cannot be used; None where it can."""
    found = result.get("format", 1)  # the first versions did not say
    if type(found) is not int or found < 1:
        raise ValueError("format")
    wrote = str((result.get("versions") or {}).get("rlprune", "unknown"))
    if found > FORMAT:
        return f"was written by rlprune {wrote} in format {found}, this is {version('rlprune')} and reads up to {FORMAT}; update rlprune"
    return None


def _check(result: Mapping[str, Any]) -> None:
    """Hold what a report relies on; all else may be absent."""
    for name in ("model", "dataset", *(["agent"] if result["command"] == "prune" else []), *result["choices"]):
        if not isinstance(result["choices"][name], str):
            raise ValueError(f"choices.{name}")
    if type(result["seed"]) is not int:
        raise ValueError("seed")
    for name in ("search", "splits", "seconds", "versions", "targets", "like_targets", "model_settings", "dataset_settings"):
        if not isinstance(result.get(name) or {}, dict):
            raise ValueError(name)
    if any(type(number) is not int for number in (result.get("splits") or {}).values()):
        raise ValueError("splits")
    if result["command"] == "sensitivity":
        return
    if not result["rows"]:
        raise ValueError("rows")
    for row in result["rows"]:
        top1, sparsity, level = (row[name] if is_number(row[name]) else math.nan for name in ("top1", "sparsity", "level"))
        if not (0 <= top1 <= 1 and 0 <= sparsity < 1 and 0 <= level < 1 and isinstance(row["name"], str)):
            raise ValueError(f"the row {row['name']}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that arithmetic can hold; JSON may have any."""
    return type(value) in (int, float) and abs(value) < 1e300
