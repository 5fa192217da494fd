"""Running the code of pruned networks on shapes alone: it must do the same calls with the same numbers.

A trace sees sizes only as long as they are followed. Where code turns one into a plain number behind its back (`len(x)`, `range(c)`, a
dict keyed by width) nothing shows until the width changes. So the network is rehearsed with one unit of every group; where its code asks
for a number of channels also with all units but one; where it looks things up by such a number, at every width. A call that is new, gone,
or gets another number than a size that is known to follow betrays the code.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlprune.graph import rules, shapes
from rlprune.graph.channel_graph import ChannelGraph
from rlprune.graph.labels import tensors_in
from rlprune.graph.run import Stage, call, named_tensors
from rlprune.graph.shapeless import SIZED, Calls, Shapeless, TimeLimitError, constants, ranks
from rlprune.graph.surgery import Slices, patch


class _DiffersError(Exception):
    pass


class _Rehearsal(Shapeless):
    def __init__(self, score: "Score", exchanged: set[int]) -> None:
        super().__init__(score.device, score.time_limit)
        self.calls, self.at, self.exchanged = score.calls, 0, exchanged

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, in_place = self.operation(func, kwargs)
        if name in rules.NEUTRAL:
            known = self.place(name) if args and isinstance(args[0], Tensor) and args[0].is_meta else None
            return func(*args, **kwargs) if known is None else known
        self.check_time()
        if self.at == len(self.calls):
            raise _DiffersError(f"another `{name}`")
        wanted, numbers, axes = self.calls[self.at]
        self.at += 1
        if name != wanted:
            raise _DiffersError(f"`{name}` in the place of `{wanted}`")
        found = constants((*args, *kwargs.values()))
        if found != numbers and (len(found) != len(numbers) or any(a != b and b is not SIZED for a, b in zip(found, numbers, strict=True))):
            raise _DiffersError(f"other numbers in `{name}`")
        if self.exchanged and any(id(item) in self.exchanged for item in (*args, *kwargs.values())):
            raise _DiffersError(f"`{name}` takes a parameter that a copy of the network should not have")
        if in_place:
            self.remember(args[0] if args else None)
        result = shapes.output(name, in_place, args, kwargs)
        if result is None:
            args, kwargs = self.without_values(name, in_place, args, kwargs, sized=SIZED in numbers)
            result = func(*args, **kwargs)
        if ranks(result) != axes:
            raise _DiffersError(f"`{name}` returns another number of axes")
        return result


_LARGEST = 256
"""Units of a group whose number is used as a key: so many widths are rehearsed at most."""


@dataclass(frozen=True)
class Score:
    """What a rehearsal follows: example inputs without values, the calls that the trace saw, and the shapes of what the network returns.

    `device` is where the example inputs really are; a rehearsal ends after `time_limit` seconds.
    """

    inputs: Any
    calls: Calls
    outputs: Sequence[torch.Size]
    device: torch.device
    time_limit: float


def rehearse(stage: Stage, graph: ChannelGraph, score: Score, *, thorough: bool, keys: Sequence[str]) -> ChannelGraph:
    """The graph without the groups whose number of units steers the code; they are frozen and say how.

    Args:
        stage: copies of the network.
        graph: its channel graph.
        score: what to follow.
        thorough: whether the code asks for numbers of channels.
        keys: groups whose number of units the code looks things up by: they are rehearsed at every width.
    """
    plans = _Plans(stage, graph, score)
    if keys:
        graph = plans.graph = _every_width(plans, graph, keys)
    ends = (False, True) if thorough else (True,)
    names = [group.name for group in graph.groups if group.num_units > 1]
    if all(plans.try_end(names, one=one) is None for one in ends):
        return graph
    reasons: dict[str, str] = {}
    for name in names:
        found = [problem for one in ends if (problem := plans.try_end([name], one=one)) is not None]
        if found:
            reasons[name] = f"their number steers the code ({found[0]})"
    graph = plans.graph = graph.freeze(reasons)
    names = [name for name in names if name not in reasons]
    problems = [problem for one in ends if (problem := plans.try_end(names, one=one)) is not None]
    return graph.freeze(dict.fromkeys(names, f"their numbers together steer the code ({problems[0]})")) if problems else graph


def _every_width(plans: "_Plans", graph: ChannelGraph, keys: Sequence[str]) -> ChannelGraph:
    units = {group.name: group.num_units for group in graph.groups if group.name in keys}
    reasons = {name: f"their number is used as a key, and {count} are too many to try" for name, count in units.items() if count > _LARGEST}
    for name, count in units.items():
        for kept in range(1, count):
            problem = None if name in reasons else plans.try_plan({name: np.arange(kept)})
            if problem is not None:
                reasons[name] = f"their number is used as a key ({problem})"
    return graph.freeze(reasons)


class _Plans:
    """One copy of the network whose tensors are exchanged for those of a plan, without values."""

    def __init__(self, stage: Stage, graph: ChannelGraph, score: Score) -> None:
        self.stage, self.graph, self.score = stage, graph, score
        self.sizes = np.stack(graph.cost.sizes, axis=1)[: len(graph.cost.names)]
        self.model: nn.Module | None = None

    def _take(self) -> nn.Module:
        """A copy of the network, and every place in it that holds a tensor, so that shared ones are exchanged in all of them."""
        model = self.stage.get()
        if model is not self.model:
            self.model, self.modules = model, self.stage.modules
            self.tensors = named_tensors(self.modules)
            self.dressed = np.zeros(len(self.tensors), dtype=bool)  # tensors that the plan before had cut
            name_of = {id(tensor): name for name, tensor in self.tensors}
            self.places: dict[str, list[tuple[dict[str, Any], str]]] = {}
            for module in self.modules.values():
                for holder in (module._parameters, module._buffers):
                    for key, tensor in holder.items():
                        if tensor is not None and id(tensor) in name_of:
                            self.places.setdefault(name_of[id(tensor)], []).append((holder, key))
        return model

    def try_end(self, names: Iterable[str], *, one: bool) -> str | None:
        """What differs when one unit of each of these groups is left, or all but one; None if nothing does."""
        units = {group.name: group.num_units for group in self.graph.groups}
        return self.try_plan({name: np.arange(1 if one else units[name] - 1) for name in names})

    def try_plan(self, keep: Mapping[str, np.ndarray]) -> str | None:
        """What differs under a plan."""
        model = self._take()
        self._dress(keep)
        mode = _Rehearsal(self.score, self.exchanged)
        try:
            with torch.no_grad(), self.stage.playing(), mode:
                found = [tensor.shape for tensor in tensors_in(call(model, self.score.inputs))]
            if found != list(self.score.outputs):
                return "the output changes its shape"
            return None if mode.at == len(self.score.calls) else f"no `{self.score.calls[mode.at][0]}`"
        except (_DiffersError, TimeLimitError) as error:
            return str(error)
        except Exception as error:  # the pruned network cannot run, or asks for values
            text = str(error).strip().splitlines()
            return text[0] if text else type(error).__name__
        finally:
            mode.undo_writes()

    def _dress(self, keep: Mapping[str, np.ndarray]) -> None:
        slices = Slices(self.graph, keep) if self.graph.indices else None
        cost = self.graph.cost
        sizes = np.stack(cost.left(self.graph.counts(keep)), axis=1)[: len(cost.names)]
        changed = (sizes != self.sizes).any(axis=1)
        for row, (name, tensor) in enumerate(self.tensors):
            if not (changed[row] or self.dressed[row] or slices is not None):
                continue
            result: Tensor = tensor
            if slices is not None and name in slices.renumbered:
                result = slices.cut(name, tensor.detach())
            elif changed[row]:
                shape = sizes[row, : tensor.ndim].astype(int).tolist()
                result = torch.empty(shape, dtype=tensor.dtype, device="meta")
            for holder, key in self.places.get(name, []):
                holder[key] = result
        self.dressed = changed
        self.exchanged = {id(self.tensors[row][1]) for row in np.flatnonzero(changed).tolist()}
        patch(self.modules, self.graph, keep)
