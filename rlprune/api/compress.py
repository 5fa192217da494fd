"""`rlprune.compress`: a small network from a network, its data, and a few words."""

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlprune.api.call import Call
from rlprune.api.data import Examples, examples_of
from rlprune.api.learning import BatchLoss, Loss, Metric, TrainingStep, top1
from rlprune.api.result import Result
from rlprune.api.search import CALL, held
from rlprune.api.settings import as_arguments, configured
from rlprune.training.execution import choose_device


def compress(
    model: nn.Module,
    train_data: Any,
    *,
    val_data: Any = None,
    test_data: Any = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    sparsity: float | None = None,
    max_drop: float | None = None,
    agent: str = "mcq",
    criterion: str | None = None,
    reward: str | None = None,
    schedule: str | None = None,
    recovery: str | Mapping[str, Any] | None = None,
    steps: int | None = None,
    min_keep: int | None = None,
    round_to: int | str | None = None,
    max_sparsity: float | Mapping[str, float] | None = None,
    ignore: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    loss: Loss | None = None,
    training_step: TrainingStep | None = None,
    metric: Metric | None = None,
    example_inputs: Any = None,
    control: bool = False,
    seed: int = 0,
    device: str = "auto",
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """Search, prune and recover, as `rlprune prune` does, on a network and data of your own; float32.

    The model stays as it was, and so do the random numbers of the process. Two calls with the same arguments come to the same network.

    Args:
        model: any trained network.
        train_data: a data set of (input, target), its DataLoader, or a pair of tensors (inputs, targets). An input is a tensor, a tuple of
            arguments or a dict of keyword arguments. Other batches need `example_inputs`, `training_step` and `metric`.
        val_data: likewise; candidates are measured on it, and it is never trained on. None: a tenth of `train_data`, drawn by `seed`.
        test_data: likewise; measured once, at the end.
        macs: largest share kept of the MACs, in (0, 1); of what is set from here to `max_drop`, all holds.
        params: largest share kept of the parameters.
        latency: largest share kept of the latency, as look-up tables predict it, which are measured first: that of one example on the
            device, or of `example_inputs`.
        sparsity: smallest share of the prunable channels removed.
        max_drop: largest loss of the metric after recovery, in hundredths; alone: the smallest network within it.
        agent: which decides; `rlal` trains from scratch and is none for networks that are trained.
        criterion: what ranks the units of a group; None: the agent's, as of all choices that follow.
        reward: what a candidate is worth.
        schedule: how many steps.
        recovery: a choice, or settings such as `{"epochs": 1, "final_epochs": 4, "lr": 0.01, "batch_size": 32}`.
        steps: of pruning.
        min_keep: units that stay in every group.
        round_to: a group keeps a multiple of so many units, or stays whole; auto: of the multiple that the device likes.
        max_sparsity: share of its units that a group may lose, or a mapping group (name or regular expression) → share.
        ignore: layers to leave alone, names or regular expressions.
        settings: any further key of the yaml files, such as `{"agent.stages": 5, "search.recalibrate_bn": 256}`.
        loss: (outputs, targets) → scalar tensor; None: cross-entropy. Criteria by gradients take it, too.
        training_step: (network, batch, teacher) → scalar tensor; None: the loss, with distillation where outputs are class scores (N,
            classes) and targets class numbers (N,). Without `loss` criteria by gradients take it, too, on networks in eval mode.
        metric: (network in eval mode, batches) → number, higher is better; None: top-1 accuracy. Rewards take it for a fraction.
        example_inputs: of the network; None: those of two examples.
        control: train the dense network for the epochs of all recoveries, as a row of the report.
        seed: of all random numbers.
        device: auto, cpu, cuda or cuda:N.
        run_dir: a folder for metrics.csv, report.json and what `Result.save` writes (pruned/); where the same call was killed, it goes on.
        progress: show progress bars.

    Raises:
        UserError: an argument is not as it must be, a target is out of reach, nothing can be pruned, or a function of yours does not return
            what it must.
    """
    words = {"agent": agent, "criterion": criterion, "reward": reward, "schedule": schedule}
    limits = {"steps": steps, "min_keep": min_keep, "round_to": round_to, "max_sparsity": max_sparsity}
    targets = {"macs": macs, "params": params, "latency": latency, "sparsity": sparsity, "max_drop": max_drop}
    with as_arguments():
        config = configured(words, recovery, targets, limits, settings or {}, control=control, seed=seed, ignore=ignore)
    where = choose_device(device)
    size, given = config.recovery.batch_size, {"train_data": train_data, "val_data": val_data, "test_data": test_data}
    data = {key: examples_of(value, key, batch_size=size, device=where) for key, value in given.items() if value is not None}
    own = BatchLoss(loss, training_step, config.recovery.rho, config.recovery.temperature)
    functions = {"loss": loss, "training_step": training_step, "metric": metric}
    with ExitStack() as stack:
        stack.enter_context(_random_numbers_kept(list(data.values()), where))
        stack.enter_context(as_arguments())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if val_data is None:
            data["train_data"], data["val_data"] = data["train_data"].held_out(seed)
        call = Call(model, config, data, own, top1 if metric is None else metric, example_inputs, where, progress)
        if run_dir is not None and (Path(run_dir) / CALL).exists():  # another call's is refused once this folder is held
            call.begun = Path(run_dir) / "checkpoint"
        call.check()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()) if run_dir is None else run_dir)
        stack.enter_context(nullcontext() if run_dir is None else held(folder, call.facts(functions)))
        return call.run(folder, keeps=run_dir is not None)


@contextmanager
def _random_numbers_kept(data: Sequence[Examples], device: torch.device) -> Iterator[None]:
    """The process and the user's loaders draw on afterwards as if nothing had been drawn inside of this context."""
    generators = [generator for examples in data for generator in examples.generators]
    before = random.getstate(), np.random.get_state(), [generator.get_state() for generator in generators]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        for generator, state in zip(generators, before[2], strict=True):
            generator.set_state(state)
