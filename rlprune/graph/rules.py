"""What each operation does to channel labels. An operation that is not named here freezes the channels that reach it.

Every rule takes the recorder and one call, and sets the channels of the call's outputs. A rule that cannot be exact for a call ends in
`recorder.barrier(call, reason)`, which keeps all channels that reach the call.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlprune.graph.labels import Channels

if TYPE_CHECKING:
    from rlprune.graph.recorder import Call, Recorder

Rule = Callable[["Recorder", "Call"], None]

# Reads that do not depend on values: their results carry no channels.
NEUTRAL = frozenset(
    """
    size shape dim ndim numel nelement stride is_contiguous device dtype layout is_cuda is_floating_point is_complex is_cpu is_meta
    requires_grad element_size get_device is_sparse is_quantized is_nested names grad is_leaf grad_fn __len__ len hash
    __hash__ itemsize is_mkldnn is_mps is_xla is_xpu is_signed storage_offset _version is_inference is_conj is_neg
    is_same_size has_names type_as_dtype retains_grad output_nr is_shared result_type is_tensor get_default_dtype is_grad_enabled
    """.split()
)

# Elementwise with f(0) = 0: a zeroed channel stays zero.
ZERO_STAYS = frozenset(
    """
    relu relu6 leaky_relu rrelu elu celu selu silu hardswish gelu mish tanh hardtanh tanhshrink softshrink hardshrink softsign dropout
    dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout abs neg negative positive square sqrt sin
    contiguous clone detach to type float double half bfloat16 cpu cuda requires_grad data identity expand_as mul multiply round floor
    ceil trunc
    """.split()
)
# Elementwise with any f(0): where the check masks a channel, the zero is put behind these.
ZERO_MOVES = frozenset(
    """
    sigmoid hardsigmoid softplus logsigmoid exp log log1p expm1 cos reciprocal rsqrt threshold clamp clamp_min clamp_max clip add sub
    subtract rsub div divide true_divide rtruediv truediv floordiv pow rpow maximum minimum where lerp gt lt ge le eq ne logical_and
    logical_or logical_not masked_fill
    """.split()
)
SPATIAL = frozenset(
    f"{kind}{dims}d" for kind in ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "lp_pool") for dims in (1, 2, 3)
)
RESHAPES = frozenset(
    """
    view reshape flatten
    """.split()
)
MOVES = frozenset(
    """
    permute transpose swapaxes swapdims movedim moveaxis squeeze unsqueeze getitem expand T mT
    """.split()
)
REDUCTIONS = frozenset(
    """
    mean sum amax amin var std
    """.split()
)
NORMS = frozenset(
    """
    batch_norm instance_norm
    """.split()
)
# Products of activations that the closed form does not count.
UNCOUNTED = frozenset(
    """
    lstm gru rnn_tanh rnn_relu bilinear matmul bmm baddbmm einsum scaled_dot_product_attention multi_head_attention_forward mm addmm
    chain_matmul
    """.split()
)


def convolution(recorder: "Recorder", call: "Call") -> None:
    """Conv 1d/2d/3d and transposed: new labels for the output channels, the input's labels on the input channels."""
    arguments = call.bind("input", "weight", "bias")
    source, weight, bias = arguments["input"], arguments["weight"], arguments.get("bias")
    transposed = call.name.startswith("conv_transpose")
    dims = weight.ndim - 2
    groups = call.argument("groups", 6, 1)
    if source.ndim == dims + 1:  # an example without a batch axis
        recorder.batch_size = 1
    axis = source.ndim - dims - 1
    count_from = source if transposed else call.output
    in_channels = source.shape[axis]
    recorder.count(weight, count_from.numel() / (in_channels if transposed else call.output.shape[axis]))
    name = recorder.parameter_name(weight)
    channels = recorder.channels(source)
    if name is None:
        recorder.barrier(call, f"the weight of {call.label} is computed, not a parameter")
        return
    if (channels is not None and channels.axis != axis) or (transposed and groups > 1):
        recorder.barrier(call, f"no channel rule for this use of {call.label}")
        return
    if groups > 1 and not isinstance(recorder.owner(name), nn.modules.conv._ConvNd):
        recorder.barrier(call, f"groups={groups} is written into the code at {call.label}")
        return
    space, out_dim, in_dim = recorder.space, int(transposed), 1 - int(transposed)
    out = recorder.slot_labels((name, out_dim), weight.shape[out_dim], "out")
    inputs = channels.labels if channels is not None else None
    if groups == 1:
        recorder.attach((name, in_dim), inputs, "in", recorder.why_fixed(source))
    elif groups == in_channels:  # depthwise, with or without multiplier: every output follows its own input
        multiplier = len(out) // groups
        recorder.depthwise[name] = multiplier
        if inputs is None:
            space.pin(out, f"depthwise on {recorder.why_fixed(source)}")
        else:
            space.unite(out, inputs.repeat_interleave(multiplier))
    else:  # the same positions of every group go together, so that groups stay equal
        recorder.grouped[name] = groups
        space.unite(out, out.view(groups, -1)[0].repeat(groups))
        if inputs is not None:
            space.unite(inputs, inputs.view(groups, -1)[0].repeat(groups))
            inputs = inputs.view(groups, -1)[0]
        recorder.attach((name, in_dim), inputs, "in", recorder.why_fixed(source))
    recorder.attach_vector(bias, out)
    recorder.set(call.output, Channels(axis, out))
    recorder.zero_behind(call)


def linear(recorder: "Recorder", call: "Call") -> None:
    """Linear over the last axis."""
    arguments = call.bind("input", "weight", "bias")
    source, weight, bias = arguments["input"], arguments["weight"], arguments.get("bias")
    recorder.count(weight, call.output.numel() / weight.shape[0])
    name = recorder.parameter_name(weight)
    channels = recorder.channels(source)
    if name is None or weight.ndim != 2:
        recorder.barrier(call, f"the weight of {call.label} is computed, not a parameter")
        return
    if channels is not None and channels.axis != source.ndim - 1:
        recorder.barrier(call, f"no channel rule for {call.label} over an axis that does not hold the channels")
        return
    out = recorder.slot_labels((name, 0), weight.shape[0], "out")
    recorder.attach((name, 1), channels.labels if channels is not None else None, "in", recorder.why_fixed(source))
    recorder.attach_vector(bias, out)
    recorder.set(call.output, Channels(call.output.ndim - 1, out))
    recorder.zero_behind(call)


def norm(recorder: "Recorder", call: "Call") -> None:
    """Batch and instance norm: running statistics, scale and shift follow the channel."""
    source = call.bind("input")["input"]
    channels = recorder.channels(source)
    vectors = [tensor for tensor in call.tensors if tensor is not source]
    if channels is not None and channels.axis != 1:
        recorder.barrier(call, f"no channel rule for this use of {call.label}")
        return
    for vector in vectors:
        if channels is None:
            recorder.hold(vector, recorder.why_fixed(source))
        else:
            recorder.attach_vector(vector, channels.labels)
    recorder.set(call.output, channels, recorder.why_fixed(source))
    recorder.zero_behind(call)


def prelu(recorder: "Recorder", call: "Call") -> None:
    """PReLU: a slope for each channel follows it, a single one touches none."""
    arguments = call.bind("input", "weight")
    source, weight = arguments["input"], arguments["weight"]
    channels = recorder.channels(source)
    if channels is None:
        recorder.hold(weight, recorder.why_fixed(source))
    elif weight.numel() > 1:
        if channels.axis != 1:
            recorder.barrier(call, f"no channel rule for this use of {call.label}")
            return
        recorder.attach_vector(weight, channels.labels)
    recorder.set(call.output, channels, recorder.why_fixed(source))


def elementwise(recorder: "Recorder", call: "Call") -> None:
    """Any function applied entry by entry, with broadcasting: labels that meet are united."""
    outputs = call.outputs
    if len(outputs) != 1:
        recorder.barrier(call, f"no channel rule for {call.label}")
        return
    output, merged = outputs[0], None
    operands = [tensor for tensor in call.tensors if tensor.ndim > 0]
    labelled = [(tensor, recorder.channels(tensor)) for tensor in operands if recorder.channels(tensor) is not None]
    if not labelled:
        for tensor in operands:
            recorder.hold(tensor, f"it meets no channel in {call.label}")
        recorder.set(output, None, recorder.why_fixed(*operands) if operands else "a constant")
        return
    # Axes are counted from the right, as broadcasting aligns them there.
    offsets = {channels.axis - tensor.ndim for tensor, channels in labelled if channels is not None}
    if len(offsets) > 1:
        recorder.barrier(call, f"{call.label} pairs channels on different axes")
        return
    offset = offsets.pop()
    size = output.shape[offset]
    for tensor, channels in labelled:
        assert channels is not None
        if tensor.shape[offset] != size:  # one channel spread over all: it cannot go alone
            recorder.space.pin(channels.labels, f"a single channel scales all others in {call.label}")
        elif merged is None:
            merged = channels.labels
        else:
            recorder.space.unite(merged, channels.labels)
    if merged is None:
        recorder.set(output, None, f"{call.label} spreads single channels")
        return
    for tensor in operands:
        if recorder.channels(tensor) is None and tensor.ndim >= -offset and tensor.shape[offset] == size and size > 1:
            _attach_operand(recorder, call, tensor, offset, merged)
        elif recorder.channels(tensor) is None:
            recorder.hold(tensor, f"it is shared by all channels in {call.label}")
    recorder.set(output, Channels(output.ndim + offset, merged))
    if call.name not in ZERO_STAYS:
        recorder.zero_behind(call)


def _attach_operand(recorder: "Recorder", call: "Call", tensor: Tensor, offset: int, labels: Tensor) -> None:
    """A tensor without labels meets labelled channels one to one: a parameter follows them, anything else pins them."""
    name = recorder.parameter_name(tensor)
    if name is not None and tensor.numel() == tensor.shape[offset]:
        recorder.attach((name, tensor.ndim + offset), labels, "channel", "")
    else:
        recorder.hold(tensor, f"it meets channels in {call.label}")
        recorder.space.pin(labels, f"they meet {recorder.why_fixed(tensor)} in {call.label}")


def spatial(recorder: "Recorder", call: "Call") -> None:
    """Pooling over the last axes, channel by channel."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    dims = int(call.name[-2])
    if channels is not None and channels.axis != source.ndim - dims - 1:
        recorder.barrier(call, f"{call.label} pools over channels")
        return
    for output in call.outputs:
        recorder.set(output, channels, recorder.why_fixed(source))


def interpolate(recorder: "Recorder", call: "Call") -> None:
    """Resizing of the axes behind the channels."""
    channels = recorder.channels(call.tensors[0])
    if channels is not None and channels.axis != 1:
        recorder.barrier(call, f"{call.label} resizes over channels")
        return
    recorder.set(call.output, channels, recorder.why_fixed(call.tensors[0]))


def pad(recorder: "Recorder", call: "Call") -> None:
    """Padding: channels that a constant pads are kept, as their number is written into the code."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    widths = call.argument("pad", 1)
    if channels is None:
        recorder.set(call.output, None, recorder.why_fixed(source))
        return
    position = source.ndim - 1 - channels.axis  # F.pad counts axes from the last
    before, after = (widths[2 * position], widths[2 * position + 1]) if 2 * position + 1 < len(widths) else (0, 0)
    labels = channels.labels
    if before or after:
        if call.argument("mode", 2, "constant") != "constant" or min(before, after) < 0:
            recorder.barrier(call, f"{call.label} mirrors or cuts channels")
            return
        ends = [recorder.space.fresh(before), recorder.space.fresh(after)]
        recorder.space.pin(torch.cat(ends), f"{call.label} adds a fixed number of channels")
        labels = torch.cat([ends[0], labels, ends[1]])
    recorder.set(call.output, Channels(channels.axis, labels))
    if call.argument("value", 3, None):
        recorder.zero_behind(call)


def cat(recorder: "Recorder", call: "Call") -> None:
    """Concatenation: along the channels their labels line up, along another axis they are united."""
    parts = [part for part in call.argument("tensors", 0) if part.shape != (0,)]  # torch.cat skips those
    axis = call.argument("dim", 1, 0) % call.output.ndim
    found = [recorder.channels(part) for part in parts]
    along = [channels.axis for channels in found if channels is not None]
    if not along:
        recorder.set(call.output, None, recorder.why_fixed(*parts))
        return
    if len(set(along)) > 1:
        recorder.barrier(call, f"{call.label} joins channels on different axes")
        return
    if axis != along[0]:
        first = next(channels.labels for channels in found if channels is not None)
        for part, channels in zip(parts, found, strict=True):
            if channels is None:
                recorder.hold(part, f"it is joined with channels in {call.label}")
                recorder.space.pin(first, f"they meet {recorder.why_fixed(part)} in {call.label}")
            else:
                recorder.space.unite(first, channels.labels)
        recorder.set(call.output, Channels(along[0], first))
        return
    labels = []
    for part, channels in zip(parts, found, strict=True):
        if channels is None:
            recorder.hold(part, f"it is joined with channels in {call.label}")
            fixed = recorder.space.fresh(part.shape[axis])
            recorder.space.pin(fixed, f"{recorder.why_fixed(part)} in {call.label}")
            labels.append(fixed)
        else:
            labels.append(channels.labels)
    recorder.set(call.output, Channels(axis, torch.cat(labels)))


def reshape(recorder: "Recorder", call: "Call") -> None:
    """view, reshape, flatten: the channel axis may merge with others or move, never split."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    if call.in_place:
        recorder.barrier(call, f"no channel rule for {call.label} in place")
        return
    if channels is None:
        recorder.hold(source, f"{call.label} reshapes it")
        recorder.set(call.output, None, recorder.why_fixed(source))
        return
    target = target_axis(tuple(source.shape), tuple(call.output.shape), channels.axis)
    if target is None:
        recorder.barrier(call, f"{call.label} splits channels")
        return
    moved = run_on_labels(channels, tuple(source.shape), lambda twin: twin.reshape(call.output.shape))
    recorder.set(call.output, Channels(target, moved.movedim(target, -1).reshape(-1, call.output.shape[target])[0].clone()))


def target_axis(old: Sequence[int], new: Sequence[int], axis: int) -> int | None:
    """The one axis of shape `new` that takes the whole of `axis` of shape `old`; None if it is split or has one entry."""
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
            wide = [index for index in range(start, j) if new[index] != 1]
            return wide[0] if len(wide) == 1 else None
    return None


def run_on_labels(channels: Channels, shape: Sequence[int], function: Callable[[Tensor], Tensor]) -> Tensor:
    """Execute a data movement on the labels, spread over an activation of this shape."""
    view = [1] * len(shape)
    view[channels.axis] = -1
    return function(channels.labels.view(view).expand(*shape))


def move(recorder: "Recorder", call: "Call") -> None:
    """Movements that keep the channels whole and in order: executed on the labels themselves."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    if channels is None or len(call.tensors) > 1 or call.in_place:
        recorder.barrier(call, f"no channel rule for {call.label} of a parameter or with computed indices")
        return
    twin = run_on_labels(channels, tuple(source.shape), lambda labels: call.function(labels, *call.args[1:], **call.kwargs))
    size = len(channels.labels)
    for axis in range(twin.ndim):
        lines = twin.movedim(axis, -1).reshape(-1, twin.shape[axis])
        if size > 1 and twin.shape[axis] == size and len(lines) and bool((lines == channels.labels).all()):
            recorder.set(call.output, Channels(axis, channels.labels))
            return
    recorder.barrier(call, f"no channel rule for {call.label}: it cuts or reorders channels")


def reduction(recorder: "Recorder", call: "Call") -> None:
    """mean, sum and the like over axes that do not hold the channels."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    given = call.argument("dim", 1, None)
    everything = given is None or isinstance(given, bool) or given in ([], ())
    axes = range(source.ndim) if everything else [given] if isinstance(given, int) else given
    if channels is None:
        recorder.hold(source, f"{call.label} reduces it")
        recorder.set(call.output, None, recorder.why_fixed(source))
        return
    reduced = {axis % source.ndim for axis in axes}
    if channels.axis in reduced or len(call.outputs) != 1:
        recorder.barrier(call, f"{call.label} mixes channels")
        return
    kept = call.output.ndim == source.ndim
    axis = channels.axis if kept else channels.axis - sum(index < channels.axis for index in reduced)
    recorder.set(call.output, Channels(axis, channels.labels))


def softmax(recorder: "Recorder", call: "Call") -> None:
    """Softmax over an axis that does not hold the channels."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    axis = call.argument("dim", 1, None)
    if channels is None or axis is None or axis % source.ndim == channels.axis:
        recorder.barrier(call, f"{call.label} mixes channels")
        return
    recorder.set(call.output, channels)
    recorder.zero_behind(call)


def rules() -> dict[str, Rule]:
    """Rule by operation name."""
    table: dict[str, Rule] = {}
    table |= dict.fromkeys(ZERO_STAYS | ZERO_MOVES, elementwise)
    table |= dict.fromkeys(SPATIAL, spatial)
    table |= dict.fromkeys(RESHAPES, reshape)
    table |= dict.fromkeys(MOVES, move)
    table |= dict.fromkeys(REDUCTIONS, reduction)
    table |= dict.fromkeys(NORMS, norm)
    table |= {f"conv{dims}d": convolution for dims in (1, 2, 3)}
    table |= {f"conv_transpose{dims}d": convolution for dims in (1, 2, 3)}
    table |= {"linear": linear, "prelu": prelu, "pad": pad, "interpolate": interpolate, "softmax": softmax, "log_softmax": softmax}
    table |= dict.fromkeys(("cat", "concat", "concatenate"), cat)
    return table
