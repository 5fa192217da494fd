"""Operations that move, split and merge axes without touching values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from rlprune.graph.labels import Channels, Labels
from rlprune.graph.rules.base import Rule, followed, following, marker, unite_columns, unite_rows, without_channels
from rlprune.graph.sizes import Size, sizes_in

if TYPE_CHECKING:
    from rlprune.graph.calls import Call
    from rlprune.graph.recorder import Recorder

SIZED = frozenset("view reshape flatten unflatten expand broadcast_to repeat tile view_as reshape_as pad".split())
MAY_ZERO = frozenset("expand broadcast_to repeat tile pad".split())
_AUTOMATIC = -1
_LARGEST = 1 << 24  # entries; a longer axis of labels is not worth its memory


def reshape(recorder: "Recorder", call: "Call") -> None:
    """view, reshape, flatten, unflatten: the channel axis may merge, move, or split."""
    source, output = call.tensors[0], call.output
    channels = recorder.channels(source)
    if channels is None:
        without_channels(recorder, call, source)
        return
    if call.in_place or output.dtype != source.dtype:
        recorder.barrier(call, f"no channel rule for this use of {call.label}")
        return
    old, new = tuple(source.shape), tuple(output.shape)
    wanted = _wanted(recorder, call, new)
    block = find_block(old, new, channels.axis)
    if block is None or wanted is None:
        recorder.barrier(call, f"{call.label} loses track of channels")
        return
    first, last, start, stop = block
    for size in sizes_in([wanted[:start], wanted[stop:]]):
        size.escape(f"{call.label} uses their number for another axis")
    labels = _reshape_block(recorder, call, channels, old[first:last], channels.axis - first, new[start:stop], wanted[start:stop])
    if labels is None:
        return
    axis, merged = labels
    recorder.set(output, channels._replace(axis=start + axis, labels=merged))


def _wanted(recorder: "Recorder", call: "Call", new: tuple[int, ...]) -> list[Any] | None:
    """What the code asks for along every axis of the result: a number, a size it computed, or -1."""
    if call.name in ("flatten", "ravel"):
        return [_AUTOMATIC] * len(new)
    if call.name in ("view_as", "reshape_as"):
        other = call.args[1]
        channels = recorder.channels(other)
        sizes: list[Any] = list(other.shape)
        if channels is not None:
            sizes[channels.axis] = Size.of(sizes[channels.axis], recorder.space, channels.labels)
        return sizes
    if call.name == "unflatten":
        sizes = list(call.argument("sizes", 2))
        axis = call.argument("dim", 1) % (len(new) - len(sizes) + 1)
        return [_AUTOMATIC] * axis + sizes + [_AUTOMATIC] * (len(new) - axis - len(sizes))
    sizes = call.dims(1, "size" if "size" in call.kwargs else "shape")
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return sizes if len(sizes) == len(new) else None


def find_block(old: Sequence[int], new: Sequence[int], axis: int) -> tuple[int, int, int, int] | None:
    """The axes of shape `old` around `axis` (first, last) that become axes (start, stop) of shape `new`, as few as possible."""
    if old[axis] == 1:
        return None
    i = j = 0
    while i < len(old) and j < len(new):
        left, right, first, start = old[i], new[j], i, j
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                if i == len(old):
                    return None
                left, i = left * old[i], i + 1
            else:
                if j == len(new):
                    return None
                right, j = right * new[j], j + 1
        if first <= axis < i:
            return first, i, start, j
    return None


def _reshape_block(
    recorder: "Recorder", call: "Call", channels: Channels, old: tuple[int, ...], axis: int, new: tuple[int, ...], wanted: list[Any]
) -> tuple[int, Labels] | None:
    """The axis of `new` that carries the channels, and its labels; None after a barrier."""
    wide = [index for index, size in enumerate(new) if size != 1]
    if len(old) == 1 and len(wide) == 1:
        _fit(recorder, call, wanted, wide[0], channels.labels)
        return wide[0], channels.labels
    if int(np.prod(old)) > _LARGEST:
        recorder.barrier(call, f"{call.label} makes an axis of {int(np.prod(old))} entries")
        return None
    shape = [1] * len(old)
    shape[axis] = -1
    entries = np.broadcast_to(channels.labels.reshape(shape), old).reshape(new)
    varying = [index for index in wide if not (entries == entries.take([0], axis=index)).all()]
    target = _target(wide, varying, wanted)
    if target is None:
        recorder.barrier(call, f"{call.label} splits channels into sizes that are written into the code")
        return None
    rows = np.moveaxis(entries, target, -1).reshape(-1, new[target])
    if varying != [target]:
        unite_rows(recorder, rows)
    labels = np.ascontiguousarray(rows[0])
    _fit(recorder, call, wanted, target, labels)
    return target, labels


def _target(wide: list[int], varying: list[int], wanted: list[Any]) -> int | None:
    """Along which of the new axes channels can go: the one whose size follows theirs."""
    if len(wide) == 1:
        return wide[0]
    if len(varying) == 1:
        return varying[0]
    sized = [index for index in wide if isinstance(wanted[index], Size)]
    if sized:
        return sized[0] if len(sized) == 1 else None
    automatic = [index for index in wide if wanted[index] == _AUTOMATIC]
    return automatic[0] if len(automatic) == 1 else None


def _fit(recorder: "Recorder", call: "Call", wanted: list[Any], target: int, labels: Labels) -> None:
    for index, size in enumerate(wanted):
        if index == target and (isinstance(size, Size) or size != _AUTOMATIC):
            recorder.space.fit(size, labels, call.label)
        elif index != target and isinstance(size, Size):
            size.escape(f"{call.label} uses their number for another axis")


def move(recorder: "Recorder", call: "Call") -> None:
    """Permutations of axes, and axes of size one that come and go: executed on a marker."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    view = recorder.parameter_view(source)
    if view is not None and channels is None and not call.in_place:
        _move_parameter(recorder, call, source, *view)
        return
    if channels is None:
        without_channels(recorder, call, source)
        return
    axis = None
    if not call.in_place and len(channels.labels) > 1:
        axis = followed(call.again(marker(source.shape, channels.axis)))
    if axis is None:
        recorder.barrier(call, f"no channel rule for this use of {call.label}")
        return
    recorder.set(call.output, channels._replace(axis=axis))


def _move_parameter(recorder: "Recorder", call: "Call", source: Tensor, name: str, dims: tuple[int, ...]) -> None:
    """A transposed parameter is still that parameter, with its dimensions elsewhere."""
    found = []
    for axis in range(source.ndim):
        moved = followed(call.again(marker(source.shape, axis))) if source.shape[axis] > 1 else None
        found.append((moved, dims[axis]))
    order = [dict(found).get(axis, -1) for axis in range(call.output.ndim)]
    if -1 in order:  # an axis of size one
        without_channels(recorder, call, source)
        return
    recorder.views[id(call.output)] = (call.output, name, tuple(order))
    recorder.set(call.output, None, f"the parameter {name}")


def expand(recorder: "Recorder", call: "Call") -> None:
    """Axes of size one spread out: where as many as there are channels, they follow those."""
    source, output = call.tensors[0], call.output
    channels = recorder.channels(source)
    wanted = call.dims(1, "size")
    wanted = [wanted] if isinstance(wanted, int) else list(wanted)
    lead = output.ndim - source.ndim
    if channels is not None and len(channels.labels) > 1:
        axis = channels.axis + lead
        _fit(recorder, call, wanted, axis, channels.labels)
        recorder.set(output, channels._replace(axis=axis))
        return
    if channels is not None:
        recorder.space.pin(channels.labels, f"a single channel is spread by {call.label}")
    recorder.hold(source, f"{call.label} spreads it")
    sized = [axis for axis, size in enumerate(wanted) if isinstance(size, Size)]
    grown = [axis for axis in sized if axis < lead or source.shape[axis - lead] == 1]
    if len(sized) == 1 and grown:
        labels = recorder.space.fresh(output.shape[sized[0]])
        recorder.space.follow(wanted[sized[0]], labels, call.label)
        result = Channels(sized[0], labels, clean=False)
        recorder.set(output, result)
        recorder.zero_behind(call, result)
        return
    for size in sizes_in(wanted):
        size.escape(f"their number enters {call.label}")
    recorder.set(output, None, recorder.why_fixed(source))


def repeat(recorder: "Recorder", call: "Call") -> None:
    """Repeat and tile: the channels come several times, or along more axes."""
    source, output = call.tensors[0], call.output
    times = call.dims(1, "repeats" if call.name == "repeat" else "dims")
    times = [times] if isinstance(times, int) else list(times)
    times = [1] * (output.ndim - len(times)) + times
    channels = recorder.channels(source)
    if channels is None or len(channels.labels) == 1:
        expand_like = [size for size in times if isinstance(size, Size)]
        if channels is None and not expand_like:
            without_channels(recorder, call, source)
            return
        _repeat_single(recorder, call, source, channels, times)
        return
    axis = channels.axis + output.ndim - source.ndim
    for size in sizes_in(times):
        size.escape(f"their number enters {call.label}")
    labels = np.tile(channels.labels, int.__index__(times[axis]))
    recorder.set(output, channels._replace(axis=axis, labels=labels))


def _repeat_single(recorder: "Recorder", call: "Call", source: Tensor, channels: Channels | None, times: list[Any]) -> None:
    if channels is not None:
        recorder.space.pin(channels.labels, f"a single channel is spread by {call.label}")
    lead = call.output.ndim - source.ndim
    sized = [axis for axis, size in enumerate(times) if isinstance(size, Size)]
    if len(sized) == 1 and (sized[0] < lead or source.shape[sized[0] - lead] == 1):
        labels = recorder.space.fresh(call.output.shape[sized[0]])
        recorder.space.follow(times[sized[0]], labels, call.label)
        result = Channels(sized[0], labels, clean=False)
        recorder.set(call.output, result)
        recorder.zero_behind(call, result)
        return
    without_channels(recorder, call, source)


@following
def flip(recorder: "Recorder", call: "Call", source: Tensor, channels: Channels) -> None:
    """Reversed axes."""
    dims = call.dims(1, "dims") if call.name == "flip" else {"fliplr": 1, "flipud": 0}[call.name]
    axes = {dim % source.ndim for dim in ([dims] if isinstance(dims, int) else dims)}
    labels = channels.labels[::-1].copy() if channels.axis in axes else channels.labels
    recorder.set(call.output, channels._replace(labels=labels))


def pad(recorder: "Recorder", call: "Call") -> None:
    """Padding: new channels have one value each and are kept, as their number is written into the code."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    widths = call.argument("pad", 1)
    if channels is None:
        without_channels(recorder, call, source)
        return
    position = source.ndim - 1 - channels.axis  # F.pad counts axes from the last
    before, after = (widths[2 * position], widths[2 * position + 1]) if 2 * position + 1 < len(widths) else (0, 0)
    for index, size in enumerate(widths):
        if isinstance(size, Size) and index // 2 != position:
            size.escape(f"their number enters {call.label}")
    labels = channels.labels
    if int.__index__(before) or int.__index__(after):
        if call.argument("mode", 2, "constant") != "constant" or min(int.__index__(before), int.__index__(after)) < 0:
            recorder.barrier(call, f"{call.label} mirrors or cuts channels")
            return
        ends = [recorder.space.fresh(int.__index__(before)), recorder.space.fresh(int.__index__(after))]
        for size, end in zip((before, after), ends, strict=True):
            recorder.space.pin(end, f"{call.label} adds a fixed number of channels")
            if isinstance(size, Size):
                recorder.space.fit(size, end, call.label)
        labels = np.concatenate([ends[0], labels, ends[1]])
    value = call.argument("value", 3, None)
    for size in sizes_in([value]):
        size.escape(f"their number enters {call.label}")
    channels = channels._replace(labels=labels, clean=channels.clean and not value)
    recorder.set(call.output, channels)
    if value or len(labels) > source.shape[channels.axis]:
        recorder.zero_behind(call, channels)


def pixel_shuffle(recorder: "Recorder", call: "Call") -> None:
    """r² channels become one with r × r times the pixels: they go together."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    if channels is None or channels.axis != source.ndim - 3:
        _moved_badly(recorder, call, source, channels)
        return
    labels = unite_columns(recorder, channels.labels.reshape(call.output.shape[-3], -1))
    recorder.set(call.output, channels._replace(labels=labels))


def pixel_unshuffle(recorder: "Recorder", call: "Call") -> None:
    """One channel becomes r² channels."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    if channels is None or channels.axis != source.ndim - 3:
        _moved_badly(recorder, call, source, channels)
        return
    labels = np.repeat(channels.labels, call.output.shape[-3] // source.shape[-3])
    recorder.set(call.output, channels._replace(labels=labels))


def channel_shuffle(recorder: "Recorder", call: "Call") -> None:
    """Channels of several groups interleave: the same positions of every group go together."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    groups = call.argument("groups", 1)
    if channels is None or channels.axis != 1:
        _moved_badly(recorder, call, source, channels)
        return
    rows = channels.labels.reshape(int(groups), -1)
    unite_rows(recorder, rows)
    recorder.set(call.output, channels._replace(labels=rows.T.ravel()))


def unfold(recorder: "Recorder", call: "Call") -> None:
    """Patches of an image side by side along the channels, or windows along one axis as a new last axis."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    if channels is None:
        _moved_badly(recorder, call, source, channels)
    elif call.output.ndim == source.ndim + 1:  # Tensor.unfold(dimension, size, step)
        if call.argument("dimension", 1) % source.ndim == channels.axis:
            recorder.barrier(call, f"{call.label} mixes channels")
        else:
            recorder.set(call.output, channels)
    elif channels.axis == source.ndim - 3:
        labels = np.repeat(channels.labels, call.output.shape[-2] // len(channels.labels))
        recorder.set(call.output, channels._replace(axis=call.output.ndim - 2, labels=labels))
    else:
        _moved_badly(recorder, call, source, channels)


def fold(recorder: "Recorder", call: "Call") -> None:
    """The sum of patches: entries of one channel go together."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    if channels is None or channels.axis != source.ndim - 2:
        _moved_badly(recorder, call, source, channels)
        return
    labels = unite_columns(recorder, channels.labels.reshape(call.output.shape[-3], -1))
    recorder.set(call.output, channels._replace(axis=call.output.ndim - 3, labels=labels))


def _moved_badly(recorder: "Recorder", call: "Call", source: Tensor, channels: Channels | None) -> None:
    if channels is None:
        without_channels(recorder, call, source)
    else:
        recorder.barrier(call, f"no channel rule for this use of {call.label}")


def repeat_interleave(recorder: "Recorder", call: "Call") -> None:
    """Every entry several times in a row."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    times, dim = call.argument("repeats", 1), call.argument("dim", 2)
    if channels is None or not isinstance(times, int) or isinstance(times, Size) or dim is None:
        _moved_badly(recorder, call, source, channels)
        return
    along = dim % source.ndim == channels.axis
    recorder.set(call.output, channels._replace(labels=np.repeat(channels.labels, times) if along else channels.labels))


TABLE: dict[str, Rule] = {
    **dict.fromkeys("view reshape flatten unflatten view_as reshape_as ravel".split(), reshape),
    **dict.fromkeys("permute transpose swapaxes swapdims movedim moveaxis squeeze unsqueeze t T mT adjoint".split(), move),
    "expand": expand,
    "broadcast_to": expand,
    "repeat": repeat,
    "tile": repeat,
    "repeat_interleave": repeat_interleave,
    **dict.fromkeys(("flip", "fliplr", "flipud"), flip),
    "pad": pad,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
    "unfold": unfold,
    "fold": fold,
}
