"""From a config to the objects that several commands need."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlprune.config import RunConfig, build, plain_settings
from rlprune.data.base import Dataset, split
from rlprune.errors import UserError
from rlprune.graph.run import call_model, evaluating
from rlprune.results.origin import Origin
from rlprune.setup import Setup
from rlprune.training.dense import Dense, dense_path, obtain_dense
from rlprune.training.execution import Execution, choose_execution
from rlprune.training.fit import Recipe


def make_execution(config: RunConfig) -> Execution:
    """Device and precision; the first thing that can be wrong."""
    return choose_execution(
        device=config.device, precision=config.precision, channels_last=str(config.channels_last).lower(), compile=config.compile
    )


def make_dataset(config: RunConfig) -> Dataset:
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
    splits = split(dataset, config.seed)
    channels, *size = splits.train.pixels.shape[1:]
    origin = Origin(
        model=choices["model"],
        model_settings=plain_settings(config.model),
        dataset=choices["dataset"],
        dataset_settings=plain_settings(config.dataset),
        in_channels=channels,
        image_size=(size[0], size[1]),
        class_names=splits.class_names,
        mean=splits.normalization.mean,
        std=splits.normalization.std,
    )
    return Setup(execution, dataset, splits, origin)


def make_network(config: RunConfig, setup: Setup) -> nn.Module:
    """A network with fresh weights.

    Raises:
        UserError: the config names something that is no network.
    """
    network = build(config.model, "model", in_channels=setup.origin.in_channels, num_classes=len(setup.origin.class_names))
    if not isinstance(network, nn.Module):
        raise UserError(f"model._target_={config.model['_target_']}: makes a {type(network).__name__}, not a torch.nn.Module")
    return network


def require_scores(network: nn.Module, setup: Setup, choices: dict[str, str]) -> None:
    """Refuse a network that does not return one score a class, before anything is trained.

    Raises:
        UserError: the network cannot run on the data set's images, or returns something else.
    """
    example = setup.example()
    with evaluating(network), torch.no_grad():
        scores = call_model(network.to(setup.execution.device), example)
    wanted = (len(example), len(setup.origin.class_names))
    found = f"a tensor of shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else f"a {type(scores).__name__}"
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != wanted:
        raise UserError(f"model={choices['model']}: returns {found}, not class scores of shape {wanted}; rlprune inspect takes any network")


def make_recipe(config: Any, key: str) -> Recipe:
    """Optimizer and schedule of `training` or `recovery`."""
    optimizer = partial(_optimizer, config.optimizer, f"{key}.optimizer")
    optimizer([{"params": [nn.Parameter(torch.zeros(1))]}])  # refuses wrong settings now, not after the search
    return Recipe(optimizer, config.lr_schedule, config.clip_norm)


def _optimizer(node: dict[str, Any], key: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    optimizer = build(node, key, params=groups)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"{key}._target_={node.get('_target_')}: is no torch optimizer")
    return optimizer


def make_dense(config: RunConfig, setup: Setup, choices: dict[str, str], *, train: bool = False) -> Dense:
    """The dense network: from `checkpoint`, kept from an earlier run, or trained now."""
    data = {key: value for key, value in config.dataset.items() if key != "root"}
    if train and config.checkpoint is not None:
        data["from"] = config.checkpoint  # a fine-tuned network is not the one trained from scratch
    images = [setup.splits.class_names, setup.splits.train.checksum(), setup.splits.normalization]
    how = [str(setup.execution.dtype), setup.execution.device.type, setup.execution.channels_last, setup.execution.compile]
    facts = [config.model, data, images, asdict(config.training), config.seed, how]
    return obtain_dense(
        partial(make_network, config, setup),
        setup.splits,
        checkpoint=config.checkpoint,
        path=dense_path(Path(config.paths.outputs) / "dense", choices, facts),
        epochs=config.training.epochs,
        batch_size=config.training.batch_size,
        label_smoothing=config.training.label_smoothing,
        recipe=make_recipe(config.training, "training"),
        execution=setup.execution,
        seed=config.seed,
        train=train,
    )


def require(plugin: Any, node: dict[str, Any], key: str, *names: str) -> None:
    """Refuse a plug-in that lacks what its kind must have, before anything is trained for it.

    Raises:
        UserError: names the first thing that is missing.
    """
    for name in names:
        if not hasattr(plugin, name):
            raise UserError(
                f"{key}._target_={node['_target_']}: has no `{name}`; see rlprune.{'agents' if key == 'agent' else 'criteria'}.base"
            )
