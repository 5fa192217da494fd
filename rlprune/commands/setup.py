"""From a config to the objects that several commands need."""

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlprune.checkpoint import MisfitError, load_into, load_weights, tensors_checksum
from rlprune.commands.fitting import fitting_model
from rlprune.config import build, plain_settings
from rlprune.data.base import Dataset, Splits, split
from rlprune.distributed import current_group
from rlprune.errors import UserError
from rlprune.graph.run import call_model, copy_module
from rlprune.memory import bounded_weights
from rlprune.provenance import provenance
from rlprune.results.origin import Origin
from rlprune.seeding import seed_globals
from rlprune.setup import Setup
from rlprune.skeleton import BenchConfig, PruneConfig, RunConfig, TrainingConfig
from rlprune.training.dense import Dense, Source, Training, dense_path, obtain_dense
from rlprune.training.execution import Execution, choose_execution
from rlprune.training.fit import OnEpoch, unheard
from rlprune.training.joint import JointTraining
from rlprune.training.measure import choose_way
from rlprune.training.recipe import make_recipe
from rlprune.training.team import Team

log = logging.getLogger(__name__)


def make_execution(config: RunConfig) -> Execution:
    """Device and precision, the first thing that can be wrong, and who shares the training."""
    execution = choose_execution(
        device=config.device,
        precision=config.precision,
        channels_last=str(config.channels_last).lower(),
        compile=config.compile,
    )
    group = current_group()
    if group is None:
        return execution
    group.check(execution.device)
    return replace(execution, team=Team(group))


def make_dataset(config: RunConfig | BenchConfig) -> Dataset:
    """The data set, not read yet."""
    folders = {"cache_dir": Path(config.paths.outputs) / "cache", "data_dir": Path(config.paths.data)}
    dataset: Dataset = build(config.dataset, "dataset", **folders)
    dataset.check_test()
    return dataset


def make_setup(config: RunConfig, choices: dict[str, str]) -> Setup:
    """Everything but the network."""
    execution = make_execution(config)
    dataset = make_dataset(config)
    make_recipe(config.training, "training")  # refuses wrong settings before the images are read
    splits = split(dataset, config.dense_seed)
    return Setup(execution, dataset, splits, make_origin(config, choices, splits), config.dense_seed)


def make_origin(config: RunConfig | BenchConfig, choices: dict[str, str], splits: Splits) -> Origin:
    """How the network is made again, and the images of the data set."""
    channels, *size = splits.train.shape
    return Origin(
        model=choices["model"],
        model_settings=plain_settings(config.model) | dict.fromkeys({"weights"} & set(config.model)),  # a run keeps its own
        dataset=choices["dataset"],
        dataset_settings=plain_settings(config.dataset),
        in_channels=channels,
        image_size=(size[0], size[1]),
        class_names=splits.class_names,
        mean=splits.normalization.mean,
        std=splits.normalization.std,
    )


def make_network(config: RunConfig | BenchConfig, origin: Origin) -> nn.Module:
    """A network with its first weights, for the images and classes of `origin`.

    Raises:
        UserError: the config names something that is no network.
    """
    seed_globals(config.dense_seed, "initial weights")
    with bounded_weights(f"model={origin.model}"):
        network = build(config.model, "model", in_channels=origin.in_channels, num_classes=len(origin.class_names))
    if not isinstance(network, nn.Module):
        raise UserError(f"model._target_={config.model['_target_']}: makes a {type(network).__name__}, not a torch.nn.Module")
    return network


def prepare(config: RunConfig, choices: dict[str, str], run_dir: Path | None) -> tuple[Setup, nn.Module]:
    """Everything that a job starts from; the network is known to return class scores.

    With the folder of a run that trains, the fastest way to do so is chosen.
    """
    setup = make_setup(config, choices)
    network = make_network(config, setup.origin)
    require_scores(network, setup, choices, trains=run_dir is not None)
    setup, known = setup.suited_to(network, config.checkpoint), provenance(network)
    if known.weights is not None and known.side not in (None, setup.origin.image_size[0]):
        log.warning(
            "%s was trained on images of %d pixels a side, the data set has %d", known.weights, known.side, setup.origin.image_size[0]
        )
    if run_dir is not None:
        introduce(setup, partial(make_network, _unweighted(config), setup.origin))
        setup = choose_training_way(config, setup, network, run_dir)
    return setup, network


def introduce(setup: Setup, make: Callable[[], nn.Module]) -> None:
    """Tell the processes that share the training, where there are some, how to make the dense network."""
    team = setup.execution.team
    if team is not None:
        team.introduce(make, setup.execution.device)
        log.info("%d processes share every training batch", team.group.size)


def _unweighted(config: RunConfig) -> RunConfig:
    """The same, without published weights for the network."""
    return replace(config, model=config.model | dict.fromkeys({"weights"} & set(config.model)))


def choose_training_way(config: RunConfig, setup: Setup, network: nn.Module, run_dir: Path) -> Setup:
    """The same setup, with the fastest way to train the network."""
    execution = choose_way(
        setup.execution,
        network,
        setup.example(),
        batch_size=config.training.batch_size,
        images=config.training.epochs * len(setup.splits.train),
        cache=Path(config.paths.outputs) / "cache",
        chosen=run_dir / "checkpoint" / "way.json",
    )
    return replace(setup, execution=execution)


def require_scores(network: nn.Module, setup: Setup, choices: dict[str, str], *, trains: bool) -> None:
    """Refuse a network that does not return one score a class, before anything is trained.

    Raises:
        UserError: the network cannot run on the data set's images, or returns something else.
    """
    example, name = setup.example(), f"model={choices['model']}"
    lazy = next((key for key, tensor in network.named_parameters() if isinstance(tensor, nn.parameter.UninitializedParameter)), None)
    if lazy is not None:
        raise UserError(f"{name}: {lazy} has no shape yet; run the network once where it is made")
    network.to(setup.execution.device)
    wanted = (len(example), len(setup.origin.class_names))
    with torch.random.fork_rng(devices=[]):
        for mode, trial in [("", network.eval()), *([(" in training", copy_module(network).train())] if trains else [])]:
            try:
                with torch.no_grad():
                    scores = call_model(trial, example)
            except UserError as error:
                raise UserError(f"{name}: cannot take the data set's images of shape {setup.origin.shape}{mode}; {error}") from error
            found = f"a tensor of shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else f"a {type(scores).__name__}"
            if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != wanted:
                raise UserError(
                    f"{name}: returns {found} for {wanted[0]} images{mode}, not class scores of shape {wanted}; "
                    f"the data set has {wanted[1]} classes"
                )


def make_dense(
    config: RunConfig,
    setup: Setup,
    network: nn.Module,
    choices: dict[str, str],
    run_dir: Path,
    *,
    train: bool = False,
    on_epoch: OnEpoch = unheard,
) -> Dense:
    """The dense network: from `checkpoint`, kept from an earlier run, published, or trained now, when `on_epoch` is told."""
    data = {key: value for key, value in config.dataset.items() if key not in ("root", "num_workers")}
    if train and config.checkpoint is not None:
        data["from"] = config.checkpoint  # a fine-tuned network is not the one trained from scratch
    images, training, how = training_facts(config, setup)
    facts = [config.model, *_network_facts(network), data, images, training, config.dense_seed, how]
    source = Source(
        checkpoint=config.checkpoint,
        path=dense_path(Path(config.paths.outputs) / "dense", choices, facts),
        state=run_dir / "checkpoint" / "dense.safetensors",
        train=train,
        resume=getattr(config, "resume", None) is not None,
    )
    plan = make_training(config.training)
    with _naming_the_model():
        return obtain_dense(
            network, setup.splits,
            source=source, training=plan, execution=setup.execution, seed=config.dense_seed, on_epoch=on_epoch,
        )  # fmt: skip


def training_facts(config: RunConfig, setup: Setup) -> tuple[Any, ...]:
    """Images, settings and execution that the weights of a training depend on."""
    images = [setup.splits.class_names, setup.splits.train.checksum(), setup.splits.normalization]
    training = asdict(config.training)
    del training["save_minutes"]
    return images, training, [str(setup.execution.training), setup.execution.device.type, setup.execution.compile]


def make_training(config: TrainingConfig) -> Training:
    """How a network is trained before it is pruned, or while."""
    return Training(
        epochs=config.epochs,
        batch_size=config.batch_size,
        label_smoothing=config.label_smoothing,
        randaugment=config.randaugment,
        mixup=config.mixup,
        cutmix=config.cutmix,
        save_minutes=config.save_minutes,
        recipe=make_recipe(config, "training"),
    )


def make_start(config: RunConfig, setup: Setup, network: nn.Module) -> Dense:
    """What joint training starts from: the network's first weights, unless there is a checkpoint, or published ones."""
    known = provenance(network).weights
    given = known if config.checkpoint is None else f"checkpoint={config.checkpoint}"
    if config.checkpoint is not None:
        load_checkpoint(network, config.checkpoint)
    if given is not None:
        log.info("joint training needs no trained network; it goes on from %s, as given", given)
    network.to(setup.execution.device).eval()
    return Dense(network, "first weights" if given is None else given, "no" if given is None else "unknown", [])


def make_joint(
    config: PruneConfig, setup: Setup, network: nn.Module, epochs: int, run_dir: Path, on_epoch: OnEpoch = unheard
) -> JointTraining:
    """The training that a search goes along with; `on_epoch` is told of every epoch."""
    if config.recovery.control and epochs != config.training.epochs:
        log.warning(
            "schedule.steps=%d: joint training goes on for so many epochs, but the dense network beside it for training.epochs=%d; "
            "set training.epochs alone to train them alike",
            epochs, config.training.epochs,
        )  # fmt: skip
    return JointTraining(
        network,
        setup.splits,
        training=make_training(config.training),
        epochs=epochs,
        execution=setup.execution,
        seed=config.seed,
        state=run_dir / "checkpoint" / "joint.safetensors",
        identity=f"joint training {config.seed} {setup.splits.train.checksum()}",
        resume=getattr(config, "resume", None) is not None,
        on_epoch=on_epoch,
    )


def _network_facts(network: nn.Module) -> list[Any]:
    """What a network is beyond its settings: its layers, published weights, and the files with the user's own code."""
    types = {type(module).__module__ for module in network.modules()}
    own = sorted(name for name in types if name.partition(".")[0] not in ("torch", "torchvision", "timm", "rlprune"))
    files = [getattr(sys.modules.get(name), "__file__", None) for name in own]
    code = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if file is not None and Path(file).is_file()]
    return [repr(network), code, tensors_checksum(network.state_dict()) if provenance(network).weights is not None else None]


def load_checkpoint(network: nn.Module, path: str) -> None:
    """Copy the weights in a file into a network.

    Raises:
        UserError: they do not fit; says which model they fit, where one is shipped.
    """
    with _naming_the_model():
        load_into(network, load_weights(Path(path))[0], f"checkpoint={path}")


@contextmanager
def _naming_the_model() -> Iterator[None]:
    try:
        yield
    except MisfitError as error:
        raise UserError(f"{error}{'' if error.tensors is None else fitting_model(error.tensors)}") from error


def require(plugin: Any, node: dict[str, Any], key: str, *names: str) -> None:
    """Refuse a plug-in that lacks what its kind must have, before anything is trained for it.

    Raises:
        UserError: names the first thing that is missing.
    """
    for name in names:
        if not hasattr(plugin, name):
            folder = "criteria" if key == "criterion" else f"{key}s"
            raise UserError(f"{key}._target_={node['_target_']}: has no `{name}`; see rlprune.{folder}.base")
