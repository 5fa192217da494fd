"""The configuration of a command for a call from Python: the same yaml files, choices and checks as on the command line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rlprune.config import conf_dir, register, resolve, shipped_names, suggestion
from rlprune.errors import UserError


def compose(command: str, *, choices: Mapping[str, str], settings: Mapping[str, Any]) -> Any:
    """The typed configuration that a command line with these words would have.

    Args:
        command: whose configuration it is.
        choices: group → choice, such as `{"agent": "amc", "optimizer@recovery.optimizer": "adamw"}`.
        settings: key → value, such as `{"agent.episodes": 50}`; they count more than the choices.

    Raises:
        UserError: no such choice or key, or a value of the wrong type or out of range; names it.
    """
    for group, choice in choices.items():
        names = shipped_names(group.partition("@")[0])
        if choice not in names:
            raise UserError(f"{group}={choice}: unknown{suggestion(str(choice), names)}; choose one of {', '.join(names) or 'none'}")
    register()
    words = [f"{group}={choice}" for group, choice in choices.items()]
    try:
        with _composing():
            config = hydra.compose(config_name=command, overrides=[*words, "paths.run=unused"])
    except hydra.errors.HydraException as error:
        raise UserError(f"{' '.join(words)}: cannot be chosen together ({str(error).splitlines()[0]})") from error
    for key, value in settings.items():
        _set(config, key, value)
    try:
        return resolve(config)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error


@contextmanager
def _composing() -> Iterator[None]:
    """What composes configurations is one of its kind in a process; an application that has one gets it back."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(config_dir=str(conf_dir().resolve()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = before


def _set(config: DictConfig, key: str, value: Any) -> None:
    """Give a key that is there another value."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig) or name not in node or name == "_target_":
        near = suggestion(name, map(str, node)) if isinstance(node, DictConfig) else ""
        known = f"; there are {', '.join(str(other) for other in node if other != '_target_')}" if isinstance(node, DictConfig) else ""
        raise UserError(f"{key}: no such key{near}{known}")
    try:
        with open_dict(config):  # a mapping, as for schedule.max_sparsity, brings keys of its own
            OmegaConf.update(config, key, value, merge=False)
    except OmegaConfBaseException as error:
        raise UserError(f"{key}={value}: {str(error).splitlines()[0]}") from error
