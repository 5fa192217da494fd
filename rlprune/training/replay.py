"""Forward passes whose first calls are noted, and not executed again in the passes of other networks over the same images."""

import itertools
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlprune.graph.labels import tensors_in
from rlprune.graph.recorder import version_of
from rlprune.graph.run import map_tensors

Run = Callable[[Tensor], Tensor]
"""A network on a batch of images."""
Place = int | str
"""Which tensor of a pass: its number in the order of appearance, where the images are 0, or its name in the network."""

_PLAIN = frozenset({int, float, complex, bool, str, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format})


class UnlikeError(Exception):
    """The work cannot be shared; says why."""


class Plan(NamedTuple):
    """What passes over different images have in common."""

    functions: list[Any]  # of the shared calls
    named: frozenset[str]  # tensors of the network that they take
    needed: frozenset[int]  # their results that later calls take
    written: frozenset[int]  # those among them that later calls write to


class Call(NamedTuple):
    """A call that is not executed again."""

    function: Any
    arguments: Any  # described
    result: Any  # with empty tensors


class Notes(NamedTuple):
    """What a pass of another network over the same images needs."""

    calls: list[Call]
    empties: dict[Place, Tensor]  # what stands for a tensor in the results
    kept: dict[int, Tensor]
    versions: dict[int, int]  # of what is kept and not written to


class _Pass(TorchFunctionMode, ABC):
    """A forward pass whose calls are watched."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.failure = ""

    def logits(self, run: Run) -> Tensor:
        with self:
            logits = run(self.images)
        self.finish(logits)
        if self.failure:  # the network's own code may have caught it
            raise UnlikeError(self.failure)
        return logits

    def fail(self, reason: str) -> UnlikeError:
        self.failure = self.failure or reason
        return UnlikeError(reason)

    def describe(self, value: Any) -> Any:
        """Arguments in a form that can be compared with those of another pass; raises LookupError where they have none."""
        kind = type(value)
        if kind in _PLAIN:
            return kind, value
        if isinstance(value, Tensor):
            return self.place(value)
        if isinstance(value, list | tuple):
            return kind, [self.describe(item) for item in value]
        if isinstance(value, dict):
            return kind, [(key, self.describe(item)) for key, item in value.items()]
        if kind is slice:
            return kind, [self.describe(item) for item in (value.start, value.stop, value.step)]
        raise LookupError(kind)

    @abstractmethod
    def place(self, tensor: Tensor) -> Place:
        """Raises LookupError for a tensor of unknown origin."""

    @abstractmethod
    def finish(self, logits: Tensor) -> None:
        """Look back on the whole pass."""


class Recording(_Pass):
    """Executes every call and notes the shared ones; without a plan it keeps all that they return."""

    def __init__(self, images: Tensor, tensors: dict[str, Tensor], group: frozenset[str], plan: Plan | None = None) -> None:
        super().__init__(images)
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._group, self._plan = group, plan
        self.named: set[str] = set()  # tensors of the network that shared calls take
        self.needed: dict[int, Tensor] = {}
        self._calls: list[Call] = []
        self._over = False
        self._counter = itertools.count(1)
        self._numbers = {id(images): (weakref.ref(images), 0)}
        self._empties: dict[Place, Tensor] = {}
        self._held: dict[int, Tensor] = {}
        self._versions: dict[int, int] = {}  # of what is held, where the shared calls end
        self._copies: dict[int, Tensor] = {}
        self._image_version = version_of(images)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(tensors_in((args, kwargs)))
        try:
            arguments = None if self._over else self.describe((args, kwargs))
        except LookupError:  # also for a tensor of the group
            self._end()
        if self._over:
            self._take(inputs)
            return func(*args, **kwargs)
        versions = [version_of(tensor) for tensor in inputs]
        result = func(*args, **kwargs)
        written = [tensor for tensor, version in zip(inputs, versions, strict=True) if version_of(tensor) != version]
        if any(tensor is self.images or id(tensor) in self._names for tensor in written):
            raise self.fail("the network writes to its images or to its own tensors")
        try:
            self.describe(map_tensors(result, lambda tensor: None))
        except LookupError:  # such as an array of numpy: it cannot be handed out again
            if written:
                raise self.fail("a call writes to a tensor and returns what cannot be kept") from None
            self._end()
            self._take(inputs)
            return result
        self.named |= {self._names[id(tensor)] for tensor in inputs if id(tensor) in self._names}
        self._calls.append(Call(func, arguments, map_tensors(result, self._empty)))
        return result

    def place(self, tensor: Tensor) -> Place:
        """Raises LookupError for a tensor of unknown origin, and for those of the group."""
        name = self._names.get(id(tensor))
        reference, number = self._numbers.get(id(tensor), (None, 0))
        if name in self._group or (name is None and (reference is None or reference() is not tensor)):  # ids are used again
            raise LookupError(name)
        return number if name is None else name

    def finish(self, logits: Tensor) -> None:
        """Refuse what cannot be repeated."""
        if not self._over:
            raise self.fail("no call takes a tensor of the group")
        self._take(tensors_in(logits))
        written, used = self._written(), [self.images, *self.needed.values()]
        storages = [tensor.untyped_storage().data_ptr() for tensor in used]
        if version_of(self.images) != self._image_version:
            self.fail("the network writes to its images or to its own tensors")
        elif any(tensor.is_inference() for tensor in used):
            self.fail("writes to tensors of inference mode are not counted")
        elif self._plan is None and not all(torch.equal(self.needed[n], self._copies[n]) for n in self.needed.keys() - written):
            self.fail("the network writes to a result in a way that is not counted")
        elif any(storages.count(self.needed[number].untyped_storage().data_ptr()) > 1 for number in written):
            self.fail("the network writes to a result that is needed in another form too")
        elif self._plan is not None and not (
            [call.function for call in self._calls] == self._plan.functions
            and self.named == self._plan.named
            and self._held.keys() == self._plan.needed
            and written <= self._plan.written
        ):
            self.fail("the calls depend on the images")

    def plan(self) -> Plan:
        """What a pass over other images is to be like."""
        return Plan([call.function for call in self._calls], frozenset(self.named), frozenset(self.needed), frozenset(self._written()))

    def notes(self) -> Notes:
        """What the pass leaves to others."""
        versions = {number: version_of(tensor) for number, tensor in self._held.items() if number not in self._copies}
        return Notes(self._calls, self._empties, self._held | self._copies, versions)

    def _written(self) -> set[int]:
        return {number for number, tensor in self.needed.items() if version_of(tensor) != self._versions[number]}

    def _empty(self, tensor: Tensor) -> Tensor:
        """What stands for a result; a new one gets a number."""
        try:
            place = self.place(tensor)
        except LookupError:
            place = next(self._counter)
            self._numbers[id(tensor)] = (weakref.ref(tensor), place)
            if self._plan is None or place in self._plan.needed:
                self._held[place] = tensor
        if place not in self._empties:
            self._empties[place] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return self._empties[place]

    def _end(self) -> None:
        """The next call is not shared: results are needed as they are now."""
        self._over = True
        self._versions = {number: version_of(tensor) for number, tensor in self._held.items()}
        written = self._held.keys() if self._plan is None else self._held.keys() & self._plan.written
        self._copies = {number: self._held[number].clone() for number in written}
        if self._plan is not None and any(copy.stride() != self._held[number].stride() for number, copy in self._copies.items()):
            self.fail("the network writes to a part of a result")  # kernels may round otherwise in the strides of a copy

    def _take(self, inputs: Iterable[Tensor]) -> None:
        """Note which results of shared calls later ones take."""
        for tensor in inputs:
            reference, number = self._numbers.get(id(tensor), (None, 0))
            if number and reference is not None and reference() is tensor:
                if number not in self._held:
                    raise self.fail("the calls depend on the images")
                self.needed[number] = self._held[number]


class Replay(_Pass):
    """Executes what is not shared."""

    def __init__(self, notes: Notes, images: Tensor, tensors: dict[str, Tensor]) -> None:
        super().__init__(images)
        self._notes, self._next = notes, 0
        self._given: dict[Place, Tensor] = {0: images}
        self._given.update(tensors)
        self._given.update((number, kept if number in notes.versions else kept.clone()) for number, kept in notes.kept.items())
        self._places = {id(tensor): place for place, tensor in (*notes.empties.items(), *self._given.items())}  # all of them stay alive

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._next == len(self._notes.calls):
            if any(tensor.is_meta for tensor in tensors_in((args, kwargs))):
                raise self.fail("another result is needed than in the recorded network")
            return func(*args, **kwargs)
        call = self._notes.calls[self._next]
        self._next += 1
        try:
            alike = func == call.function and self.describe((args, kwargs)) == call.arguments
        except LookupError:
            alike = False
        if not alike:
            raise self.fail("another call comes before the group than in the recorded network")
        return map_tensors(call.result, lambda empty: self._given.get(self._places[id(empty)], empty))

    def place(self, tensor: Tensor) -> Place:
        """Raises LookupError for a tensor that was not given."""
        return self._places[id(tensor)]

    def finish(self, logits: Tensor) -> None:
        """Refuse a pass that did not go as noted."""
        if self._next < len(self._notes.calls) or any(tensor.is_meta for tensor in tensors_in(logits)):
            self.fail("calls before the group are missing")
        elif any(version_of(self._notes.kept[number]) != version for number, version in self._notes.versions.items()):
            self.fail("this network writes to a result, unlike the recorded one")
