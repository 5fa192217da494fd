"""Standard streams that are closed, or that nobody reads any more: a run is worth more than what it says. Imports no torch."""

import logging
import os
import select
import sys
from typing import Any, TextIO


def open_standard_streams() -> None:
    """Give a process that was started with its standard streams closed empty ones: files would take their numbers, and get their text."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        name, mode = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))[number]
        setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))
    os.close(number)


def forget_readers() -> None:
    """Let standard output and error end in nothing where their pipe has no reader: what they still hold would be written once more."""
    for stream in (sys.stdout, sys.stderr):
        if _is_broken(stream):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _is_broken(stream: TextIO) -> bool:
    """Whether it is a pipe that nobody reads."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return bool(poll.poll(0))  # errors are told unasked
    except (OSError, ValueError):  # it is no file, or closed
        return False


class Lasting:
    """A stream for progress bars, which would end a run when the reader of its pipe has gone.

    Args:
        stream: what is written to as long as it is read.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or do nothing."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            forget_readers()
            return len(text)

    def flush(self) -> None:
        """Likewise."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            forget_readers()


class Screen(logging.StreamHandler[TextIO]):
    """Writes the log on the screen as long as there is one."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """A line that cannot be written is lost, and so are those that follow where nobody reads."""
        forget_readers()
