"""What rules share: the form of a rule, and choosing entries of labels."""

from collections.abc import Callable
from fractions import Fraction
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlprune.graph.labels import Channels, Labels
from rlprune.graph.sizes import Size, sizes_in

if TYPE_CHECKING:
    from rlprune.graph.calls import Call
    from rlprune.graph.recorder import Recorder

Rule = Callable[["Recorder", "Call"], None]


def unite_rows(recorder: "Recorder", rows: np.ndarray) -> None:
    """Entry j of every row goes together; shape (row, entry)."""
    if len(rows) > 1:
        recorder.space.unite(np.tile(rows[0], len(rows) - 1), rows[1:].ravel())


def unite_columns(recorder: "Recorder", rows: np.ndarray) -> Labels:
    """All entries of a row go together; returns one label for each row."""
    unite_rows(recorder, rows.T)
    return np.ascontiguousarray(rows[:, 0])


def unite_shares(recorder: "Recorder", size: Any, labels: Labels) -> None:
    """Where the code cuts an axis at a fraction of its own length, such as `c // 2`, the parts keep equal lengths."""
    if isinstance(size, Size) and len(size.symbols) == 1:
        symbol, factor = next(iter(size.symbols.items()))
        parts = Fraction(factor).denominator
        if parts > 1 and symbol.labels is not None and len(symbol.labels) == len(labels) and len(labels) % parts == 0:
            unite_rows(recorder, labels.reshape(parts, -1))


def boundary(recorder: "Recorder", call: "Call", position: Any, labels: Labels) -> int:
    """A place along a labelled axis that the code names; returns it counted from the front, in 0..len(labels).

    A literal counts entries from one end: those must stay. A size that the code computes must follow the entries before it.
    """
    if position is None:
        return 0
    at = int.__index__(position)
    length = len(labels)
    if isinstance(position, Size) and 0 <= at <= length:
        unite_shares(recorder, position, labels)
        recorder.space.fit(position, labels[:at], call.label)
        return at
    for size in sizes_in(position):
        size.escape(f"their number enters {call.label}")
    if at < 0:
        at = max(0, length + at)
        if at < length:
            recorder.space.pin(labels[at:], f"{call.label} counts them from the end")
    elif 0 < at < length:
        recorder.space.pin(labels[:at], f"{call.label} counts them from the front")
    return min(at, length)


def marker(shape: torch.Size | tuple[int, ...], axis: int) -> Tensor:
    """A tensor of this shape that moves only along one axis: entry i along it is i, stride 1, and 0 elsewhere."""
    strides = [0] * len(shape)
    strides[axis] = 1
    return torch.arange(shape[axis]).as_strided(tuple(shape), strides)


def followed(view: Tensor) -> int | None:
    """Where the marked axis is in a view of a marker."""
    axes = [axis for axis, (size, stride) in enumerate(zip(view.shape, view.stride(), strict=True)) if stride and size > 1]
    return axes[0] if len(axes) == 1 else None


def without_channels(recorder: "Recorder", call: "Call", source: Tensor) -> None:
    """The result of moving a tensor that carries no channels carries none."""
    recorder.hold(source, f"{call.label} moves its entries")
    for size in sizes_in((call.args, call.kwargs)):
        size.escape(f"their number enters {call.label}")
    reason = recorder.why_fixed(source)
    for output in call.outputs:
        recorder.set(output, None, reason)


def following(rule: Callable[["Recorder", "Call", Tensor, Channels], None]) -> Rule:
    """A rule for calls whose first tensor carries channels; without any, the result carries none either."""

    @wraps(rule)
    def follow(recorder: "Recorder", call: "Call") -> None:
        source = call.tensors[0]
        channels = recorder.channels(source)
        if channels is None:
            without_channels(recorder, call, source)
        else:
            rule(recorder, call, source, channels)

    return follow


def lost_axis(recorder: "Recorder", call: "Call", channels: Channels, reason: str) -> None:
    """The labelled axis is gone or mixed: its channels stay."""
    recorder.space.pin(channels.labels, reason)
    for output in call.outputs:
        recorder.set(output, None, f"what {call.label} returns")
