"""What comes with rlprune: its yaml files, and how the plug-ins they name are checked and made, without the machinery of config files."""

import difflib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from rlprune.errors import UserError


def conf_dir() -> Path:
    """The yaml tree: inside an installed wheel, or beside the package in a checkout.

    Raises:
        UserError: neither is there.
    """
    for folder in (Path(str(files("rlprune"))) / "conf", Path(str(files("rlprune"))).parent / "conf"):
        if (folder / "prune.yaml").is_file():
            return folder
    raise UserError("conf: the yaml files are missing from this installation; install rlprune again")


def shipped(group: str, choice: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The yaml of a shipped choice with other values for its own settings: how something named in a file is built again.

    The class always comes from the shipped yaml, never from the file.

    Raises:
        UserError: no such choice is shipped, or a setting is not one of its yaml's.
    """
    names = shipped_names(group)
    if choice not in names:
        raise UserError(f"{group}={choice}: is not shipped with this version; there are {', '.join(names)}")
    node = load_yaml(conf_dir() / group / f"{choice}.yaml")
    for name, value in settings.items():
        if name not in node or name == "_target_":
            raise UserError(f"{group}.{name}: is no setting of {group}={choice}")
        node[name] = value
    return node


def make_shipped(group: str, choice: str, settings: Mapping[str, Any], **runtime: Any) -> Any:
    """The object that a shipped choice stands for, with other values for its own settings; of `runtime` it gets what it asks for.

    For settings out of a file: the class comes from the shipped yaml, and of the settings none is taken for a class.

    Raises:
        UserError: no such choice is shipped, or a setting is unknown, missing, of the wrong type, or refused.
    """
    node = shipped(group, choice, settings)
    module, _, name = node.pop("_target_").rpartition(".")
    factory = getattr(import_module(module), name)
    parameters = inspect.signature(factory).parameters
    given = {key: value for key, value in runtime.items() if key in parameters}
    checked = check_settings(factory, parameters, node, group, given)
    try:
        return factory(**checked, **given)
    except (ValueError, TypeError) as error:
        raise refusal(group, node, error) from error


def refusal(key: str, settings: Mapping[str, Any], error: BaseException) -> UserError:
    """The line for what a plug-in said of its settings; it writes `name=value: why` where one of them is wrong."""
    named = str(error).partition("=")[0] in settings
    return UserError(f"{key}.{error}" if named else f"{key}: {error}")


def shipped_names(group: str) -> list[str]:
    """The choices of a group that come with rlprune."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def plain_settings(node: Mapping[str, Any]) -> dict[str, Any]:
    """A plug-in's settings without its class, as `shipped` takes them."""
    return {key: value for key, value in node.items() if key != "_target_"}


def load_yaml(path: Path) -> dict[str, Any]:
    """A yaml file as plain values, without the choices of other groups that it may bring along."""
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    values.pop("defaults", None)
    return values


def check_settings(
    factory: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    settings: Mapping[str, Any],
    key: str,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Settings that fit a signature; integers become floats where floats are asked for."""
    target = factory.__init__ if inspect.isclass(factory) else factory
    try:
        hints = typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):
        hints = {}
    checked = {}
    for name, value in settings.items():
        if name not in parameters:
            near = suggestion(name, parameters)
            raise UserError(f"{key}.{name}: no such setting{near}; there are {', '.join(n for n in parameters if n not in given)}")
        default = parameters[name].default
        plain = type(default) if type(default) in (bool, int, float, str) else Any  # where a library has no usable annotations
        checked[name] = convert(f"{key}.{name}", value, hints.get(name, plain))
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if required and name not in checked and name not in given:
            raise UserError(f"{key}.{name}: is missing; set it, {key}.{name}=...")
    return checked


def convert(key: str, value: Any, hint: Any) -> Any:
    """A value of the annotated type; integers become floats where floats are asked for.

    Raises:
        UserError: it is of another type.
    """
    if hint is Any or hint is inspect.Parameter.empty:
        return value
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            if option is type(None) and value is None:
                return None
        for option in typing.get_args(hint):
            if option is not type(None):
                try:
                    return convert(key, value, option)
                except UserError:
                    continue
    elif typing.get_origin(hint) is Literal:
        if value in typing.get_args(hint):
            return value
    elif typing.get_origin(hint) in (list, tuple):
        if isinstance(value, list | tuple):
            inner = typing.get_args(hint)[0] if typing.get_args(hint) else Any
            return [convert(key, item, inner) for item in value]
    elif typing.get_origin(hint) is dict:
        if isinstance(value, dict):
            return value
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint in (bool, str):
        if isinstance(value, hint):
            return value
    elif not inspect.isclass(hint) or isinstance(value, hint):
        return value
    raise UserError(f"{key}={value}: must be {_describe(hint)}")


def _describe(hint: Any) -> str:
    words = {int: "an integer", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (list, tuple):
        return "a list, each " + _describe(typing.get_args(hint)[0])
    if typing.get_origin(hint) is dict:
        return "a mapping, '{name: value}'"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint) if option in words or typing.get_origin(option))
    return words.get(hint, str(hint))


def suggestion(word: str, choices: typing.Iterable[str]) -> str:
    """`, did you mean x?` if a choice is near."""
    near = [choice for choice in difflib.get_close_matches(word, list(choices), n=1) if choice != word]
    return f" (did you mean {near[0]}?)" if near else ""
