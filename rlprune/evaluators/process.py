"""A worker on this machine: python -m rlprune.evaluators.process SOCKET KIT THREADS, numbers of open files; started by `processes.py`."""

import socket
import sys

import torch

from rlprune.evaluators.base import Measuring, failed
from rlprune.evaluators.wire import Frames, read_shared, send

READY = b"ready"
STAGE = b"stage"


def main(channel: socket.socket, kit: int, threads: int) -> None:
    """Answer until the search is gone."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    try:
        measuring = Measuring(read_shared(kit))
    except Exception as error:  # a plug-in that cannot be imported here may raise anything
        send(channel, failed(None, error))
        return
    send(channel, READY)
    frames = Frames(channel)
    while (messages := frames.read()) is not None:
        for message in messages:
            if message == STAGE:
                measuring.begin(read_shared(frames.descriptors.pop(0)))
            else:
                send(channel, measuring.answer(message))


if __name__ == "__main__":
    socket_number, kit_number, num_threads = map(int, sys.argv[1:])
    try:
        main(socket.socket(fileno=socket_number), kit_number, num_threads)
    except (BrokenPipeError, ConnectionError, KeyboardInterrupt):  # the search is gone
        sys.exit(1)
