"""Hydra's part in a preset's grid: which runs a line stands for, one after the other or as the launcher likes, and what became of them."""

import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib import import_module
from importlib.resources import files
from io import StringIO
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from rlprune.config import GRID_SWEEPER, LAUNCHERS
from rlprune.errors import UserError
from rlprune.grid import Cell, narrowed, read_grid, typed

PLAIN = re.compile(r"[\w./:+${}-]+")


class GridSweeper(Sweeper):
    """Starts the runs of `grid`, each in a folder of its own below `hydra.sweep.dir`."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's call before `sweep`."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run what is left of the grid.

        Raises:
            UserError: no run is left, or some of them failed; the others are done then.
        """
        folder, name = str(self.config.hydra.sweep.dir), str(self.config.hydra.runtime.choices.experiment)
        given = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(arguments)
        if not OmegaConf.is_config(self.config.grid):
            raise UserError(f"grid={self.config.grid}: must be the preset's own, a mapping; narrow it by its keys, such as agent=mcq")
        every = read_grid(OmegaConf.to_container(self.config.grid, resolve=False))
        cells, rest = chosen(every, given, name)
        jobs = [_job(cell, folder, rest) for cell in cells]
        self.validate_batch_is_legal(_one_of_a_kind(jobs))
        if not str(self.config.hydra.launcher._target_).endswith(".BasicLauncher"):  # it may want them all at once
            return _checked(cells, self._in_waves(cells, jobs), len(cells))
        tried: list[Cell] = []
        results: list[JobReturn] = []
        for number, (cell, job) in enumerate(zip(cells, jobs, strict=True)):
            if not _hopeless(cell, tried, results):
                print(f"{name}: run {number + 1} of {len(cells)}, {cell.name}", file=sys.stderr)
                tried.append(cell)
                results += self.launcher.launch([job], initial_job_idx=number)
        return _checked(tried, results, len(cells))

    def _in_waves(self, cells: Sequence[Cell], jobs: Sequence[list[str]]) -> list[JobReturn]:
        """All that follow no other run at once, then those that follow them, and so on; results in the order of the jobs."""
        results: dict[int, JobReturn] = {}
        for depth in sorted({cell.depth for cell in cells}):
            wave = [number for number, cell in enumerate(cells) if cell.depth == depth]
            found = self.launcher.launch([jobs[number] for number in wave], initial_job_idx=len(results))
            results.update(zip(wave, found, strict=True))
        return [results[number] for number in range(len(cells))]


def register_plugins() -> None:
    """Let Hydra find ours: it takes plug-ins from the package `hydra_plugins` alone, which may lie on several paths."""
    if (folder := str(files("rlprune") / "plugins")) not in sys.path:
        sys.path.append(folder)
    for plugin in (GRID_SWEEPER, *LAUNCHERS):
        module, _, name = plugin.rpartition(".")
        Plugins.instance().register(getattr(import_module(module), name))


def chosen(cells: Sequence[Cell], given: Sequence[Override], name: str) -> tuple[list[Cell], list[str]]:
    """The runs that a line asks for, and what it tells all of them.

    Args:
        cells: the whole grid.
        given: the line.
        name: of the preset.

    Raises:
        UserError: no run is left.
    """
    wanted: dict[str, list[str]] = {}
    rest: list[str] = []
    for override in given:
        key = str(override.get_key_element()).lstrip("+")
        if override.is_sweep_override():
            wanted[key] = [text.strip("'\"") for text in override.sweep_string_iterator()]
        elif any(key in cell.all_values for cell in cells):
            wanted[key] = [typed(override.value())]
        else:
            rest.append(str(override.input_line))
    told = {line.partition("=")[0].lstrip("+") for line in rest}
    return [cell.without(told) for cell in narrowed(cells, wanted, name)], rest


def _job(cell: Cell, folder: str, rest: Sequence[str]) -> list[str]:
    """The line that starts one run."""
    own = [f"{key}={_quoted(value)}" for key, value in cell.overrides(folder).items()]
    return [*rest, *own, "grid=null", f"hydra.sweep.subdir={cell.name}"]


def _quoted(value: str) -> str:
    if PLAIN.fullmatch(value):
        return value
    return '"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"'))


def _one_of_a_kind(jobs: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Of runs that are told the same keys and choices the first: what Hydra refuses in one it refuses in all."""
    alike = lambda word: word if word.partition("=")[0] in ("model", "agent", "recovery", "schedule") else word.partition("=")[0]  # noqa: E731
    return list({tuple(map(alike, job)): job for job in reversed(jobs)}.values())


def _failure(result: JobReturn) -> Exception | None:
    try:
        with redirect_stderr(StringIO()):  # Hydra prints the whole line
            _ = result.return_value
    except Exception as error:
        return error
    return None


def _hopeless(cell: Cell, tried: Sequence[Cell], results: Sequence[JobReturn]) -> bool:
    """The first two runs on the same data failed in the same way: all would."""
    data = cell.all_values.get("dataset")
    first = [_failure(result) for other, result in zip(tried, results, strict=True) if other.all_values.get("dataset") == data][:2]
    return len(first) == 2 and None not in first and str(first[0]) == str(first[1])


def _checked(cells: Sequence[Cell], results: Sequence[JobReturn], asked: int) -> Sequence[JobReturn]:
    """Results; the first failure is raised, with how many there are."""
    failures = [(cell, failure) for cell, result in zip(cells, results, strict=True) if (failure := _failure(result)) is not None]
    if not failures:
        return results
    cell, first = failures[0]
    if not isinstance(first, UserError):
        raise first
    left, done = asked - len(results), len(results) - len(failures)
    words = [f"{len(failures)} of {asked} runs failed", *([f"{done} are done"] if done else [])]
    words += [f"{left} were not started, as the first two on the same data failed alike"] if left else []
    more = f"; so did {', '.join(other.name for other, _ in failures[1:])}" if len(failures) > 1 else ""
    raise UserError(f"{', '.join(words)}; {cell.name} failed: {first}{more}") from first
