"""Sums, means, extremes, softmax and normalisation over some axes."""

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rlprune.graph.labels import Channels
from rlprune.graph.rules.base import Rule, following, without_channels
from rlprune.graph.rules.pointwise import elementwise

if TYPE_CHECKING:
    from rlprune.graph.calls import Call
    from rlprune.graph.recorder import Recorder

_REDUCTIONS = frozenset(
    "mean sum amax amin var std max min argmax argmin any all prod logsumexp norm median mode nansum nanmean var_mean std_mean".split()
)
_ALONG = frozenset("softmax log_softmax softmin cumsum cumprod cummax cummin sort argsort topk logcumsumexp".split())
MAY_ZERO = (_REDUCTIONS - {"sum", "mean", "amax", "amin"}) | _ALONG


def _axes(given: Any, ndim: int) -> set[int]:
    """Reduced axes; all of them where none is given."""
    if given is None or isinstance(given, bool) or given in ([], ()):
        return set(range(ndim))
    return {axis % ndim for axis in ([given] if isinstance(given, int) else given)}


def reduction(recorder: "Recorder", call: "Call") -> None:
    """Over axes that do not hold the channels these follow; a sum over clean channels loses nothing when zeroed ones go."""
    source = call.tensors[0]
    channels = recorder.channels(source)
    if channels is None and len(call.tensors) == 1:
        without_channels(recorder, call, source)
        return
    if channels is None or len(call.tensors) > 1:  # torch.max(a, b)
        elementwise(recorder, call)
        return
    axes = _axes(call.argument("dim", 2 if call.name == "norm" else 1), source.ndim)
    if channels.axis in axes:
        if call.name == "sum" and channels.clean:
            recorder.set(call.output, None, f"what {call.label} returns")
        else:
            recorder.barrier(call, f"{call.label} mixes channels")
        return
    kept = call.output.ndim == source.ndim
    axis = channels.axis if kept else channels.axis - sum(index < channels.axis for index in axes)
    linear = call.name in ("sum", "mean", "amax", "amin")
    result = Channels(axis, channels.labels, channels.clean and linear, channels.constant)
    for output in call.outputs:
        recorder.set(output, result)
    if not linear and not channels.constant:
        recorder.zero_behind(call, result)


@following
def along(recorder: "Recorder", call: "Call", source: Tensor, channels: Channels) -> None:
    """Softmax, sorting and running sums along an axis that does not hold the channels."""
    position = {"topk": 2}.get(call.name, 1)
    axis = call.argument("dim", position, None if call.name in ("softmax", "log_softmax", "softmin", "cumsum") else -1)
    if not isinstance(axis, int) or isinstance(axis, bool) or axis % source.ndim == channels.axis:
        recorder.barrier(call, f"{call.label} mixes channels")
        return
    result = channels._replace(clean=False)
    for output in call.outputs:
        recorder.set(output, result)
    if not channels.constant:
        recorder.zero_behind(call, result)


@following
def normalize(recorder: "Recorder", call: "Call", source: Tensor, channels: Channels) -> None:
    """F.normalize: over the channels, zeroed ones add nothing to the norm."""
    order = call.argument("p", 1, 2.0)
    if channels.axis in _axes(call.argument("dim", 2, 1), source.ndim) and not (channels.clean and order > 0 and math.isfinite(order)):
        recorder.barrier(call, f"{call.label} mixes channels")
        return
    recorder.set(call.output, channels)


TABLE: dict[str, Rule] = {**dict.fromkeys(_REDUCTIONS, reduction), **dict.fromkeys(_ALONG, along), "normalize": normalize}
