"""Frames on a socket between a search and a worker on the same machine, and memory that is handed over without a copy."""

import mmap
import os
import socket
import struct
import tempfile

HEAD = struct.Struct("<4sI")  # mark, bytes that follow
MARK = b"rlp1"
LARGEST = 2**26  # bytes of a frame: a bit for each of half a billion units


class FrameError(ValueError):
    """What came is no frame."""


def send(channel: socket.socket, message: bytes, *descriptors: int) -> None:
    """One frame, and open files with it."""
    socket.send_fds(channel, [HEAD.pack(MARK, len(message))], list(descriptors))
    channel.sendall(message)


class Frames:
    """Frames as they come in."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel, self._held = channel, bytearray()
        self.descriptors: list[int] = []  # of open files that came along, until someone takes them

    def read(self) -> list[bytes] | None:
        """All that are complete now, behind one wait for what comes next; None: the other side is gone.

        Raises:
            FrameError: what came is none.
        """
        try:
            more, descriptors, _, _ = socket.recv_fds(self.channel, 2**16, 4)
        except (ConnectionError, TimeoutError):
            return None
        self.descriptors += descriptors
        if not more:
            return None
        self._held += more
        return self._complete()

    def _complete(self) -> list[bytes]:
        frames = []
        while len(self._held) >= HEAD.size:
            mark, length = HEAD.unpack_from(self._held)
            if mark != MARK or length > LARGEST:
                raise FrameError("it is no frame")
            if len(self._held) < HEAD.size + length:
                break
            frames.append(bytes(self._held[HEAD.size : HEAD.size + length]))
            del self._held[: HEAD.size + length]
        return frames


def shared_file(content: bytes) -> int:
    """The descriptor of a file without a name that holds this; it is gone with the last process that has it open."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("rlprune")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor


def read_shared(descriptor: int) -> bytes:
    """What is in it; it is closed."""
    try:
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
            return content[:]
    finally:
        os.close(descriptor)
