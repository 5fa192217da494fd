"""Training batches: made on the device from a tensor that lives there, or decoded from files by workers."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from rlprune.data.base import Augmentation, Images, Normalization, Pictures
from rlprune.data.files import ImageFiles
from rlprune.seeding import derive_seed, torch_generator

RATIO = (3 / 4, 4 / 3)  # aspect ratios of a resized crop


@dataclass(frozen=True)
class Part:
    """What one of several processes takes of every batch: neighbours, as many as the others take, or one more or less.

    Args:
        rank: of the process.
        size: number of processes.
    """

    rank: int
    size: int

    def of(self, count: int) -> range:
        """Places in a batch of so many images; none where there are fewer of them than processes."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)


WHOLE = Part(0, 1)


class Batches:
    """Shuffled, augmented, normalised batches.

    An epoch visits each image once; a last batch of one image is left out, as batch norm cannot train on it. Every batch draws from random
    streams that belong to its place in its epoch, so that a training that goes on in the middle of one equals an unbroken one.

    Args:
        images: in memory, on the device that makes the batches, or on disk.
        batch_size: images a batch.
        normalization: applied last.
        augmentation: drawn anew for each image.
        num_classes: length of mixed labels.
        seed: of all streams.
        device: where batches go.
    """

    def __init__(
        self,
        images: Pictures,
        *,
        batch_size: int,
        normalization: Normalization,
        augmentation: Augmentation,
        num_classes: int,
        seed: int,
        device: torch.device,
    ) -> None:
        given: dict[str, Any] = {"batch_size": batch_size, "normalization": normalization, "augmentation": augmentation}
        self._again = partial(Batches, images, **given, num_classes=num_classes, seed=seed, device=device)
        self.images: Pictures = images.to(device) if isinstance(images, Images) else images
        self.batch_size, self.normalize, self.augmentation = batch_size, normalization.on(device), augmentation
        self.num_classes, self.seed, self.device = num_classes, seed, device

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        return max(1, whole + (rest > 1))

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which makes them anew."""
        return self._again, ()

    def count(self, batch: int) -> int:
        """Images of a batch."""
        return min(self.batch_size, len(self.images) - batch * self.batch_size)

    def epoch(self, number: int, start: int = 0, part: Part = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from its batch `start` on, or a part of each: the images that are there in the whole one.

        Float32 images of shape (n, C, H, W), and labels: int64 (n,), or where they are mixed float32 (n, classes). Where the part is empty,
        the first image stands in.
        """
        on = self.device if isinstance(self.images, Images) else torch.device("cpu")
        order = torch.randperm(len(self.images), generator=torch_generator(self.seed, f"epoch {number}", on), device=on)
        chosen = order.split(self.batch_size)[start : len(self)]
        seeds = [derive_seed(self.seed, f"epoch {number} batch {start + index}") for index in range(len(chosen))]
        rows = (None if part.size == 1 else self._rows(len(batch), part) for batch in chosen)
        skipped = 0 if part.size == 1 or self._mix is None else 1
        for seed, (pixels, labels) in zip(seeds, self._pixels(chosen, seeds, rows), strict=True):
            images, labels = self._mixed(self.normalize(pixels), labels, seed)
            yield images[skipped:], labels[skipped:]

    def augmented(self, indices: np.ndarray) -> Tensor:
        """These images, each varied once, as uint8; for looking at."""
        ((pixels, _),) = self._pixels((torch.from_numpy(indices).to(self.device),), [self.seed], [None])
        return pixels

    def _rows(self, count: int, part: Part) -> list[int]:
        """Places of a part in a batch, behind the image that its first one is mixed with, where they are mixed."""
        own = part.of(count) or range(1)
        return [*([] if self._mix is None else [(own[0] - 1) % count]), *own]

    def _pixels(self, chosen: tuple[Tensor, ...], seeds: list[int], rows: Iterable[list[int] | None]) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches, uint8, or some rows of each: files are decoded for these alone, images in memory varied all at once."""
        batches = zip(chosen, seeds, rows, strict=True)
        if isinstance(self.images, ImageFiles):
            every = ((list(zip(batch.tolist(), range(seed, seed + len(batch)), strict=True)), wanted) for batch, seed, wanted in batches)
            places = (seeded if wanted is None else [seeded[row] for row in wanted] for seeded, wanted in every)
            yield from self.images.stream(places, self._file_transform, self.device)
        elif isinstance(self.images, Images):
            for batch, seed, wanted in batches:
                generator = torch.Generator(self.device).manual_seed(seed)
                pixels, labels = self._augment(self.images.pixels[batch], generator), self.images.labels[batch]
                yield (pixels, labels) if wanted is None else (pixels[wanted], labels[wanted])

    @cached_property
    def _file_transform(self) -> Callable[[Image.Image], Tensor]:
        """What the workers do to a decoded picture of any size."""
        how, geometry = self.augmentation, self.images.geometry  # type: ignore[attr-defined]
        steps: list[Callable[..., object]] = []
        if how.resized_crop is not None:
            steps.append(v2.RandomResizedCrop(geometry.size, scale=how.resized_crop, ratio=RATIO))
        else:
            steps.append(geometry)
            if how.crop:
                steps.append(v2.RandomCrop(geometry.size, padding=how.crop))
        if how.flip:
            steps.append(v2.RandomHorizontalFlip())
        if how.randaugment is not None:
            steps.append(_randaugment(how.randaugment))
        return v2.Compose([*steps, v2.PILToTensor()])

    def _augment(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        how, count, device = self.augmentation, len(pixels), pixels.device
        if how.crop:
            height, width = pixels.shape[2:]
            windows = F.pad(pixels, [how.crop] * 4).unfold(2, height, 1).unfold(3, width, 1)  # (N, C, offsets, offsets, H, W)
            offsets = torch.randint(2 * how.crop + 1, (2, count), generator=generator, device=device)
            pixels = windows[torch.arange(count, device=device), :, offsets[0], offsets[1]]
        if how.resized_crop is not None:
            pixels = _resized_crop(pixels, how.resized_crop, generator)
        if how.flip:
            mirrored = torch.rand(count, generator=generator, device=device) < 0.5
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
        if how.randaugment is not None:
            transform = _randaugment(how.randaugment)
            with torch.random.fork_rng(devices=[]):  # torchvision draws from the global stream, which belongs to dropout
                torch.default_generator.manual_seed(generator.initial_seed())
                pixels = torch.stack([transform(image) for image in pixels])
        return pixels

    def _mixed(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mixup, cutmix, or one of them drawn for the batch."""
        if self._mix is None:
            return images, labels
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            mixed: tuple[Tensor, Tensor] = self._mix(images, labels)
        return mixed

    @cached_property
    def _mix(self) -> Callable[..., tuple[Tensor, Tensor]] | None:
        alphas = ((v2.MixUp, self.augmentation.mixup), (v2.CutMix, self.augmentation.cutmix))
        ways = [way(alpha=alpha, num_classes=self.num_classes) for way, alpha in alphas if alpha]
        return v2.RandomChoice(ways) if ways else None


def _randaugment(magnitude: int) -> Callable[..., Tensor]:
    return v2.RandAugment(num_ops=2, magnitude=magnitude)


def _resized_crop(pixels: Tensor, area: tuple[float, float], generator: torch.Generator) -> Tensor:
    """A random window of each image, resized to the whole: all images at once; windows wider or higher than the image are cut to it."""
    count, _, height, width = pixels.shape
    uniform = torch.rand(4, count, generator=generator, device=pixels.device)
    share = area[0] + (area[1] - area[0]) * uniform[0]
    ratio = torch.exp(math.log(RATIO[1]) * (2 * uniform[1] - 1))  # log-uniform between 3/4 and 4/3
    wide = (share * ratio).sqrt().clamp(max=1)  # of the image's side
    high = (share / ratio).sqrt().clamp(max=1)
    centre_x, centre_y = (1 - wide) * (2 * uniform[2] - 1), (1 - high) * (2 * uniform[3] - 1)  # in [-1, 1]
    zero = torch.zeros_like(wide)
    theta = torch.stack([torch.stack([wide, zero, centre_x], 1), torch.stack([zero, high, centre_y], 1)], 1)  # (N, 2, 3)
    grid = F.affine_grid(theta, [count, 1, height, width], align_corners=False)
    return F.grid_sample(pixels.float(), grid, padding_mode="reflection", align_corners=False).round().clamp(0, 255).byte()
