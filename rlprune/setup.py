"""What every job works with."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rlprune.checkpoint import read_metadata
from rlprune.data.base import Dataset, Normalization, Splits
from rlprune.errors import UserError
from rlprune.provenance import provenance
from rlprune.results.origin import Origin
from rlprune.training.execution import Execution


@dataclass(frozen=True)
class Setup:
    """Where to run, the data, and how the dense network is made; the test split is not opened."""

    execution: Execution
    dataset: Dataset
    splits: Splits
    origin: Origin
    dense_seed: int  # of the split and the dense network

    def example(self) -> torch.Tensor:
        """Two training images, normalised, shape (2, C, H, W)."""
        return self.splits.normalization(self.splits.train.subset(np.arange(2)).load().pixels).to(self.execution.device)

    def suited_to(self, network: nn.Module, checkpoint: str | None) -> "Setup":
        """The same data, normalised as the network's weights were trained where that is known, unless the data set's settings say how."""
        known = provenance(network)
        mean, std = (known.mean, known.std) if known.weights is not None else (None, None)
        if checkpoint is not None:
            metadata = read_metadata(Path(checkpoint))
            mean, std = (tuple(map(float, metadata[key])) if key in metadata else value for key, value in (("mean", mean), ("std", std)))
        if mean is None or std is None or len(mean) != self.origin.in_channels or len(std) != self.origin.in_channels:
            return self
        mean, std = tuple(self.dataset.mean or mean), tuple(self.dataset.std or std)
        splits = replace(self.splits, normalization=Normalization(mean, std))
        return replace(self, splits=splits, origin=replace(self.origin, mean=mean, std=std))

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
