"""What torchrun tells a process that it has started. Imports no torch."""

import os
from dataclasses import dataclass


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
