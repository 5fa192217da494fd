"""Running a model on example inputs of any form, and leaving it as it was."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rlprune.errors import UserError


def map_tensors(value: Any, function: Any) -> Any:
    """Apply a function to every tensor in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, function) for item in value)
    return value


def copy_inputs(inputs: Any, dtype: torch.dtype | None = None) -> Any:
    """Example inputs that nothing else refers to; floating-point tensors in `dtype` if one is given."""
    return map_tensors(inputs, lambda tensor: tensor.detach().clone().to(dtype if tensor.is_floating_point() else None))


def call_model(model: nn.Module, inputs: Any, mode: AbstractContextManager[Any] | None = None) -> Any:
    """Call a model with a tensor, a tuple of arguments or a dict of keyword arguments.

    Raises:
        UserError: the model cannot run on these inputs; says what it raised.
    """
    with mode or nullcontext():
        try:
            if isinstance(inputs, dict):
                return model(**inputs)
            return model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)
        except UserError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{type(model).__name__}: cannot run on the example inputs: {reason}") from error


def copy_module(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy; `memo` maps tensors to what takes their place.

    Raises:
        UserError: the module holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(model, memo or {})
    except Exception as error:
        raise UserError(f"{type(model).__name__}: cannot be copied ({error}); drop what it keeps besides modules and parameters") from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode and every buffer's values afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    model.eval()
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in buffers:
                if not torch.equal(buffer, values):  # written to by the forward pass itself
                    buffer.copy_(values)
        for module, training in modes:
            module.training = training
