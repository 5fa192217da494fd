"""Configuration: the skeleton and its resolvers, and `build`, which turns a plug-in's yaml into an object."""

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from rlprune.errors import UserError
from rlprune.files import read_json
from rlprune.shipped import check_settings, conf_dir, convert, load_yaml, plain_settings, refusal, shipped, shipped_names, suggestion
from rlprune.skeleton import (
    BenchConfig,
    EvaluateConfig,
    ExportConfig,
    InspectConfig,
    PruneConfig,
    ReportConfig,
    SensitivityConfig,
    TrainConfig,
    check_ranges,
)

__all__ = [  # with what it takes from rlprune.shipped
    "GRID_SWEEPER",
    "LAUNCHERS",
    "build",
    "check_settings",
    "conf_dir",
    "first_difference",
    "load_yaml",
    "plain_settings",
    "register",
    "resolve",
    "shipped",
    "shipped_names",
    "suggestion",
    "word_choices",
]

GRID_SWEEPER = "hydra_plugins.rlprune_grid.GridSweeper"  # Hydra takes plug-ins from packages of this name alone
LAUNCHERS = tuple(f"hydra_plugins.rlprune_launchers.{name}" for name in ("OneBoxLauncher", "RayLauncher"))


def register() -> None:
    """Put the skeletons where the yaml files' defaults lists find them."""
    OmegaConf.register_new_resolver("folder", _folder, replace=True)
    OmegaConf.register_new_resolver("unless", _unless, replace=True)
    OmegaConf.register_new_resolver("when", _when, replace=True)
    OmegaConf.register_new_resolver("steps_for", _steps_for, replace=True)
    OmegaConf.register_new_resolver("share_kept", _share_kept, replace=True)
    OmegaConf.register_new_resolver("candidates_of", _candidates_of, replace=True)
    store = ConfigStore.instance()
    for name, schema in (
        ("train", TrainConfig),
        ("prune", PruneConfig),
        ("evaluate", EvaluateConfig),
        ("export", ExportConfig),
        ("sensitivity", SensitivityConfig),
        ("inspect", InspectConfig),
        ("bench", BenchConfig),
        ("report", ReportConfig),
    ):
        store.store(name=f"{name}_schema", node=schema)
    store.store(group="hydra/sweeper", name="grid", node={"_target_": GRID_SWEEPER})


def _unless(others: Mapping[str, Any], value: Any) -> Any:
    """A default that steps back where one of the other settings is there."""
    return value if all(other is None for other in others.values()) else None


def _when(condition: bool, value: Any, otherwise: Any) -> Any:
    """A default that depends on a setting that is true or false."""
    return value if condition else otherwise


def _steps_for(levels: Sequence[float] | None, sparsity: float | None, least: int) -> int:
    """As few pruning steps as give every level on the way to a sparsity a step of its own."""
    shares = [level / (sparsity or 1.0) for level in levels or []]
    apart = (steps for steps in range(least, 1000) if len({steps, *(max(1, round(share * steps)) for share in shares)}) == 1 + len(shares))
    return next(apart, least)


def _share_kept(run: str, size: str) -> float:
    """Share of the dense network's MACs or parameters that a finished run has kept: for a baseline of its size."""
    return _told_by(run, lambda result: math.ceil(1e6 * result["rows"][-1][size] / result["rows"][0][size]) / 1e6)


def _candidates_of(run: str) -> int:
    """Distinct candidates that a finished run has measured: for a baseline of its cost."""
    return _told_by(run, lambda result: int(result["search"]["candidates"]))


def _told_by(run: str, what: Callable[[Any], Any]) -> Any:
    path = Path(run) / "result.json"
    if not path.exists():
        raise ValueError(f"{run}: is not finished, and this run follows it; finish it first, by the same line")
    try:
        return what(read_json(path))
    except (UserError, ValueError, KeyError, TypeError, IndexError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path}: is damaged; delete that run's folder and start it again") from error


def _folder(path: str | None) -> str:
    if not path:
        raise ValueError("paths.outputs: is empty; name a folder, such as paths.outputs=outputs")
    return path


# -- plug-ins --------------------------------------------------------------------------------------------------------------------------


def build(node: Any, key: str, **runtime: Any) -> Any:
    """Make the object that a plug-in's yaml names.

    Every setting is checked against the signature first. Of `runtime` the plug-in gets what its signature asks for.

    Raises:
        UserError: a setting is unknown, missing, of the wrong type, or refused by the plug-in; names its key.
    """
    settings = dict(node)
    target = settings.pop("_target_", None)
    if target is None:
        raise UserError(f"{key}: has no _target_; name the class, such as `_target_: rlprune.agents.mcq.MCQ`")
    try:
        factory = hydra.utils.get_object(target)
    except Exception as error:
        raise UserError(f"{key}._target_={target}: cannot be imported ({error})") from error
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}._target_={target}: cannot be called with settings; name a class or a function") from error
    given = {name: value for name, value in runtime.items() if name in parameters}
    checked = check_settings(factory, parameters, settings, key, given)
    try:
        return factory(**checked, **given)  # not instantiate, which would call what nested settings name: some come out of files
    except (ValueError, TypeError) as error:
        raise refusal(key, settings, error) from error


def word_choices(node: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Settings of a plug-in's yaml that take one of a few words, with these."""
    factory = hydra.utils.get_object(node["_target_"])
    hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    return {key: typing.get_args(hints[key]) for key in node if typing.get_origin(hints.get(key)) is Literal}


def first_difference(old: Any, new: Any, key: str = "") -> str | None:
    """The first key whose values differ between two plain configs, with both values; None if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            found = first_difference(old.get(name), new.get(name), f"{key}.{name}" if key else name)
            if found:
                return found
        return None
    return None if old == new else f"{key} was {old}, is {new}"


def resolve(config: DictConfig) -> Any:
    """The typed skeleton with every interpolation resolved; plug-in nodes are plain dicts.

    Raises:
        UserError: a value is missing or out of range.
    """
    skeleton = OmegaConf.get_type(config)
    if skeleton is not None and dataclasses.is_dataclass(skeleton):
        _refuse_additions(config, cast(type, skeleton), "")
    OmegaConf.resolve(config)
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise UserError(f"{sorted(missing)[0]}: is missing; set it on the command line")
    resolved = OmegaConf.to_object(config)
    _check_plugins(resolved, "")
    _check_lists(resolved, "")
    check_ranges(resolved)
    return resolved


def _check_plugins(config: Any, prefix: str) -> None:
    """Where a plug-in is expected, there is a yaml that names one."""
    for item in dataclasses.fields(config):
        value, key = getattr(config, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            _check_plugins(value, f"{key}.")
        elif item.type is Any and item.metadata.get("plugin", True) and not (isinstance(value, dict) and "_target_" in value):
            group = f"{item.name}@{key}" if prefix else key
            raise UserError(f"{key}={value}: is no plug-in; choose one with {group}=NAME: {', '.join(shipped_names(item.name))}")


def _check_lists(config: Any, prefix: str) -> None:
    """What is in a list is of its type; OmegaConf lets lists and mappings through."""
    for item in dataclasses.fields(config):
        value, key = getattr(config, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            _check_lists(value, f"{key}.")
        elif typing.get_origin(item.type) is list:
            words = typing.get_args(item.type) == (str,)
            try:
                convert(key, value, item.type)
            except UserError as error:
                what = f"names, such as {key}=[a,b]" if words else "numbers"
                raise UserError(f"{key}={value}: must be a list of {what}") from error


def _refuse_additions(config: DictConfig, skeleton: type, prefix: str) -> None:
    """`+key=value` adds keys that nothing would read."""
    known = {item.name: item.type for item in dataclasses.fields(skeleton)}
    for name in known:
        if name not in config:
            raise UserError(f"{prefix}{name}: is missing; leave it out of the line to take its default")
    for name in map(str, config):
        if name not in known:
            raise UserError(f"{prefix}{name}: no such key{suggestion(name, known)}; there are {', '.join(known)}")
        kind = known[name]
        if dataclasses.is_dataclass(kind):
            _refuse_additions(config[name], cast(type, kind), f"{prefix}{name}.")
