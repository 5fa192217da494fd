"""Running the code of pruned networks on shapes alone: it must do the same calls with the same numbers.

A trace sees sizes only as long as they are followed. Where code turns one into a plain number behind its back (`len(x)`, `range(c)`, a
dict keyed by width) nothing shows until the width changes. So the network is rehearsed at other widths: all groups but one unit each, and
one unit each. A call that is new, gone, or gets another number than a size that is known to follow betrays the code.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlprune.graph import rules, shapes
from rlprune.graph.calls import named_tensors
from rlprune.graph.channel_graph import ChannelGraph
from rlprune.graph.labels import tensors_in
from rlprune.graph.run import call, copy_module
from rlprune.graph.shapeless import SIZED, Shapeless, TimeLimitError, constants
from rlprune.graph.surgery import Slices, patch

Calls = list[tuple[str, tuple[Any, ...]]]
"""The calls of a pass: operation, and the plain numbers and words among its arguments."""


class _DiffersError(Exception):
    pass


class _Rehearsal(Shapeless):
    def __init__(self, calls: Calls, device: torch.device, time_limit: float) -> None:
        super().__init__(device, time_limit)
        self.calls, self.at = calls, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, in_place = self.operation(func, kwargs)
        if name in rules.NEUTRAL:
            known = self.place(name) if args and isinstance(args[0], Tensor) and args[0].is_meta else None
            return func(*args, **kwargs) if known is None else known
        self.check_time()
        if self.at == len(self.calls):
            raise _DiffersError(f"another `{name}`")
        wanted, numbers = self.calls[self.at]
        self.at += 1
        if name != wanted:
            raise _DiffersError(f"`{name}` in the place of `{wanted}`")
        found = constants((*args, *kwargs.values()))
        if found != numbers and (len(found) != len(numbers) or any(a != b and b is not SIZED for a, b in zip(found, numbers, strict=True))):
            raise _DiffersError(f"other numbers in `{name}`")
        if in_place:
            self.remember(args[0] if args else None)
        result = shapes.output(name, in_place, args, kwargs)
        if result is not None:
            return result
        args, kwargs = self.without_values(name, in_place, args, kwargs, sized=SIZED in numbers)
        return func(*args, **kwargs)


_LARGEST = 256
"""Units of a group whose number is used as a key: so many widths are rehearsed at most."""


def rehearse(
    model: nn.Module, graph: ChannelGraph, inputs: Any, calls: Calls, device: torch.device, time_limit: float, keys: Sequence[str] = ()
) -> ChannelGraph:
    """The graph without the groups whose number of units steers the code; they are frozen and say how.

    Args:
        model: a copy of the network that nobody else uses, in eval mode.
        graph: its channel graph.
        inputs: example inputs without values.
        calls: what the trace saw.
        device: where the example inputs really are.
        time_limit: seconds.
        keys: groups whose number of units the code looks things up by: they are rehearsed at every width.
    """
    graph = _every_width(_Stage(model, graph, inputs, calls, device, time_limit), graph, keys) if keys else graph
    stage = _Stage(model, graph, inputs, calls, device, time_limit)
    names = [group.name for group in graph.groups if group.num_units > 1]
    if all(stage.try_ends(names, few=few) is None for few in (False, True)):
        return graph
    reasons: dict[str, str] = {}
    for name in names:
        found = [problem for few in (False, True) if (problem := stage.try_ends([name], few=few)) is not None]
        if found:
            reasons[name] = f"their number steers the code ({found[0]})"
    graph = graph.freeze(reasons)
    names = [name for name in names if name not in reasons]
    stage = _Stage(model, graph, inputs, calls, device, time_limit)
    problems = [problem for few in (False, True) if (problem := stage.try_ends(names, few=few)) is not None]
    return graph.freeze(dict.fromkeys(names, f"their numbers together steer the code ({problems[0]})")) if problems else graph


def _every_width(stage: "_Stage", graph: ChannelGraph, keys: Sequence[str]) -> ChannelGraph:
    units = {group.name: group.num_units for group in graph.groups if group.name in keys}
    reasons = {name: f"their number is used as a key, and {count} are too many to try" for name, count in units.items() if count > _LARGEST}
    for name, count in units.items():
        for kept in range(1, count):
            problem = None if name in reasons else stage.try_plan({name: np.arange(kept)})
            if problem is not None:
                reasons[name] = f"their number is used as a key ({problem})"
    return graph.freeze(reasons)


class _Stage:
    """One copy of the network whose tensors are exchanged for those of a plan, without values."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, inputs: Any, calls: Calls, device: torch.device, time_limit: float) -> None:
        self.graph, self.inputs, self.calls, self.device, self.time_limit = graph, inputs, calls, device, time_limit
        self.tensors = named_tensors(dict(model.named_modules()))
        self.model = copy_module(model, {id(tensor): tensor for _, tensor in self.tensors}, apart=True)
        name_of = {id(tensor): name for name, tensor in self.tensors}
        self.places: dict[str, list[tuple[dict[str, Any], str]]] = {}
        for module in self.model.modules():
            for holder in (module._parameters, module._buffers):
                for key, tensor in holder.items():
                    if tensor is not None and id(tensor) in name_of:
                        self.places.setdefault(name_of[id(tensor)], []).append((holder, key))

    def try_ends(self, names: Iterable[str], *, few: bool) -> str | None:
        """What differs when all but one unit of these groups go, or one unit each does; None if nothing does."""
        units = {group.name: group.num_units for group in self.graph.groups}
        return self.try_plan({name: np.arange(1 if few else units[name] - 1) for name in names})

    def try_plan(self, keep: Mapping[str, np.ndarray]) -> str | None:
        """What differs under a plan."""
        self._dress(keep)
        mode = _Rehearsal(self.calls, self.device, self.time_limit)
        try:
            with torch.no_grad(), mode:
                outputs = call(self.model, self.inputs)
            list(tensors_in(outputs))
            return None if mode.at == len(self.calls) else f"no `{self.calls[mode.at][0]}`"
        except (_DiffersError, TimeLimitError) as error:
            return str(error)
        except Exception as error:  # the pruned network cannot run, or asks for values
            text = str(error).strip().splitlines()
            return text[0] if text else type(error).__name__
        finally:
            mode.undo_writes()

    def _dress(self, keep: Mapping[str, np.ndarray]) -> None:
        slices = Slices(self.graph, keep)
        for name, tensor in self.tensors:
            result: Tensor = tensor
            if name in slices.renumbered:
                result = slices.cut(name, tensor.detach())
            elif name in slices.dims:
                shape = list(tensor.shape)
                for dim, kept in slices.dims[name]:
                    shape[dim] = len(kept)
                result = torch.empty(shape, dtype=tensor.dtype, device="meta")
                result = nn.Parameter(result, requires_grad=False) if isinstance(tensor, nn.Parameter) else result
            for holder, key in self.places.get(name, []):
                holder[key] = result
        patch(self.model, self.graph, keep)
