"""What fits into this machine's memory, told before it is taken: a system that promises more than it has kills whoever believes it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlprune.errors import UserError

LARGEST_SIDE = 8192  # pixels of an image
NO_ROOM = ("can't allocate memory", "Storage size calculation overflowed", "not enough memory")  # what torch says


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_memory(needed: float, subject: str, advice: str) -> None:
    """Refuse what takes more bytes than the machine has.

    Args:
        needed: bytes.
        subject: what the message begins with, `key=value`.
        advice: what to do instead.

    Raises:
        UserError: it does not fit.
    """
    if needed > (there := machine_memory()):
        raise UserError(f"{subject}: takes {needed / 1e9:,.0f} GB of memory, this machine has {there / 1e9:,.0f}; {advice}")


@contextmanager
def bounded_weights(subject: str) -> Iterator[None]:
    """Refuse a network whose weights do not fit while it is made: each is counted before it is drawn, which is when it takes memory.

    Args:
        subject: what the message begins with.

    Raises:
        UserError: they do not fit.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    total = 0

    def count(_module: Any, _name: str, parameter: Any) -> None:
        nonlocal total
        total += parameter.nbytes if parameter is not None else 0
        require_memory(total, subject, "make it smaller")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_ROOM):
            raise
        raise UserError(f"{subject}: does not fit into memory; make it smaller") from error
    finally:
        hook.remove()
