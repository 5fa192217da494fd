"""Files that appear whole or not at all, and files that one process holds. Imports no torch."""

import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import re
import signal
import stat
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from rlprune.errors import UserError

TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?")  # as write_atomically names them
SEAL = "crc32"
MOST = 1 << 28  # bytes of a text file: a hundred times what the longest search writes
MOST_VALUES = 1 << 16  # of a config


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    temporary = Path(name)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed while they wrote this file have left: nobody holds it any more."""
    for old in path.parent.glob(f".{glob.escape(path.stem)}-*{glob.escape(path.suffix)}"):
        with suppress(OSError):
            if TEMPORARY.fullmatch(old.name) and time.time() - old.stat().st_mtime > 1:  # it may not be locked yet
                with old.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    old.unlink()


class Terminated(KeyboardInterrupt):
    """SIGTERM, or the end of the terminal, came; `code` is the exit code that tells of it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


@contextmanager
def tidy_on_sigterm() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the main process as Ctrl-C does, so that no temporary file stays, and the user is told how to go on.

    Raises:
        Terminated: one of them came.
    """
    process = os.getpid()

    def end(number: int, _: object) -> None:
        if os.getpid() == process:
            raise Terminated(number)
        os._exit(128 + number)  # a worker that was forked: what lies about is not its own

    main = threading.current_thread() is threading.main_thread()
    taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; halves of letters, which JSON may hold and UTF-8 not, as their numbers."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; non-finite numbers are refused, because JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_sealed(path: Path, entries: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, by which `read_json` knows that it is as it was written."""
    plain = json.loads(json.dumps(entries))  # tuples are lists then, and keys are text, as they are when it is read
    write_json(path, {**plain, SEAL: _checksum(plain)})


def _checksum(entries: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(entries, sort_keys=True).encode())


def read_text(path: Path) -> str:
    """A text file, as far as it may be one: no device or pipe, which have no end, and of no more than `MOST` bytes.

    Raises:
        OSError: it is absent, unreadable, or no such file.
        ValueError: it is no UTF-8.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is no plain file", str(path))
    if found.st_size > MOST:
        raise OSError(errno.EFBIG, f"has {found.st_size / 1e6:,.0f} MB, which no file of its kind has", str(path))
    return path.read_text(encoding="utf-8")


def read_yaml(path: Path) -> dict[str, Any]:
    """A yaml mapping of plain values.

    Raises:
        OSError, ValueError: it cannot be read, or is none.
    """
    try:
        value = yaml.load(read_text(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        _count(value, [MOST_VALUES])
    except (yaml.YAMLError, RecursionError, TypeError, AttributeError, IndexError) as error:  # the last ones by tags that do not fit
        raise ValueError(f"{path}: is no yaml of plain values ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: should hold a mapping")
    return value


def _count(value: Any, left: list[int]) -> None:
    """Refuse more values than a config has; aliases of aliases may stand for more than fit into memory."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"holds more than {MOST_VALUES} values")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _count(item, left)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; the checksum of `write_sealed` is looked at and left out.

    Raises:
        UserError: the file is absent, unreadable, not an object, or not as it was written.
    """
    try:
        value = json.loads(read_text(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({type(error).__name__}); the file is damaged, use another run") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: should hold a JSON object; the file is damaged, use another run")
    if SEAL in value and value.pop(SEAL) != _checksum(value):
        raise UserError(f"{path}: is not as it was written (its checksum differs); the file is damaged, use another run")
    return value


def is_whole(path: Path) -> bool:
    """Whether a JSON object is there and undamaged."""
    return bool(recall(path))


def digest(facts: Any) -> str:
    """A short name for plain facts."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def recall(path: Path | None) -> dict[str, Any]:
    """A JSON object that may be there; an empty one where there is none, or a damaged one."""
    try:
        return {} if path is None else read_json(path)
    except UserError:
        return {}


def write_failure(run_dir: Path, message: str) -> None:
    """Mark a run folder as failed, where it can still be written to."""
    try:
        write_json(run_dir / "failed.json", {"error": message})
    except OSError:  # a full or read-only disk may be the failure itself
        logging.getLogger(__name__).debug("could not write failed.json", exc_info=True)


# -- one process at a time -------------------------------------------------------------------------------------------------------------


def create_held(path: Path, text: str) -> IO[str]:
    """Write a new file that is whole and held from its first moment on. Closing what is returned lets go of it.

    Raises:
        FileExistsError: there is one already.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    file = os.fdopen(handle, "r+", encoding="utf-8")
    try:
        file.write(text)
        file.flush()
        os.fsync(handle)
        os.fchmod(handle, 0o644)
        _lock(file)
        try:
            os.link(name, path)  # unlike a move it never replaces another's
        except OSError as error:  # that, or a file system without links
            if path.exists():
                raise FileExistsError(str(path)) from error
            os.replace(name, path)
    except BaseException:
        file.close()
        raise
    finally:
        Path(name).unlink(missing_ok=True)
    return file


def hold(path: Path) -> IO[str]:
    """Hold a file that is there until what is returned is closed, or this process ends, however it may.

    Raises:
        BlockingIOError: another one holds it.
    """
    file = path.open("r+", encoding="utf-8")  # network file systems lock only what may be written
    try:
        _lock(file)
    except BaseException:
        file.close()
        raise
    return file


def is_held(path: Path) -> bool:
    """Whether somebody holds a file; False where that cannot be known."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two that look do not see each other
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _lock(file: IO[str]) -> None:
    for patience in (0.05, 0.2, 0.0):  # somebody may just be looking
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not patience:
                raise
            time.sleep(patience)
        except OSError as error:  # a file system without locks: better unlocked than not at all
            logging.getLogger(__name__).debug("%s: cannot be locked (%s)", file.name, error)
            break
    os.register_at_fork(after_in_child=file.close)  # workers that outlive this process for a moment must not hold on


def remove_temporaries(folder: Path) -> None:
    """Remove what processes that were killed while writing have left in a folder and the folders in it."""
    for path in [*folder.glob(".*"), *folder.glob("*/.*")]:
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            with suppress(OSError):
                path.unlink()
