"""Runs a network once and carries channel labels through every operation it performs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from rlprune.errors import UserError
from rlprune.graph import rules
from rlprune.graph.labels import Channels, LabelSpace, Slot, tensors_in


@dataclass(frozen=True)
class Call:
    """One operation of a forward pass."""

    number: int
    name: str
    where: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def label(self) -> str:
        """How messages name the operation."""
        return f"`{self.name}`" + (f" in {self.where}" if self.where else "")

    @property
    def in_place(self) -> bool:
        """Whether the operation changes its first argument."""
        name = getattr(self.function, "__name__", "")
        return name.endswith("_") and not name.endswith("__")

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors among the arguments, in order."""
        return list(tensors_in([list(self.args), self.kwargs]))

    @property
    def outputs(self) -> list[Tensor]:
        """Tensors among the results."""
        return list(tensors_in(self.result))

    @property
    def output(self) -> Tensor:
        """The single tensor that the operation returned."""
        return self.outputs[0]

    def argument(self, name: str, position: int, default: Any = None) -> Any:
        """An argument given by position or by name; torch takes numpy's `axis` for `dim` too."""
        for word in (name, {"dim": "axis"}.get(name, name)):
            if word in self.kwargs:
                return self.kwargs[word]
        return self.args[position] if position < len(self.args) else default

    def bind(self, *names: str) -> dict[str, Any]:
        """The leading arguments by name."""
        return dict(zip(names, self.args, strict=False)) | self.kwargs


def operation_name(function: Callable[..., Any]) -> str:
    """One name for the function, method, operator and in-place forms of an operation."""
    name = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":  # a property such as Tensor.shape
        return str(getattr(getattr(function, "__self__", None), "__name__", "property"))
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        for prefix in ("r", "i"):
            if name.removeprefix(prefix) in ("add", "mul", "and", "or", "truediv") or (prefix == "i" and name == "isub"):
                name = name.removeprefix(prefix)
        return {"len": "__len__", "hash": "__hash__"}.get(name, name)
    return str(name).rstrip("_")


class Recorder(TorchFunctionMode):
    """Intercepts every torch call of a forward pass, applies its channel rule, and keeps what was learned.

    A tensor that no intercepted call produced has an unknown origin: it is treated as fixed.
    """

    def __init__(self, model: nn.Module, batch_size: int, time_limit: float) -> None:
        super().__init__()
        self.space = LabelSpace()
        self.table = rules.rules()
        self.batch_size = batch_size
        self.deadline = time.monotonic() + time_limit
        self.time_limit = time_limit
        self.modules = dict(model.named_modules())
        self.names = {id(tensor): name for name, tensor in [*model.named_buffers(), *model.named_parameters()]}
        self.paths = {id(module): name for name, module in self.modules.items()}
        self.stack: list[str] = []
        self.visited: set[str] = set()  # modules that ran
        self.calls = 0
        self.zero_points: list[tuple[int, Channels]] = []
        self.uses: dict[str, float] = {}
        self.fixed_macs = 0.0
        self.barriers: dict[str, str] = {}
        self.depthwise: dict[str, int] = {}  # weight → outputs for each input
        self.grouped: dict[str, int] = {}  # weight → groups
        self.token = object()  # marks this recorder's notes on tensors, without keeping the recorder alive
        self.lost: list[tuple[str, str, int]] = []  # layers without a rule: (name, reason, channels)
        self.uncounted: list[str] = []
        self.order: list[str] = []  # layers in the order of their first use

    # -- the torch hook ------------------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one call, then its rule."""
        kwargs = kwargs or {}
        if time.monotonic() > self.deadline:
            raise UserError(f"tracing took more than {self.time_limit:g} s; use a smaller example input")
        name = operation_name(func)
        self.calls += 1
        number = self.calls
        if name in rules.NEUTRAL:
            return func(*args, **kwargs)
        self._report_unknown([list(args), kwargs])
        result = func(*args, **kwargs)
        call = Call(number, name, self.stack[-1] if self.stack else "", func, tuple(args), kwargs, result)
        if name in rules.UNCOUNTED and call.outputs:
            self.uncounted.append(call.label)
        rule = self.table.get(name)
        if rule is None or "out" in kwargs:
            self.barrier(call, f"no channel rule for {call.label}")
        elif name in rules.NORMS or name in rules.UNCOUNTED or call.outputs:
            rule(self, call)
        else:
            self.barrier(call, f"{call.label} takes values out of the network")
        return result

    def _report_unknown(self, arguments: Any) -> None:
        for tensor in tensors_in(arguments):
            if tensor.ndim > 0 and self._info(tensor) is None and id(tensor) not in self.names:
                self.set(tensor, None, "a tensor of unknown origin")

    @contextmanager
    def following_modules(self) -> Iterator[None]:
        """Know which module runs, by hooks that exist only inside this context."""

        def enter(module: nn.Module, inputs: Any) -> None:
            self.stack.append(self.paths.get(id(module), type(module).__name__))
            self.visited.add(self.stack[-1])
            if isinstance(module, torch.jit.ScriptModule):  # its operations are invisible here
                self.uncounted.append(f"the compiled module {self.stack[-1]}")
                for tensor in tensors_in(inputs):
                    self.freeze_tensor(tensor, f"no channel rule for the compiled module {self.stack[-1]}")

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            self.stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # -- what the rules use --------------------------------------------------------------------------------------------------------

    def _info(self, tensor: Tensor) -> tuple[Channels | None, str] | None:
        owner, info = getattr(tensor, "_rlprune_channels", (None, None))
        return info if owner is self.token else None

    def set(self, tensor: Tensor, channels: Channels | None, reason: str = "") -> None:
        """Say what a tensor carries: channels, or nothing and why."""
        if channels is not None and tensor.shape[channels.axis] != len(channels.labels):
            raise AssertionError(f"{len(channels.labels)} labels for shape {tuple(tensor.shape)}")
        if id(tensor) in self.names:  # a parameter written to in place keeps its identity
            return
        tensor._rlprune_channels = (self.token, (channels, reason or "a fixed tensor"))  # type: ignore[attr-defined]

    def channels(self, tensor: Tensor) -> Channels | None:
        """The channels that a tensor carries, if any."""
        info = self._info(tensor)
        return info[0] if info else None

    def why_fixed(self, *tensors: Tensor) -> str:
        """Why tensors without channels are fixed: the first reason known."""
        for tensor in tensors:
            info = self._info(tensor)
            if info is not None and info[0] is None:
                return info[1]
            if id(tensor) in self.names:
                return f"the parameter {self.names[id(tensor)]}"
        return "a fixed tensor"

    def parameter_name(self, tensor: Tensor) -> str | None:
        """Qualified name of a parameter or buffer, None for computed tensors."""
        return self.names.get(id(tensor))

    def owner(self, name: str) -> nn.Module:
        """The module that holds a parameter."""
        return self.modules[name.rpartition(".")[0]]

    def slot_labels(self, slot: Slot, size: int, role: str) -> Tensor:
        """The labels of a slot, made on first use."""
        known = self.space.slots.get(slot)
        if isinstance(known, Tensor):
            return known
        labels = self.space.fresh(size)
        self.space.bind(slot, labels, role)
        if role == "out":
            self.order.append(slot[0])
        return labels

    def attach(self, slot: Slot, labels: Tensor | None, role: str, reason: str) -> None:
        """Tie a slot to labels, or keep its size if there are none."""
        if labels is None:
            self.space.fix(slot, reason)
        else:
            self.space.bind(slot, labels, role)

    def attach_vector(self, vector: Tensor | None, labels: Tensor) -> None:
        """Tie a vector with one entry a channel (bias, scale, statistics) to its channels."""
        if vector is None:
            return
        name = self.parameter_name(vector)
        if name is not None and vector.ndim == 1:
            self.attach((name, 0), labels, "channel", "")
        else:
            self.space.pin(labels, f"their scale or bias is computed in {self.stack[-1] if self.stack else 'the network'}")

    def hold(self, tensor: Tensor | None, reason: str) -> None:
        """A parameter used in a way that needs its full size."""
        name = self.parameter_name(tensor) if tensor is not None else None
        if tensor is not None and name is not None:
            self.space.fix_tensor(name, tensor.ndim, reason)

    def freeze_tensor(self, tensor: Tensor, reason: str) -> None:
        """Keep every channel that a tensor carries."""
        channels = self.channels(tensor)
        if channels is not None:
            self.space.pin(channels.labels, reason)
        self.hold(tensor, reason)

    def barrier(self, call: Call, reason: str) -> None:
        """Keep all channels that reach a call; what it returns carries none."""
        if call.name.startswith("conv") or call.name == "linear":
            self.lost.append((call.where or call.label, reason, call.output.shape[-1 if call.name == "linear" else 1 - call.output.ndim]))
        reached = [tensor for tensor in call.tensors if self.channels(tensor) is not None]
        if reached:
            self.barriers.setdefault(call.label, reason)
        for tensor in call.tensors:
            self.freeze_tensor(tensor, reason)
        for output in call.outputs:
            self.set(output, None, f"what {call.label} returns")

    def zero_behind(self, call: Call) -> None:
        """A masked channel may be non-zero after this call: the check zeroes it here."""
        channels = self.channels(call.output)
        if channels is not None:
            self.zero_points.append((call.number, channels))

    def count(self, weight: Tensor, uses: float) -> None:
        """Every element of `weight` multiplies `uses` times for the whole batch."""
        name = self.parameter_name(weight)
        if name is None:
            self.fixed_macs += weight.numel() * uses / self.batch_size
        else:
            self.uses[name] = self.uses.get(name, 0.0) + uses / self.batch_size
