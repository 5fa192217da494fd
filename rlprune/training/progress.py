"""Where a training is, and keeping that on disk so that it goes on after a kill as if nothing had happened."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rlprune.checkpoint import load_tensors, save_tensors
from rlprune.errors import UserError

log = logging.getLogger(__name__)
SHARE = 0.05  # of the time that may go into saving, at most


@dataclass
class Progress:
    """Everything that the next step depends on: weights, optimizer, schedule, average, and how far it is.

    `epoch` and `batch` count what is done, `total` is the sum of this epoch's losses so far, `losses` holds the means of the epochs before.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    average: AveragedModel | None
    total: Tensor
    epoch: int = 0
    batch: int = 0
    losses: list[float] = field(default_factory=list)

    def end_epoch(self, batches: int) -> None:
        """Close the books of an epoch of so many batches."""
        self.losses.append(float(self.total) / batches)
        self.total.zero_()
        self.epoch, self.batch = self.epoch + 1, 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and plain values beside them."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        kept = self.optimizer.state_dict()
        plain: dict[str, dict[str, Any]] = {}
        for index, values in kept["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                else:
                    plain.setdefault(str(index), {})[key] = value
        tensors |= {"total": self.total, "random": torch.get_rng_state()}
        if self.total.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.total.device)
        facts = {
            "epoch": self.epoch,
            "batch": self.batch,
            "losses": self.losses,
            "param_groups": kept["param_groups"],
            "optimizer": plain,
            "scheduler": {key: value for key, value in self.scheduler.state_dict().items() if key != "lr_lambdas"},
        }
        return tensors, facts

    def take(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go on where `state` was read.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: it is the state of another training.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        if [sorted(group) for group in facts["param_groups"]] != [sorted(group) for group in self.optimizer.state_dict()["param_groups"]]:
            raise ValueError("it is the state of another optimizer")
        state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in facts["optimizer"].items()}
        for name, tensor in part("optimizer.").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        self.network.load_state_dict(part("network."))
        if self.average is not None:
            self.average.load_state_dict(part("average."))
        self.optimizer.load_state_dict({"state": state, "param_groups": facts["param_groups"]})
        for parameter, values in self.optimizer.state.items():  # in the parameter's memory format, as they were
            for key, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **facts["scheduler"]})
        self.total.copy_(tensors["total"])
        torch.set_rng_state(tensors["random"])
        if "random_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random_cuda"], self.total.device)
        self.epoch, self.batch, self.losses = int(facts["epoch"]), int(facts["batch"]), list(facts["losses"])


class Saver:
    """Keeps the progress of one training in a file, every few minutes.

    Args:
        path: the file, written atomically; it is removed by `forget`.
        minutes: between two saves; saving never takes more than a twentieth of the time.
        resume: take up what is in the file.
    """

    def __init__(self, path: Path, *, minutes: float, resume: bool) -> None:
        self.path, self.minutes, self.resume = path, minutes, resume
        self._last, self._cost = time.monotonic(), 0.0

    def restore(self, progress: Progress) -> None:
        """Take up the kept state, if there is one; a file that cannot be used is left aside with a warning."""
        if not self.resume or not self.path.exists():
            return
        before = progress.state()
        before = ({name: tensor.clone() for name, tensor in before[0].items()}, before[1])
        try:
            progress.take(*load_tensors(self.path))
        except (UserError, KeyError, RuntimeError, TypeError, ValueError) as error:
            progress.take(*before)
            log.warning("%s: cannot be used (%s); training from the start", self.path, " ".join(str(error).split())[:200])
            return
        log.info("going on behind epoch %d, batch %d", progress.epoch, progress.batch)

    def save_if_due(self, progress: Progress) -> None:
        """Write the state if it is time to."""
        start = time.monotonic()
        if start - self._last < max(60 * self.minutes, self._cost / SHARE):
            return
        save_tensors(self.path, *progress.state())
        self._last = time.monotonic()
        self._cost = self._last - start

    def forget(self) -> None:
        """The training is done."""
        self.path.unlink(missing_ok=True)
