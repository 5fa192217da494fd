"""Runs a network once and carries channel labels through every operation it performs."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from rlprune.errors import UserError
from rlprune.graph import rules, shapes
from rlprune.graph.calls import Call, Key, Whereabouts
from rlprune.graph.labels import Channels, Labels, LabelSpace, Slot, base_of, layer_of, tensors_in
from rlprune.graph.shapeless import Calls, Shapeless, constants, ranks
from rlprune.graph.sizes import Size, plain, sizes_in


class Note(NamedTuple):
    """What is known about a tensor; `token` tells one trace from another."""

    token: object
    channels: Channels | None
    reason: str
    version: int  # how often it had been written to


class Product(NamedTuple):
    """Multiply-accumulates for one example: `factor` times the product of sizes, each of which shrinks with the labels along it."""

    sizes: tuple[int, ...]
    labels: tuple[Labels | None, ...]
    factor: float


class Recorder(Shapeless):
    """Intercepts every torch call of a forward pass, applies its channel rule, and keeps what was learned.

    `symbolic`: activations have shapes but no values (device meta) and no arithmetic is done, so that a trace costs about as little as
    the network's Python code. A network that looks at values cannot run so; it is traced on real numbers instead. A tensor that no
    intercepted call produced has an unknown origin: it is treated as fixed.
    """

    def __init__(self, model: nn.Module, batch_size: int, time_limit: float, device: torch.device, *, symbolic: bool) -> None:
        super().__init__(device, time_limit)
        self.space = LabelSpace()
        self.table = rules.table()
        self.places = Whereabouts(model)
        self.names, self.modules = self.places.names, self.places.modules
        self.where = self.places.where
        self.batch_size = max(1, batch_size)
        self.symbolic = symbolic
        self.seen: Calls = []  # for rehearsals
        self.made: list[weakref.ref[Tensor]] = []  # tensors without values
        self.output_shapes: list[torch.Size] = []
        self.widths_read = False  # whether the code asked how many channels there are
        self.failed = False  # a call raised, whatever the network's code did with the exception
        self.token = object()
        self.zero_points: list[tuple[Key, Channels]] = []
        self.uses: dict[str, float] = {}
        self.products: list[Product] = []
        self.fixed_macs = 0.0
        self.spoiled: dict[int, weakref.ref[Tensor]] = {}  # tensors in which calls in place turned zero into something else
        self.written: dict[int, int] = {}  # tensors that calls in place wrote to, by id: their version then
        self.flops = 0  # of the last call that torch's counter looked at
        self.barriers: dict[str, str] = {}
        self.grouped: dict[str, tuple[int, int]] = {}  # weight → outputs and inputs of a group, where whole groups go
        self.widths: list[tuple[str, str, Labels]] = []  # (module, attribute, what it counts), where no weight tells it
        self.whole_numbers = {id(t) for n, t in self.places.tensors if t.ndim and not t.is_floating_point() and not t.is_complex()}
        self.readers: dict[str, int] = {}  # buffer of whole numbers → calls that used it
        self.pickers: dict[str, int] = {}  # buffer of whole numbers → calls that picked channels by it
        self.indices: dict[str, Labels] = {}  # buffer of channel indices → labels of what it selects from
        self.views: dict[int, tuple[Tensor, str, tuple[int, ...]]] = {}  # transposed parameters: tensor, name, dimension of every axis
        self.lost: list[tuple[str, str, int]] = []  # layers without a rule: (name, reason, channels)
        self.uncounted: list[str] = []
        self.computed: set[str] = set()  # modules whose weight is computed, such as weight norm
        self.order: list[str] = []  # layers in the order of their first use

    # -- the torch hook ------------------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one call, then its rule."""
        kwargs = kwargs or {}
        if not args and "input" in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"),)
        name, in_place = self.operation(func, kwargs)
        if name in rules.NEUTRAL:
            return self._read(name, func, args, kwargs)
        self.check_time()
        if self.symbolic:
            numbers = constants((*args, *kwargs.values()) if kwargs else args)
        written = args[0] if in_place and args and isinstance(args[0], Tensor) else None
        if written is not None:
            self.channels(written)  # says so if it had been written to before
            if self.symbolic:
                self.remember(written)
        sized = sizes_in(args) + sizes_in(list(kwargs.values())) if kwargs else sizes_in(args)
        rule = None if kwargs.get("out") is not None else self.table.get(name)
        try:
            result = self._execute(name, in_place, func, args, kwargs, sized=bool(sized), opaque=rule is None or name in rules.OPAQUE)
        except Exception:
            self.failed = True
            raise
        if self.symbolic:
            self.seen.append((name, numbers, ranks(result)))
            if isinstance(result, Tensor) and result.is_meta:
                self.made.append(weakref.ref(result))
        note = None if written is None else self.note(written)
        if written is not None and note is not None:
            self.written[id(base_of(written))] = version_of(written)
            written._rlprune_note = note._replace(version=version_of(written))  # type: ignore[attr-defined]
        call = Call(self, name, in_place, func, tuple(args), kwargs, result)
        if name in rules.MAY_ZERO:
            call.key = self.places.key(name, call.args, kwargs)
        if self.whole_numbers:
            for tensor in call.tensors:
                if id(tensor) in self.whole_numbers:
                    self.readers[self.names[id(tensor)]] = self.readers.get(self.names[id(tensor)], 0) + 1
        self._apply(rule, call, sized)
        if written is not None and name in rules.SPOILING:
            self.spoiled[id(base_of(written))] = weakref.ref(base_of(written))
        return result

    def _apply(self, rule: rules.Rule | None, call: Call, sized: list[Size]) -> None:
        if rule is None:
            self.barrier(call, f"no channel rule for {call.label}")
        elif not (isinstance(call.result, Tensor) or call.name in rules.WITHOUT_RESULT or call.outputs):
            self.barrier(call, f"{call.label} takes values out of the network")
        else:
            if sized and call.name not in rules.SIZED:
                for size in sized:
                    size.escape(f"their number enters {call.label}")
            try:
                rule(self, call)
            except Exception as error:  # a way of calling that the rule does not foresee: as if there were none
                if isinstance(error, UserError):
                    raise
                self.space.doubts.append(f"the rule for {call.name} failed ({type(error).__name__})")
                self.barrier(call, f"no channel rule for this use of {call.label}")

    def _execute(self, name: str, in_place: bool, func: Any, args: Any, kwargs: Any, *, sized: bool, opaque: bool) -> Any:
        if self.symbolic:
            result = shapes.output(name, in_place, args, kwargs)
            if result is not None:
                return result
            args, kwargs = self.without_values(name, in_place, args, kwargs, sized=sized)
        if sized:
            args, kwargs = plain(args), plain(kwargs)
        if not opaque:
            return func(*args, **kwargs)
        with FlopCounterMode(display=False) as counter:
            result = func(*args, **kwargs)
        self.flops = counter.get_total_flops()
        self.fixed_macs += self.flops / 2 / self.batch_size
        return result

    def _read(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """A property: sizes of labelled axes remember what they count; where a stand-in stands is not told."""
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if name in ("shape", "size", "__len__", "numel", "nelement", "stride") and source is not None:
            result = func(*plain(args), **plain(kwargs))
            if id(source) in self.names:
                self.widths_read = True
                return self._sized_parameter(name, args, kwargs, result)
            channels = self.channels(source)
            self.widths_read = self.widths_read or channels is not None
            return result if channels is None else self._sized(name, args, kwargs, result, channels)
        known = self.place(name) if self.symbolic and source is not None and source.is_meta else None
        return func(*plain(args), **plain(kwargs)) if known is None else known

    def _sized_parameter(self, name: str, args: Any, kwargs: Any, result: Any) -> Any:
        """The sizes of a parameter or buffer are those of what its slots will turn out to carry."""
        source = args[0]
        sizes = [Size.of(size, self.space, slot=(self.names[id(source)], dim)) for dim, size in enumerate(source.shape)]
        if name in ("shape", "size"):
            if isinstance(result, int):
                return sizes[kwargs.get("dim", args[1] if len(args) > 1 else 0)]
            return torch.Size(sizes)
        if name == "stride" and source.ndim < 2:
            return result
        for size in sizes[:1] if name == "__len__" else sizes:
            size.escape(f"the code counts the entries of {self.names[id(source)]}")
        return result

    def _sized(self, name: str, args: Any, kwargs: Any, result: Any, channels: Channels) -> Any:
        axis, labels = channels.axis, channels.labels
        if name == "stride":
            if axis > 0:
                self.space.pin(labels, "their number is taken by stride()")
            return result
        if name in ("numel", "nelement"):
            return Size.of(len(labels), self.space, labels) * (result // len(labels))
        if name == "__len__":  # len() returns a plain number, whatever it is given
            if axis == 0:
                self.space.pin(labels, "their number is taken by len()")
            return result
        if isinstance(result, int):
            position = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            return Size.of(result, self.space, labels) if position % args[0].ndim == axis else result
        return torch.Size([*result[:axis], Size.of(result[axis], self.space, labels), *result[axis + 1 :]])

    @contextmanager
    def beside_scripts(self, scripted: bool) -> Iterator[None]:
        """Know when compiled modules run, whose operations are invisible: what they are given is frozen."""

        def enter(module: nn.Module, inputs: Any) -> None:
            if isinstance(module, torch.jit.ScriptModule):
                name = self.places.paths.get(id(module), type(module).__name__)
                self.uncounted.append(f"the compiled module {name}")
                for tensor in tensors_in(inputs):
                    self.freeze_tensor(tensor, f"no channel rule for the compiled module {name}")

        handle = register_module_forward_pre_hook(enter) if scripted else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()

    # -- what the rules use --------------------------------------------------------------------------------------------------------

    def note(self, tensor: Tensor) -> Note | None:
        """What this trace knows about a tensor that a call produced."""
        note = getattr(tensor, "_rlprune_note", None)
        return note if note is not None and note.token is self.token else None

    def set(self, tensor: Tensor, channels: Channels | None, reason: str = "") -> None:
        """Say what a tensor carries: channels, or nothing and why."""
        if channels is not None and tensor.shape[channels.axis] != len(channels.labels):
            raise AssertionError(f"{len(channels.labels)} labels for shape {tuple(tensor.shape)}")
        if id(tensor) not in self.names:  # a parameter written to in place keeps its identity
            tensor._rlprune_note = Note(self.token, channels, reason, tensor._version)  # type: ignore[attr-defined]

    def channels(self, tensor: Tensor) -> Channels | None:
        """The channels that a tensor carries, if any; a parameter with one axis carries its own."""
        note = getattr(tensor, "_rlprune_note", None)
        if note is not None and note.token is self.token:
            found: Channels | None = note.channels
            if found is not None and self.spoiled and self._is_spoiled(tensor):
                found = found._replace(clean=False)
            if found is not None and note.version != version_of(tensor):
                found = found._replace(clean=False)
                if self.written.get(id(base_of(tensor))) != version_of(tensor):  # not through a view that was seen
                    self.space.doubts.append("a tensor was written to")
            return found
        name = self.names.get(id(tensor))
        if name is None:
            if tensor.is_meta:
                self.space.doubts.append("code that cannot be seen returned a tensor")
            return None
        if not tensor.is_floating_point():
            return None
        wide = [axis for axis, size in enumerate(tensor.shape) if size > 1]
        if len(wide) != 1 or isinstance(self.space.slots.get((name, wide[0])), str):
            return None
        return Channels(wide[0], self.slot_labels((name, wide[0]), tensor.shape[wide[0]], "raw"), clean=False, constant=True)

    def _is_spoiled(self, tensor: Tensor) -> bool:
        """Whether a call in place, perhaps through a view, turned zeros of this tensor into something else."""
        base = base_of(tensor)
        known = self.spoiled.get(id(base))
        return known is not None and known() is base

    def why_fixed(self, *tensors: Tensor) -> str:
        """Why tensors without channels are fixed: the first reason known."""
        for tensor in tensors:
            note = self.note(tensor)
            if note is not None and note.channels is None:
                return note.reason or "a fixed tensor"
            name = self.names.get(id(tensor))
            if name is not None:
                return f"the parameter {name}"
        return "a tensor of unknown origin"

    def pass_on(self, output: Tensor, channels: Channels | None, source: Tensor) -> None:
        """The output carries these channels; if there are none, it is fixed for the same reason as the source."""
        self.set(output, channels, "" if channels is not None else self.why_fixed(source))

    def parameter_name(self, tensor: Any) -> str | None:
        """Qualified name of a parameter or buffer, None for computed tensors."""
        return self.names.get(id(tensor))

    def parameter_view(self, tensor: Any) -> tuple[str, tuple[int, ...]] | None:
        """Name of the parameter that a tensor is, or is a transposed view of, and the parameter's dimension along every axis."""
        name = self.names.get(id(tensor))
        if name is not None:
            return name, tuple(range(tensor.ndim))
        view = self.views.get(id(tensor))
        return (view[1], view[2]) if view is not None and view[0] is tensor else None

    def slot_labels(self, slot: Slot, size: int, role: str) -> Labels:
        """The labels of a slot, made on first use."""
        known = self.space.slots.get(slot)
        if known is not None and not isinstance(known, str):
            if role == "out" and self.space.roles[slot] != "out":
                self.space.roles[slot] = role
                self.order.append(slot[0])
            return known
        labels = self.space.fresh(size)
        self.space.bind(slot, labels, role)
        if role == "out" and known is None:
            self.order.append(slot[0])
        return labels

    def attach(self, slot: Slot, labels: Labels | None, role: str, source: Tensor) -> None:
        """Tie a slot to labels, or keep its size if the source has none."""
        if labels is None:
            self.space.fix(slot, self.why_fixed(source))
        else:
            self.space.bind(slot, labels, role)

    def attach_vector(self, vector: Tensor | None, labels: Labels, call: Call, role: str = "channel") -> None:
        """Tie a vector with one entry a channel (bias, scale, statistics) to its channels."""
        if vector is None:
            return
        name = self.names.get(id(vector))
        if name is not None and vector.ndim == 1:
            self.space.bind((name, 0), labels, role)
            self.space.roles[name, 0] = role
            return
        channels = self.channels(vector)
        if channels is not None and vector.ndim == 1 and len(channels.labels) == len(labels):
            self.space.unite(channels.labels, labels)
        else:
            self.freeze_tensor(vector, f"it is used in {call.label}")
            self.space.pin(labels, f"their scale or bias is {self.why_fixed(vector)} in {call.label}")

    def hold(self, tensor: Any, reason: str) -> None:
        """A parameter used in a way that needs its full size."""
        view = self.parameter_view(tensor)
        if view is not None:
            for dim in range(len(view[1])):
                self.space.fix((view[0], dim), reason)

    def freeze_tensor(self, tensor: Tensor, reason: str) -> None:
        """Keep every channel that a tensor carries."""
        channels = self.channels(tensor)
        if channels is not None:
            self.space.pin(channels.labels, reason)
        self.hold(tensor, reason)

    def barrier(self, call: Call, reason: str) -> None:
        """Keep all channels that reach a call; what it returns carries none."""
        if call.name in rules.LAYERS:
            where = self.where()
            self.computed.add(where)
            weight = self.names.get(id(call.argument("weight", 1)))
            layer = where or (layer_of(weight) if weight else call.label)
            self.lost.append((layer, reason, call.output.shape[-1 if call.name == "linear" else 1 - call.output.ndim]))
        tensors = call.tensors
        if any(self.channels(tensor) is not None and id(tensor) not in self.names for tensor in tensors):
            self.barriers.setdefault(call.label, reason)
        for tensor in tensors:
            self.freeze_tensor(tensor, reason)
        for size in sizes_in((call.args, call.kwargs)):
            size.escape(reason)
        behind = f"what {call.label} returns" if tensors else f"a tensor made by {call.label}"
        for output in call.outputs:
            self.set(output, None, behind)

    def know(self, module: str, attribute: str, labels: Labels) -> None:
        """What a module's attribute counts, where no parameter tells it."""
        size = self.modules[module].__dict__.get(attribute)
        bare = size.bare if isinstance(size, Size) and size.symbols.space is self.space else None
        if bare is not None and bare.slot is None and bare.known is None:
            bare.known = labels

    def zero_behind(self, call: Call, channels: Channels | None) -> None:
        """A masked channel may be non-zero after this call: the check zeroes it here."""
        if channels is not None:
            assert call.key is not None, call.name
            self.zero_points.append((call.key, channels))

    def count(self, weight: Tensor, uses: float) -> None:
        """Every element of `weight` multiplies `uses` times for the whole batch."""
        name = self.names.get(id(weight))
        if name is None:
            self.fixed_macs += weight.numel() * uses / self.batch_size
        else:
            self.uses[name] = self.uses.get(name, 0.0) + uses / self.batch_size

    def add_product(self, sizes: Sequence[int], labels: Sequence[Labels | None], factor: float) -> None:
        """A product of activations multiplies `factor` times the product of these sizes for the whole batch."""
        self.products.append(Product(tuple(sizes), tuple(labels), factor / self.batch_size))


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version
