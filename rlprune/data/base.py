"""What a data set is to rlprune: images in memory or on disk, and a test split that stays closed until the last table."""

import logging
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rlprune.errors import UserError
from rlprune.memory import LARGEST_SIDE
from rlprune.seeding import numpy_generator

log = logging.getLogger(__name__)


class Pictures(Protocol):
    """Labelled images of one shape, in memory (`Images`) or on disk (`rlprune.data.files.ImageFiles`)."""

    @property
    def labels(self) -> Tensor:
        """int64, shape (N,)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (C, H, W)."""

    def __len__(self) -> int: ...

    def subset(self, indices: np.ndarray) -> "Pictures":
        """The images at these positions."""

    def checksum(self) -> int:
        """Changes with any image or label."""

    def load(self) -> "Images":
        """All of them in memory."""


@dataclass(frozen=True)
class Images:
    """Pixels, uint8 of shape (N, C, H, W), and labels, int64 of shape (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (C, H, W)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def load(self) -> "Images":
        """Itself."""
        return self

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


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Args:
        crop: pixels of padding, out of which a window of the old size is cut; 0 for none.
        flip: mirror half of the images.
        resized_crop: smallest and largest share of the area of a window that is resized to the whole, aspect ratio 3/4 to 4/3 (Szegedy et
            al. 2015); None for none.
        randaugment: magnitude, 0 to 30, of two random operations an image (Cubuk et al. 2020); None for none.
        mixup: α of the Beta distribution that mixes pairs of images and their labels (Zhang et al. 2018); 0 for none.
        cutmix: likewise, for windows of them (Yun et al. 2019); with both, each batch takes one of them.
    """

    crop: int = 0
    flip: bool = False
    resized_crop: tuple[float, float] | None = None
    randaugment: int | None = None
    mixup: float = 0.0
    cutmix: float = 0.0


def check_side(name: str, side: int) -> None:
    """Refuse images that are larger than any network takes.

    Raises:
        ValueError: this one is.
    """
    if side > LARGEST_SIDE:
        raise ValueError(f"{name}={side}: must be ≤ {LARGEST_SIDE} pixels")


@dataclass(kw_only=True)
class Dataset(ABC):
    """A source of images with a training split and a test split.

    Args:
        search_fraction: share of the training images set aside for rewards and every other decision of a search; never trained on.
        crop: pixels by which training images are padded and cropped at random; 0 switches it off.
        resized_crop: smallest and largest share of the area that a random window takes, resized to the whole image; null switches it off.
        flip: mirror half of the training images.
        limit: at most so many training and so many test images, drawn evenly over the classes; null takes all.
        mean: of each channel of pixels in [0, 1], subtracted from them; null measures it on the training images.
        std: by which they are divided afterwards; null measures it on the training images.
    """

    search_fraction: float
    crop: int
    resized_crop: list[float] | None
    flip: bool
    limit: int | None
    mean: list[float] | None
    std: list[float] | None

    def __post_init__(self) -> None:
        if not 0 < self.search_fraction < 1:
            raise ValueError(f"search_fraction={self.search_fraction}: must be in (0, 1)")
        if not 0 <= self.crop <= LARGEST_SIDE:
            raise ValueError(f"crop={self.crop}: must be ≥ 0, and ≤ {LARGEST_SIDE}")
        area = self.resized_crop
        if area is not None and not (len(area) == 2 and 0 < area[0] <= area[1] <= 1):
            raise ValueError(f"resized_crop={area}: must be null, or two shares of the area, such as [0.08,1.0]")
        if area is not None and self.crop:
            raise ValueError(f"crop={self.crop}: goes not with resized_crop={area}; set one of them to 0 or null")
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit={self.limit}: must be ≥ 2, or null for all images")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ValueError(f"std={self.std}: must be > 0")
        if self.mean is not None and not all(0 <= value <= 1 for value in self.mean):
            raise ValueError(f"mean={self.mean}: must be in [0, 1], as pixels are")

    @abstractmethod
    def read_train(self) -> tuple[Pictures, tuple[str, ...]]:
        """All training images and the class names."""

    @abstractmethod
    def read_test(self) -> Pictures:
        """The test images; only `rlprune.results.final_test` asks for them."""

    @abstractmethod
    def count_test(self) -> int:
        """How many test images there are, without opening them."""

    def check_test(self) -> None:  # noqa: B027 (most sources always have a test split)
        """Fail early if there is no test split, without reading it."""

    def hold(self, images: Pictures) -> Pictures:
        """The same images in memory, where the source is on disk and they fit."""
        return images

    def measure(self, train: Pictures) -> "Normalization":
        """Mean and standard deviation of every channel of the training images."""
        return measure_normalization(train.load())

    @property
    def augmentation(self) -> Augmentation:
        """What leaves the label of these images alone."""
        area = None if self.resized_crop is None else (self.resized_crop[0], self.resized_crop[1])
        return Augmentation(crop=self.crop, flip=self.flip, resized_crop=area)


@dataclass(frozen=True)
class Normalization:
    """Channel means and standard deviations of pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (N, C, H, W) → float32 of the same shape."""
        return self.on(pixels.device)(pixels)

    def on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """The same for pixels on a device, where its constants then lie: bringing them there makes the host wait."""
        std = torch.tensor(self.std)
        scale = (1 / (255 * std)).view(1, -1, 1, 1).to(device)
        shift = (-torch.tensor(self.mean) / std).view(1, -1, 1, 1).to(device)
        return lambda pixels: torch.addcmul(shift, pixels.float(), scale)


@dataclass(frozen=True)
class Splits:
    """Training and search images of one run; the test split is not here."""

    train: Pictures
    search: Pictures
    normalization: Normalization
    class_names: tuple[str, ...]
    augmentation: Augmentation


def stratified_order(labels: Tensor, generator: np.random.Generator) -> np.ndarray:
    """All positions in an order whose every prefix holds the classes in nearly their shares."""
    values = labels.numpy()
    rank = np.empty(len(values))
    for label in np.unique(values):
        positions = generator.permutation(np.flatnonzero(values == label))
        rank[positions] = (np.arange(len(positions)) + generator.random()) / len(positions)
    return np.argsort(rank, kind="stable")


def sample(images: Pictures, count: int | None, generator: np.random.Generator) -> Pictures:
    """At most `count` images, evenly over the classes, in their old order; None takes all."""
    if count is None or count >= len(images):
        return images
    return images.subset(np.sort(stratified_order(images.labels, generator)[:count]))


def limited(images: Pictures, limit: int | None) -> Pictures:
    """At most `limit` images, evenly over the classes, the same ones every time."""
    return sample(images, limit, numpy_generator(0, "limit"))


def split(dataset: Dataset, seed: int) -> Splits:
    """Cut the search split off the training images: seeded and stratified.

    Raises:
        UserError: too few images for the two splits, labels without a class name, or normalisation constants for another number of
            channels.
    """
    images, class_names = dataset.read_train()
    images = limited(images, dataset.limit)
    if len(class_names) < 2:
        raise UserError(f"dataset: has {len(class_names)} class(es); at least two are needed to classify")
    require_labels(images, len(class_names), "training")
    if dataset.crop >= min(images.shape[1:]):
        raise UserError(f"dataset.crop={dataset.crop}: must be smaller than the images, {images.shape[1:]} pixels")
    size = round(len(images) * dataset.search_fraction)
    if size < 1 or size > len(images) - 2:
        raise UserError(f"dataset.search_fraction={dataset.search_fraction}: leaves too few of {len(images)} images for both splits")
    images = dataset.hold(images)
    order = stratified_order(images.labels, numpy_generator(seed, "search split"))
    searched = _sparing(images.labels.numpy(), order, size, class_names)
    train = images.subset(np.setdiff1d(np.arange(len(images)), searched))
    search = dataset.hold(images.subset(np.sort(searched)))
    return Splits(train, search, _normalization(dataset, train), class_names, dataset.augmentation)


def _sparing(labels: np.ndarray, order: np.ndarray, size: int, class_names: tuple[str, ...]) -> np.ndarray:
    """The first `size` positions of an order, without those of classes that would be left without a training image."""
    left = np.bincount(labels[order[size:]], minlength=len(class_names))
    searched = order[:size][left[labels[order[:size]]] > 0]
    if len(searched) == 0:
        raise UserError(
            "dataset: its search split would be empty, as every class keeps an image to train on; raise dataset.limit or add images"
        )
    absent = np.flatnonzero(np.bincount(labels[searched], minlength=len(class_names)) == 0)
    if len(absent):
        names = ", ".join(class_names[index] for index in absent[:5])
        log.warning(
            "%d of %d classes have no image in the search split (%s): raise dataset.search_fraction", len(absent), len(class_names), names
        )
    return searched


def require_labels(images: Pictures, num_classes: int, name: str) -> None:
    """Refuse labels that the classifier has no output for.

    Raises:
        UserError: there is no image, or a label outside 0..num_classes - 1.
    """
    if len(images) == 0:
        raise UserError(f"dataset: its {name} split is empty; add images")
    lowest, highest = int(images.labels.min()), int(images.labels.max())
    if lowest < 0 or highest >= num_classes:
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"dataset: its {name} split has the label {wrong}, there are {num_classes} classes, 0 to {num_classes - 1}")


def _normalization(dataset: Dataset, train: Pictures) -> Normalization:
    channels = train.shape[0]
    for key, given in (("mean", dataset.mean), ("std", dataset.std)):
        if given is not None and len(given) != channels:
            raise UserError(f"dataset.{key}={given}: must have {channels} numbers, one a channel")
    if dataset.mean is not None and dataset.std is not None:
        return Normalization(tuple(dataset.mean), tuple(dataset.std))
    measured = dataset.measure(train)
    return Normalization(tuple(dataset.mean or measured.mean), tuple(dataset.std or measured.std))


def measure_normalization(images: Images) -> Normalization:
    """Mean and standard deviation of every channel, of pixels in [0, 1]; a constant channel is divided by 1."""
    counts = [torch.bincount(images.pixels[:, c].reshape(-1).int(), minlength=256).double() for c in range(images.shape[0])]
    values = torch.arange(256).double() / 255
    mean = [float((count * values).sum() / count.sum()) for count in counts]
    std = [float((count * (values - m) ** 2).sum() / count.sum()) ** 0.5 or 1.0 for count, m in zip(counts, mean, strict=True)]
    return Normalization(tuple(mean), tuple(std))
