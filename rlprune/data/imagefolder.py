"""Folders of images, a folder a class: decoded once into a cached tensor where that fits into memory, read from disk where it does not."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlprune.checkpoint import load_tensors, save_tensors
from rlprune.data.base import Dataset, Images, Normalization, Pictures, check_side, measure_normalization, sample
from rlprune.data.files import Geometry, ImageFiles
from rlprune.errors import UserError
from rlprune.files import recall, write_sealed
from rlprune.memory import require_memory
from rlprune.seeding import numpy_generator

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
MEASURED = 10_000  # images that the normalisation of a streamed data set is measured on
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ImageFolder(Dataset):
    """`root/train/<class>/...` and `root/test/<class>/...` (or `val`).

    Args:
        root: the folder.
        image_size: pixels a side.
        resize: pixels of the shorter side before the centre is cut out; null squeezes the whole picture into the square.
        memory_gb: splits that take more than this when decoded (10⁹ bytes) stay on disk and are decoded batch by batch.
        num_workers: processes that decode ahead; null: one a core.
        cache_dir: where decoded tensors and measured constants are kept, keyed by the list of files.
    """

    root: str
    image_size: int
    resize: int | None
    memory_gb: float
    num_workers: int | None
    cache_dir: Path

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 1:
            raise ValueError(f"image_size={self.image_size}: must be ≥ 1")
        check_side("image_size", self.image_size)
        check_side("resize", self.resize or 1)
        if self.resize is not None and self.resize < self.image_size:
            raise ValueError(f"resize={self.resize}: must be ≥ image_size={self.image_size}, or null")
        if self.memory_gb < 0:
            raise ValueError(f"memory_gb={self.memory_gb}: must be ≥ 0")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers}: must be ≥ 0, or null")

    def read_train(self) -> tuple[ImageFiles, tuple[str, ...]]:
        """All images under `train`, in the order of their paths."""
        folder = self._folder("train")
        classes = _classes(folder)
        return self._list(folder, classes), classes

    def read_test(self) -> ImageFiles:
        """All images under `test`, or `val`."""
        return self._list(self._test_folder(), _classes(self._folder("train")))

    def count_test(self) -> int:
        """Files under `test`, or `val`."""
        folder = self._test_folder()
        return sum(len(_files(folder / name)) for name in _classes(folder))

    def check_test(self) -> None:
        """There is a test folder and it has no class that training lacks."""
        known = _classes(self._folder("train"))
        for name in _classes(self._test_folder()):
            if name not in known:
                raise UserError(f"{self._test_folder() / name}: is a class that {self._folder('train')} lacks; add or remove it")
            _files(self._test_folder() / name)

    def hold(self, images: Pictures) -> Pictures:
        """The images in memory, decoded now or by an earlier run, unless they take more than `memory_gb`."""
        if not isinstance(images, ImageFiles) or images.decoded_bytes > self.memory_gb * 1e9:
            return images
        cache = self.cache_dir / f"{self._name}-{len(images)}-{images.checksum():016x}.safetensors"
        cached = _load_cache(cache, images)
        if cached is not None:
            return cached
        require_memory(images.decoded_bytes, f"dataset.memory_gb={self.memory_gb:g}", "lower it, so that they stay on disk")
        decoded = images.load()
        save_tensors(cache, {"pixels": decoded.pixels, "labels": decoded.labels})
        return decoded

    def measure(self, train: Pictures) -> Normalization:
        """Measured on all training images, or on 10,000 of them where they stay on disk, and kept for the next run."""
        cache = self.cache_dir / f"{self._name}-{len(train)}-{train.checksum():016x}.json"
        kept = recall(cache)
        if all(_are_constants(kept.get(name), train.shape[0]) for name in ("mean", "std")) and min(kept["std"]) > 0:
            return Normalization(tuple(map(float, kept["mean"])), tuple(map(float, kept["std"])))
        log.debug("no constants in %s yet", cache)
        if not isinstance(train, Images):
            log.info("%d training images stay on disk; measuring mean and standard deviation on %d", len(train), min(MEASURED, len(train)))
        measured = measure_normalization(sample(train, MEASURED, numpy_generator(0, "normalisation")).load())
        write_sealed(cache, {"mean": measured.mean, "std": measured.std})
        return measured

    @property
    def _name(self) -> str:
        return Path(self.root).resolve().name

    def _folder(self, name: str) -> Path:
        folder = Path(self.root) / name
        if not folder.is_dir():
            raise UserError(f"dataset.root={self.root}: has no folder {folder}; expected {self.root}/train/<class>/<image>")
        return folder

    def _test_folder(self) -> Path:
        for name in ("test", "val"):
            if (Path(self.root) / name).is_dir():
                return Path(self.root) / name
        raise UserError(f"dataset.root={self.root}: has neither a folder test nor val; the final table needs one")

    def _list(self, folder: Path, classes: tuple[str, ...]) -> ImageFiles:
        files = [(path, label) for label, name in enumerate(classes) for path in _files(folder / name)]
        labels = torch.tensor([label for _, label in files], dtype=torch.long)
        return ImageFiles([path for path, _ in files], labels, Geometry(self.image_size, self.resize), self.num_workers)


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"{folder}: has no class folders; expected {folder}/<class>/<image>")
    return tuple(names)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS and path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise UserError(f"{folder}: holds no images; add some or remove the folder")
    return files


def _are_constants(values: Any, channels: int) -> bool:
    """Finite numbers, one a channel."""
    numbers = isinstance(values, list) and len(values) == channels and all(type(value) in (int, float) for value in values)
    return numbers and all(abs(value) < 1e6 for value in values)


def _load_cache(path: Path, images: ImageFiles) -> Images | None:
    """The decoded images that a file keeps; None where there is none, or it holds others."""
    if not path.exists():
        return None
    try:
        tensors, _ = load_tensors(path)
        pixels, labels = tensors["pixels"], tensors["labels"]
        if pixels.dtype == torch.uint8 and (len(images), *images.shape) == tuple(pixels.shape) and torch.equal(labels, images.labels):
            return Images(pixels, labels)
    except (UserError, KeyError):
        log.debug("cache %s could not be read", path, exc_info=True)
    log.warning("%s: the cache is damaged; decoding the images again", path)
    return None
