"""A network of the user's own."""

import difflib
import inspect
import os
import sys
from importlib import import_module
from typing import Any

from torch import nn

from rlprune.errors import UserError


def custom_network(*, target: str, kwargs: dict[str, Any] | None, in_channels: int, num_classes: int) -> nn.Module:
    """Call a class or function by its import path; modules in the current folder are found.

    Args:
        target: such as `my_package.MyNet`.
        kwargs: its arguments, or None; `in_channels` and `num_classes` are added where it has parameters of these names.
        in_channels: channels of an image.
        num_classes: outputs.

    Raises:
        UserError: the target cannot be imported or called, or makes no network.
    """
    factory = _find(target)
    if inspect.isclass(factory) and not issubclass(factory, nn.Module):
        raise UserError(f"model.target={target}: is a class, but no torch.nn.Module; name a network, or a function that makes one")
    if not callable(factory) or isinstance(factory, nn.Module):
        raise UserError(f"model.target={target}: is a {type(factory).__name__}; name a class or a function that makes a torch.nn.Module")
    known = {"in_channels": in_channels, "num_classes": num_classes}
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    given = {name: value for name, value in known.items() if name in parameters} | (kwargs or {})
    try:
        network = factory(**given)
    except (Exception, SystemExit) as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise UserError(
            f"model.target={target}: {target.rpartition('.')[2]}({shown}) fails ({type(error).__name__}: {error}); "
            "set its arguments with model.kwargs='{name: value}'"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"model.target={target}: makes a {type(network).__name__}, not a torch.nn.Module")
    return network


def _find(target: str) -> Any:
    """The object at an import path such as package.module.Class.method."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # an installed command does not have it
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"model.target={target}: is no import path; write module.Class, such as my_nets.MyNet for MyNet in my_nets.py")
    for length in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:length])
        try:
            found = import_module(path)
        except ModuleNotFoundError as error:
            if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")) and length > 1:
                continue  # perhaps a class inside of a module
            mine = error.name is not None and error.name.partition(".")[0] == parts[0]
            advice = f"run rlprune in the folder that holds {parts[0]}, or set PYTHONPATH" if mine else f"{path} needs it; install it"
            raise UserError(f"model.target={target}: cannot be imported ({error}); {advice}") from error
        except (Exception, SystemExit) as error:
            raise UserError(f"model.target={target}: importing {path} fails ({type(error).__name__}: {error})") from error
        for index, part in enumerate(parts[length:], length):
            if not hasattr(found, part):
                close = difflib.get_close_matches(part, dir(found), n=1)
                near = f"; did you mean {close[0]}?" if close else ""
                raise UserError(f"model.target={target}: {'.'.join(parts[:index])} has no {part}{near}")
            found = getattr(found, part)
        return found
    raise AssertionError("the loop above returns or raises")
