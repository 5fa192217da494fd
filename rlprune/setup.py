"""What every job works with."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

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

    def example(self) -> torch.Tensor:
        """Two training images, normalised, shape (2, C, H, W)."""
        return self.splits.normalization(self.splits.train.subset(np.arange(2)).load().pixels).to(self.execution.device)

    def suited_to(self, network: nn.Module) -> "Setup":
        """The same data, normalised as a network with published weights takes it, unless the data set's yaml says how."""
        known, chosen = provenance(network), self.dataset.mean is not None or self.dataset.std is not None
        if known.weights is None or known.mean is None or known.std is None or chosen:
            return self
        normalization = Normalization(known.mean, known.std)
        splits = replace(self.splits, normalization=normalization)
        return replace(self, splits=splits, origin=replace(self.origin, mean=known.mean, std=known.std))

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
