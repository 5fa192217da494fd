"""Where a training is, and keeping that on disk so that it goes on after a kill as if nothing had happened."""

import logging
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlprune.checkpoint import load_tensors, save_tensors
from rlprune.errors import UserError
from rlprune.graph.run import named_tensors

log = logging.getLogger(__name__)
SHARE = 0.05  # of the time that may go into saving, at most


class Average:
    """The exponential moving average of a network's weights and buffers; integers are the network's own.

    The decay after n steps is min(decay, (1 + n) / (10 + n)), so that short trainings do not end in their first weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.network = decay, network
        self.tensors = {name: tensor.detach().clone() for name, tensor in everything(network).items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights behind so many steps."""
        now = everything(self.network)
        moving = [name for name, tensor in now.items() if tensor.is_floating_point()]
        share = 1 - min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_([self.tensors[name] for name in moving], [now[name] for name in moving], share)

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the network the averages."""
        for name, tensor in everything(self.network).items():
            if tensor.is_floating_point():
                tensor.copy_(self.tensors[name])


def everything(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those too that a state dict leaves out, each once."""
    return dict(named_tensors(dict(network.named_modules())))


@dataclass
class Progress:
    """Everything that the next step depends on, and how far it is.

    Args:
        network: what is trained.
        optimizer: of its weights.
        scheduler: of the optimizer.
        average: of the weights, or None.
        total: sum of this epoch's losses so far.
        identity: of the training; a state of another one is not taken.
        epochs: to train.
        batches: of an epoch.
        epoch: done.
        batch: of this epoch, done.
        losses: means of the epochs done.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    average: Average | None
    total: Tensor
    identity: str
    epochs: int
    batches: int
    epoch: int = 0
    batch: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps done."""
        return self.epoch * self.batches + self.batch

    def end_epoch(self) -> None:
        """Close the books of an epoch."""
        self.losses.append(float(self.total) / self.batches)
        self.total.zero_()
        self.epoch, self.batch = self.epoch + 1, 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and plain values beside them."""
        tensors = {f"network.{name}": tensor for name, tensor in everything(self.network).items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
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
        numbers = np.random.get_state(legacy=False)
        tensors["random_numpy"] = torch.from_numpy(numbers["state"]["key"].astype(np.int64))
        facts = {
            "identity": self.identity,
            "epoch": self.epoch,
            "batch": self.batch,
            "losses": self.losses,
            "param_groups": kept["param_groups"],
            "optimizer": plain,
            "scheduler": {key: value for key, value in self.scheduler.state_dict().items() if key != "lr_lambdas"},
            "random": random.getstate(),
            "random_numpy": {**numbers, "state": {"pos": numbers["state"]["pos"]}},
        }
        return tensors, facts

    def take(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go on where `state` was read; nothing is changed unless all of it fits.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: it is the state of another training.
        """
        if facts["identity"] != self.identity:
            raise ValueError("it is the state of another training: other data, network, settings or device")
        epoch, batch = int(facts["epoch"]), int(facts["batch"])
        if not (0 <= epoch <= self.epochs and 0 <= batch < self.batches and len(facts["losses"]) == epoch):
            raise ValueError(f"it is behind epoch {epoch}, batch {batch}, which this training has not")
        own = everything(self.network)
        targets = {f"network.{name}": tensor for name, tensor in own.items()} | {"total": self.total}
        if self.average is not None:
            targets |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        for name, tensor in targets.items():
            if tensors[name].shape != tensor.shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}")
        state = self._optimizer_state(tensors, facts)
        self.optimizer.load_state_dict({"state": state, "param_groups": facts["param_groups"]})
        for parameter, values in self.optimizer.state.items():  # in the parameter's memory format, as they were
            for key, value in values.items():
                if key != "step" and isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **facts["scheduler"]})
        with torch.no_grad():
            for name, tensor in targets.items():
                tensor.copy_(tensors[name])
        torch.set_rng_state(tensors["random"])
        if "random_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random_cuda"], self.total.device)
        version, numbers, rest = facts["random"]
        random.setstate((version, tuple(numbers), rest))
        key = {"key": tensors["random_numpy"].numpy().astype(np.uint32)}
        np.random.set_state({**facts["random_numpy"], "state": {**facts["random_numpy"]["state"], **key}})
        self.epoch, self.batch, self.losses = epoch, batch, list(facts["losses"])

    def _optimizer_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """The optimizer's state in the form of its `state_dict`, checked."""
        if [sorted(group) for group in facts["param_groups"]] != [sorted(group) for group in self.optimizer.state_dict()["param_groups"]]:
            raise ValueError("it is the state of another optimizer")
        state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in facts["optimizer"].items()}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = tensor
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for place, values in state.items():
            for value in values.values():
                if (
                    isinstance(value, Tensor)
                    and value.ndim
                    and value.ndim == parameters[place].ndim
                    and len(value) != len(parameters[place])
                ):
                    raise ValueError("the optimizer's state has other shapes than the weights")
        return state


class Saver:
    """Keeps the progress of one training in a file, every few minutes.

    Args:
        path: the file, written atomically; it is removed by `forget`.
        identity: of the training: what its weights depend on beyond the optimizer and the number of batches.
        minutes: between two saves; saving never takes more than a twentieth of the time.
        resume: take up what is in the file.
    """

    def __init__(self, path: Path, *, identity: str, minutes: float, resume: bool) -> None:
        self.path, self.identity, self.minutes, self.resume = path, identity, minutes, resume
        self._last, self._cost = time.monotonic(), 0.0

    def restore(self, progress: Progress, behind: int | None = None) -> None:
        """Take up the kept state, if there is one; a file that cannot be used is left aside with a warning.

        Args:
            progress: that takes it.
            behind: a state that is not between the end of this epoch and that of the next is of no use.
        """
        if not self.resume or not self.path.exists():
            return
        try:
            tensors, facts = load_tensors(self.path)
            if behind is not None and not (behind, 0) < (int(facts["epoch"]), int(facts["batch"])) <= (behind + 1, 0):
                return
            progress.take(tensors, facts)
        except (UserError, KeyError, RuntimeError, TypeError, ValueError) as error:
            anew = "training from the start" if behind is None else f"training epoch {behind + 1} from its start"
            log.warning("%s: cannot be used (%s); %s", self.path, " ".join(str(error).split())[:200], anew)
            return
        log.info("going on behind epoch %d, batch %d", progress.epoch, progress.batch)

    def save_if_due(self, progress: Progress) -> None:
        """Write the state if it is time to; a training is worth more than its state, so a full disk does not end it."""
        start = time.monotonic()
        if 0 <= start - self._last < max(60 * self.minutes, self._cost / SHARE):  # a clock that was put back would wait for hours
            return
        try:
            save_tensors(self.path, *progress.state())
        except (OSError, TypeError, ValueError) as error:
            log.warning("%s: the state cannot be saved (%s); a kill would lose this training", self.path, error)
        self._last = time.monotonic()
        self._cost = max(0.0, self._last - start)

    def forget(self) -> None:
        """The training is done and its result on disk."""
        self.path.unlink(missing_ok=True)
