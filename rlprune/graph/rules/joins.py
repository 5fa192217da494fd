"""Operations that join, cut and pick entries of an axis."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlprune.graph.labels import Channels, Labels
from rlprune.graph.rules.base import Rule, boundary, following, lost_axis, unite_columns, unite_rows, unite_shares, without_channels
from rlprune.graph.sizes import Size, sizes_in

if TYPE_CHECKING:
    from rlprune.graph.calls import Call
    from rlprune.graph.recorder import Recorder

SIZED = frozenset("getitem setitem split split_with_sizes tensor_split narrow select chunk roll".split())
MAY_ZERO = frozenset("cat concat concatenate stack hstack vstack dstack setitem".split())


def cat(recorder: "Recorder", call: "Call") -> None:
    """cat, stack and the like: along the channels their labels line up, along another axis they are united."""
    parts = [part for part in call.argument("tensors", 0) if part.shape != (0,)]  # torch.cat skips those
    stacked = call.name == "stack"
    fixed_axis = {"hstack": 1, "vstack": 0, "dstack": 2}.get(call.name)
    axis = call.argument("dim", 1, 0) % call.output.ndim if fixed_axis is None else fixed_axis
    found = [recorder.channels(part) for part in parts]
    known = next((c for p, c in zip(parts, found, strict=True) if c is not None and recorder.parameter_name(p) is None), None)
    known = known or next((channels for channels in found if channels is not None), None)
    if known is None:
        for part in parts:
            recorder.hold(part, f"it is joined in {call.label}")
        recorder.set(call.output, None, recorder.why_fixed(*parts))
        return
    if any(part.ndim <= axis and not stacked for part in parts) or any(c is not None and c.axis != known.axis for c in found):
        recorder.barrier(call, f"{call.label} joins channels on different axes")
        return
    clean = all(channels is not None and channels.clean for channels in found)
    constants = [channels is None or channels.constant for channels in found]
    if axis == known.axis and not stacked:
        result = Channels(axis, _line_up(recorder, call, parts, found, axis), clean, all(constants))
    else:
        for part, channels in zip(parts, found, strict=True):
            _pair(recorder, call, part, channels, known)
        result = Channels(known.axis + (stacked and known.axis >= axis), known.labels, clean, all(constants))
    recorder.set(call.output, result)
    if any(constants) and not all(constants):
        recorder.zero_behind(call, result)


def _line_up(recorder: "Recorder", call: "Call", parts: list[Tensor], found: list[Channels | None], axis: int) -> Labels:
    labels = []
    for part, channels in zip(parts, found, strict=True):
        if channels is None:
            recorder.hold(part, f"it is joined with channels in {call.label}")
            fixed = recorder.space.fresh(part.shape[axis])
            recorder.space.pin(fixed, f"{recorder.why_fixed(part)} in {call.label}")
            labels.append(fixed)
        else:
            labels.append(channels.labels)
    return np.concatenate(labels)


def _pair(recorder: "Recorder", call: "Call", part: Tensor, channels: Channels | None, known: Channels) -> None:
    """A part whose channels lie beside others: entry i of both goes together."""
    if channels is not None:
        recorder.space.unite(known.labels, channels.labels)
        return
    view = recorder.parameter_view(part)
    if view is not None and part.ndim > known.axis:
        recorder.space.bind((view[0], view[1][known.axis]), known.labels, "raw")
    else:
        recorder.space.pin(known.labels, f"shared with {recorder.why_fixed(part)} in {call.label}")


@following
def split(recorder: "Recorder", call: "Call", source: Tensor, channels: Channels) -> None:
    """chunk, split and tensor_split: equal parts stay equal, parts of a computed size follow it, literal ones stay."""
    axis = call.argument("dim", 2, 0) % source.ndim
    outputs = call.outputs
    if axis != channels.axis:
        for size in sizes_in(call.args[1:]):
            size.escape(f"their number enters {call.label}")
        for output in outputs:
            recorder.set(output, channels)
        return
    wanted = call.argument({"chunk": "chunks", "tensor_split": "indices_or_sections"}.get(call.name, "split_size_or_sections"), 1)
    if isinstance(wanted, Tensor):
        recorder.barrier(call, f"no channel rule for this use of {call.label}")
        return
    labels, lengths = channels.labels, [output.shape[axis] for output in outputs]
    equal = len(set(lengths)) == 1
    if call.name in ("chunk", "tensor_split") and isinstance(wanted, int):
        for size in sizes_in([wanted]):
            size.escape(f"their number enters {call.label}")
        if not equal or len(outputs) != int.__index__(wanted):
            recorder.barrier(call, f"{call.label} makes unequal parts")
            return
        unite_rows(recorder, labels.reshape(len(outputs), -1))
    elif call.name == "tensor_split":
        for position in wanted:
            boundary(recorder, call, position, labels)
    else:
        _sections(recorder, call, wanted, labels, lengths)
    start = 0
    for output, length in zip(outputs, lengths, strict=True):
        recorder.set(output, channels._replace(labels=labels[start : start + length].copy()))
        start += length


def _sections(recorder: "Recorder", call: "Call", wanted: Any, labels: Labels, lengths: list[int]) -> None:
    sizes = [wanted] * len(lengths) if isinstance(wanted, int) else list(wanted)
    if len(lengths) == 1 and isinstance(wanted, int) and not isinstance(wanted, Size):
        return  # one part of at most so many
    start = 0
    for size, length in zip(sizes, lengths, strict=True):
        unite_shares(recorder, size, labels)
        recorder.space.fit(size, labels[start : start + length], call.label)
        start += length


def glu(recorder: "Recorder", call: "Call") -> None:
    """Gated linear unit: one half scales the other, so that they stay equal."""
    source = call.args[0]
    channels = recorder.channels(source)
    if channels is None or call.argument("dim", 1, -1) % source.ndim != channels.axis:
        if channels is None:
            without_channels(recorder, call, source)
        else:
            recorder.set(call.output, channels)
        return
    halves = channels.labels.reshape(2, -1)
    unite_rows(recorder, halves)
    recorder.set(call.output, channels._replace(labels=halves[0].copy()))


@following
def getitem(recorder: "Recorder", call: "Call", source: Tensor, channels: Channels) -> None:
    """Indexing with slices, numbers, None, Ellipsis and constant indices."""
    found = _pick(recorder, call, source, channels, call.args[1])
    if found is not None:
        recorder.set(call.output, found)


def _pick(recorder: "Recorder", call: "Call", source: Tensor, channels: Channels, index: Any) -> Channels | None:
    """Channels of `source[index]`; None if they had to be kept."""
    parts = [_plain_index(part) for part in (index if isinstance(index, tuple) else [index])]
    used = sum(part is not None and part is not Ellipsis and not isinstance(part, bool) for part in parts)
    if any(_is_mask(part) for part in parts):
        recorder.barrier(call, f"{call.label} picks by a mask")
        return None
    where = next((i for i, part in enumerate(parts) if part is Ellipsis), None)
    if where is None:
        parts, where = [*parts, Ellipsis], len(parts)
    parts[where : where + 1] = [slice(None)] * (source.ndim - used)
    advanced = [part for part in parts if isinstance(part, Tensor | list | np.ndarray)]
    if len(advanced) > 1:
        recorder.barrier(call, f"no channel rule for several index tensors in {call.label}")
        return None
    # Axis of the result by axis of the source; a number takes its axis away, None adds one.
    old = new = 0
    result_axis, labels = None, channels.labels
    for part in parts:
        if part is None:
            new += 1
            continue
        here = old == channels.axis
        old += 1
        if not here:
            for size in sizes_in(part):
                size.escape(f"their number enters {call.label}")
        if isinstance(part, slice):
            if here:
                result_axis, labels = new, _cut(recorder, call, part, labels)
            new += 1
        elif isinstance(part, int):
            if here:
                boundary(recorder, call, part + 1 if part >= 0 else part, labels)
                lost_axis(recorder, call, channels._replace(labels=labels[part : part + 1 or None]), f"{call.label} takes a single channel")
                return None
        else:
            picked = select(recorder, call, part, labels) if here else labels
            if picked is None:
                return None
            if here:
                result_axis, labels = new, picked
            new += part.ndim if isinstance(part, Tensor) else 1
    assert result_axis is not None
    return channels._replace(axis=result_axis, labels=labels)


def _plain_index(part: Any) -> Any:
    """Numpy's whole numbers are numbers like others."""
    if isinstance(part, np.integer):
        return int(part)
    if isinstance(part, slice) and any(isinstance(end, np.integer) for end in (part.start, part.stop, part.step)):
        return slice(*(int(end) if isinstance(end, np.integer) else end for end in (part.start, part.stop, part.step)))
    return part


def _is_mask(part: Any) -> bool:
    if isinstance(part, list):
        return any(isinstance(item, bool | list) for item in part)
    return isinstance(part, bool) or (isinstance(part, Tensor | np.ndarray) and part.dtype in (torch.bool, torch.uint8, np.bool_))


def _cut(recorder: "Recorder", call: "Call", part: slice, labels: Labels) -> Labels:
    if _every(part, labels):
        unite_columns(recorder, labels.reshape(-1, part.step))  # a step stays a step if neighbours go together
        return labels[part.start :: part.step].copy()
    start = boundary(recorder, call, part.start, labels)
    stop = len(labels) if part.stop is None else boundary(recorder, call, part.stop, labels)
    region = labels[start:stop]
    step = 1 if part.step is None else part.step
    if int.__index__(step) == 1:
        return region.copy() if len(region) < len(labels) else labels
    if isinstance(step, Size):
        step.escape(f"their number enters {call.label}")
    step = int.__index__(step)
    if len(region) % step:
        recorder.space.pin(region, f"{call.label} takes every {step}th of {len(region)} channels")
    else:
        unite_columns(recorder, region.reshape(-1, step))  # a step stays a step if neighbours go together
    return region[::step].copy()


def _every(part: slice, labels: Labels) -> bool:
    """Whether this is every so manieth entry to the end, such as `1::2`."""
    numbers = [0 if part.start is None else part.start, 1 if part.step is None else part.step]
    if part.stop is not None or sizes_in(numbers) or numbers[1] == 1:
        return False
    return 0 <= numbers[0] < numbers[1] and len(labels) % numbers[1] == 0


def select(recorder: "Recorder", call: "Call", index: Any, labels: Labels) -> Labels | None:
    """Labels picked by an index of one axis: a buffer of the network is renumbered with its channels, other constants keep theirs."""
    name = recorder.parameter_name(index) if isinstance(index, Tensor) else None
    if isinstance(index, Tensor) and (index.ndim != 1 or _computed(recorder, index, name)):
        recorder.barrier(call, f"no channel rule for computed indices in {call.label}")
        return None
    values = np.asarray(index.cpu() if isinstance(index, Tensor) else index, dtype=np.int64)
    if len(values) == 0:
        recorder.barrier(call, f"{call.label} picks nothing")
        return None
    picked = labels[values]
    if name is None or (values < 0).any():
        recorder.space.pin(labels[: int((values % len(labels)).max()) + 1], f"{call.label} picks them by number")
        return picked
    recorder.pickers[name] = recorder.pickers.get(name, 0) + 1
    known = recorder.indices.setdefault(name, labels)
    recorder.space.unite(known, labels)
    recorder.space.bind((name, 0), picked, "index")
    return picked


def _computed(recorder: "Recorder", index: Tensor, name: str | None) -> bool:
    """Whether other data may give other indices; a trace without values computes constants only."""
    return index.is_meta or (name is None and not recorder.symbolic and recorder.note(index) is not None)


def index_select(recorder: "Recorder", call: "Call") -> None:
    """Entries of one axis by constant indices."""
    source, axis, index = call.args[0], call.argument("dim", 1), call.argument("index", 2)
    channels = recorder.channels(source)
    if channels is None:
        without_channels(recorder, call, source)
        return
    if axis % source.ndim != channels.axis:
        recorder.set(call.output, channels)
        return
    picked = select(recorder, call, index, channels.labels)
    if picked is not None:
        recorder.set(call.output, channels._replace(labels=picked))


def setitem(recorder: "Recorder", call: "Call") -> None:
    """Writing into a part of a tensor: what is written goes together with what it replaces."""
    target, index, value = call.args[:3]
    channels = recorder.channels(target)
    for size in sizes_in([value]):
        size.escape(f"their number enters {call.label}")
    written = recorder.channels(value) if isinstance(value, Tensor) else None
    if channels is None:
        if written is not None:
            recorder.space.pin(written.labels, f"shared with {recorder.why_fixed(target)} in {call.label}")
        if isinstance(value, Tensor):
            recorder.hold(value, f"it is written by {call.label}")
        for size in sizes_in(index):
            size.escape(f"their number enters {call.label}")
        recorder.set(target, None, recorder.why_fixed(target))
        return
    part = _pick(recorder, call, target, channels, index)
    if part is not None and isinstance(value, Tensor) and value.ndim:
        _write(recorder, call, target, index, value, part, written)
    recorder.set(target, channels._replace(clean=False))
    recorder.zero_behind(call, channels._replace(constant=False))


def _write(recorder: "Recorder", call: "Call", target: Tensor, index: Any, value: Tensor, part: Channels, written: Channels | None) -> None:
    ndim = target[index].ndim
    offset = part.axis - ndim
    if written is not None and written.axis - value.ndim == offset and len(written.labels) == len(part.labels):
        recorder.space.unite(written.labels, part.labels)
        return
    if written is not None:
        recorder.space.pin(written.labels, f"{call.label} writes them along another axis")
    recorder.hold(value, f"it is written by {call.label}")
    if value.ndim >= -offset and value.shape[offset] > 1:
        recorder.space.pin(part.labels, f"shared with {recorder.why_fixed(value)} in {call.label}")


def narrow(recorder: "Recorder", call: "Call") -> None:
    """A run of entries along one axis."""
    source, axis, start, length = call.args[0], call.argument("dim", 1), call.argument("start", 2), call.argument("length", 3)
    channels = recorder.channels(source)
    if channels is None or isinstance(start, Tensor):
        without_channels(recorder, call, source)
        return
    if axis % source.ndim != channels.axis:
        for size in sizes_in((start, length)):
            size.escape(f"their number enters {call.label}")
        recorder.set(call.output, channels)
        return
    recorder.set(call.output, channels._replace(labels=_cut(recorder, call, slice(start, start + length), channels.labels)))


@following
def take_one(recorder: "Recorder", call: "Call", source: Tensor, channels: Channels) -> None:
    """Select and unbind: one axis goes."""
    axis = call.argument("dim", 1, 0) % source.ndim
    if axis != channels.axis:
        for size in sizes_in((call.args, call.kwargs)):
            size.escape(f"their number enters {call.label}")
        for output in call.outputs:
            recorder.set(output, channels._replace(axis=channels.axis - (axis < channels.axis)))
        return
    if call.name == "select":
        position = call.argument("index", 2)
        boundary(recorder, call, position + 1 if position >= 0 else position, channels.labels)
        channels = channels._replace(labels=channels.labels[position : position + 1 or None])
    lost_axis(recorder, call, channels, f"{call.label} takes single channels")


def roll(recorder: "Recorder", call: "Call") -> None:
    """Entries that leave at one end come back at the other: as if the end were cut and put before the rest."""
    source, shifts, dims = call.args[0], call.argument("shifts", 1), call.argument("dims", 2)
    channels = recorder.channels(source)
    if channels is None:
        without_channels(recorder, call, source)
        return
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    dims = [dims] if isinstance(dims, int) else list(dims or [])
    if not dims:
        recorder.barrier(call, f"{call.label} rolls all axes as one")
        return
    labels = channels.labels
    for shift, dim in zip(shifts, dims, strict=True):
        if dim % source.ndim != channels.axis:
            for size in sizes_in([shift]):
                size.escape(f"their number enters {call.label}")
            continue
        if isinstance(shift, Size):
            unite_shares(recorder, shift, labels)
            recorder.space.fit(shift, labels[len(labels) - int.__index__(shift) :], call.label)
        elif abs(shift) >= len(labels):
            recorder.space.pin(labels, f"{call.label} goes round by a number that is written into the code")
        else:
            boundary(recorder, call, -(shift % -len(labels) if shift < 0 else shift % len(labels)) or None, labels)
        labels = np.roll(labels, int.__index__(shift))
    recorder.set(call.output, channels._replace(labels=labels))


TABLE: dict[str, Rule] = {
    **dict.fromkeys(("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"), cat),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), split),
    "getitem": getitem,
    "setitem": setitem,
    "index_select": index_select,
    "narrow": narrow,
    **dict.fromkeys(("select", "unbind"), take_one),
    "roll": roll,
    "glu": glu,
}
