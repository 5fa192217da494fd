"""What torchrun tells a process that it has started. Imports no torch."""

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """One of several processes.

    Args:
        rank: which, from 0; rank 0 decides and writes, the others follow.
        size: of all processes.
        local_rank: which on this machine.
        local_size: of those on this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int


def launched() -> Launch | None:
    """What torchrun has told this process; None for one that is alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    here = Launch(*(int(os.environ[name]) for name in names))
    return here if here.size > 1 else None


def report_failure(line: str) -> None:
    """Have torchrun's own report of a failure, which follows below all that was printed, end in this line."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        message = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": message}), encoding="utf-8")
