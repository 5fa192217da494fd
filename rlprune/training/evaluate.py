"""Accuracy of networks on a fixed set of images, which stays on the device where it fits."""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlprune.data.base import Images, Normalization, Pictures
from rlprune.data.files import ImageFiles
from rlprune.training.execution import Execution
from rlprune.training.merged import Pair, merged
from rlprune.training.prefix import Prefix

log = logging.getLogger(__name__)
BATCH = {"cpu": 256, "cuda": 512}  # maps of more images leave a CPU's caches: small networks run 1.05 to 1.45 times slower in 512
RESIDENT_BYTES = 2**30  # normalised images are kept up to this size, and made anew for every pass above it


@dataclass(frozen=True)
class Accuracy:
    """Correct answers among n images."""

    correct: int
    correct_top5: int
    n: int

    @property
    def top1(self) -> float:
        """Fraction of images whose class ranks first."""
        return self.correct / self.n

    @property
    def top5(self) -> float:
        """Fraction of images whose class ranks among the first five."""
        return self.correct_top5 / self.n

    @property
    def standard_error(self) -> float:
        """Binomial standard error of top1."""
        return math.sqrt(self.top1 * (1 - self.top1) / self.n)


class Evaluator:
    """Measures accuracy, network after network, on the same images.

    Out of device memory, it halves its batch and says so.

    Args:
        images: to measure on.
        normalization: of their pixels.
        execution: device, precision, memory format.
        batch_size: images at once; None takes what suits the device.
        pairs: convolutions and batch norms that are merged while a network is measured, see `mergeable`.
    """

    def __init__(
        self,
        images: Pictures,
        normalization: Normalization,
        execution: Execution,
        *,
        batch_size: int | None = None,
        pairs: tuple[Pair, ...] = (),
    ) -> None:
        self.execution, self.normalization, self.pairs = execution, normalization, pairs
        self.batch_size = batch_size or BATCH[execution.device.type]
        self.images: Pictures = images.to(execution.device) if isinstance(images, Images) else images
        self._resident: list[tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> "Evaluator":
        """The same on the first `count` images."""
        images = self.images.subset(np.arange(count))
        return Evaluator(images, self.normalization, self.execution, batch_size=self.batch_size, pairs=self.pairs)

    def part(self, first: int, last: int) -> "Evaluator":
        """The same on its batches from `first` to before `last`; images in memory are shared."""
        start, stop = (min(batch * self.batch_size, len(self)) for batch in (first, last))
        if (start, stop) == (0, len(self)):
            return self
        images = self.images
        if isinstance(images, Images):
            images = Images(images.pixels[start:stop], images.labels[start:stop])
        else:
            images = images.subset(np.arange(start, stop))
        part = Evaluator(images, self.normalization, self.execution, batch_size=self.batch_size, pairs=self.pairs)
        batches = self._batches()
        part._resident = batches[first:last] if isinstance(batches, list) else None
        return part

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made of the images: whoever gets it makes it anew."""
        return {**self.__dict__, "_resident": None}

    def accuracy(self, model: nn.Module, prefix: Prefix | None = None, advance: Callable[[int], object] = lambda images: None) -> Accuracy:
        """Top-1 and top-5 of a network in eval mode.

        Args:
            model: any network.
            prefix: what it shares with networks that were measured before, so that only the rest is computed; the result is the same.
            advance: called with the number of images of every batch.
        """
        model.eval()
        model.to(memory_format=self.execution.memory_format(model, training=False))
        while True:
            try:
                with merged(model, self.pairs):
                    return self._accuracy(model, prefix, advance)
            except torch.OutOfMemoryError:
                if prefix is not None and not prefix.reason:  # what it keeps may be what is too much
                    prefix.give_up("out of memory")
                    continue
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                self._resident = None
                log.warning("out of memory on %s: evaluating in batches of %d from now on", self.execution.device, self.batch_size)

    def alike(self, tensors: Iterable[str]) -> Callable[[nn.Module], float]:
        """Top-1 of networks that differ in these parameters and buffers alone, given by name: what comes before them is computed once."""
        prefix = Prefix(tensors)
        return lambda model: self.accuracy(model, prefix).top1

    def _accuracy(self, model: nn.Module, prefix: Prefix | None, advance: Callable[[int], object]) -> Accuracy:
        memory_format = self.execution.memory_format(model, training=False)

        def run(images: Tensor) -> Tensor:
            with self.execution.autocast():
                logits: Tensor = model(images.contiguous(memory_format=memory_format))
            return logits

        with torch.inference_mode(False), torch.no_grad():  # images that stay must not be marked as those of inference mode
            batches = self._batches()
            if prefix is not None and not prefix.reason and isinstance(batches, list):
                try:
                    return self._count(prefix.logits(model, run, batches), advance)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # the network's own code, met with tensors that hold nothing, may raise anything
                    prefix.give_up(str(error).partition("\n")[0] or type(error).__name__)
                    log.debug("what comes before a group is computed for every network: %s", prefix.reason)
        with torch.inference_mode():
            return self._count(((run(images), labels) for images, labels in batches), advance)

    def _count(self, answers: Iterable[tuple[Tensor, Tensor]], advance: Callable[[int], object]) -> Accuracy:
        """Correct ones among logits and labels, batch after batch."""
        first = torch.zeros((), dtype=torch.long, device=self.execution.device)
        five = torch.zeros_like(first)
        for logits, labels in answers:
            ranked = logits.float().topk(min(5, logits.shape[1])).indices
            hits = (ranked == labels[:, None]) & torch.isfinite(logits).all(1, keepdim=True)  # what is not finite ranks nothing
            first += hits[:, 0].sum()
            five += hits.sum()
            advance(len(labels))
        return Accuracy(int(first), int(five), len(self.images))

    def _batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Normalised images and labels on the device."""
        if self._resident is not None:
            return self._resident
        if math.prod(self.images.shape) * len(self.images) * 4 > RESIDENT_BYTES:
            return ((self.normalization(pixels), labels) for pixels, labels in self._chunks())
        last = torch.contiguous_format if self.execution.channels_last == "false" else torch.channels_last
        self._resident = [(self.normalization(pixels).contiguous(memory_format=last), labels) for pixels, labels in self._chunks()]
        return self._resident

    def _chunks(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Pixels and labels on the device."""
        if isinstance(self.images, ImageFiles):
            order = [(index, 0) for index in range(len(self.images))]
            batches = (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))
            return self.images.stream(batches, None, self.execution.device)
        images = self.images.load()
        return zip(images.pixels.split(self.batch_size), images.labels.split(self.batch_size), strict=True)
