"""How a command's task runs under Hydra: resolved config, run folder, log, and failures that leave a trace."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rlprune.files import write_failure, write_text
from rlprune.config import conf_dir, register, resolve
from rlprune.errors import UserError

log = logging.getLogger("rlprune")


def command(name: str) -> Callable[[Callable[[Any, Path, dict[str, str]], None]], Callable[[], None]]:
    """Make a Hydra command of `task(config, run_dir, choices)`, where choices are the names chosen in each config group.

    A failure is written to `failed.json` in the run folder. In a sweep the other runs go on and the first failure is reported at the end.
    """

    def decorate(task: Callable[[Any, Path, dict[str, str]], None]) -> Callable[[], None]:
        def run(raw: DictConfig) -> None:
            hydra_config = HydraConfig.get()
            run_dir = Path(hydra_config.runtime.output_dir)
            choices = {key: str(value) for key, value in hydra_config.runtime.choices.items() if not key.startswith("hydra/")}
            try:
                config = resolve(raw)
                write_text(run_dir / "config.yaml", OmegaConf.to_yaml(raw))
                task(config, run_dir, choices)
            except (UserError, OSError) as error:
                message = str(error) if isinstance(error, UserError) else f"{error.filename or 'file'}: {error.strerror or error}"
                failure: Exception = error if isinstance(error, UserError) else UserError(f"{message}; free space or choose another folder")
                write_failure(run_dir, message)
                if hydra_config.mode == RunMode.RUN:
                    raise _Stop(failure) from error
                log.error("%s: %s", run_dir, message)
                raise failure from error
            except Exception as error:
                write_failure(run_dir, f"{type(error).__name__}: {error}")
                log.exception("this is a defect of rlprune, or of a plug-in")
                raise

        register()
        return _unwrap(hydra.main(config_path=str(conf_dir().resolve()), config_name=name, version_base="1.3")(run))

    return decorate


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
