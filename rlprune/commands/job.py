"""How a command's task runs under Hydra: resolved config, run folder, log, and failures that leave a trace."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rlprune.cli import explain_config_error
from rlprune.config import conf_dir, first_difference, register, resolve
from rlprune.errors import UserError, explain_os_error
from rlprune.files import write_failure, write_text

log = logging.getLogger("rlprune")


def command(name: str) -> Callable[[Callable[[Any, Path, dict[str, str]], None]], Callable[[], None]]:
    """Make a Hydra command of `task(config, run_dir, choices)`, where choices are the names chosen in each config group.

    A failure is written to `failed.json` in the run folder. In a sweep the other runs go on and the first failure is reported at the end.
    """

    def decorate(task: Callable[[Any, Path, dict[str, str]], None]) -> Callable[[], None]:
        def run(raw: DictConfig) -> None:
            hydra_config = HydraConfig.get()
            run_dir = _relative(Path(hydra_config.runtime.output_dir))
            choices = {key: str(value) for key, value in hydra_config.runtime.choices.items() if not key.startswith("hydra/")}
            try:
                config = resolve(raw)
                text = OmegaConf.to_yaml(raw)
                if getattr(config, "resume", None) is not None:
                    _check_resume(run_dir, text)
                else:
                    if (run_dir / "config.yaml").exists():
                        raise RunFolderError(f"paths.run={run_dir}: holds a run already; name another folder, or resume={run_dir}")
                    write_text(run_dir / "config.yaml", text)
                _check_choices(raw, choices)
                task(config, run_dir, choices)
            except RunFolderError as error:
                raise _Stop(error) from error
            except KeyboardInterrupt:
                if (run_dir / "checkpoint").exists():
                    log.warning("interrupted: the same line with resume=%s goes on behind the last finished step", run_dir)
                raise
            except (UserError, OSError) as error:
                message = str(error) if isinstance(error, UserError) else explain_os_error(error)
                failure = UserError(message)
                write_failure(run_dir, message)
                if hydra_config.mode == RunMode.RUN:
                    raise _Stop(failure) from error
                log.error("%s: %s", run_dir, message)
                raise failure from error
            except Exception as error:
                refused = explain_config_error(error, name)
                if refused is not None:
                    write_failure(run_dir, refused)
                    raise _Stop(UserError(refused)) from error
                write_failure(run_dir, f"{type(error).__name__}: {error}")
                log.exception("this is a defect of rlprune, or of a plug-in")
                raise

        register()
        return _unwrap(hydra.main(config_path=str(conf_dir().resolve()), config_name=name, version_base="1.3")(run))

    return decorate


def _check_choices(raw: DictConfig, choices: dict[str, str]) -> None:
    """A group takes one choice; a list of them would be merged into something nobody asked for."""
    for group in ("model", "dataset", "agent"):
        if group in raw and group not in choices:
            raise UserError(f"{group}: takes one choice, such as {group}=NAME; several runs are started with -m {group}=A,B")


def _relative(path: Path) -> Path:
    """The path as a user in this folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _check_resume(run_dir: Path, text: str) -> None:
    """A run goes on only with the configuration it was started with."""
    path = run_dir / "config.yaml"
    if not path.exists():
        with contextlib.suppress(OSError):
            run_dir.rmdir()  # Hydra has just made it
        raise RunFolderError(f"resume={run_dir}: holds no run; name the folder of one, or start anew without resume")
    if (run_dir / "result.json").exists():
        raise RunFolderError(f"resume={run_dir}: that run is done; start anew without resume")
    try:
        old, new = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{path}: is damaged ({type(error).__name__}); start anew without resume") from error
    if not isinstance(old, dict) or not isinstance(old.get("paths"), dict):
        raise RunFolderError(f"{path}: is damaged; start anew without resume")
    for config in (old, new):
        config.pop("resume", None)
        config.get("paths", {}).pop("run", None)
    difference = first_difference(old, new)
    if difference:
        raise RunFolderError(f"resume={run_dir}: {difference}; resume with the same line, or start anew without resume")


class RunFolderError(UserError):
    """The folder holds another run, or none to continue; it is left as it is."""


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
