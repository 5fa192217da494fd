"""Handwritten digits that scikit-learn carries along: real images without a download."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from rlprune.data.base import Dataset, Images, check_side, stratified_order
from rlprune.memory import require_memory
from rlprune.seeding import numpy_generator

TEST_IMAGES = 359  # a fifth


@dataclass(kw_only=True)
class Digits(Dataset):
    """1,797 scans of 8×8 pixels, upsampled; 359 of them, always the same, are the test split.

    Args:
        image_size: pixels a side after bilinear upsampling.
    """

    image_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 8:
            raise ValueError(f"image_size={self.image_size}: must be ≥ 8")
        check_side("image_size", self.image_size)
        require_memory(12_000 * self.image_size**2, f"dataset.image_size={self.image_size}", "make it smaller")  # floats, then bytes

    def read_train(self) -> tuple[Images, tuple[str, ...]]:
        """1,438 images, grey in three channels."""
        return self._read(test=False), tuple(map(str, range(10)))

    def read_test(self) -> Images:
        """359 images."""
        return self._read(test=True)

    def count_test(self) -> int:
        """359."""
        return TEST_IMAGES

    def _read(self, *, test: bool) -> Images:
        from sklearn.datasets import load_digits  # heavy, so only where it is needed

        data = load_digits()
        labels = torch.from_numpy(np.asarray(data.target)).long()
        order = stratified_order(labels, numpy_generator(0, "digits"))
        chosen = np.sort(order[:TEST_IMAGES] if test else order[TEST_IMAGES:])
        pixels = torch.from_numpy(data.images[chosen]).float().unsqueeze(1) * (255 / 16)
        pixels = F.interpolate(pixels, size=self.image_size, mode="bilinear", align_corners=False)
        return Images(pixels.round().clamp(0, 255).byte().expand(-1, 3, -1, -1).contiguous(), labels[torch.from_numpy(chosen)])
