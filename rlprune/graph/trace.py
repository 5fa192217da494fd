"""From a network and an example input to its channel graph."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlprune.cost import CostModel
from rlprune.errors import UserError
from rlprune.graph.channel_graph import ChannelGraph, Frozen, Group, Member, ZeroPoint
from rlprune.graph.labels import tensors_in
from rlprune.graph.recorder import Recorder
from rlprune.graph.run import call_model, copy_inputs, evaluating
from rlprune.graph.verify import freeze_failures

_NORM_STATISTICS = ("running_mean", "running_var")


def trace(
    model: nn.Module, example_inputs: Any, *, ignore: Iterable[str] = (), time_limit: float = 60.0, prove: bool = True
) -> ChannelGraph:
    """Find which channels of a network can only be removed together.

    The network runs once, in eval mode and without gradients, and is left as it was. What one pass cannot show (a size written into the
    code, a width that enters its arithmetic, operations hidden in compiled code) shows when units are removed: every group is then proved
    on a copy in float64, and one that fails is frozen and says why.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; two examples show more than one.
        ignore: layers to leave alone: names, or regular expressions that match a whole name.
        time_limit: seconds after which tracing gives up.
        prove: whether to prove the groups; without it, call `verify` before you trust a plan.

    Raises:
        UserError: the model cannot run on the example inputs, takes too long, or returns no tensor.
    """
    if not isinstance(model, nn.Module) or hasattr(model, "_orig_mod"):
        raise UserError(f"model: is a {type(model).__name__}; pass the torch.nn.Module itself, before torch.compile")
    inputs = copy_inputs(example_inputs)
    first = next(iter(tensors_in(inputs)), None)
    if first is None:
        raise UserError("example_inputs: hold no tensor; pass a tensor, a tuple or a dict of them")
    recorder = Recorder(model, batch_size=first.shape[0] if first.ndim else 1, time_limit=time_limit)
    for tensor in tensors_in(inputs):
        recorder.set(tensor, None, "the model's input")
    with evaluating(model), torch.no_grad(), recorder.following_modules():
        result = call_model(model, inputs, recorder)
    outputs = list(tensors_in(result))
    if not outputs:
        raise UserError(f"{type(model).__name__}: returns no tensor, so nothing can be compared after pruning")
    for output in outputs:
        recorder.freeze_tensor(output, "model output")
    _apply_ignore(recorder, ignore)
    graph = _build(model, recorder)
    return freeze_failures(model, graph, example_inputs) if prove else graph


def _apply_ignore(recorder: Recorder, ignore: Iterable[str]) -> None:
    for pattern in [ignore] if isinstance(ignore, str) else ignore:
        try:
            matching = [name for name in recorder.order if re.fullmatch(pattern, _layer(name)) or _layer(name) == pattern]
        except re.error as error:
            raise UserError(f"ignore={pattern}: is no regular expression ({error})") from error
        if not matching:
            raise UserError(f"ignore={pattern}: matches no layer; layers: {', '.join(_layer(name) for name in recorder.order[:8])}, ...")
        for (name, dim), labels in list(recorder.space.slots.items()):
            if name in matching and recorder.space.roles.get((name, dim)) == "out" and isinstance(labels, Tensor):
                recorder.space.pin(labels, "left alone as asked (ignore)")


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def _build(model: nn.Module, recorder: Recorder) -> ChannelGraph:
    space = recorder.space
    components = space.components()
    reasons = space.reasons(components)
    slots = {slot: components[labels.numpy()] for slot, labels in space.slots.items() if isinstance(labels, Tensor)}
    signature = _signatures(slots, int(components.max(initial=-1)) + 1)
    produced = [slot for slot in slots if space.roles[slot] == "out"]
    produced.sort(key=lambda slot: recorder.order.index(slot[0]))
    group_of, unit_of, names = _number_units(slots, produced, signature, reasons)
    members: list[list[Member]] = [[] for _ in names]
    for slot in [*produced, *(slot for slot in slots if slot not in set(produced))]:
        for group, units in _units(slots[slot], group_of, unit_of):
            members[group].append(Member(slot[0], slot[1], units, space.roles[slot]))
    groups = tuple(Group(name, tuple(owned)) for name, owned in zip(names, members, strict=True))
    taken = {(m.tensor, m.dim, index): m.units.shape[1] for index, group in enumerate(groups) for m in group.members}
    parameters = {name for name, _ in model.named_parameters()}
    shapes = {name: tuple(tensor.shape) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    cost = CostModel.build(shapes, parameters, recorder.uses, taken, len(groups), recorder.fixed_macs)
    points = tuple(
        ZeroPoint(number, channels.axis, group_of[components[channels.labels.numpy()]], unit_of[components[channels.labels.numpy()]])
        for number, channels in recorder.zero_points
    )
    warnings = [f"{reason}; the channels that reach it are kept" for reason in dict.fromkeys(recorder.barriers.values())]
    warnings += [f"{label}: its MACs are not counted" for label in dict.fromkeys(recorder.uncounted)]
    frozen = _frozen(slots, produced, reasons, group_of) + tuple(Frozen(*lost) for lost in recorder.lost)
    warnings += _unreached(model, recorder)
    return ChannelGraph(groups, frozen, cost, points, tuple(warnings), recorder.depthwise, recorder.grouped)


def _unreached(model: nn.Module, recorder: Recorder) -> list[str]:
    """Layers that run only in training, if at all: their inputs are not followed."""
    known = {name for name, _ in recorder.space.slots} | set(recorder.uses)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and name not in recorder.visited and f"{name}.weight" not in known
    ]
    return [f"{', '.join(layers[:4])}{' ...' if len(layers) > 4 else ''}: not reached in eval mode, so not followed"] if layers else []


def _signatures(slots: dict[tuple[str, int], np.ndarray], num_components: int) -> np.ndarray:
    """A number for every class that tells which slots it has entries in, and how many: equal for units of one group."""
    keys = np.random.default_rng(0).integers(1, 2**63, size=len(slots), dtype=np.uint64)
    signature = np.zeros(num_components, dtype=np.uint64)
    for key, owners in zip(keys, slots.values(), strict=True):
        present, counts = np.unique(owners, return_counts=True)
        signature[present] += key * counts.astype(np.uint64)
    return signature


def _number_units(
    slots: dict[tuple[str, int], np.ndarray], produced: Sequence[tuple[str, int]], signature: np.ndarray, reasons: dict[int, str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Group and unit of every class (-1: kept), and the groups' names, in network order."""
    group_of = np.full(len(signature), -1)
    unit_of = np.full(len(signature), -1)
    names: list[str] = []
    sizes: list[int] = []
    index_of: dict[int, int] = {}
    for slot in produced:
        for component in slots[slot].tolist():
            if component in reasons or group_of[component] >= 0:
                continue
            key = int(signature[component])
            if key not in index_of:
                index_of[key] = len(names)
                base = _layer(slot[0])
                count = sum(name == base or name.startswith(f"{base}#") for name in names)
                names.append(base if count == 0 else f"{base}#{count + 1}")
                sizes.append(0)
            group = index_of[key]
            group_of[component], unit_of[component] = group, sizes[group]
            sizes[group] += 1
    return group_of, unit_of, names


def _units(owners: np.ndarray, group_of: np.ndarray, unit_of: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """What every group owns along one slot: (group, indices of shape (unit, entries))."""
    groups, units = group_of[owners], unit_of[owners]
    found = []
    for group in np.unique(groups[groups >= 0]).tolist():
        entries = np.flatnonzero(groups == group)
        entries = entries[np.argsort(units[entries], kind="stable")]
        found.append((group, entries.reshape(int(units[entries].max()) + 1, -1)))
    return found


def _frozen(
    slots: dict[tuple[str, int], np.ndarray], produced: Sequence[tuple[str, int]], reasons: dict[int, str], group_of: np.ndarray
) -> tuple[Frozen, ...]:
    frozen = []
    for slot in produced:
        kept = [component for component in slots[slot].tolist() if group_of[component] < 0]
        if kept:
            frozen.append(Frozen(_layer(slot[0]), reasons[kept[0]], len(kept)))
    return tuple(frozen)
