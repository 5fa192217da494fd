"""Operations that work entry by entry, and those that work on every channel alone."""

from typing import TYPE_CHECKING

from torch import Tensor

from rlprune.graph.labels import Channels, Labels, base_of
from rlprune.graph.rules.base import Rule
from rlprune.graph.sizes import Size, sizes_in

if TYPE_CHECKING:
    from rlprune.graph.calls import Call
    from rlprune.graph.recorder import Recorder

# One tensor in, f(0) = 0: a zeroed channel stays zero.
ZERO_STAYS = frozenset(
    """
    relu relu6 leaky_relu rrelu elu celu selu silu hardswish gelu mish tanh tanhshrink softshrink hardshrink softsign dropout
    dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout abs neg negative positive square sqrt sin
    contiguous clone detach type float double half bfloat16 cpu cuda requires_grad data identity round floor ceil trunc frac sign erf
    asinh sinh atan arctan arcsinh to type_as zeros_like zero nan_to_num alias
    """.split()
)
# Products: zero where one factor is.
FACTORS = frozenset("mul multiply".split())
# Elementwise with any f(0): where the check masks a channel, the zero is put behind these.
ZERO_MOVES = frozenset(
    """
    hardtanh sigmoid hardsigmoid softplus logsigmoid exp exp2 log log1p log2 log10 expm1 cos reciprocal rsqrt threshold clamp
    clamp_min clamp_max clip add sub subtract rsub div rdiv divide true_divide truediv rtruediv floordiv rfloordiv floor_divide
    pow rpow maximum minimum fmax fmin where lerp gt lt ge le eq ne greater less greater_equal less_equal not_equal logical_and
    logical_or logical_not logical_xor masked_fill expand_as copy addcmul addcdiv fill ones_like full_like empty_like isnan
    isfinite isinf bitwise_and bitwise_or bitwise_not invert and or xor remainder fmod atan2 hypot bool int long erfinv logit
    special_expit
    """.split()
)
DIVISIONS = frozenset(
    "div divide true_divide truediv rtruediv rdiv floordiv rfloordiv floor_divide pow rpow remainder fmod addcdiv".split()
)
_QUOTIENTS = frozenset("div divide true_divide truediv".split())
# The first argument gives the channels; others only a type or a device.
_LIKE_FIRST = frozenset("to type_as".split())
CREATIONS = frozenset("zeros ones empty full new_zeros new_ones new_empty new_full".split())
SPATIAL = frozenset(
    [
        *(f"{kind}{d}d" for kind in ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "lp_pool") for d in (1, 2, 3)),
        *(f"max_unpool{d}d" for d in (1, 2, 3)),
        *(f"{kind}_max_pool{d}d_with_indices" for kind in ("adaptive", "fractional") for d in (2, 3)),
        *(f"max_pool{d}d_with_indices" for d in (1, 2, 3)),
    ]
)
RESIZES = frozenset("interpolate upsample upsample_nearest upsample_bilinear grid_sample".split())
SIZED = CREATIONS | {"affine_grid"}
MAY_ZERO = ZERO_MOVES | CREATIONS


def elementwise(recorder: "Recorder", call: "Call") -> None:
    """Any function applied entry by entry, with broadcasting: labels that meet are united."""
    output = call.result
    if not isinstance(output, Tensor):
        recorder.barrier(call, f"no channel rule for {call.label}")
        return
    operands = list(call.args[:1]) if call.name in _LIKE_FIRST else [tensor for tensor in call.tensors if tensor.ndim > 0]
    if len(operands) == 1:
        _unary(recorder, call, operands[0], output)
        return
    found = [recorder.channels(tensor) for tensor in operands]
    labelled = [(tensor, channels) for tensor, channels in zip(operands, found, strict=True) if channels is not None]
    if not labelled:
        for tensor in operands:
            recorder.hold(tensor, f"it meets no channel in {call.label}")
        recorder.set(output, None, recorder.why_fixed(*operands) if operands else "a constant")
        return
    # Axes are counted from the right, as broadcasting aligns them there. An activation's channels go before those of a parameter.
    tensor, channels = next(((t, c) for t, c in labelled if recorder.parameter_name(t) is None), labelled[0])
    offset = channels.axis - tensor.ndim
    merged = _meet(recorder, call, operands, found, offset, output)
    if merged is None:
        recorder.set(output, None, f"{call.label} spreads single channels")
        return
    product = call.name in FACTORS
    clean = (any if product else all)(c is not None and c.clean for c in found)
    if call.name in DIVISIONS:
        clean = call.name in _QUOTIENTS and found[0] is not None and found[0].clean
    constant = all(c is not None and c.constant for c in found)
    result = Channels(output.ndim + offset, merged, clean, constant)
    recorder.set(output, result)
    if not product and not constant:
        recorder.zero_behind(call, result)


def _unary(recorder: "Recorder", call: "Call", source: Tensor, output: Tensor) -> None:
    channels = recorder.channels(source)
    if channels is not None and call.name in ZERO_MOVES:
        channels = channels._replace(clean=channels.clean and call.name in _QUOTIENTS)
        if not channels.constant:
            recorder.zero_behind(call, channels)
    if channels is None:
        recorder.hold(source, f"it meets no channel in {call.label}")
    if call.name in ("detach", "data"):  # the same memory under another name
        output._rlprune_origin = base_of(source)  # type: ignore[attr-defined]
    recorder.pass_on(output, channels, source)


def _meet(
    recorder: "Recorder", call: "Call", operands: "list[Tensor]", found: "list[Channels | None]", offset: int, output: Tensor
) -> Labels | None:
    """Unite what meets along one axis, counted from the right; None if only single channels lie there."""
    size, merged, space = output.shape[offset], None, recorder.space
    for tensor, channels in zip(operands, found, strict=True):
        if channels is None:
            continue
        if channels.axis - tensor.ndim != offset:
            space.pin(channels.labels, f"{call.label} pairs them with channels on another axis")
        elif len(channels.labels) != size:  # one channel spread over all: it cannot go alone
            space.pin(channels.labels, f"a single channel scales all others in {call.label}")
        elif merged is None:
            merged = channels.labels
        else:
            space.unite(merged, channels.labels)
    if merged is None:
        return None
    for tensor, channels in zip(operands, found, strict=True):
        if channels is not None and channels.axis - tensor.ndim == offset:
            continue
        wide = tensor.ndim >= -offset and tensor.shape[offset] == size and size > 1
        view = recorder.parameter_view(tensor)
        if wide and view is not None and channels is None:  # a parameter follows the channels along the axis where it meets them
            space.bind((view[0], view[1][tensor.ndim + offset]), merged, "raw")
        elif wide:
            recorder.hold(tensor, f"it meets channels in {call.label}")
            space.pin(merged, f"shared with {recorder.why_fixed(tensor)} in {call.label}")
        elif view is not None and channels is None:
            recorder.hold(tensor, f"it is shared by all channels in {call.label}")
    return merged


def creation(recorder: "Recorder", call: "Call") -> None:
    """A tensor with one value everywhere; an axis as long as some channels are many follows them."""
    output = call.output
    shape = call.dims(1 if call.name.startswith("new_") else 0, "size")
    shape = [shape] if isinstance(shape, int) else list(shape)
    sized = [axis for axis, size in enumerate(shape) if isinstance(size, Size)]
    value = call.argument("fill_value", 2 if call.name.startswith("new_") else 1, None) if call.name.endswith("full") else None
    for size in sizes_in([value]):
        size.escape(f"their number enters {call.label}")
    if len(sized) != 1 or isinstance(value, Tensor):
        for size in sizes_in(shape):
            size.escape(f"their number enters {call.label}")
        recorder.set(output, None, f"a tensor made by {call.label}")
        return
    labels = recorder.space.fresh(output.shape[sized[0]])
    recorder.space.follow(shape[sized[0]], labels, call.label)
    channels = Channels(sized[0], labels, clean=False)
    recorder.set(output, channels)
    recorder.zero_behind(call, channels)


def spatial(recorder: "Recorder", call: "Call") -> None:
    """Pooling over the last axes, channel by channel."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    dims = int(call.name[call.name.index("pool") + 4])
    if channels is not None and channels.axis != source.ndim - dims - 1:
        recorder.barrier(call, f"{call.label} pools over channels")
        return
    for output in call.outputs:
        recorder.pass_on(output, channels, source)


def resize(recorder: "Recorder", call: "Call") -> None:
    """Resizing and resampling of the axes behind the channels."""
    source, *others = call.tensors
    channels = recorder.channels(source)
    if channels is not None and channels.axis != 1:
        recorder.barrier(call, f"{call.label} resizes over channels")
        return
    for tensor in others:
        recorder.freeze_tensor(tensor, f"{call.label} samples with it")
    recorder.pass_on(call.output, channels, source)


def grid(recorder: "Recorder", call: "Call") -> None:
    """Places to sample at: they depend on the number of pixels alone, whatever size of an image they are given."""
    recorder.freeze_tensor(call.tensors[0], f"{call.label} reads them as one transformation")
    recorder.set(call.output, None, f"what {call.label} returns")


TABLE: dict[str, Rule] = {
    **dict.fromkeys(ZERO_STAYS | FACTORS | ZERO_MOVES, elementwise),
    **dict.fromkeys(CREATIONS, creation),
    **dict.fromkeys(SPATIAL, spatial),
    **dict.fromkeys(RESIZES, resize),
    "affine_grid": grid,
}
