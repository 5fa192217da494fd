"""Rank 0 has the other processes do a part of its work: how networks, data and settings reach them, and how gradients become one.

A follower knows nothing of a run but what it is told, so that there is one search, one run folder and one log. Networks go as widths and
tensors, for which it makes the dense network itself: code is never sent, and what can be copied can be trained. Images go once.
"""

import io
import pickle
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from rlprune.data.base import Images
from rlprune.data.batches import Part
from rlprune.data.files import ImageFiles
from rlprune.distributed import Group
from rlprune.errors import UserError
from rlprune.graph.run import copy_module, named_tensors
from rlprune.sync_batch_norm import SyncBatchNorm

BUCKET = 2**22  # numbers that go at a time
PLAIN = (int, float, bool, str, type(None))


class Team:
    """The processes of a run, as each of them sees them.

    Args:
        group: what connects them.
    """

    def __init__(self, group: Group) -> None:
        self.group, self.part, self.leads = group, Part(group.rank, group.size), group.rank == 0
        self._sent: dict[int, tuple[weakref.ref[Any], int]] = {}  # images that the others have, and their numbers, by id
        self._numbers = 0
        self._pictures: dict[int, Any] = {}  # those images, by number
        self._dense: nn.Module | None = None  # of whatever weights; what networks are made from

    def __reduce__(self) -> tuple[Any, ...]:
        """Nothing, to a process that measures candidates: it trains alone."""
        return type(None), ()

    def backward(self, loss: Callable[[], Tensor], model: nn.Module, count: int) -> Tensor:
        """Give a network the gradient of the mean loss of a whole batch; returns that loss, the same in every process.

        Each process weighs its mean by its share of the images, and a sum in buckets puts the gradients together. DistributedDataParallel
        would average over processes, which is another mean where parts differ in size, and wants images in every process.

        Args:
            loss: mean loss of this process's part, or of what stands in for an empty one.
            model: the network, without gradients.
            count: images of the whole batch.
        """
        own = len(self.part.of(count))
        with SyncBatchNorm(self.group, counts=own > 0):
            value = loss() * (own / count)
            value.backward()
        total = value.detach().clone()
        _flat([*(parameter.grad for parameter in model.parameters() if parameter.grad is not None), total], self.group.sum)
        return total

    # -- rank 0 ----------------------------------------------------------------------------------------------------------------------

    def introduce(self, make: Callable[[], nn.Module], device: torch.device) -> None:
        """Tell the others how the dense network is made, and where they run it; waits until they are ready."""
        self.call(Team._prepare, self, make, device)
        self.group.sum(torch.zeros(1))  # what fails there fails before anything is begun here

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have the others call a function with these arguments, as they are here.

        Functions go by name. Of networks the others get copies, and where something refers to their tensors, it does so there as well.
        """
        message = _Message(self)
        content = message.pickled((function, arguments))
        fresh = {number: (type(images), [getattr(images, item.name) for item in fields(images)]) for number, images in message.fresh}
        self._sent = {place: (sent, number) for place, (sent, number) in self._sent.items() if sent() is not None}
        living = [number for _, number in self._sent.values()]
        preface = message.pickled((living, fresh, [_described(network) for network in message.networks]))
        outlines = [_Outline.of(tensor) for tensor in message.tensors]
        head = torch.frombuffer(bytearray(pickle.dumps((outlines, preface, content))), dtype=torch.uint8)
        for tensor in (torch.tensor([len(head)]), head):
            self.group.send(tensor)
        _flat(_bytes(message.tensors), self.group.send, back=False)

    def number(self, images: Any) -> tuple[int, bool]:
        """What the others call these images, and whether they have yet to get them."""
        sent, number = self._sent.get(id(images), (None, 0))
        if sent is not None and sent() is images:
            return number, False
        self._numbers += 1
        self._sent[id(images)] = (weakref.ref(images), self._numbers)
        return self._numbers, True

    # -- the others ------------------------------------------------------------------------------------------------------------------

    def answer(self) -> None:
        """Wait for a call of rank 0's and carry it out."""
        size = torch.zeros(1, dtype=torch.long)
        self.group.send(size)
        head = torch.empty(int(size), dtype=torch.uint8)
        self.group.send(head)
        outlines, preface, content = pickle.loads(head.numpy().tobytes())
        tensors = [outline.empty() for outline in outlines]
        _flat(_bytes(tensors), self.group.send)
        tensors = [outline.formatted(tensor) for outline, tensor in zip(outlines, tensors, strict=True)]
        living, fresh, described = _Reader(preface, self, tensors, [], {}).load()
        self._pictures = {number: images for number, images in self._pictures.items() if number in living}
        self._pictures |= {number: kind(*values) for number, (kind, values) in fresh.items()}
        function, arguments = _Reader(content, self, tensors, [self._made(*entry) for entry in described], self._pictures).load()
        function(*arguments)

    def _prepare(self, make: Callable[[], nn.Module], device: torch.device) -> None:
        self.group.take(device)
        self._dense = make()
        self.group.sum(torch.zeros(1))

    def _made(self, attributes: dict[str, dict[str, Any]], tensors: dict[str, tuple[Tensor, bool, bool]]) -> nn.Module:
        """A network of the dense one's modules, as `_described` tells it."""
        assert self._dense is not None
        own = dict(named_tensors(dict(self._dense.named_modules())))
        if own.keys() != tensors.keys() or attributes.keys() != dict(self._dense.named_modules()).keys():
            strange = next(iter(own.keys() ^ tensors.keys() or attributes.keys()))
            raise UserError(f"model: is made with other layers in each process ({strange}); start it without torchrun")
        memo: dict[int, Any] = {
            id(own[name]): nn.Parameter(tensor, requires_grad=trained) if weight else tensor
            for name, (tensor, weight, trained) in tensors.items()
        }
        network = copy_module(self._dense, memo)
        for name, module in network.named_modules():
            vars(module).update(attributes[name])
        return network


# -- messages ------------------------------------------------------------------------------------------------------------------------------


def _described(network: nn.Module) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[Tensor, bool, bool]]]:
    """Plain attributes of every module, which hold its widths; every tensor, whether it is a weight, and whether it is trained."""
    modules = dict(network.named_modules())
    attributes = {name: {key: value for key, value in vars(module).items() if _plain(value)} for name, module in modules.items()}
    tensors = {name: (tensor.detach(), isinstance(tensor, nn.Parameter), tensor.requires_grad) for name, tensor in named_tensors(modules)}
    return attributes, tensors


def _plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (type(value) in (list, tuple) and all(isinstance(item, PLAIN) for item in value))


class _Message:
    """What is said in pickles, and the networks, tensors and new images that they refer to by their places."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.networks: list[nn.Module] = []
        self.tensors: list[Tensor] = []
        self.fresh: list[tuple[int, Any]] = []
        self._owned: dict[int, tuple[str, int, str]] = {}  # tensors of these networks, by id

    def pickled(self, value: Any) -> bytes:
        """The value in bytes."""
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer)
        pickler.persistent_id = self._place  # type: ignore[method-assign]
        pickler.dump(value)
        return buffer.getvalue()

    def _place(self, value: Any) -> tuple[Any, ...] | None:
        """Where the other side finds what is not pickled; None for all else."""
        if isinstance(value, Team):
            return ("team",)
        if isinstance(value, nn.Module):
            return ("network", self._network(value))
        if isinstance(value, Tensor):
            if id(value) in self._owned:
                return self._owned[id(value)]
            self.tensors.append(value.detach())
            return ("tensor", len(self.tensors) - 1)
        if isinstance(value, Images | ImageFiles):
            number, new = self.team.number(value)
            if new:
                self.fresh.append((number, value))
            return ("images", number)
        return None

    def _network(self, network: nn.Module) -> int:
        for place, known in enumerate(self.networks):
            if known is network:
                return place
        self.networks.append(network)
        place = len(self.networks) - 1
        named = named_tensors(dict(network.named_modules()))
        self._owned |= {id(tensor): ("owned", place, name) for name, tensor in named}
        return place


class _Reader(pickle.Unpickler):
    def __init__(self, content: bytes, team: Team, tensors: list[Tensor], networks: list[nn.Module], pictures: dict[int, Any]) -> None:
        super().__init__(io.BytesIO(content))
        self._known: dict[str, Any] = {"team": team, "tensor": tensors, "network": networks, "images": pictures}

    def persistent_load(self, place: tuple[Any, ...]) -> Any:
        """What the writer has not pickled."""
        if place[0] == "owned":
            return dict(named_tensors(dict(self._known["network"][place[1]].named_modules())))[place[2]]
        found = self._known[place[0]]
        return found if len(place) == 1 else found[place[1]]


# -- tensors -------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outline:
    """What a tensor needs to be known by before its values come."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    channels_last: bool

    @staticmethod
    def of(tensor: Tensor) -> "_Outline":
        last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
        return _Outline(tuple(tensor.shape), tensor.dtype, tensor.device.type, last)

    def empty(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def formatted(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if self.channels_last else tensor


def _bytes(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in tensors if tensor.numel()]


def _flat(tensors: list[Tensor], operate: Callable[[Tensor], object], *, back: bool = True) -> None:
    """Let an operation on a flat tensor see several of one kind as one; `back`: what it changes in place changes in them."""
    for bucket in _buckets(tensors):
        flat = bucket[0].reshape(-1) if len(bucket) == 1 else torch.cat([tensor.reshape(-1) for tensor in bucket])
        operate(flat)
        for tensor, values in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            if back and values.data_ptr() != tensor.data_ptr():
                tensor.copy_(values.view(tensor.shape))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type and device, so many that they are worth a message."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(other.numel() for other in bucket) + tensor.numel() > BUCKET
        if bucket and (full or (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
