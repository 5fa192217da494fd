"""From a network and an example input to its channel graph."""

import gc
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from rlprune.cost import CostModel
from rlprune.errors import UserError
from rlprune.graph.channel_graph import ChannelGraph, Frozen, Group, IndexBuffer, Member, Width, ZeroPoint
from rlprune.graph.grouping import Grouping, group_labels
from rlprune.graph.labels import Labels, Slot, layer_of, tensors_in
from rlprune.graph.recorder import Recorder
from rlprune.graph.rehearse import Score, rehearse
from rlprune.graph.run import Stage, call, call_model, copy_inputs, evaluating, map_tensors
from rlprune.graph.shapeless import TimeLimitError
from rlprune.graph.sizes import Size
from rlprune.graph.verify import freeze_failures


def trace(
    model: nn.Module, example_inputs: Any, *, ignore: Iterable[str] = (), time_limit: float = 60.0, prove: bool | None = None
) -> ChannelGraph:
    """Find which channels of a network can only be removed together.

    The network's Python code runs once, in eval mode, and is left as it was. No arithmetic is done unless the code looks at values. Where
    the trace cannot see for itself that it is exact (values steer the code, numbers of channels are compared, compiled code), every group
    is proved on a copy in float64, and one that fails is frozen and says why.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        ignore: layers to leave alone: names, or regular expressions that match a whole name.
        time_limit: seconds of computing after which tracing gives up.
        prove: True: prove the groups of any network; False: of none, so call `verify` yourself; None: where the trace has doubts.

    Raises:
        UserError: the model cannot run on the example inputs, takes too long, or returns no tensor.
    """
    if not isinstance(model, nn.Module) or hasattr(model, "_orig_mod"):
        raise UserError(f"model: is a {type(model).__name__}; pass the torch.nn.Module itself, before torch.compile")
    if not any(True for _ in tensors_in(example_inputs)):
        raise UserError("example_inputs: hold no tensor; pass a tensor, a tuple or a dict of them")
    lazy = next((name for name, tensor in model.named_parameters() if isinstance(tensor, UninitializedParameter)), None)
    if lazy is not None:
        raise UserError(f"{lazy}: has no shape yet; run the network once, then trace it")
    with torch.inference_mode(False), _without_collection():
        return _trace(model, example_inputs, ignore, time_limit, prove)


@contextmanager
def _without_collection() -> Iterator[None]:
    """No garbage collection during the milliseconds of a trace: in a process with many objects it takes longer than the trace."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _trace(model: nn.Module, example_inputs: Any, ignore: Iterable[str], time_limit: float, prove: bool | None) -> ChannelGraph:
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    stage = None if scripted else _stage(model)
    recorder = None if stage is None else _record_symbolic(stage, example_inputs, time_limit)
    if recorder is None:
        recorder = _recorder(model, example_inputs, time_limit, symbolic=False)
        recorder.space.doubts.append("values steer the code")
        _run(model, copy_inputs(example_inputs), recorder, scripted=scripted)
    recorder.space.open = False
    _apply_ignore(recorder, ignore)
    graph = _build(recorder)
    if recorder.symbolic and stage is not None and graph.groups:
        score = Score(_without_values(example_inputs), recorder.seen, recorder.output_shapes, recorder.device, time_limit)
        graph = rehearse(stage, graph, score, thorough=recorder.widths_read, keys=_key_groups(recorder, graph))
    del stage
    if recorder.symbolic and _leaked(recorder):
        told = "the code keeps tensors outside of the network, and those made during this trace have no values: clear such caches"
        graph = replace(graph, warnings=(*graph.warnings, told))
        warnings.warn(f"{type(model).__name__}: {told}", stacklevel=4)
    return freeze_failures(model, graph, example_inputs) if prove or (prove is None and graph.doubts) else graph


def _leaked(recorder: Recorder) -> bool:
    """Whether tensors without values live on, which no copy of the network holds any more."""
    recorder.modules.clear()
    recorder.views.clear()
    recorder.stand_ins.clear()
    if all(made() is None for made in recorder.made):
        return False
    gc.collect()
    return any(made() is not None for made in recorder.made)


def _stage(model: nn.Module) -> Stage | None:
    """Where the code plays without values; None if the network cannot be copied."""
    stage = Stage(model)
    try:
        stage.get()
    except UserError:
        return None
    return stage


def _recorder(model: nn.Module, example_inputs: Any, time_limit: float, *, symbolic: bool) -> Recorder:
    tensors = list(tensors_in(example_inputs))
    first = max(tensors, key=lambda tensor: min(tensor.ndim, 2))  # a number beside the images has no batch
    return Recorder(model, first.shape[0] if first.ndim else 1, time_limit, first.device, symbolic=symbolic)


def _without_values(inputs: Any) -> Any:
    return map_tensors(inputs, lambda tensor: tensor.detach().to("meta") if tensor.is_floating_point() else tensor.clone())


def _record_symbolic(stage: Stage, example_inputs: Any, time_limit: float) -> Recorder | None:
    """A trace without values; None if the network's code looks at them."""
    model = stage.get()
    recorder = _recorder(model, example_inputs, time_limit, symbolic=True)
    try:
        with stage.playing():
            _run(model, _without_values(example_inputs), recorder, scripted=False)
    except TimeLimitError:
        raise
    except Exception:  # whatever it is: on real numbers it goes well, or is reported
        return None
    return None if recorder.failed else recorder


def _run(model: nn.Module, inputs: Any, recorder: Recorder, *, scripted: bool) -> None:
    for tensor in tensors_in(inputs):
        recorder.set(tensor, None, "the model's input")
    kept = nullcontext() if recorder.symbolic else evaluating(model)
    with kept, torch.no_grad(), recorder.beside_scripts(scripted):
        tagged = _tag_attributes(recorder)
        try:
            if recorder.symbolic:
                with recorder:
                    result = call(model, inputs)
            else:
                result = call_model(model, inputs, recorder)
        finally:
            recorder.undo_writes()
            for state, values in tagged:
                state.update(values)
        outputs = list(tensors_in(result))
        if not outputs:
            raise UserError(f"{type(model).__name__}: returns no tensor, so nothing can be compared after pruning")
        recorder.output_shapes = [output.shape for output in outputs]
        for output in outputs:
            recorder.freeze_tensor(output, "model output")


def _key_groups(recorder: Recorder, graph: ChannelGraph) -> list[str]:
    """Groups whose number of units the code looks things up by."""
    counted = [symbol.labels for symbol in recorder.space.keys if symbol.labels is not None]
    if not counted:
        return []
    components = recorder.space.components()
    classes = np.unique(np.concatenate([components[labels] for labels in counted]))
    known = recorder.space.slots.items()
    slots = {slot for slot, labels in known if not isinstance(labels, str) and np.isin(components[labels], classes).any()}
    return [group.name for group in graph.groups if any((member.tensor, member.dim) in slots for member in group.members)]


_ATTRIBUTES: tuple[tuple[type[nn.Module], tuple[tuple[str, str, int | None], ...]], ...] = (
    (nn.Linear, (("out_features", "weight", 0), ("in_features", "weight", 1))),
    (nn.modules.batchnorm._NormBase, (("num_features", "weight", 0),)),
    (nn.GroupNorm, (("num_channels", "weight", 0), ("num_groups", "", None))),
    (nn.Embedding, (("embedding_dim", "weight", 1),)),
    (nn.PReLU, (("num_parameters", "weight", 0),)),
)


def _tag_attributes(recorder: Recorder) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Let the sizes that layers keep as attributes, and that pruning changes, tell what they count; returns what they were."""
    tagged = []
    space = recorder.space
    for name, module in recorder.modules.items():
        state, prefix = module.__dict__, f"{name}." if name else ""
        if isinstance(module, nn.modules.conv._ConvNd):
            tagged.append((state, {name: state[name] for name in ("out_channels", "in_channels", "groups")}))
            out, into = (1, 0) if module.transposed else (0, 1)
            grouped = module.groups > 1
            if not grouped or not module.transposed:
                state["out_channels"] = Size.of(module.out_channels, space, slot=(f"{prefix}weight", out))
            if not grouped or module.transposed:
                state["in_channels"] = Size.of(module.in_channels, space, slot=(f"{prefix}weight", into))
            if grouped:
                state["groups"] = Size.of(module.groups, space, owner=name)
            continue
        kind: type[nn.Module]
        for kind, attributes in _ATTRIBUTES:
            if isinstance(module, kind):
                for attribute, tensor, dim in attributes:
                    value = state.get(attribute)
                    if tensor == "weight" and module._parameters.get("weight") is None:
                        tensor, dim = ("running_mean", 0) if module._buffers.get("running_mean") is not None else ("", None)
                    if type(value) is int:
                        tagged.append((state, {attribute: value}))
                        state[attribute] = Size.of(value, space, slot=None if dim is None else (prefix + tensor, dim), owner=name)
                break
    return tagged


def _apply_ignore(recorder: Recorder, ignore: Iterable[str]) -> None:
    patterns = [ignore] if isinstance(ignore, str) else list(ignore or ())
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UserError(f"ignore={pattern!r}: is a {type(pattern).__name__}; name layers, or give regular expressions")
        try:
            matching = [name for name in recorder.order if re.fullmatch(pattern, layer_of(name)) or layer_of(name) == pattern]
        except re.error as error:
            raise UserError(f"ignore={pattern}: is no regular expression ({error})") from error
        if not matching:
            raise UserError(f"ignore={pattern}: matches no layer; layers: {', '.join(layer_of(name) for name in recorder.order[:8])}, ...")
        for (name, dim), labels in list(recorder.space.slots.items()):
            if name in matching and recorder.space.roles.get((name, dim)) == "out" and not isinstance(labels, str):
                recorder.space.pin(labels, "left alone as asked (ignore)")


def _build(recorder: Recorder) -> ChannelGraph:
    space = recorder.space
    position = {name: index for index, name in enumerate(recorder.order)}
    slots = {slot: labels for slot, labels in space.slots.items() if not isinstance(labels, str)}
    for name, labels in recorder.indices.items():
        if recorder.readers.get(name) != recorder.pickers.get(name):
            space.pin(labels, f"{name} picks them and is used in other ways")
    produced = sorted((slot for slot in slots if space.roles[slot] == "out"), key=lambda slot: position[slot[0]])
    counted = [labels for product in recorder.products for labels in product.labels if labels is not None]
    found = group_labels(space, produced, [*counted, *(labels for _, _, labels in recorder.widths)])
    others = [slot for slot in slots if space.roles[slot] != "out"]
    members: list[list[Member]] = [[] for _ in found.names]
    for slot in [*produced, *others]:
        for group, units in found.entries(slots[slot]):
            members[group].append(Member(slot[0], slot[1], units, space.roles[slot]))
    told = [f"{reason}; the channels that reach it are kept" for reason in dict.fromkeys(recorder.barriers.values())]
    told += [f"{label}: its MACs are not counted" for label in dict.fromkeys(recorder.uncounted)]
    told += _unreached(recorder)
    return ChannelGraph(
        groups=tuple(Group(name, tuple(owned)) for name, owned in zip(found.names, members, strict=True)),
        frozen=_frozen(slots, produced, found) + tuple(Frozen(*lost) for lost in recorder.lost),
        cost=_cost(recorder, found, members),
        zero_points=tuple(ZeroPoint(key, channels.axis, *found.owners(channels.labels)) for key, channels in recorder.zero_points),
        warnings=tuple(told),
        grouped=recorder.grouped,
        indices=tuple(IndexBuffer(name, *found.owners(labels)) for name, labels in recorder.indices.items()),
        widths=_widths(recorder, found),
        doubts=tuple(dict.fromkeys(space.doubts)),
    )


def _widths(recorder: Recorder, found: Grouping) -> tuple[Width, ...]:
    widths = []
    for module, attribute, labels in recorder.widths:
        taken = {found.names[group]: units.shape[1] for group, units in found.entries(labels)}
        widths.append(Width(module, attribute, len(labels), taken))
    return tuple({(width.module, width.attribute): width for width in widths}.values())


def _cost(recorder: Recorder, found: Grouping, members: list[list[Member]]) -> CostModel:
    tensors = recorder.places.tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors}
    rows = {name: row for row, name in enumerate(shapes)}
    taken = {}
    for group, owned in enumerate(members):
        for member in owned:
            taken[rows[member.tensor], member.dim, group] = member.units.shape[1]
    for row, product in enumerate(recorder.products, start=len(rows)):
        for dim, labels in enumerate(product.labels):
            for group, units in [] if labels is None else found.entries(labels):
                taken[row, dim, group] = units.shape[1]
    products = [(product.sizes, product.factor) for product in recorder.products]
    parameters = {name for name, tensor in tensors if isinstance(tensor, nn.Parameter)}
    return CostModel.build(shapes, parameters, recorder.uses, products, taken, recorder.fixed_macs)


def _unreached(recorder: Recorder) -> list[str]:
    """Layers that run only in training, if at all: their inputs are not followed."""
    known = {name for name, _ in recorder.space.slots} | set(recorder.uses)
    layers = [
        name
        for name, module in recorder.modules.items()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and name not in recorder.computed and f"{name}.weight" not in known
    ]
    layers = [
        name for name in layers if "in_proj_weight" not in dict(recorder.modules[name.rpartition(".")[0]].named_parameters(recurse=False))
    ]
    return [f"{', '.join(layers[:4])}{' ...' if len(layers) > 4 else ''}: not reached in eval mode, so not followed"] if layers else []


def _frozen(slots: dict[Slot, Labels], produced: list[Slot], found: Grouping) -> tuple[Frozen, ...]:
    kept = ((slot, found.reason(slots[slot])) for slot in produced)
    return tuple(Frozen(layer_of(slot[0]), *why) for slot, why in kept if why is not None)
