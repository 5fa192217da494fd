"""Run folders: in which one a line works, whether a run in it goes on, and that no two processes work in one."""

import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rlprune.config import first_difference
from rlprune.errors import UserError
from rlprune.files import create_held, hold, is_held, is_whole, read_text, read_yaml, remove_temporaries, write_text

log = logging.getLogger(__name__)
CONFIG = "config.yaml"  # who holds this file works in the folder
RESULT = "result.json"  # whose presence means that the run is done, unless it is damaged


class RunFolderError(UserError):
    """The folder holds another run, or none to continue; it is left as it is."""


class RunDoneError(RunFolderError):
    """The run that should go on is done."""


# -- which folder ----------------------------------------------------------------------------------------------------------------------


def register_folders() -> None:
    """Let the yaml files ask for the folder of a run: Hydra makes it, so it is known before the task starts."""
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
    OmegaConf.register_new_resolver("sweep_folder", _sweep_folder, replace=True)


def meant(resume: Any) -> bool | str:
    """What `resume` asks for: no, yes, or a folder."""
    word = str(resume).lower()
    return word == "true" if word in ("true", "false", "none") else str(resume)


def _run_folder(resume: str | None, fresh: str, *, _root_: DictConfig) -> str:
    wish = meant(resume)
    if wish == "":
        raise UserError("resume=: is empty; name a folder, true or false")
    if isinstance(wish, str):
        return wish
    timed = "${now:" in str(OmegaConf.to_container(_root_.paths, resolve=False)["run"])  # type: ignore[index, call-overload]
    if not wish or not timed:  # a folder that the user has named
        return fresh
    task = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key not in ("hydra", "grid")])
    config = yaml.safe_load(OmegaConf.to_yaml(task, resolve=True))
    return str(newest_unfinished(Path(fresh).parent, config, heading(HydraConfig.get().runtime.choices)) or fresh)


def _sweep_folder(resume: str | None, fresh: str, *, _root_: DictConfig) -> str:
    """Only called where the user has named no folder."""
    if meant(resume) is not False and _root_.hydra.mode != RunMode.RUN:
        raise UserError(f"resume={str(resume).lower()}: several runs go on with resume=true and the sweep's folder, hydra.sweep.dir=FOLDER")
    return fresh


def heading(choices: Mapping[str, Any]) -> str:
    """The first line of config.yaml: a config tells settings, not the names they were chosen by."""
    return "# " + " ".join(f"{group}={choices[group]}" for group in ("model", "dataset", "agent") if choices.get(group))


def newest_unfinished(folder: Path, config: dict[str, Any], head: str) -> Path | None:
    """The run in a folder of runs that `resume=true` means; None where none can be meant.

    A run that failed before its first checkpoint is not meant, nor one that another process works on.

    Raises:
        UserError: there are unfinished runs of the same choices, but with other settings.
    """
    other = None
    for path in sorted(folder.glob(f"*/{CONFIG}"), key=lambda path: (path.stat().st_mtime_ns, path), reverse=True):
        run = path.parent
        if (run / "failed.json").exists() and not _has_checkpoint(run):
            continue
        ended = (run / RESULT).exists()
        try:
            difference = _difference(path, config)
            same = read_text(path).partition("\n")[0] == head
        except (OSError, ValueError, RunFolderError):
            continue
        if (difference is None or (same and other is None and not ended)) and not is_held(path):
            if difference is None:
                if is_whole(run / RESULT):
                    _forget_states(run)
                    continue
                return run
            other = f"resume=true: the unfinished run {run} has another config: {difference}; drop resume=true to start anew"
    if other:
        raise UserError(other)
    return None


def _has_checkpoint(run: Path) -> bool:
    return any(any((run / "checkpoint").glob(name)) for name in ("[!.]*.safetensors", "measured*.json"))


# -- one process in it -----------------------------------------------------------------------------------------------------------------


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; Hydra has made it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: IO[str] | None = None
        self._text = ""  # of the config

    @property
    def held(self) -> bool:
        """This process works in it, until `release`."""
        return self._held is not None

    @property
    def writable(self) -> bool:
        """A failure may be left in it: it holds no other's run, and nobody has deleted it."""
        return not (self.path / CONFIG).exists() if self._held is None else self._is_there(self._held)

    def take(self, text: str, head: str, resume: Any, *, resumable: bool) -> bool:
        """Begin a run of a config, or go on with the one that is there; says whether one goes on.

        Args:
            text: the config.
            head: its first line.
            resume: as in the config.
            resumable: runs of this command can go on.

        Raises:
            RunFolderError: another process works there, or the run there is another one, damaged, or done.
        """
        path, wish = self.path / CONFIG, meant(resume)
        self._text = f"{head}\n{text}"
        _check_links(self.path)
        named = isinstance(wish, str)
        if not named:
            with suppress(FileExistsError):
                self._held = create_held(path, self._text)
                return False
        elif not path.exists():
            with suppress(OSError):
                self.path.rmdir()  # Hydra has just made it
            raise RunFolderError(f"resume={self.path}: holds no run; name the folder of one, or start anew without resume")
        try:
            held = hold(path)
        except BlockingIOError as error:
            raise RunFolderError(f"{self.path}: another process works on this run; wait for it, or start anew elsewhere") from error
        try:
            if named:
                _check_named(self.path, yaml.safe_load(text))
            else:
                _check_present(self.path, yaml.safe_load(text), asked=wish is True, resumable=resumable)
        except BaseException:
            held.close()
            raise
        self._held = held
        if (self.path / RESULT).exists():
            log.warning("%s: is damaged; the run is done again from its last saved state, or from its start", self.path / RESULT)
        remove_temporaries(self.path)
        return True

    def mend(self) -> None:
        """Make a finished run whole where somebody has deleted or moved its folder on the way: what followed has made it anew."""
        if self._held is not None and not self._is_there(self._held):
            write_text(self.path / CONFIG, self._text)
            log.warning("%s: was deleted or moved while the run went on; its log is lost, its result is there", self.path)

    def explain(self, message: str) -> str:
        """The message of a failure, which may be that the folder is gone."""
        if self._held is None or self._is_there(self._held):
            return message
        return f"{self.path}: was deleted or moved while the run went on, start it anew ({message})"

    def _is_there(self, held: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(held.fileno()), os.stat(self.path / CONFIG))
        except OSError:
            return False

    def release(self) -> None:
        """Let others work in it."""
        if self._held is not None:
            self._held.close()
            self._held = None


def _check_links(run: Path) -> None:
    """Folders in a run's folder are its own: what goes on there writes through links."""
    for path in sorted(run.iterdir()):
        if path.is_symlink() and path.is_dir():
            raise RunFolderError(f"{path}: is a link to another folder, where the run would write; put a folder in its place")


def _forget_states(run: Path) -> None:
    """Remove the saved states of a run that was killed between its result and its end."""
    shutil.rmtree(run / "checkpoint", ignore_errors=True)


def _check_named(run: Path, config: dict[str, Any]) -> None:
    """`resume=FOLDER`: a run goes on only with the configuration it was started with."""
    if is_whole(run / RESULT):
        raise RunFolderError(f"resume={run}: that run is done; start anew without resume")
    if difference := _difference(run / CONFIG, config):
        raise RunFolderError(f"resume={run}: {difference}; resume with the same line, or start anew without resume")


def _check_present(run: Path, config: dict[str, Any], *, asked: bool, resumable: bool) -> None:
    """A folder that was not named by `resume` holds a run: it goes on if it is this one and not done."""
    difference = _difference(run / CONFIG, config)
    done = is_whole(run / RESULT)
    if done and not difference:
        _forget_states(run)
    if difference:
        raise RunFolderError(f"{run}: holds a run already, with another config ({difference}); name another folder")
    if done and asked:
        raise RunDoneError(f"{run}: that run is done; nothing is left to do")
    if done or not resumable:
        why = "that run is done; resume=true passes over it, or " if done and resumable else ""
        raise RunFolderError(f"{run}: holds a run already; {why}name another folder")


def _difference(path: Path, config: dict[str, Any]) -> str | None:
    """The first key in which a kept config differs, whatever folder it was for."""
    try:
        old = read_yaml(path)
    except ValueError as error:
        raise RunFolderError(f"{path}: is damaged ({type(error).__name__}); start anew without resume, in another folder") from error
    if not isinstance(old, dict) or not isinstance(old.get("paths"), dict):
        raise RunFolderError(f"{path}: is damaged; start anew without resume, in another folder")
    return first_difference(_settings(old), _settings(config))


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs the same: not where they are, nor who watches or measures."""
    return {key: value for key, value in config.items() if key not in ("resume", "tracker", "evaluator", "paths")}
