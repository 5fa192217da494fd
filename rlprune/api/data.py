"""A user's examples as batches on a device: data sets, loaders, and pairs of tensors."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data.dataloader import default_collate

from rlprune.checkpoint import tensors_checksum
from rlprune.errors import UserError
from rlprune.graph.labels import tensors_in
from rlprune.graph.run import map_tensors
from rlprune.search.returned import shown
from rlprune.seeding import derive_seed, numpy_generator, seed_globals, torch_generator

RESIDENT_BYTES = 2**30  # batches that are read again and again are kept up to this size, and made anew above it
HELD_OUT = 0.1  # of train_data, where there is no val_data


@dataclass(frozen=True)
class Examples:
    """What a user has handed in as `key`, and how batches are made of it.

    `loader` is the user's own, which says itself which examples make a batch; None: all in order, or drawn without replacement.
    """

    key: str
    dataset: Any
    batch_size: int
    collate: Callable[[list[Any]], Any]
    workers: int
    device: torch.device
    loader: DataLoader[Any] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def subset(self, indices: np.ndarray) -> "Examples":
        """The examples at these positions."""
        dataset: Any = Subset(self.dataset, indices.tolist())
        if type(self.dataset) is TensorDataset:
            dataset = TensorDataset(*(tensor[torch.from_numpy(indices).to(tensor.device)] for tensor in self.dataset.tensors))
        return replace(self, dataset=dataset, loader=None)

    def draw(self, count: int | None, seed: int, phase: str) -> "Examples":
        """At most so many, drawn by a stream of their own, in their order; None takes all."""
        if count is None or count >= len(self):
            return self
        return self.subset(np.sort(numpy_generator(seed, phase).permutation(len(self))[:count]))

    def held_out(self, seed: int) -> tuple["Examples", "Examples"]:
        """Without a tenth, and that tenth.

        Raises:
            UserError: the user's loader makes its batches by a rule of its own, or there are too few examples.
        """
        if self.loader is not None and not (
            type(self.loader.batch_sampler) is BatchSampler and type(self.loader.sampler) in (RandomSampler, SequentialSampler)
        ):
            raise UserError("val_data: name it, as train_data draws its batches by a sampler of its own, and nothing can be held out of it")
        count = round(HELD_OUT * len(self))
        if count < 1 or len(self) - count < 2:
            raise UserError(f"{self.key}: has {len(self)} examples, of which no tenth can be held out; pass val_data")
        order = numpy_generator(seed, "held out").permutation(len(self))
        return self.subset(np.sort(order[count:])), replace(self.subset(np.sort(order[:count])), key="val_data")

    def whole(self, seed: int, phase: str) -> Any:
        """All of them as one batch."""
        seed_globals(seed, phase)  # a data set may vary its examples
        everything = list(range(len(self)))
        return self.to_device(next(iter(self.batches([everything], torch_generator(seed, phase)))))

    def first(self, count: int) -> Any:
        """The first ones as one batch."""
        return self.subset(np.arange(min(count, len(self)))).whole(0, "first")

    def batches(self, chunks: Sequence[Sequence[int]], generator: torch.Generator) -> Iterable[Any]:
        """The batch of each list of positions."""
        if type(self.dataset) is TensorDataset:
            return (tuple(tensor[torch.tensor(chunk, device=tensor.device)] for tensor in self.dataset.tensors) for chunk in chunks)
        return DataLoader(
            self.dataset,
            batch_sampler=chunks,  # type: ignore[arg-type]  # a list of lists is one
            collate_fn=self.collate,
            num_workers=self.workers,
            generator=generator,
        )

    def to_device(self, batch: Any) -> Any:
        """A batch where the network is."""
        return map_tensors(batch, lambda tensor: tensor.to(self.device))

    def checksum(self) -> int:
        """Changes with the number of examples, and with their values where they are tensors."""
        if type(self.dataset) is TensorDataset:
            return tensors_checksum({str(index): tensor.detach() for index, tensor in enumerate(self.dataset.tensors)})
        return zlib.crc32(f"{type(self.dataset).__name__} {len(self)}".encode())

    @property
    def generators(self) -> list[torch.Generator]:
        """That the user's loader draws from, each once."""
        found = [getattr(holder, "generator", None) for holder in (self.loader, getattr(self.loader, "sampler", None))]
        return list({id(generator): generator for generator in found if isinstance(generator, torch.Generator)}.values())


def examples_of(data: Any, key: str, *, batch_size: int, device: torch.device) -> Examples:
    """What a user hands in.

    Args:
        data: a data set of (input, target), a loader, or a pair of tensors.
        key: its name in errors.
        batch_size: where the loader does not say it.
        device: of the batches.

    Raises:
        UserError: it is something else, or empty.
    """
    loader = data if isinstance(data, DataLoader) else None
    dataset: Any = data if loader is None else loader.dataset
    collate: Callable[[list[Any]], Any] = default_collate if loader is None else loader.collate_fn
    workers = 0 if loader is None else loader.num_workers
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        if len(data[0]) != len(data[1]):
            raise UserError(f"{key}: has {len(data[0])} inputs and {len(data[1])} targets; there must be as many of either")
        dataset = TensorDataset(*data)
    if isinstance(dataset, IterableDataset) or (loader is not None and loader.batch_sampler is None):
        raise UserError(f"{key}: its examples cannot be picked one by one; pass a data set with __getitem__ and __len__, or its DataLoader")
    indexed = hasattr(dataset, "__getitem__") and not isinstance(dataset, tuple | Mapping | str | Tensor | np.ndarray)
    if not (isinstance(dataset, TorchDataset) or indexed) or not hasattr(dataset, "__len__"):
        raise UserError(f"{key}: must be a torch Dataset, a DataLoader, or a pair of tensors (inputs, targets); got {shown(data)}")
    if len(dataset) == 0:
        raise UserError(f"{key}: is empty")
    size = batch_size if loader is None or loader.batch_size is None else loader.batch_size
    return Examples(key, dataset, size, collate, workers, device, loader)


class Minibatches:
    """Batches of a training; each epoch visits each example once, unless the user's loader has another rule.

    A last batch of one example is left out, as batch norm cannot train on it.

    Args:
        examples: to train on.
        seed: of the order of every epoch.
    """

    def __init__(self, examples: Examples, seed: int) -> None:
        self.examples, self.seed = examples, seed

    def __len__(self) -> int:
        if self.examples.loader is not None:
            return len(self.examples.loader)
        whole, rest = divmod(len(self.examples), self.examples.batch_size)
        return max(1, whole + (rest > 1))

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        """The batches of one epoch from its batch `start` on."""
        for index, batch in enumerate(self._epoch(number)):
            if index >= start:
                yield self.examples.to_device(batch)

    def _epoch(self, number: int) -> Iterable[Any]:
        generator = torch_generator(self.seed, f"epoch {number}")
        if self.examples.loader is not None:
            for own in self.examples.generators:
                own.manual_seed(derive_seed(self.seed, f"epoch {number}"))
            return self.examples.loader
        order = torch.randperm(len(self.examples), generator=generator)
        chunks = [chunk.tolist() for chunk in order.split(self.examples.batch_size)[: len(self)]]
        return self.examples.batches(chunks, generator)


class FixedBatches:
    """The same batches in every pass: what networks are measured on; a metric is given it. They are kept on the device where they fit.

    Args:
        examples: all of them.
        seed: of what the data set draws.
    """

    def __init__(self, examples: Examples, seed: int) -> None:
        self.examples, self.seed = examples, seed

    def __len__(self) -> int:
        loader = self.examples.loader
        return len(loader) if loader is not None else -(-len(self.examples) // self.examples.batch_size)

    def __iter__(self) -> Iterator[Any]:
        return self._made() if self._resident is None else iter(self._resident)

    @cached_property
    def _resident(self) -> list[Any] | None:
        seed_globals(self.seed, self.examples.key)
        kept, size = [], 0
        for batch in self._made():
            kept.append(batch)
            size += sum(tensor.nbytes for tensor in tensors_in(batch))
            if size > RESIDENT_BYTES:
                return None
        return kept

    def _made(self) -> Iterator[Any]:
        examples = self.examples
        for own in examples.generators:
            own.manual_seed(derive_seed(self.seed, examples.key))
        chunks = [chunk.tolist() for chunk in torch.arange(len(examples)).split(examples.batch_size)]
        made = examples.batches(chunks, torch_generator(self.seed, examples.key)) if examples.loader is None else examples.loader
        yield from map(examples.to_device, made)
