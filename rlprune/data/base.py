"""What a data set is to rlprune: two uint8 tensors, one of which stays closed until the last table."""

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlprune.errors import UserError
from rlprune.seeding import numpy_generator


@dataclass(frozen=True)
class Images:
    """Pixels, uint8 of shape (N, C, H, W), and labels, int64 of shape (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "Images":
        """The images at these positions."""
        chosen = torch.from_numpy(indices)
        return Images(self.pixels[chosen], self.labels[chosen])

    def checksum(self) -> int:
        """Changes with any pixel or label."""
        return zlib.crc32(self.labels.cpu().numpy().tobytes(), zlib.crc32(self.pixels.cpu().contiguous().numpy().data))

    def to(self, device: torch.device) -> "Images":
        """The same images on a device."""
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(kw_only=True)
class Dataset(ABC):
    """A source of images with a training split and a test split.

    Args:
        search_fraction: share of the training images set aside for rewards and every other decision of a search; never trained on.
        crop: pixels by which training images are padded and cropped at random; 0 switches it off.
        flip: mirror half of the training images.
        limit: at most so many training and so many test images, drawn evenly over the classes; null takes all.
        mean: of each channel of pixels in [0, 1], subtracted from them; null measures it on the training images.
        std: by which they are divided afterwards; null measures it on the training images.
    """

    search_fraction: float
    crop: int
    flip: bool
    limit: int | None
    mean: list[float] | None
    std: list[float] | None

    def __post_init__(self) -> None:
        if not 0 < self.search_fraction < 1:
            raise ValueError(f"search_fraction={self.search_fraction}: must be in (0, 1)")
        if self.crop < 0:
            raise ValueError(f"crop={self.crop}: must be ≥ 0")
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit={self.limit}: must be ≥ 2, or null for all images")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std={self.std}: must be > 0")

    @abstractmethod
    def read_train(self) -> tuple[Images, tuple[str, ...]]:
        """All training images and the class names."""

    @abstractmethod
    def read_test(self) -> Images:
        """The test images; only `rlprune.results.final_test` asks for them."""

    def check_test(self) -> None:  # noqa: B027 (most sources always have a test split)
        """Fail early if there is no test split, without reading it."""


@dataclass(frozen=True)
class Normalization:
    """Channel means and standard deviations of pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (N, C, H, W) → float32 of the same shape."""
        shape = (1, -1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device)
        scale = (1 / (255 * std)).view(shape)
        shift = (-torch.tensor(self.mean, device=pixels.device) / std).view(shape)
        return torch.addcmul(shift, pixels.float(), scale)


@dataclass(frozen=True)
class Splits:
    """Training and search images of one run; the test split is not here."""

    train: Images
    search: Images
    normalization: Normalization
    class_names: tuple[str, ...]
    crop: int
    flip: bool


def stratified_order(labels: Tensor, generator: np.random.Generator) -> np.ndarray:
    """All positions in an order whose every prefix holds the classes in nearly their shares."""
    values = labels.numpy()
    rank = np.empty(len(values))
    for label in np.unique(values):
        positions = generator.permutation(np.flatnonzero(values == label))
        rank[positions] = (np.arange(len(positions)) + generator.random()) / len(positions)
    return np.argsort(rank, kind="stable")


def limited(images: Images, limit: int | None) -> Images:
    """At most `limit` images, evenly over the classes, the same ones every time."""
    if limit is None or limit >= len(images):
        return images
    return images.subset(np.sort(stratified_order(images.labels, numpy_generator(0, "limit"))[:limit]))


def split(dataset: Dataset, seed: int) -> Splits:
    """Cut the search split off the training images: seeded and stratified.

    Raises:
        UserError: too few images for the two splits, or normalisation constants for another number of channels.
    """
    images, class_names = dataset.read_train()
    images = limited(images, dataset.limit)
    if len(class_names) < 2:
        raise UserError(f"dataset: has {len(class_names)} class(es); at least two are needed to classify")
    if dataset.crop >= min(images.pixels.shape[2:]):
        raise UserError(f"dataset.crop={dataset.crop}: must be smaller than the images, {tuple(images.pixels.shape[2:])} pixels")
    size = round(len(images) * dataset.search_fraction)
    if size < 1 or size >= len(images):
        raise UserError(f"dataset.search_fraction={dataset.search_fraction}: leaves an empty split of {len(images)} images")
    order = stratified_order(images.labels, numpy_generator(seed, "search split"))
    train, search = images.subset(np.sort(order[size:])), images.subset(np.sort(order[:size]))
    return Splits(train, search, _normalization(dataset, train), class_names, dataset.crop, dataset.flip)


def _normalization(dataset: Dataset, train: Images) -> Normalization:
    channels = train.pixels.shape[1]
    counts = [torch.bincount(train.pixels[:, c].reshape(-1).int(), minlength=256).double() for c in range(channels)]
    values = torch.arange(256).double() / 255
    mean = [float((count * values).sum() / count.sum()) for count in counts]
    std = [float((count * (values - m) ** 2).sum() / count.sum()) ** 0.5 or 1.0 for count, m in zip(counts, mean, strict=True)]
    for key, given in (("mean", dataset.mean), ("std", dataset.std)):
        if given is not None and len(given) != channels:
            raise UserError(f"dataset.{key}={given}: must have {channels} numbers, one a channel")
    return Normalization(tuple(dataset.mean or mean), tuple(dataset.std or std))
