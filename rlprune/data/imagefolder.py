"""Folders of images, a folder a class, decoded once into a cached tensor."""

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from rlprune.checkpoint import load_tensors, save_tensors
from rlprune.data.base import Dataset, Images
from rlprune.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ImageFolder(Dataset):
    """`root/train/<class>/...` and `root/test/<class>/...` (or `val`), decoded in parallel and kept as one uint8 tensor.

    Args:
        root: the folder.
        image_size: pixels a side; images of another size are resized (bilinear, antialiased).
        cache_dir: where decoded tensors are kept, keyed by the list of files.
    """

    root: str
    image_size: int
    cache_dir: Path

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 1:
            raise ValueError(f"image_size={self.image_size}: must be ≥ 1")

    def read_train(self) -> tuple[Images, tuple[str, ...]]:
        """All images under `train`, in the order of their paths."""
        folder = self._folder("train")
        classes = _classes(folder)
        return self._read(folder, classes), classes

    def read_test(self) -> Images:
        """All images under `test`, or `val`."""
        return self._read(self._test_folder(), _classes(self._folder("train")))

    def check_test(self) -> None:
        """There is a test folder and it has no class that training lacks."""
        known = _classes(self._folder("train"))
        for name in _classes(self._test_folder()):
            if name not in known:
                raise UserError(f"{self._test_folder() / name}: is a class that {self._folder('train')} lacks; add or remove it")
            _files(self._test_folder() / name)

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

    def _read(self, folder: Path, classes: tuple[str, ...]) -> Images:
        files = [(path, label) for label, name in enumerate(classes) for path in _files(folder / name)]
        digest = hashlib.sha256(f"{self.image_size}".encode())
        for path, _ in files:
            status = path.stat()
            digest.update(f"{path.relative_to(folder)}/{status.st_size}/{status.st_mtime_ns}\n".encode())
        cache = self.cache_dir / f"{folder.parent.name}-{folder.name}-{digest.hexdigest()[:16]}.safetensors"
        cached = _load_cache(cache)
        if cached is not None:
            return cached
        images = Images(_decode([path for path, _ in files], self.image_size), torch.tensor([label for _, label in files]))
        tensors = {"pixels": images.pixels, "labels": images.labels}
        save_tensors(cache, tensors, {"crc32": images.checksum()})
        return images


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"{folder}: has no class folders; expected {folder}/<class>/<image>")
    return tuple(names)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file() and not path.name.startswith(".")
    )
    if not files:
        raise UserError(f"{folder}: holds no images; add some or remove the folder")
    return files


def _load_cache(path: Path) -> Images | None:
    if not path.exists():
        return None
    try:
        tensors, metadata = load_tensors(path)
        images = Images(tensors["pixels"], tensors["labels"])
        if images.checksum() == metadata["crc32"]:
            return images
    except (UserError, KeyError):
        log.debug("cache %s could not be read", path, exc_info=True)
    log.warning("%s: the cache is damaged; decoding the images again", path)
    return None


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


def _decode(paths: list[Path], size: int) -> torch.Tensor:
    try:
        pixels = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    except MemoryError as error:
        raise UserError(f"dataset.image_size={size}: {len(paths)} such images do not fit into memory; make it smaller") from error

    def read(index: int) -> None:
        try:
            with Image.open(paths[index]) as image:
                picture = _eight_bits(image).convert("RGB")
                if picture.size != (size, size):
                    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
                pixels[index] = np.asarray(picture)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise UserError(f"{paths[index]}: is no readable image ({error}); replace or remove it") from error

    executor = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        for _ in tqdm(executor.map(read, range(len(paths)), chunksize=64), total=len(paths), desc="decode images", unit="img"):
            continue
    finally:
        executor.shutdown(cancel_futures=True)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
