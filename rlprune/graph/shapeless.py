"""Running a network's code on tensors that have shapes but no values, as fast as its Python goes."""

import time
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlprune.errors import UserError
from rlprune.graph import shapes
from rlprune.graph.calls import operation_name
from rlprune.graph.labels import tensors_in
from rlprune.graph.run import map_tensors
from rlprune.graph.sizes import Remainder, Size


class TimeLimitError(UserError):
    """The trace took too long."""


class NeedsValuesError(Exception):
    """The values of a tensor decide what happens: the network must run on real numbers."""


SIZED = "a size"
"""Stands in a record of a call for a number that follows channels."""


def constants(value: Any) -> tuple[Any, ...]:
    """The plain numbers and words among the arguments of a call, in order; sizes that follow channels by a mark."""
    found: list[Any] = []
    for item in value:
        kind = type(item)
        if kind is Size:
            found.append(SIZED)
        elif kind is Remainder:
            found.append(0)
        elif kind in _PLAIN:
            found.append(item)
        elif isinstance(item, list | tuple):
            found.extend(constants(item))
        elif kind is slice:
            found.extend(constants((item.start, item.stop, item.step)))
    return tuple(found)


_PLAIN = frozenset({int, float, bool, str, type(None)})
Calls = list[tuple[str, tuple[Any, ...], tuple[int, ...]]]
"""The calls of a pass: operation, the plain numbers and words among its arguments, and how many axes its results have."""


def ranks(result: Any) -> tuple[int, ...]:
    """Number of axes of every result of a call."""
    return (result.ndim,) if isinstance(result, Tensor) else tuple(tensor.ndim for tensor in tensors_in(result))


class Shapeless(TorchFunctionMode):
    """Executes calls without arithmetic where activations have no values (device meta); `device` is where they claim to be."""

    def __init__(self, device: torch.device, time_limit: float) -> None:
        super().__init__()
        self.device = device
        self.deadline, self.time_limit = time.thread_time() + time_limit, time_limit
        self.operations: dict[Any, tuple[str, bool]] = {}  # function → name, whether it works in place
        self.stand_ins: dict[int, tuple[Tensor, Tensor]] = {}  # by id of a tensor with values: itself, and one without
        self.overwritten: list[tuple[Tensor, Tensor]] = []  # tensors with values, and what they held before

    def operation(self, func: Any, kwargs: dict[str, Any]) -> tuple[str, bool]:
        """Name of the operation, and whether this call works in place."""
        known = self.operations.get(func)
        if known is None:
            known = self.operations[func] = operation_name(func)
        return known if not kwargs.get("inplace") else (known[0], True)

    def check_time(self) -> None:
        """Give up when the time is over."""
        if time.thread_time() > self.deadline:
            raise TimeLimitError(f"tracing took more than {self.time_limit:g} s; use a smaller example input")

    def remember(self, written: Any) -> None:
        """Note the values of a tensor that a call is about to write to."""
        if isinstance(written, Tensor) and not written.is_meta:
            self.overwritten.append((written, written.detach().clone()))

    def undo_writes(self) -> None:
        """Give tensors with values, such as a buffer that counts calls, the values that they had before."""
        with torch.no_grad():
            for tensor, values in reversed(self.overwritten):
                tensor.copy_(values)

    def without_values(self, name: str, in_place: bool, args: Any, kwargs: Any, *, sized: bool) -> tuple[Any, Any]:
        """Arguments on the meta device, if one of them is there."""
        if name in shapes.CREATIONS and sized:
            return args, {**kwargs, "device": "meta"}
        tensors = list(tensors_in((args, kwargs)))
        if not any(tensor.is_meta for tensor in tensors) or all(tensor.is_meta for tensor in tensors):
            return args, kwargs
        if in_place and not args[0].is_meta:
            raise NeedsValuesError(f"{name} writes into a tensor with values")
        return map_tensors((args, kwargs), self._stand_in)

    def _stand_in(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        if id(tensor) not in self.stand_ins:
            self.stand_ins[id(tensor)] = (tensor, tensor.detach().to("meta"))
        return self.stand_ins[id(tensor)][1]

    def place(self, name: str) -> Any:
        """What a tensor without values says of where it is; None if it is not asked that."""
        if name == "device":
            return self.device
        if name in ("is_cuda", "is_cpu", "is_mps", "is_xpu"):
            return self.device.type == name[3:]
        if name == "is_meta":
            return False
        if name == "get_device":
            return self.device.index if self.device.type == "cuda" else -1
        return None
