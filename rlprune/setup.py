"""What every job works with."""

from dataclasses import dataclass, replace

import torch

from rlprune.data.base import Dataset, Normalization, Splits
from rlprune.errors import UserError
from rlprune.results.origin import Origin
from rlprune.training.execution import Execution


@dataclass(frozen=True)
class Setup:
    """Where to run, the data, and how the dense network is made; the test split is not opened."""

    execution: Execution
    dataset: Dataset
    splits: Splits
    origin: Origin

    def example(self) -> torch.Tensor:
        """Two training images, normalised, shape (2, C, H, W)."""
        return self.splits.normalization(self.splits.train.pixels[:2]).to(self.execution.device)

    def fitted_to(self, origin: Origin) -> "Setup":
        """The same data as a network of another run takes it.

        Raises:
            UserError: the data's classes or image shape are not those of the network.
        """
        if self.origin.class_names != origin.class_names:
            raise UserError(
                f"dataset: its {len(self.origin.class_names)} classes are not the network's {len(origin.class_names)}; use its own data set"
            )
        if self.origin.shape != origin.shape:
            raise UserError(f"dataset: images have shape {self.origin.shape}, the network takes {origin.shape}; set dataset.image_size")
        splits = replace(self.splits, normalization=Normalization(origin.mean, origin.std))
        return replace(self, splits=splits, origin=origin)
