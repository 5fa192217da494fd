"""Hydra's part in a preset's grid: which runs a line stands for, one after the other or as the launcher likes, and what became of them."""

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.resources import files
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from rlprune.config import GRID_SWEEPER
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
        if self.config.grid is None:
            raise UserError("grid: belongs to the preset; narrow it by its keys, such as agent=mcq")
        every = read_grid(OmegaConf.to_container(self.config.grid, resolve=False))
        cells, rest = chosen(every, given, name)
        jobs = [_job(cell, folder, rest) for cell in cells]
        self.validate_batch_is_legal(_one_of_a_kind(jobs))
        if not str(self.config.hydra.launcher._target_).endswith(".BasicLauncher"):  # it may want them all at once
            return _checked(cells, self.launcher.launch(jobs, initial_job_idx=0), len(cells))
        results: list[JobReturn] = []
        for number, (cell, job) in enumerate(zip(cells, jobs, strict=True)):
            print(f"{name}: run {number + 1} of {len(cells)}, {cell.name}", file=sys.stderr)
            results += self.launcher.launch([job], initial_job_idx=number)
            if _hopeless(results):
                break
        return _checked(cells, results, len(cells))


def register_sweeper() -> None:
    """Let Hydra find it: it takes plug-ins from the package `hydra_plugins` alone, which may lie on several paths."""
    if (folder := str(files("rlprune") / "plugins")) not in sys.path:
        sys.path.append(folder)
    module, _, name = GRID_SWEEPER.rpartition(".")
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
        key = str(override.get_key_element())
        if override.is_sweep_override():
            wanted[key] = [text.strip("'\"") for text in override.sweep_string_iterator()]
        elif any(key in cell.all_values for cell in cells):
            wanted[key] = [typed(override.value())]
        else:
            rest.append(str(override.input_line))
    told = {line.partition("=")[0] for line in rest}
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
    kinds = {tuple(word.partition("=")[0] if "." in word.partition("=")[0] else word for word in job): job for job in reversed(jobs)}
    return list(kinds.values())


def _failure(result: JobReturn) -> Exception | None:
    try:
        _ = result.return_value
    except Exception as error:
        return error
    return None


def _hopeless(results: Sequence[JobReturn]) -> bool:
    """The first two runs failed in the same way: all would."""
    if len(results) != 2:
        return False
    first, second = map(_failure, results)
    return first is not None and second is not None and str(first) == str(second)


def _checked(cells: Sequence[Cell], results: Sequence[JobReturn], asked: int) -> Sequence[JobReturn]:
    """Results; the first failure is raised, with how many there are."""
    failures = [(cell, failure) for cell, result in zip(cells, results, strict=False) if (failure := _failure(result)) is not None]
    if not failures:
        return results
    cell, first = failures[0]
    if not isinstance(first, UserError):
        raise first
    if len(results) < asked:
        raise UserError(f"the first {len(results)} of {asked} runs failed alike, the others were not started: {first}") from first
    more = f"; so did {', '.join(other.name for other, _ in failures[1:])}" if len(failures) > 1 else ""
    raise UserError(f"{len(failures)} of {asked} runs failed, the others are done; {cell.name} failed: {first}{more}") from first
