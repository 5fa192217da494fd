"""Training batches from a tensor that lives on the device: no workers, no files, no host in the loop."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from rlprune.data.base import Images, Normalization


class Batches:
    """Shuffled, augmented, normalised batches, one epoch an iteration.

    Every epoch visits each image once; a last batch of one image is left out, as batch norm cannot train on it. Random crop and flip are
    drawn for each image.
    """

    def __init__(
        self, images: Images, *, batch_size: int, normalization: Normalization, crop: int, flip: bool, generator: torch.Generator
    ) -> None:
        self.images, self.batch_size, self.normalization = images, batch_size, normalization
        self.crop, self.flip, self.generator = crop, flip, generator

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        return max(1, whole + (rest > 1))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.images.pixels.device
        order = torch.randperm(len(self.images), generator=self.generator, device=device)
        for chosen in order.split(self.batch_size)[: len(self)]:
            yield self.normalization(self._augment(self.images.pixels[chosen])), self.images.labels[chosen]

    def _augment(self, pixels: Tensor) -> Tensor:
        count, _, height, width = pixels.shape
        device = pixels.device
        if self.crop:
            windows = F.pad(pixels, [self.crop] * 4).unfold(2, height, 1).unfold(3, width, 1)  # (N, C, offsets, offsets, H, W)
            offsets = torch.randint(2 * self.crop + 1, (2, count), generator=self.generator, device=device)
            pixels = windows[torch.arange(count, device=device), :, offsets[0], offsets[1]]
        if self.flip:
            mirrored = torch.rand(count, generator=self.generator, device=device) < 0.5
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
        return pixels
