"""Training from scratch in step with a search: an epoch at a time, aligned with what the search has decided so far (RLAL, section 3.2)."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from rlprune.data.base import Splits
from rlprune.seeding import derive_seed, seed_globals
from rlprune.training.alignment import Alignment
from rlprune.training.dense import Training, dense_batches
from rlprune.training.execution import Execution
from rlprune.training.fit import Loss, OnEpoch, Trainer, cross_entropy, unheard
from rlprune.training.progress import Saver

log = logging.getLogger(__name__)
PHASE = "joint training"


class JointTraining:
    """The weights' side of joint training and pruning.

    Args:
        network: with its first weights; trained in place.
        splits: training images.
        training: as for a dense network.
        epochs: in all, which the schedule of the learning rate spans.
        execution: device and precision.
        seed: of the run.
        state: file that keeps the state within an epoch.
        identity: of the training; a state of another one is not taken.
        resume: whether that file may be taken up.
        on_epoch: told of every epoch.
    """

    def __init__(
        self,
        network: nn.Module,
        splits: Splits,
        *,
        training: Training,
        epochs: int,
        execution: Execution,
        seed: int,
        state: Path,
        identity: str,
        resume: bool,
        on_epoch: OnEpoch = unheard,
    ) -> None:
        self.network, self.training, self.epochs, self.seed = network.to(execution.device), training, epochs, seed
        self._saver = Saver(state, identity=identity, minutes=training.save_minutes, resume=resume)
        self._resumes = resume
        self._trainer = Trainer(
            network,
            dense_batches(splits, training, execution, seed, PHASE),
            epochs=epochs,
            recipe=training.recipe,
            execution=execution,
            description=PHASE,
            saver=self._saver,
            on_epoch=on_epoch,
        )
        network.eval()

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self._trainer.progress.epoch

    @property
    def losses(self) -> list[float]:
        """Mean loss of each epoch, the regulariser included."""
        return self._trainer.progress.losses

    def train(self, epoch: int, alignment: Alignment | None, beta: float) -> float:
        """Train an epoch, or what a killed run has left of it: CE + β · R(W; m*), equation 10; returns its mean loss.

        Args:
            epoch: which, from 1.
            alignment: R, for m* on the weights of the end of the epoch before; None: there is no m* yet, or R is switched off.
            beta: its weight.

        Raises:
            UserError: the loss or a weight is no longer finite.
        """
        progress = self._trainer.progress
        if self._resumes:
            self._saver.restore(progress, behind=epoch - 1)
            self._resumes = False
        if self.epoch == epoch - 1 and progress.batch == 0:
            seed_globals(derive_seed(self.seed, f"{PHASE}/{epoch}"), "dropout")  # so that nothing between two epochs shifts it
        if self.epoch < epoch:
            title = f"{PHASE}, epoch {epoch}/{self.epochs}"
            with tqdm(total=progress.batches, initial=progress.batch, desc=title, unit="batch", leave=False) as bar:
                self._trainer.epoch(self._loss(alignment, beta), bar.update)
            self._saver.save_if_due(progress)
        if self._trainer.done:
            self._trainer.finish()
        self.network.eval()
        return self.losses[epoch - 1]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values; see `Progress.state`."""
        return self._trainer.progress.state()

    def take(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go on where `state` was read.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: it is the state of another training.
        """
        self._trainer.progress.take(tensors, facts)
        self.network.eval()

    def _loss(self, alignment: Alignment | None, beta: float) -> Loss:
        plain = cross_entropy(self.training.label_smoothing)
        if alignment is None or not alignment.num_units or beta == 0:
            return plain
        return partial(_aligned, plain, alignment, beta)


def _aligned(plain: Loss, alignment: Alignment, beta: float, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return plain(logits, images, labels) + beta * alignment()
