"""Layers with weights: convolutions, linear, norms, PReLU, embedding, bilinear."""

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from rlprune.graph.labels import Channels, Labels
from rlprune.graph.rules.base import Rule, unite_columns, unite_rows
from rlprune.graph.sizes import Size

if TYPE_CHECKING:
    from rlprune.graph.calls import Call
    from rlprune.graph.recorder import Recorder

MAY_ZERO = frozenset("batch_norm instance_norm group_norm layer_norm rms_norm embedding bilinear".split())
SIZED = frozenset([*(f"conv{d}d" for d in (1, 2, 3)), *(f"conv_transpose{d}d" for d in (1, 2, 3)), "group_norm", "layer_norm", "rms_norm"])


def convolution(recorder: "Recorder", call: "Call") -> None:
    """Conv 1d/2d/3d and transposed: new labels for the output channels, the input's labels on the input channels."""
    source, weight, bias = call.args[0], call.argument("weight", 1), call.argument("bias", 2)
    groups = call.argument("groups", 6, 1)
    output = call.output
    transposed = call.name.startswith("conv_t")
    axis = source.ndim - weight.ndim + 1
    if axis == 0:  # an example without a batch axis
        recorder.batch_size = 1
    in_channels = source.shape[axis]
    view = recorder.parameter_view(weight)
    uses = source.numel() / in_channels if transposed else output.numel() / output.shape[axis]
    channels = recorder.channels(source)
    if view is None:
        recorder.count(weight, uses)
        recorder.barrier(call, f"the weight of {call.label} is computed, not a parameter")
        return
    name, dims = view
    recorder.uses[name] = recorder.uses.get(name, 0.0) + uses / recorder.batch_size
    if channels is not None and channels.axis != axis:
        recorder.barrier(call, f"no channel rule for this use of {call.label}")
        return
    inputs = channels.labels if channels is not None else None
    out_slot, in_slot = ((name, dims[1]), (name, dims[0])) if transposed else ((name, dims[0]), (name, dims[1]))
    if int.__index__(groups) == 1:
        out = recorder.slot_labels(out_slot, weight.shape[int(transposed)], "out")
        recorder.attach(in_slot, inputs, "in", source)
    else:
        grouped = _transposed_groups if transposed else _groups
        found = grouped(recorder, call, groups, source, inputs, weight, out_slot, in_slot)
        if found is None:
            return
        out = found
    recorder.attach_vector(bias, out, call)
    channels = Channels(axis, out)
    recorder.set(output, channels)
    recorder.zero_behind(call, channels)


def _whole(groups: int, *widths: int) -> bool:
    """Whether whole groups go: where the module keeps their number, so that it can change, and units come out smaller."""
    return isinstance(groups, Size) and groups.__index__() >= max(widths)


def _literal_groups(recorder: "Recorder", call: "Call", groups: int) -> None:
    recorder.barrier(call, f"groups={int.__index__(groups)} is written into the code at {call.label}")


def _groups(
    recorder: "Recorder", call: "Call", groups: Any, source: Tensor, inputs: Labels | None, weight: Tensor, out_slot: Any, in_slot: Any
) -> Labels | None:
    """Labels of the outputs of a grouped convolution, weight (out, in / groups)."""
    count, out_width, in_width = int.__index__(groups), weight.shape[0] // int.__index__(groups), weight.shape[1]
    space = recorder.space
    if _whole(groups, out_width, in_width):
        out = recorder.slot_labels(out_slot, weight.shape[0], "out")
        heads = unite_columns(recorder, out.reshape(count, out_width)) if out_width > 1 else out
        recorder.grouped[out_slot[0]] = (out_width, in_width)
        space.fix(in_slot, "every group keeps its inputs")
        if inputs is None:
            space.pin(out, f"grouped on {recorder.why_fixed(source)}")
        else:
            space.unite(heads, unite_columns(recorder, inputs.reshape(count, in_width)) if in_width > 1 else inputs)
        space.fit(groups, heads, call.label)
        return out
    if max(out_width, in_width) == 1:
        _literal_groups(recorder, call, groups)
        return None
    _keep_groups(groups)
    out = recorder.slot_labels(out_slot, weight.shape[0], "out")
    unite_rows(recorder, out.reshape(count, -1))  # the same positions of every group go together, so that groups stay equal
    if inputs is not None:
        unite_rows(recorder, inputs.reshape(count, -1))
        inputs = inputs[:in_width]
    recorder.attach(in_slot, inputs, "in", source)
    return out


def _transposed_groups(
    recorder: "Recorder", call: "Call", groups: Any, source: Tensor, inputs: Labels | None, weight: Tensor, out_slot: Any, in_slot: Any
) -> Labels | None:
    """The same for a transposed convolution, weight (in, out / groups)."""
    count, in_width, out_width = int.__index__(groups), weight.shape[0] // int.__index__(groups), weight.shape[1]
    space = recorder.space
    if _whole(groups, out_width, in_width):
        rows = recorder.slot_labels(in_slot, weight.shape[0], "out")  # a row holds what its input makes: it goes with its outputs
        heads = unite_columns(recorder, rows.reshape(count, in_width)) if in_width > 1 else rows
        recorder.grouped[in_slot[0]] = (out_width, in_width)
        space.fix(out_slot, "every group keeps its outputs")
        if inputs is None:
            space.pin(rows, f"grouped on {recorder.why_fixed(source)}")
        else:
            space.unite(rows, inputs)
        space.fit(groups, heads, call.label)
        return np.repeat(heads, out_width) if out_width > 1 else heads
    if max(out_width, in_width) == 1:
        _literal_groups(recorder, call, groups)
        return None
    _keep_groups(groups)
    out = recorder.slot_labels(out_slot, out_width, "out")
    if inputs is not None:
        unite_rows(recorder, inputs.reshape(count, -1))
    recorder.attach(in_slot, inputs, "in", source)
    return np.tile(out, count)


def _keep_groups(groups: Any) -> None:
    if isinstance(groups, Size):
        groups.escape("their number is a number of groups that stays")


def linear(recorder: "Recorder", call: "Call") -> None:
    """Linear over the last axis."""
    source, weight, bias = call.args[0], call.argument("weight", 1), call.argument("bias", 2)
    output = call.output
    view = recorder.parameter_view(weight)
    channels = recorder.channels(source)
    uses = output.numel() / weight.shape[0]
    if view is None or weight.ndim != 2:
        recorder.count(weight, uses)
        recorder.barrier(call, f"the weight of {call.label} is computed, not a parameter")
        return
    name, dims = view
    recorder.uses[name] = recorder.uses.get(name, 0.0) + uses / recorder.batch_size
    if channels is not None and channels.axis != source.ndim - 1:  # both axes cannot be followed: the layer's own outputs are
        recorder.space.pin(channels.labels, f"{call.label} works along another axis")
        channels = None
        recorder.space.fix((name, dims[1]), f"{call.label} works along another axis")
    else:
        recorder.attach((name, dims[1]), channels.labels if channels is not None else None, "in", source)
    out = recorder.slot_labels((name, dims[0]), weight.shape[0], "out")
    recorder.attach_vector(bias, out, call)
    found = Channels(output.ndim - 1, out)
    recorder.set(output, found)
    recorder.zero_behind(call, found)


def _fixed(recorder: "Recorder", call: "Call", source: Tensor, vectors: list[Tensor]) -> None:
    reason = recorder.why_fixed(source)
    for vector in vectors:
        recorder.hold(vector, reason)
    recorder.set(call.output, None, reason)


def norm(recorder: "Recorder", call: "Call") -> None:
    """Batch and instance norm: running statistics, scale and shift follow the channel."""
    source = call.args[0]
    channels = recorder.channels(source)
    statistics = [vector for vector in (call.argument("running_mean", 1), call.argument("running_var", 2)) if vector is not None]
    affine = [vector for vector in (call.argument("weight", 3), call.argument("bias", 4)) if vector is not None]
    if channels is None:
        _fixed(recorder, call, source, statistics + affine)
        return
    if channels.axis != 1:
        recorder.barrier(call, f"no channel rule for this use of {call.label}")
        return
    for vector in statistics:
        recorder.attach_vector(vector, channels.labels, call, "statistic")
    for vector in affine:
        recorder.attach_vector(vector, channels.labels, call)
    where = recorder.where() if not affine and not statistics else ""
    if isinstance(recorder.modules[where], nn.modules.batchnorm._NormBase) and not affine and not statistics:
        recorder.widths.append((where, "num_features", channels.labels))
        recorder.know(where, "num_features", channels.labels)
    channels = Channels(1, channels.labels, clean=len(affine) == 2)
    recorder.set(call.output, channels)
    recorder.zero_behind(call, channels)


def group_norm(recorder: "Recorder", call: "Call") -> None:
    """Group norm: statistics are taken over each group, so whole groups go."""
    source, groups = call.args[0], call.argument("num_groups", 1)
    affine = [vector for vector in (call.argument("weight", 2), call.argument("bias", 3)) if vector is not None]
    channels = recorder.channels(source)
    if channels is None:
        _fixed(recorder, call, source, affine)
        return
    count = int.__index__(groups)
    if channels.axis != 1 or count == 1:
        recorder.barrier(call, f"{call.label} takes statistics over all channels")
        return
    if not isinstance(groups, Size):
        recorder.barrier(call, f"num_groups={count} is written into the code at {call.label}")
        return
    labels = channels.labels
    heads = unite_columns(recorder, labels.reshape(count, -1)) if count < len(labels) else labels
    recorder.space.fit(groups, heads, call.label)
    owner = next((symbol.owner for symbol in groups.symbols if symbol.owner is not None), None)
    if owner is not None:
        recorder.widths += [(owner, "num_groups", heads), (owner, "num_channels", labels)]
        recorder.know(owner, "num_channels", labels)
    for vector in affine:
        recorder.attach_vector(vector, labels, call)
    channels = Channels(1, labels, clean=len(affine) == 2)
    recorder.set(call.output, channels)
    recorder.zero_behind(call, channels)


def layer_norm(recorder: "Recorder", call: "Call") -> None:
    """Layer and RMS norm: over the channels they mix them, over other axes they do not."""
    source, shape = call.args[0], call.argument("normalized_shape", 1)
    affine = [vector for vector in (call.argument("weight", 2), call.argument("bias", 3)) if isinstance(vector, Tensor)]
    channels = recorder.channels(source)
    if channels is None:
        _fixed(recorder, call, source, affine)
        return
    count = 1 if isinstance(shape, int) else len(shape)
    if channels.axis >= source.ndim - count:
        recorder.barrier(call, f"{call.label} takes statistics over all channels")
        return
    for vector in affine:
        recorder.hold(vector, f"it is shared by all channels in {call.label}")
    channels = Channels(channels.axis, channels.labels, clean=False)
    recorder.set(call.output, channels)
    recorder.zero_behind(call, channels)


def prelu(recorder: "Recorder", call: "Call") -> None:
    """PReLU: a slope for each channel follows it, a single one touches none."""
    source, weight = call.args[0], call.argument("weight", 1)
    channels = recorder.channels(source)
    if channels is None:
        recorder.hold(weight, recorder.why_fixed(source))
    elif weight.numel() > 1:
        if channels.axis != 1:
            recorder.barrier(call, f"no channel rule for this use of {call.label}")
            return
        recorder.attach_vector(weight, channels.labels, call)
    recorder.pass_on(call.output, channels, source)


def embedding(recorder: "Recorder", call: "Call") -> None:
    """A table of vectors: the entries of a vector are its channels, its rows stay."""
    source, weight = call.args[0], call.argument("weight", 1)
    name = recorder.parameter_name(weight)
    if name is None or call.argument("max_norm", 3) is not None or recorder.channels(source) is not None:
        recorder.barrier(call, f"no channel rule for this use of {call.label}")
        return
    recorder.space.fix((name, 0), "rows of an embedding")
    channels = Channels(call.output.ndim - 1, recorder.slot_labels((name, 1), weight.shape[1], "out"))
    recorder.set(call.output, channels)
    recorder.zero_behind(call, channels)


def bilinear(recorder: "Recorder", call: "Call") -> None:
    """Bilinear over the last axis of two inputs, weight (out, in1, in2)."""
    first, second = call.argument("input1", 0), call.argument("input2", 1)
    weight, bias = call.argument("weight", 2), call.argument("bias", 3)
    name = recorder.parameter_name(weight)
    found = [recorder.channels(first), recorder.channels(second)]
    if name is None or any(channels is not None and channels.axis != first.ndim - 1 for channels in found):
        recorder.barrier(call, f"no channel rule for this use of {call.label}")
        return
    recorder.uncounted.append(call.label)
    out = recorder.slot_labels((name, 0), weight.shape[0], "out")
    for dim, (source, channels) in enumerate(zip((first, second), found, strict=True), start=1):
        recorder.attach((name, dim), channels.labels if channels is not None else None, "in", source)
    recorder.attach_vector(bias, out, call)
    channels = Channels(call.output.ndim - 1, out)
    recorder.set(call.output, channels)
    recorder.zero_behind(call, channels)


TABLE: dict[str, Rule] = {
    **{f"conv{dims}d": convolution for dims in (1, 2, 3)},
    **{f"conv_transpose{dims}d": convolution for dims in (1, 2, 3)},
    "linear": linear,
    "batch_norm": norm,
    "instance_norm": norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "prelu": prelu,
    "embedding": embedding,
    "bilinear": bilinear,
}
