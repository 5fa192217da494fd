"""Images that stay on disk: decoded when they are asked for."""

import hashlib
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from rlprune.data.base import Images
from rlprune.errors import UserError
from rlprune.launch import launched

MOST_PIXELS = 1 << 27  # of a picture on disk, half a gigabyte in memory
# What Pillow raises for damaged files; the warning where it is made an error.
_PILLOW = (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning, struct.error, zlib.error)
_PYTHON = (OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError, RuntimeError)
UNREADABLE: tuple[type[BaseException], ...] = (*_PILLOW, *_PYTHON)


@dataclass(frozen=True)
class Geometry:
    """How a picture of any size becomes a square of `size` pixels.

    `resize` is the length its shorter side gets before the centre is cut out; None squeezes or stretches the whole picture.
    """

    size: int
    resize: int | None

    def __call__(self, picture: Image.Image) -> Image.Image:
        """An RGB picture of `size` × `size` pixels (bilinear, antialiased)."""
        width, height = picture.size
        if self.resize is None:
            return picture if (width, height) == (self.size, self.size) else picture.resize((self.size,) * 2, Image.Resampling.BILINEAR)
        scale = self.resize / min(width, height)
        wide, high = max(self.resize, round(width * scale)), max(self.resize, round(height * scale))
        if wide * high > MOST_PIXELS:
            raise ValueError(f"{width} × {height} pixels make {wide} × {high} where the shorter side becomes {self.resize}")
        left, top = round((wide - self.size) / 2), round((high - self.size) / 2)
        picture = picture if (wide, high) == (width, height) else picture.resize((wide, high), Image.Resampling.BILINEAR)
        return picture.crop((left, top, left + self.size, top + self.size))


@dataclass(frozen=True)
class ImageFiles:
    """Labelled image files.

    Args:
        paths: one an image.
        labels: int64, shape (N,).
        geometry: of the decoded images.
        workers: processes that decode ahead; 0 decodes in this one, None takes one a core, shared by the processes of a run here.
    """

    paths: Sequence[Path]
    labels: Tensor
    geometry: Geometry
    workers: int | None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one decoded image: (3, size, size)."""
        return (3, self.geometry.size, self.geometry.size)

    @property
    def decoded_bytes(self) -> int:
        """Memory that all images take when decoded."""
        return len(self) * 3 * self.geometry.size**2

    def subset(self, indices: np.ndarray) -> "ImageFiles":
        """The images at these positions."""
        return replace(self, paths=[self.paths[index] for index in indices.tolist()], labels=self.labels[torch.from_numpy(indices)])

    def checksum(self) -> int:
        """Changes with any name, size, time of change or label, and with the geometry."""
        digest = hashlib.sha256(repr(self.geometry).encode() + self.labels.numpy().tobytes())
        for path in self.paths:
            status = path.stat()
            digest.update(f"{path.parent.name}/{path.name}/{status.st_size}/{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return int.from_bytes(digest.digest()[:8], "little")

    def load(self) -> Images:
        """All of them, decoded in parallel into one tensor.

        Raises:
            UserError: a file is no readable image, or they do not fit into memory.
        """
        size = self.geometry.size
        try:
            pixels = np.empty((len(self), size, size, 3), dtype=np.uint8)
        except MemoryError as error:
            raise UserError(f"dataset.image_size={size}: {len(self)} such images do not fit into memory; make it smaller") from error

        def read(index: int) -> None:
            pixels[index] = np.asarray(shaped_picture(self.paths[index], self.geometry))

        executor = ThreadPoolExecutor(max_workers=os.cpu_count())
        try:
            chunks = executor.map(read, range(len(self)), chunksize=64)
            for _ in tqdm(chunks, total=len(self), desc="decode images", unit="img", leave=False, disable=len(self) < 64):
                continue
        finally:
            executor.shutdown(cancel_futures=True)
        return Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), self.labels)

    def stream(
        self, batches: Iterable[Sequence[tuple[int, int]]], transform: Callable[[Image.Image], Tensor] | None, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of uint8 (n, 3, size, size) and labels (n,) on the device, decoded ahead by the workers.

        Args:
            batches: for every batch the positions of its images, each with the seed of its augmentation.
            transform: from an RGB picture to a uint8 tensor; None decodes as `load` does.
            device: where they go.

        Raises:
            UserError: a file is no readable image.
        """
        here = launched()
        share = len(os.sched_getaffinity(0)) // (1 if here is None else here.local_size)
        workers = max(1, share) if self.workers is None else self.workers
        loader: Any = DataLoader(
            _Decoded(self, transform),  # type: ignore[arg-type]
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            prefetch_factor=4 if workers else None,
            generator=torch.Generator().manual_seed(0),  # otherwise it takes a number from the global stream, which belongs to dropout
        )
        for pixels, labels, problem in _explained(loader, workers):
            if problem is not None:
                raise UserError(problem)
            yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _explained(loader: Any, workers: int) -> Iterator[Any]:
    """The loader's batches; a worker that dies becomes one line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores are the user's to choose
        batches = iter(loader)
    while True:
        try:
            yield next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"dataset.num_workers={workers}: a worker died ({str(error).splitlines()[0]}); give them more (shared) memory, or set 0"
            ) from error


class _Decoded:
    """What the workers do: (position, seed) → pixels and label, or the text of what is wrong with the file."""

    def __init__(self, files: ImageFiles, transform: Callable[[Image.Image], Tensor] | None) -> None:
        self.files, self.transform = files, transform

    def __getitem__(self, item: tuple[int, int]) -> tuple[Any, int, str | None]:
        index, seed = item
        try:
            path = self.files.paths[index]
            picture = shaped_picture(path, self.files.geometry) if self.transform is None else open_picture(path)
        except UserError as error:  # travels as text: an exception from a worker brings its traceback along
            return None, 0, str(error)
        if self.transform is None:
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # the same picture whichever worker draws it, and whenever
                pixels = self.transform(picture)
        return pixels, int(self.files.labels[index]), None


def _collate(items: list[tuple[Any, int, str | None]]) -> tuple[Any, Any, str | None]:
    problem = next((problem for _, _, problem in items if problem is not None), None)
    if problem is not None:
        return None, None, problem
    return torch.stack([pixels for pixels, _, _ in items]), torch.tensor([label for _, label, _ in items]), None


def open_picture(path: Path) -> Image.Image:
    """A file as an RGB picture.

    Raises:
        UserError: it is no readable image.
    """
    try:
        with Image.open(path) as image:
            _check_pixels(image)  # before they are decoded
            return as_rgb(image)
    except UNREADABLE as error:
        raise UserError(f"{path}: is no readable image ({error}); replace or remove it") from error


def shaped_picture(path: Path, geometry: Geometry) -> Image.Image:
    """A file as an RGB picture of the data set's size.

    Raises:
        UserError: it is no readable image, or one too long and narrow for that.
    """
    picture = open_picture(path)
    try:
        return geometry(picture)
    except ValueError as error:
        raise UserError(f"{path}: {error}; replace or remove it") from error


def _check_pixels(image: Image.Image) -> None:
    """Refuse pictures that are bombs or mistakes; Pillow itself refuses those of twice as many pixels."""
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"it has {image.width} × {image.height} pixels, more than {MOST_PIXELS}")


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode in three channels of 8 bits.

    Raises:
        ValueError: its pixels have no fixed range.
    """
    return _eight_bits(image).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits, scaled; Pillow would clip them to white."""
    if image.mode == "F":
        raise ValueError("32-bit floating-point pixels have no fixed range; save it with 8 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(
        (values / (257 if image.mode.startswith("I;16") or values.max() > 255 else 1)).round().clip(0, 255).astype(np.uint8)
    )
