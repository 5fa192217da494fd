"""Processes that train together: rank 0 tells the others what to do, and all of them add up gradients."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlprune.errors import UserError
from rlprune.launch import Launch

PATIENCE = timedelta(days=365)  # for which a process waits for its next message: searches are long
HEARD = timedelta(seconds=10)  # in which rank 0 takes up the failure of another one
END = 30.0  # seconds in which torchrun then ends this process


class LostError(UserError):
    """Another process is gone, so that nothing done together can come to an end."""


class Group:
    """The processes of a run.

    Messages go through a group of their own, as waiting for one costs nothing and may take hours, on any device.

    Args:
        here: which process this is.
    """

    def __init__(self, here: Launch) -> None:
        self.rank, self.size, self.here = here.rank, here.size, here
        try:
            store, _, _ = next(iter(dist.rendezvous("env://")))
            self._store = dist.PrefixStore("rlprune", store)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
            dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size)
            self._messages: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"torchrun: the processes do not find one another ({_line(error)})") from error

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by the sum of those of all processes, the same bits in each."""
        with self._connected():
            dist.all_reduce(tensor)

    def send(self, tensor: Tensor) -> None:
        """Give the others the tensor of rank 0, in place."""
        with self._connected():
            if tensor.device.type == "cpu":
                dist.broadcast(tensor, src=0, group=self._messages)
            else:
                dist.broadcast(tensor, src=0)

    def check(self, device: torch.device) -> None:
        """Refuse a device that the processes cannot share.

        Raises:
            UserError: there are fewer of them than processes, or one was named for all.
        """
        if device.type != "cuda":
            return
        if device.index is not None:
            raise UserError(f"device={device}: under torchrun each process takes a device of its own; use device=auto or device=cuda")
        count, wanted = torch.cuda.device_count(), self.here.local_size
        if count < wanted:
            raise UserError(
                f"device={device}: this machine has {count} CUDA device{'s' * (count != 1)} for {wanted} processes; "
                f"start torchrun with --nproc-per-node={count}, or use device=cpu"
            )

    def take(self, device: torch.device) -> None:
        """Make this process's device the one that `cuda` means in it."""
        if device.type == "cuda":
            self.check(device)
            torch.cuda.set_device(self.here.local_rank)

    def fail(self, message: str) -> bool:
        """Leave with a message that rank 0 takes up as its own failure; says whether it did."""
        self._store.set("failure", f"rank {self.rank}: {message}")
        threading.Thread(target=self.end, daemon=True).start()  # so that rank 0 waits no longer; NCCL may be in the middle of something
        try:
            self._store.wait(["heard"], HEARD)
        except RuntimeError:
            return False
        time.sleep(END)  # torchrun ends all others once one has ended, and rank 0 has something to write
        return True

    def end(self) -> None:
        """Leave; those that wait for this process learn of it, at the latest when it has ended."""
        with suppress(RuntimeError):
            dist.destroy_process_group()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LostError(self._failure() or f"another process of this run has ended ({_line(error)})") from error

    def _failure(self) -> str | None:
        """What another process said when it left."""
        if self.rank != 0:
            return None
        try:
            if self._store.check(["failure"]):
                self._store.set("heard", "")
                return self._store.get("failure").decode()
        except RuntimeError:  # the store is gone, too
            return None
        return None


_current: ContextVar[Group | None] = ContextVar("group", default=None)


def current_group() -> Group | None:
    """The group that this process leads; None where it is alone."""
    return _current.get()


@contextmanager
def leading(here: Launch) -> Iterator[Group]:
    """Rank 0's part: inside of this context the others wait for its messages. When it fails, it ends without leaving the group first."""
    group = Group(here)
    token = _current.set(group)
    try:
        yield group
    finally:
        _current.reset(token)


def joined(here: Launch) -> Group:
    """The group of a process that follows: Ctrl-C is rank 0's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Group(here)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
