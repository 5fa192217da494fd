"""The dense network a run starts from: given, kept from an earlier run, or trained now."""

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from rlprune.checkpoint import load_into, load_tensors, load_weights, save_tensors
from rlprune.data.base import Splits
from rlprune.data.batches import Batches
from rlprune.errors import UserError
from rlprune.provenance import provenance
from rlprune.seeding import seed_globals
from rlprune.training.execution import Execution
from rlprune.training.fit import OnEpoch, Recipe, cross_entropy, fit, unheard
from rlprune.training.progress import Saver
from rlprune.training.recover import training_batches

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dense:
    """A dense network and what is known of its past."""

    network: nn.Module
    path: str
    search_split_seen: str  # no, or unknown for weights from elsewhere
    losses: list[float]  # of each epoch, where the training was watched


def dense_path(folder: Path, choices: dict[str, str], facts: Any) -> Path:
    """Where the dense network of these settings is kept; the name changes with every setting that its weights depend on."""
    return folder / f"{choices['model']}-{choices['dataset']}-{fingerprint(facts)}.safetensors"


def fingerprint(facts: Any) -> str:
    """Twelve digits that change with any of the facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Training:
    """Dense training.

    Args:
        epochs: over the training images.
        batch_size: images a step.
        label_smoothing: share of a label that is spread over all classes.
        randaugment, mixup, cutmix: as in `rlprune.data.base.Augmentation`.
        save_minutes: between two saves of the state that a killed training goes on from.
        recipe: optimizer and schedule.
    """

    epochs: int
    batch_size: int
    label_smoothing: float
    randaugment: int | None
    mixup: float
    cutmix: float
    save_minutes: float
    recipe: Recipe


@dataclass(frozen=True)
class Source:
    """Where a dense network comes from and is kept.

    Args:
        checkpoint: weights to start from, or None.
        path: where a trained network is kept.
        state: where the state of a training is kept.
        train: train even where a network is there already.
        resume: go on from the state.
    """

    checkpoint: str | None
    path: Path
    state: Path
    train: bool
    resume: bool


def obtain_dense(
    network: nn.Module,
    splits: Splits,
    *,
    source: Source,
    training: Training,
    execution: Execution,
    seed: int,
    on_epoch: OnEpoch = unheard,
) -> Dense:
    """The network with the weights of `source.checkpoint`, of an earlier run, or published ones; trained where there are none.

    Args:
        network: with its first weights; used itself.
        splits: training images.
        source: where weights may come from.
        training: how to train it.
        execution: device and precision.
        seed: of the training.
        on_epoch: told of every epoch of it.

    Raises:
        UserError: a checkpoint that is absent, damaged, or of another architecture; a training whose loss is not finite.
    """
    known = provenance(network)
    seen = "no" if source.checkpoint is None and known.weights is None else "unknown"
    if source.checkpoint is not None:
        tensors, _ = load_weights(Path(source.checkpoint))
        load_into(network, tensors, f"checkpoint={source.checkpoint}")
        if not source.train:
            return Dense(network.to(execution.device).eval(), source.checkpoint, seen, [])
    elif source.path.exists() and not source.train:
        try:
            tensors, metadata = load_tensors(source.path)
            load_into(network, tensors, str(source.path))
            log.info("dense network: loaded %s", source.path)
            return Dense(network.to(execution.device).eval(), str(source.path), seen, metadata.get("losses", []))
        except UserError as error:
            log.warning("%s; training it again", error)
    elif known.weights is not None and known.complete and not source.train:
        log.info("dense network: %s", known.weights)
        return Dense(network.to(execution.device).eval(), known.weights, seen, [])
    saver = Saver(source.state, identity=source.path.name, minutes=training.save_minutes, resume=source.resume)
    reason = "as asked" if source.train else "none kept for these settings"
    log.info("dense network: %s; training %d epochs on %d images", reason, training.epochs, len(splits.train))
    losses = train_network(network, splits, training, execution, seed=seed, saver=saver, description="train dense", on_epoch=on_epoch)
    constants = {"mean": splits.normalization.mean, "std": splits.normalization.std}
    save_tensors(source.path, network.state_dict(), {"epochs": training.epochs, "losses": losses, **constants})
    if not source.train:  # a job that is about training forgets its state when it is done
        saver.forget()
    use = " for the next run" if source.checkpoint is None else f"; use it with checkpoint={source.path}"
    log.info("dense network: kept in %s%s", source.path, use)
    return Dense(network.eval(), str(source.path), seen, losses)


def dense_batches(splits: Splits, training: Training, execution: Execution, seed: int, phase: str) -> Batches:
    """What dense training sees: the training split with its own augmentation."""
    how = replace(splits.augmentation, randaugment=training.randaugment, mixup=training.mixup, cutmix=training.cutmix)
    return training_batches(replace(splits, augmentation=how), training.batch_size, execution, seed, phase)


def train_network(
    network: nn.Module,
    splits: Splits,
    training: Training,
    execution: Execution,
    *,
    seed: int,
    saver: Saver,
    description: str,
    on_epoch: OnEpoch = unheard,
) -> list[float]:
    """Train a network from the weights it has, in place; the mean loss of every epoch.

    Args:
        network: of any size.
        splits: training images.
        training: how.
        execution: device and precision.
        seed: of the training.
        saver: keeps its progress.
        description: of the progress bar.
        on_epoch: told of every epoch.

    Raises:
        UserError: the loss is not finite.
    """
    network.to(execution.device)
    seed_globals(seed, "dense training")
    return fit(
        network,
        dense_batches(splits, training, execution, seed, "dense training"),
        epochs=training.epochs,
        loss=cross_entropy(training.label_smoothing),
        recipe=training.recipe,
        execution=execution,
        description=description,
        saver=saver,
        on_epoch=on_epoch,
    )
