"""The dense network a run starts from: given, kept from an earlier run, or trained now."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rlprune.checkpoint import load_into, load_tensors, load_weights, save_tensors
from rlprune.data.base import Splits
from rlprune.errors import UserError
from rlprune.seeding import seed_globals
from rlprune.training.execution import Execution
from rlprune.training.fit import Recipe, cross_entropy, fit
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
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return folder / f"{choices['model']}-{choices['dataset']}-{digest}.safetensors"


def obtain_dense(
    make: Callable[[], nn.Module],
    splits: Splits,
    *,
    checkpoint: str | None,
    path: Path,
    epochs: int,
    batch_size: int,
    label_smoothing: float,
    recipe: Recipe,
    execution: Execution,
    seed: int,
    train: bool = False,
) -> Dense:
    """Load `checkpoint`, or the file at `path` of an earlier run, or train and keep it there; with `train`, train in any case.

    Raises:
        UserError: a checkpoint that is absent, damaged, or of another architecture; a training whose loss is not finite.
    """
    seed_globals(seed, "initial weights")
    network = make()
    if checkpoint is not None:
        tensors, _ = load_weights(Path(checkpoint))
        load_into(network, tensors, f"checkpoint={checkpoint}")
        if not train:
            return Dense(network.to(execution.device).eval(), checkpoint, "unknown", [])
    elif path.exists() and not train:
        try:
            tensors, metadata = load_tensors(path)
            load_into(network, tensors, str(path))
            log.info("dense network: loaded %s", path)
            return Dense(network.to(execution.device).eval(), str(path), "no", metadata.get("losses", []))
        except UserError as error:
            log.warning("%s; training it again", error)
    reason = "as asked" if train else "none kept for these settings"
    log.info("dense network: %s; training %d epochs on %d images", reason, epochs, len(splits.train))
    network.to(execution.device)
    seed_globals(seed, "dense training")
    batches = training_batches(splits, batch_size, execution, seed, "dense training")
    losses = fit(
        network, batches, epochs=epochs, loss=cross_entropy(label_smoothing), recipe=recipe, execution=execution, description="train dense"
    )
    save_tensors(path, network.state_dict(), {"epochs": epochs, "losses": losses})
    log.info("dense network: kept in %s%s", path, " for the next run" if checkpoint is None else f"; use it with checkpoint={path}")
    return Dense(network.eval(), str(path), "no" if checkpoint is None else "unknown", losses)
