"""The torch calls of a forward pass: what they are named, where they stand, and how one is found again in another pass."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlprune.graph.labels import tensors_in
from rlprune.graph.run import named_tensors
from rlprune.graph.sizes import plain

if TYPE_CHECKING:
    from rlprune.graph.recorder import Recorder

Key = tuple[str, str, int]
"""A call: operation, the weight it uses or else the module it stands in, and how often that pair came before."""

_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, slice})
_OPERATORS = ("add", "mul", "and", "or", "sub", "truediv", "floordiv", "pow", "matmul", "mod")


def operation_name(function: Callable[..., Any]) -> tuple[str, bool]:
    """One name for the function, method, operator and in-place forms of an operation; and whether this form works in place."""
    name = str(getattr(function, "__name__", type(function).__name__))
    if name == "__get__":  # a property such as Tensor.shape
        return str(getattr(getattr(function, "__self__", None), "__name__", "property")), False
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        if name in ("setitem", "set"):
            return name, True
        for prefix in ("r", "i"):
            rest = name.removeprefix(prefix)
            if (
                rest != name
                and rest in _OPERATORS
                and not (prefix == "r" and rest in ("sub", "truediv", "floordiv", "pow", "mod", "matmul"))
            ):
                return rest, prefix == "i"
        return {"len": "__len__", "hash": "__hash__"}.get(name, name), False
    return name.rstrip("_"), name.endswith("_")


class Whereabouts:
    """Names of a network's tensors and modules, and the place of a running call among them."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.tensors = named_tensors(self.modules)
        self.names = {id(tensor): name for name, tensor in self.tensors}
        self.paths = {id(module): name for name, module in self.modules.items()}
        self._seen: dict[tuple[str, str], int] = {}

    def where(self) -> str:
        """Qualified name of the innermost module that is running; empty for the network itself."""
        frame = sys._getframe(1)
        for _ in range(200):
            if frame is None:
                break
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and id(module) in self.paths:
                return self.paths[id(module)]
            frame = frame.f_back  # type: ignore[assignment]
        return ""

    def key(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
        """This call, in a way that holds in the next pass; asks must come for the same calls in every pass."""
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        place = self.names.get(id(weight)) if isinstance(weight, Tensor) else None
        pair = (name, self.where() if place is None else place)
        number = self._seen.get(pair, 0)
        self._seen[pair] = number + 1
        return (*pair, number)


class Call:
    """One operation of a forward pass, already executed."""

    __slots__ = ("args", "function", "in_place", "key", "kwargs", "name", "recorder", "result")

    def __init__(
        self, recorder: "Recorder", name: str, in_place: bool, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        self.recorder, self.name, self.in_place, self.function = recorder, name, in_place, function
        self.args, self.kwargs, self.result = args, kwargs, result
        self.key: Key | None = None

    @property
    def label(self) -> str:
        """How messages name the operation."""
        where = self.recorder.where()
        return f"`{self.name}`" + (f" in {where}" if where else "")

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors among the arguments, in order."""
        found = []
        for value in (*self.args, *self.kwargs.values()) if self.kwargs else self.args:
            if isinstance(value, Tensor):
                found.append(value)
            elif type(value) not in _PLAIN:
                found += tensors_in(value)
        return found

    @property
    def outputs(self) -> list[Tensor]:
        """Tensors among the results."""
        return [self.result] if isinstance(self.result, Tensor) else list(tensors_in(self.result))

    @property
    def output(self) -> Tensor:
        """The single tensor that the operation returned."""
        return self.result if isinstance(self.result, Tensor) else self.outputs[0]

    def argument(self, name: str, position: int, default: Any = None) -> Any:
        """An argument given by position or by name; torch takes numpy's `axis` for `dim` too."""
        kwargs = self.kwargs
        if kwargs:
            if name in kwargs:
                return kwargs[name]
            if name == "dim" and "axis" in kwargs:
                return kwargs["axis"]
        return self.args[position] if position < len(self.args) else default

    def dims(self, position: int = 1, name: str = "dim") -> Any:
        """A list of ints given as one argument or spread over several, as `view(2, 3)` and `view((2, 3))`."""
        value = self.argument(name, position)
        if isinstance(value, int) and len(self.args) > position + 1 and not isinstance(value, bool):
            return tuple(self.args[position:])
        return value

    def again(self, *instead: Any) -> Any:
        """Execute the same operation with other leading arguments, in plain sizes."""
        return self.function(*instead, *plain(self.args[len(instead) :]), **plain(self.kwargs))
