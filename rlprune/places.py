"""What runs on one machine share out among themselves: GPUs and cores. Who has a place holds its file, and lets go however it ends."""

import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rlprune.errors import UserError
from rlprune.files import hold

log = logging.getLogger(__name__)
SECONDS = 1.0  # between two looks at places that are all taken


def gpus() -> list[str]:
    """Names of the GPUs that this process sees, in torch's order; they are the same in processes that number GPUs otherwise."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"gpu-{torch.cuda.get_device_properties(index).uuid}" for index in range(count)]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def places() -> int:
    """Runs that this machine takes at once: one a GPU, or without any one a core, as two threads of one run do less than two runs."""
    import torch

    return (torch.cuda.device_count() if torch.cuda.is_available() else 0) or cores()


@contextmanager
def one_of(names: Sequence[str], on_wait: Callable[[], None]) -> Iterator[int]:
    """Hold the first of these places that no other run of this user on this machine holds; the index of it.

    Args:
        names: of the places.
        on_wait: called once where all are taken; it is waited for one then.
    """
    waited = False
    while True:
        for index, name in enumerate(names):
            if (held := _held(name)) is not None:
                with held:
                    yield index
                return
        if not waited:
            on_wait()
            waited = True
        time.sleep(SECONDS)


@contextmanager
def taken(name: str) -> Iterator[None]:
    """Hold this place where it is free, so that others look elsewhere; it is used all the same where it is not."""
    held = _held(name)
    try:
        yield
    finally:
        if held is not None:
            held.close()


def _held(name: str) -> IO[str] | None:
    path = _folder() / f"{name}.lock"
    path.touch()
    try:
        return hold(path)
    except BlockingIOError:
        return None


def _folder() -> Path:
    """Where this user's runs on this machine meet; others may write beside it, so that it has to be this user's own."""
    path = Path(tempfile.gettempdir()) / f"rlprune-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(f"{path}: belongs to somebody else; name another folder with TMPDIR=FOLDER before the command")
    return path
