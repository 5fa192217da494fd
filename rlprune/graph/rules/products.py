"""Products of tensors: matmul, einsum, scaled dot-product attention."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from rlprune.graph.labels import Channels, Labels
from rlprune.graph.rules.base import Rule

if TYPE_CHECKING:
    from rlprune.graph.calls import Call
    from rlprune.graph.recorder import Recorder

MAY_ZERO = frozenset("matmul bmm mm addmm baddbmm rmatmul einsum".split())


@dataclass
class _Operand:
    """One factor: its letters, one an axis, and the letter that carries channels."""

    tensor: Tensor
    letters: tuple[str, ...]
    channels: Channels | None
    parameter: tuple[str, tuple[int, ...]] | None

    @property
    def letter(self) -> str | None:
        return None if self.channels is None else self.letters[self.channels.axis]

    def size(self, letter: str) -> int:
        return self.tensor.shape[self.letters.index(letter)] if letter in self.letters else 1


def contract(recorder: "Recorder", call: "Call", factors: Sequence[tuple[Tensor, str]], result: str) -> Channels | None:
    """Sum of products over the letters that the result lacks, as in einsum; returns the channels of the result.

    A letter carries channels if every factor that has it does: an activation by its labels, a parameter by its slot. A letter that only a
    parameter has is a new output of a layer. The result carries one letter; channels along its others stay.
    """
    operands = []
    for tensor, letters in factors:
        name = recorder.parameter_name(tensor)
        view = recorder.parameter_view(tensor)
        channels = None if view is not None and (name is None or tensor.ndim > 1) else recorder.channels(tensor)
        operands.append(_Operand(tensor, tuple(letters), channels, view if channels is None else None))
    labels = _letters(recorder, call, operands, result)
    outputs = [letter for letter in result if letter in labels]
    made = [letter for letter in outputs if all(operand.parameter for operand in operands if letter in operand.letters)]
    chosen = next(iter(made or outputs), None)
    for letter in outputs:
        if letter != chosen:
            recorder.space.pin(labels[letter], f"{call.label} pairs them with other channels")
    if chosen is None:
        return None
    holders = [operand for operand in operands if operand.letter == chosen]
    clean = bool(made) or any(operand.channels is not None and operand.channels.clean for operand in holders)
    return Channels(result.index(chosen), labels[chosen], clean)


def _letters(recorder: "Recorder", call: "Call", operands: list[_Operand], result: str) -> dict[str, Labels]:
    """Labels by letter, after all that meets is united; letters that cannot be followed are pinned and left out."""
    space, found = recorder.space, {}
    for letter in dict.fromkeys(letter for operand in operands for letter in operand.letters):
        holders = [operand for operand in operands if letter in operand.letters and operand.size(letter) > 1]
        carrying = [operand for operand in holders if operand.letter == letter]
        labels = next((operand.channels.labels for operand in carrying if operand.channels is not None), None)
        fixed = [operand for operand in holders if operand.letter != letter and operand.parameter is None]
        parameters = [operand for operand in holders if operand.parameter is not None]
        if labels is None and not fixed and parameters and letter in result and _is_output(parameters, letter, result):
            name, dims = parameters[0].parameter or ("", ())
            labels = recorder.slot_labels((name, dims[parameters[0].letters.index(letter)]), holders[0].size(letter), "out")
            parameters = parameters[1:]
        if labels is None:
            for operand in parameters:
                name, dims = operand.parameter or ("", ())
                space.fix((name, dims[operand.letters.index(letter)]), f"it meets no channel in {call.label}")
            continue
        for operand in carrying[1:]:
            assert operand.channels is not None
            space.unite(labels, operand.channels.labels)
        for operand in parameters:
            name, dims = operand.parameter or ("", ())
            space.bind((name, dims[operand.letters.index(letter)]), labels, "raw" if letter in result else "in")
        contracted = letter not in result
        clean = any(operand.channels is not None and operand.channels.clean for operand in carrying) or bool(parameters)
        if fixed:
            space.pin(labels, f"shared with {recorder.why_fixed(fixed[0].tensor)} in {call.label}")
        elif contracted and not clean:
            space.pin(labels, f"{call.label} sums over them after zero became something else")
        found[letter] = labels
    return found


def _is_output(parameters: list[_Operand], letter: str, result: str) -> bool:
    """A matrix makes outputs along the last of the result's letters that only it has."""
    own = [other for other in result if all(other in operand.letters for operand in parameters)]
    return bool(own) and letter == own[-1]


def _finish(recorder: "Recorder", call: "Call", channels: Channels | None) -> None:
    recorder.set(call.output, channels, f"what {call.label} returns")
    if channels is not None:
        recorder.zero_behind(call, channels)


def _count(recorder: "Recorder", operands: Sequence[tuple[Tensor, str]], macs: float) -> None:
    """Multiply-accumulates as a product of the sizes of all letters, each following its channels."""
    sizes: dict[str, int] = {}
    labels: dict[str, Labels] = {}
    for tensor, letters in operands:
        channels = recorder.channels(tensor)
        view = recorder.parameter_view(tensor)
        for axis, letter in enumerate(letters):
            sizes[letter] = max(sizes.get(letter, 1), tensor.shape[axis])
            slot = recorder.space.slots.get((view[0], view[1][axis])) if view is not None else None
            if channels is not None and channels.axis == axis and len(channels.labels) > 1:
                labels[letter] = channels.labels
            elif slot is not None and not isinstance(slot, str):
                labels.setdefault(letter, slot)
    if macs:
        recorder.add_product(
            [sizes[letter] for letter in sizes], [labels.get(letter) for letter in sizes], macs / math.prod(sizes.values())
        )


def matmul(recorder: "Recorder", call: "Call") -> None:
    """matmul, bmm, mm, addmm and baddbmm."""
    added = call.name in ("addmm", "baddbmm")
    if added:
        bias, first, second = call.argument("input", 0), call.argument("mat1" if call.name == "addmm" else "batch1", 1), None
        second = call.argument("mat2" if call.name == "addmm" else "batch2", 2)
    else:
        first, second = call.tensors[:2]
        bias = None
    if call.name == "rmatmul":
        first, second = second, first
    if first.ndim < 2 or second.ndim < 2 or call.in_place:
        recorder.barrier(call, f"no channel rule for vectors in {call.label}")
        return
    batch = "abcdefgh"[: max(first.ndim, second.ndim) - 2]
    left, right = batch[len(batch) - first.ndim + 2 :] + "mk", batch[len(batch) - second.ndim + 2 :] + "kn"
    factors = [(first, left), (second, right)]
    result = contract(recorder, call, factors, batch + "mn")
    macs = call.output.numel() * first.shape[-1]
    _count(recorder, factors, macs)
    if added:
        _add(recorder, call, bias, result)
    _finish(recorder, call, result)


def _add(recorder: "Recorder", call: "Call", bias: Tensor, result: Channels | None) -> None:
    if result is None:
        recorder.freeze_tensor(bias, f"it is added in {call.label}")
    elif bias.ndim == 1 and result.axis == call.output.ndim - 1:
        recorder.attach_vector(bias, result.labels, call)
    else:
        recorder.freeze_tensor(bias, f"it is added in {call.label}")
        recorder.space.pin(result.labels, f"shared with {recorder.why_fixed(bias)} in {call.label}")


def einsum(recorder: "Recorder", call: "Call") -> None:
    """Products in Einstein's notation."""
    equation, *tensors = call.args
    tensors = list(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
    parsed = _parse(equation, [tensor.ndim for tensor in tensors]) if isinstance(equation, str) else None
    if parsed is None:
        recorder.barrier(call, f"no channel rule for this use of {call.label}")
        return
    inputs, output = parsed
    factors = list(zip(tensors, inputs, strict=True))
    result = contract(recorder, call, factors, output)
    sizes = {letter: size for tensor, letters in factors for letter, size in zip(letters, tensor.shape, strict=True)}
    if recorder.flops / 2 == math.prod(sizes.values()):
        recorder.fixed_macs -= recorder.flops / 2 / recorder.batch_size
        _count(recorder, factors, recorder.flops / 2)
    elif recorder.flops and any(recorder.channels(tensor) is not None for tensor in tensors):
        recorder.barrier(call, f"{call.label} is no single product")
        return
    _finish(recorder, call, result)


def _parse(equation: str, ndims: list[int]) -> tuple[list[str], str] | None:
    """Letters of every operand and of the result, ellipses written out; None for repeated letters and the like."""
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    inputs = left.split(",")
    if len(inputs) != len(ndims):
        return None
    spare = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
    widest = max((ndim - len(letters) + 3 for letters, ndim in zip(inputs, ndims, strict=True) if "..." in letters), default=0)
    dots = "".join(spare[:widest])
    written = []
    for letters, ndim in zip(inputs, ndims, strict=True):
        if "..." in letters:
            letters = letters.replace("...", dots[len(dots) - (ndim - len(letters) + 3) :])
        if len(letters) != ndim or len(set(letters)) != ndim or not letters.isalpha():
            return None
        written.append(letters)
    if not arrow:
        everything = "".join(written)
        right = dots + "".join(sorted({letter for letter in everything if everything.count(letter) == 1 and letter not in dots}))
    right = right.replace("...", dots)
    return (written, right) if len(set(right)) == len(right) else None


def attention(recorder: "Recorder", call: "Call") -> None:
    """Scaled dot-product attention: whole heads go together, and channels of the values; those of queries where the scale is given."""
    query, key, value = call.argument("query", 0), call.argument("key", 1), call.argument("value", 2)
    if call.argument("enable_gqa", 7, False) or not query.ndim == key.ndim == value.ndim:
        recorder.barrier(call, f"no channel rule for this use of {call.label}")
        return
    batch = "abcdefgh"[: query.ndim - 2]
    scores = [(query, batch + "le"), (key, batch + "se")]
    if call.argument("scale", 6) is None:
        for tensor in (query, key):
            channels = recorder.channels(tensor)
            if channels is not None and channels.axis == tensor.ndim - 1:
                recorder.space.pin(channels.labels, f"their number scales the scores in {call.label}")
    macs = query.numel() * key.shape[-2]
    _count(recorder, scores, macs)
    weights = contract(recorder, call, scores, batch + "ls")
    mask = call.argument("attn_mask", 3)
    if mask is not None:
        recorder.freeze_tensor(mask, f"it masks {call.label}")
    result = recorder.channels(value)
    values = [(query, batch + "le"), (value, batch + "sv")]
    sizes = value.numel() * query.shape[-2]
    _count_values(recorder, values, weights, sizes)
    along = result.axis if result is not None else -1
    if weights is not None and (result is None or along != weights.axis or along >= len(batch)):
        recorder.space.pin(weights.labels, f"{call.label} pairs them with other channels")
    if result is not None and along < len(batch):
        if weights is None or weights.axis != along:
            recorder.space.pin(result.labels, f"{call.label} pairs them with other channels")
        else:
            recorder.space.unite(weights.labels, result.labels)
            if mask is not None and mask.ndim >= query.ndim - along and mask.shape[along - query.ndim] > 1:
                recorder.space.pin(result.labels, f"shared with the mask of {call.label}")
    elif result is not None and along == query.ndim - 2:
        recorder.space.pin(result.labels, f"{call.label} sums over them")
        result = None
    recorder.set(call.output, result, f"what {call.label} returns")


def _count_values(recorder: "Recorder", values: Sequence[tuple[Tensor, str]], weights: Channels | None, macs: float) -> None:
    (query, _), (tensor, own) = values
    channels = recorder.channels(tensor)
    sizes = [*tensor.shape, query.shape[-2]]
    labels: list[Labels | None] = [None] * len(sizes)
    if channels is not None:
        labels[channels.axis] = channels.labels
    elif weights is not None and weights.axis < len(own) - 2:
        labels[weights.axis] = weights.labels
    recorder.add_product(sizes, labels, macs / math.prod(sizes))


TABLE: dict[str, Rule] = {
    **dict.fromkeys(("matmul", "bmm", "mm", "addmm", "baddbmm", "rmatmul"), matmul),
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}
