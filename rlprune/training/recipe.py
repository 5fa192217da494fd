"""From the settings of a training or a recovery to what carries it out."""

from functools import partial
from typing import Any

import torch
from torch import nn

from rlprune.config import build
from rlprune.errors import UserError
from rlprune.skeleton import RecipeConfig, RecoveryConfig
from rlprune.training.fit import Recipe
from rlprune.training.recover import Recovery


def make_recipe(config: RecipeConfig, key: str) -> Recipe:
    """Optimizer and schedule of `training` or `recovery`."""
    optimizer = partial(_optimizer, config.optimizer, f"{key}.optimizer")
    optimizer([{"params": [nn.Parameter(torch.zeros(1))]}])  # refuses wrong settings now, not after the search
    return Recipe(
        optimizer=optimizer,
        lr_schedule=config.lr_schedule,
        lr_milestones=tuple(config.lr_milestones),
        lr_gamma=config.lr_gamma,
        warmup_epochs=config.warmup_epochs,
        clip_norm=config.clip_norm,
        ema=getattr(config, "ema", None),
    )


def make_recovery(config: RecoveryConfig) -> Recovery:
    """How pruned networks recover; not at all where that is switched off."""
    return Recovery(
        recipe=make_recipe(config, "recovery"),
        batch_size=config.batch_size,
        epochs=config.epochs if config.enabled else 0,
        final_epochs=config.final_epochs if config.enabled else 0,
        rho=config.rho,
        temperature=config.temperature,
        control=config.control,
    )


def _optimizer(node: dict[str, Any], key: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    optimizer = build(node, key, params=groups)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"{key}._target_={node.get('_target_')}: is no torch optimizer")
    return optimizer
