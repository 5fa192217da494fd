"""`rlprune train like=RUN`: the architecture of a pruned network, trained from scratch."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from torch import nn

from rlprune.commands.adopt import adopt_origin
from rlprune.commands.setup import (
    choose_training_way,
    introduce,
    make_network,
    make_setup,
    make_training,
    require_scores,
    training_facts,
)
from rlprune.errors import UserError
from rlprune.files import read_json
from rlprune.provenance import provenance
from rlprune.results.artefact import Artefact, find_artefact, load_architecture, save_artefact
from rlprune.results.origin import Origin
from rlprune.results.source import SourceRun, read_source
from rlprune.seeding import seed_globals
from rlprune.setup import Setup
from rlprune.skeleton import TrainConfig
from rlprune.training.dense import fingerprint, train_network
from rlprune.training.fit import OnEpoch
from rlprune.training.progress import Saver
from rlprune.training.scratch import draw_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Like:
    """What `like` names: an architecture with first weights of its own, and the run that found it."""

    architecture: Artefact
    source: SourceRun
    config: TrainConfig
    make: Callable[[], nn.Module]  # its dense network

    @property
    def sparsity(self) -> float:
        """Share of the channels that the run removed."""
        return float(self.architecture.plan["sparsity"])

    def prepare(self, choices: dict[str, str], run_dir: Path) -> tuple[Setup, nn.Module]:
        """What `commands.setup.prepare` does for a dense network; images are normalised as the run's were.

        Raises:
            UserError: the data set does not fit the network.
        """
        setup, network = make_setup(self.config, choices), self.architecture.network
        data = setup.origin
        setup = setup.fitted_to(self.architecture.origin)
        setup = replace(setup, origin=replace(setup.origin, dataset=data.dataset, dataset_settings=data.dataset_settings))
        require_scores(network, setup, choices, trains=True)
        introduce(setup, self.make)
        return choose_training_way(self.config, setup, network, run_dir), network

    def train(self, setup: Setup, network: nn.Module, run_dir: Path, on_epoch: OnEpoch) -> dict[str, Any]:
        """Train, keep the network as an artefact of this run, and say what result.json tells of it; `on_epoch` is told of every epoch."""
        config, found = self.config, self.architecture
        training = make_training(config.training)
        facts = [{name: units.tolist() for name, units in found.keep.items()}, *training_facts(config, setup), config.seed]
        path = run_dir / "checkpoint" / "scratch.safetensors"
        saver = Saver(path, identity=fingerprint(facts), minutes=training.save_minutes, resume=config.resume is not None)
        log.info("from scratch, as in %s: training %d epochs on %d images", config.like, training.epochs, len(setup.splits.train))
        losses = train_network(
            network, setup.splits, training, setup.execution,
            seed=config.seed, saver=saver, description="train from scratch", on_epoch=on_epoch,
        )  # fmt: skip
        known = ("sparsity", "macs", "params", "agent", "criterion", "units_chosen_by")
        plan: dict[str, Any] = {key: found.plan[key] for key in known if key in found.plan}
        plan |= {"from_scratch": True, "like": config.like, "seed": config.seed, "dense_seed": config.dense_seed}
        ignore = list(map(str, found.plan["ignore"]))
        save_artefact(
            run_dir / "pruned", before=None, after=network.eval(), origin=setup.origin, keep=found.keep, ignore=ignore, facts=plan
        )
        log.info("kept in %s; to test it again: rlprune evaluate run=%s", run_dir / "pruned", run_dir)
        epochs = {"epochs": training.epochs, "equal_compute": config.equal_compute}
        return {"like": config.like, **self.source.facts(), **epochs, "search_split_seen": "no", "losses": losses}

    def compare(self, run_dir: Path) -> None:
        """Say what the run has reached with these widths; its number is the one it has written, as its test split was read once."""
        theirs, ours = self.source.row, read_json(run_dir / "result.json")["rows"][0]
        if theirs is not None and theirs["n"] == ours["n"]:
            lead = 100 * (ours["top1"] - theirs["top1"])
            reached = f"{100 * theirs['top1']:.2f} ± {100 * theirs['standard_error']:.2f}"
            log.info(
                "%s, by its own result.json: %s, top-1 %s %%; from scratch is %+.2f against it",
                self.config.like,
                theirs["name"],
                reached,
                lead,
            )


def read_like(config: TrainConfig, choices: dict[str, str]) -> Like | None:
    """The architecture that `like` names, with weights drawn from the seed; None where it names none.

    The config takes over what belongs to the run: its model, its data set unless another is named, and the seed of its search split.

    Raises:
        UserError: there is no plan, it is damaged, or another setting contradicts it.
    """
    if config.like is None:
        if config.equal_compute:
            raise UserError("equal_compute=true: goes with like=RUN alone; it compares the MACs of its dense and its pruned network")
        return None
    folder = find_artefact(Path(config.like), "like")
    named, seeded = list(HydraConfig.get().overrides.task), replace(config, dense_seed=config.seed)
    own = any(override.startswith("model=") for override in named)
    _refuse(config, named, own)
    make: Callable[[Origin], nn.Module] = partial(make_network, seeded) if own else partial(_shipped_network, config.seed)
    found = load_architecture(folder, make)
    if provenance(found.dense).weights is not None:
        raise UserError(f"model.weights={config.model.get('weights')}: goes not with like, which trains from scratch; leave it out")
    seed_globals(config.seed, "weights from scratch")
    kept = draw_weights(found.network, found.dense)
    if kept:
        log.warning("%s: drawn for the wide network and cut, as their modules have no reset_parameters", ", ".join(kept))
    dense_seed = int(found.plan.get("dense_seed", found.plan["seed"]))
    if any(override.startswith("dense_seed=") for override in named) and config.dense_seed != dense_seed:
        raise UserError(f"dense_seed={config.dense_seed}: like takes the run's search split, of dense_seed={dense_seed}; leave it out")
    adopt_origin(config, choices, found.origin, dense_seed, named)
    if config.equal_compute:
        _lengthen(config, found.graph.macs({}) / found.graph.macs(found.keep))
    return Like(found, read_source(folder, found.plan), config, partial(make, found.origin))


def _refuse(config: TrainConfig, named: list[str], own: bool) -> None:
    """Settings that the run decides, and that would do nothing."""
    if config.checkpoint is not None:
        raise UserError(f"checkpoint={config.checkpoint}: goes not with like, which trains from scratch; leave one of them out")
    data = any(override.startswith("dataset=") for override in named)
    for override in named:
        key = override.lstrip("+~").partition("=")[0]
        if (key.startswith("model.") and not own) or (key.startswith("dataset.") and not data and key != "dataset.limit"):
            group = key.partition(".")[0]
            raise UserError(f"{key}: like takes the run's {group}; name {group}=NAME as well, or leave it out")


def _shipped_network(seed: int, origin: Origin) -> nn.Module:
    seed_globals(seed, "initial weights")
    return origin.build()


def _lengthen(config: TrainConfig, ratio: float) -> None:
    """As many MACs in training as the dense network takes in `training.epochs` (Scratch-B of Liu et al. 2019)."""
    training = config.training
    epochs, *milestones = (math.floor(epoch * ratio + 0.5) for epoch in [training.epochs, *training.lr_milestones])
    log.info("equal_compute: %d epochs of the dense network, which has %.2f× the MACs, are %d", training.epochs, ratio, epochs)
    training.epochs, training.lr_milestones = epochs, milestones
