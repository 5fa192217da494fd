"""CIFAR-10 and CIFAR-100 through torchvision, with its download and checksums."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from rlprune.data.base import Dataset, Images
from rlprune.errors import UserError


@dataclass(kw_only=True)
class Cifar(Dataset):
    """50,000 training and 10,000 test images of 32×32 pixels.

    Args:
        classes: 10 or 100.
        root: folder that holds, or receives, torchvision's files; null takes `paths.data`.
        data_dir: that default.
    """

    classes: Literal[10, 100]
    root: str | None
    data_dir: Path

    def read_train(self) -> tuple[Images, tuple[str, ...]]:
        """50,000 images."""
        data = self._open(train=True)
        return self._images(data), tuple(data.classes)

    def read_test(self) -> Images:
        """10,000 images."""
        return self._images(self._open(train=False))

    def count_test(self) -> int:
        """10,000."""
        return 10_000

    def _open(self, *, train: bool) -> CIFAR10:
        folder = Path(self.root) if self.root is not None else self.data_dir
        source = CIFAR10 if self.classes == 10 else CIFAR100
        timeout = socket.getdefaulttimeout()
        try:
            socket.setdefaulttimeout(20)
            try:
                return source(str(folder), train=train, download=False)
            except RuntimeError:  # absent or damaged
                return source(str(folder), train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"dataset=cifar{self.classes}: not found in {folder.resolve()} and not to be downloaded ({error}); put "
                f"{source.filename} there, set dataset.root=FOLDER, or use dataset=imagefolder dataset.root=FOLDER"
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)

    @staticmethod
    def _images(data: CIFAR10) -> Images:
        pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return Images(pixels, torch.tensor(data.targets))
