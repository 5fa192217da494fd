"""How a command's task runs under Hydra: resolved config, run folder, log, and failures that leave a trace."""

import logging
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rlprune.cli import explain_config_error
from rlprune.commands.parallel import a_place_for, register_places
from rlprune.commands.runs import RunDoneError, RunFolder, RunFolderError, heading, meant, register_folders
from rlprune.commands.sweeper import register_plugins
from rlprune.config import conf_dir, register, resolve
from rlprune.errors import UserError, explain_os_error, has_working_directory
from rlprune.files import write_failure
from rlprune.launch import launched

log = logging.getLogger("rlprune")
Work = Callable[[Any, Path, dict[str, str]], None]


def command(name: str) -> Callable[[Work], Callable[[], None]]:
    """Make a Hydra command of `task(config, run_dir, choices)`, where choices are the names chosen in each config group.

    `config.resume` is then the run folder if a run in it goes on, or None. A failure is written to `failed.json` in the run folder. In a
    sweep the other runs go on and the first failure is reported at the end.
    """

    def decorate(task: Work) -> Callable[[], None]:
        def run(raw: DictConfig) -> None:
            single = HydraConfig.get().mode == RunMode.RUN
            folder = RunFolder(_relative(Path(HydraConfig.get().runtime.output_dir)))
            try:
                if launched() is not None and not single:  # a preset's grid
                    raise _Stop(UserError("torchrun: takes one run; start several without it"))
                _work(task, raw, folder)
                folder.mend()
            except RunDoneError as done:
                print(done)
            except RunFolderError as error:
                if single:
                    raise _Stop(error) from error
                print(error, file=sys.stderr)  # the log belongs to the run that is there
                raise
            except KeyboardInterrupt:
                if folder.held and "resume" in raw:
                    log.warning("interrupted; to go on: %s", _line_to_go_on(folder.path, single))
                raise
            except BrokenPipeError as error:  # whoever read the output has seen enough; the files are written
                raise _Stop(error) from error
            except (UserError, OSError) as error:
                message = str(error) if isinstance(error, UserError) else explain_os_error(error)
                message = folder.explain(message)
                failure = UserError(message)
                _leave_failure(folder, message)
                if single:
                    raise _Stop(failure) from error
                if folder.writable:
                    log.error("%s: %s", folder.path, message)
                raise failure from error
            except Exception as error:
                refused = explain_config_error(error, name)
                if refused is not None:
                    _leave_failure(folder, refused)
                    if single:
                        raise _Stop(UserError(refused)) from error
                    log.error("%s: %s", folder.path, refused)
                    raise UserError(refused) from error
                _leave_failure(folder, f"{type(error).__name__}: {error}")
                log.exception("this is a defect of rlprune, or of a plug-in")
                raise
            finally:
                folder.release()

        register()
        register_folders()
        register_places()
        register_plugins()
        return _unwrap(hydra.main(config_path=str(conf_dir().resolve()), config_name=name, version_base="1.3")(run))

    return decorate


def _work(task: Work, raw: DictConfig, folder: RunFolder) -> None:
    choices = {key: str(value) for key, value in HydraConfig.get().runtime.choices.items() if not key.startswith("hydra/")}
    if "grid" in raw and raw.grid is not None:
        raise UserError(f"experiment={choices.get('experiment')}: is a grid of runs; name it alone, and no hydra.mode or hydra/sweeper")
    config = resolve(raw)
    resumable = hasattr(config, "resume")
    wish = config.resume if resumable else None
    goes_on = folder.take(OmegaConf.to_yaml(raw), heading(choices), wish, resumable=resumable)
    if goes_on:
        log.info("going on with the run in %s", folder.path)
    elif meant(wish) is True:
        log.info("resume=true: there is no unfinished run of this line; starting anew in %s", folder.path)
    if resumable:
        config.resume = str(folder.path) if goes_on else None
    _check_choices(raw, choices)
    with a_place_for(config) if hasattr(config, "device") else nullcontext():
        task(config, folder.path, choices)


def _leave_failure(folder: RunFolder, message: str) -> None:
    if folder.writable:
        write_failure(folder.path, message)


def _line_to_go_on(run_dir: Path, single: bool) -> str:
    """The line that was typed, with what makes it go on."""
    words = [word for word in sys.argv[1:] if not word.startswith(("resume=", "hydra.sweep.dir="))]
    sweep = _relative(Path(HydraConfig.get().sweep.dir).absolute())
    words += [f"resume={run_dir}"] if single else ["resume=true", f"hydra.sweep.dir={sweep}"]
    start = "" if launched() is None else "torchrun ... -m "
    return f"{start}{sys.argv[0]} {shlex.join(words)}"


def _check_choices(raw: DictConfig, choices: dict[str, str]) -> None:
    """A group takes one choice; a list of them would be merged into something nobody asked for."""
    for group in ("model", "dataset", "agent", "tracker", "evaluator"):
        if group in raw and group not in choices:
            raise UserError(f"{group}: takes one choice, such as {group}=NAME; several runs are started with -m {group}=A,B")


def _relative(path: Path) -> Path:
    """The path as a user in this folder would write it."""
    return path.relative_to(Path.cwd()) if has_working_directory() and path.is_relative_to(Path.cwd()) else path


class _Stop(BaseException):
    """Carries a failure past Hydra, which would print the whole command line beside it."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(str(failure))
        self.failure = failure


def _unwrap(main: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        try:
            main()
        except _Stop as stop:
            raise stop.failure from stop.__cause__

    return run
