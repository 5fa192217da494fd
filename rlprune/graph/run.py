"""Running a model on example inputs of any form, copying it, and leaving it as it was."""

import copy
import dataclasses
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rlprune.errors import UserError


def map_tensors(value: Any, function: Any) -> Any:
    """Apply a function to every tensor in nested lists, tuples, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        result = copy.copy(value)
        for name in fields:
            object.__setattr__(result, name, map_tensors(getattr(value, name), function))
        return result
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(map_tensors(item, function) for item in value)
    return value


def copy_inputs(inputs: Any, dtype: torch.dtype | None = None) -> Any:
    """Example inputs that nothing else refers to; floating-point tensors in `dtype` if one is given."""
    return map_tensors(inputs, lambda tensor: tensor.detach().clone().to(dtype if tensor.is_floating_point() else None))


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model with a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)


def call_model(model: nn.Module, inputs: Any, mode: AbstractContextManager[Any] | None = None) -> Any:
    """The same, with an explanation of what went wrong.

    Raises:
        UserError: the model cannot run on these inputs; says in which module, and what it raised.
    """
    with mode or nullcontext():
        try:
            return call(model, inputs)
        except UserError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            where = _failing_module(model, error)
            raise UserError(f"{type(model).__name__}: cannot run on the example inputs{where}: {reason}") from error


def _failing_module(model: nn.Module, error: BaseException) -> str:
    """The innermost module that was running when the error came up."""
    paths = {id(module): name for name, module in model.named_modules()}
    found, step = "", error.__traceback__
    while step is not None:
        name = paths.get(id(step.tb_frame.f_locals.get("self")))
        found, step = name or found, step.tb_next
    return f", in {found}" if found else ""


_ATOMS = frozenset({int, float, bool, str, bytes, type(None), type, types.BuiltinFunctionType, torch.dtype, torch.device})


def copy_module(model: nn.Module, memo: dict[int, Any] | None = None, *, apart: bool = False) -> nn.Module:
    """A deep copy; `memo` maps the ids of objects, such as tensors, to what takes their place.

    Plain modules are copied by hand, several times faster than by `copy.deepcopy`, which does the rest. Functions that the network keeps
    (hooks, lambdas) and that refer to its modules refer to the copies afterwards; `apart`: also to copies of the lists and dicts they use.

    Raises:
        UserError: the module holds something that cannot be copied.
    """
    try:
        return _Copier({} if memo is None else memo, {id(module) for module in model.modules()}, apart).module(model)
    except Exception as error:
        raise UserError(f"{type(model).__name__}: cannot be copied ({error}); drop what it keeps besides modules and parameters") from error


class _Copier:
    def __init__(self, memo: dict[int, Any], inside: set[int], apart: bool) -> None:
        self.memo, self.inside, self.apart = memo, inside, apart
        self.plain: dict[type, bool] = {}

    def module(self, module: nn.Module) -> nn.Module:
        memo = self.memo
        known: nn.Module | None = memo.get(id(module))
        if known is not None:
            return known
        kind = type(module)
        if kind not in self.plain:
            self.plain[kind] = _plain(kind)
        if not self.plain[kind]:
            return copy.deepcopy(module, memo)
        result = kind.__new__(kind)
        memo[id(module)] = result
        state = result.__dict__
        for name, value in module.__dict__.items():
            if type(value) in _ATOMS:
                state[name] = value
            elif name == "_compiled_call_impl":
                continue
            elif type(value) in (dict, OrderedDict, set, list) and not value:
                state[name] = type(value)()
            elif name == "_modules":
                state[name] = type(value)((key, None if child is None else self.module(child)) for key, child in value.items())
            elif name in ("_parameters", "_buffers"):
                state[name] = type(value)((key, memo.get(id(t)) if id(t) in memo else copy.deepcopy(t, memo)) for key, t in value.items())
            elif type(value) is tuple and all(type(item) in _ATOMS for item in value):
                state[name] = value
            else:
                state[name] = self.value(value)
        return result

    def value(self, value: Any) -> Any:
        """What a module keeps besides modules and tensors."""
        if isinstance(value, types.FunctionType):
            return self.function(value)
        if isinstance(value, weakref.ref):
            target = value()
            return weakref.ref(self.module(target)) if isinstance(target, nn.Module) and id(target) in self.inside else value
        if type(value) in (dict, OrderedDict, list, tuple) and id(value) not in self.memo:
            items = value.values() if isinstance(value, dict) else value
            if any(isinstance(item, types.FunctionType | weakref.ref) for item in items):
                if isinstance(value, dict):
                    return type(value)((key, self.value(item)) for key, item in value.items())
                return type(value)(self.value(item) for item in value)
        if isinstance(value, nn.Module) and id(value) in self.inside:
            return self.module(value)
        return copy.deepcopy(value, self.memo)

    def function(self, function: types.FunctionType) -> types.FunctionType:
        """The same function over copies of what it refers to in the network."""
        known: types.FunctionType | None = self.memo.get(id(function))
        cells = function.__closure__ or ()
        if known is not None:
            return known
        defaults = tuple(map(self.closed_over, function.__defaults__ or ()))
        words = {key: self.closed_over(value) for key, value in (function.__kwdefaults__ or {}).items()}
        held = [cell.cell_contents if cell != types.CellType() else None for cell in cells]
        copies = [self.closed_over(item) for item in held]
        old_words = (function.__kwdefaults__ or {}).values()
        pairs = [*zip(copies, held, strict=True), *zip(defaults, function.__defaults__ or (), strict=True)]
        if all(new is old for new, old in [*pairs, *zip(words.values(), old_words, strict=True)]):
            return function
        closure = tuple(types.CellType(new) if new is not old else cell for new, old, cell in zip(copies, held, cells, strict=True))
        result = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults or None, closure)
        result.__kwdefaults__ = words or None
        result.__dict__.update(function.__dict__)
        self.memo[id(function)] = result
        return result

    def closed_over(self, item: Any) -> Any:
        """A thing that a function refers to: copied if it is the network's."""
        if isinstance(item, nn.Module):
            return self.module(item) if id(item) in self.inside else item
        if isinstance(item, Tensor):
            return self.memo.get(id(item), item)
        if isinstance(item, types.FunctionType):
            return self.function(item)
        if isinstance(item, types.MethodType) and isinstance(item.__self__, nn.Module) and id(item.__self__) in self.inside:
            return types.MethodType(item.__func__, self.module(item.__self__))
        if self.apart and type(item) in (dict, OrderedDict, list, set):
            return copy.deepcopy(item, self.memo)
        return item


def _plain(kind: type[nn.Module]) -> bool:
    """Whether a class is copied by copying what its instances hold."""
    own = any(hasattr(kind, name) for name in ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__"))
    reduces = kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__
    getstate = getattr(kind, "__getstate__", None) is not getattr(nn.Module, "__getstate__", None)
    slots = any(getattr(base, "__slots__", ()) for base in kind.__mro__)
    # Those of torch's own layers only fill in what checkpoints of old versions lack.
    setstate = kind.__setstate__ is not nn.Module.__setstate__ and not kind.__setstate__.__module__.startswith("torch.nn.modules.")
    return not (own or reduces or getstate or slots or setstate)


@contextmanager
def evaluating(model: nn.Module, *, restore_buffers: bool = True) -> Iterator[None]:
    """Eval mode inside; afterwards every module's own mode and attributes, and every buffer's values."""
    states = [(module, module.__dict__.copy()) for module in model.modules()]
    held = [
        (holder, dict(holder))
        for module, _ in states
        for holder in (module._parameters, module._buffers, module._modules)
        if type(holder) in (dict, OrderedDict)
    ]
    every = (buffer for module, _ in states for buffer in module._buffers.values() if buffer is not None)
    buffers = [(buffer, buffer.detach().clone()) for buffer in every] if restore_buffers else []
    if any(type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval for module, _ in states):
        model.eval()  # somebody does more than set a flag
    else:
        for module, _ in states:
            module.training = False
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in buffers:
                if not torch.equal(buffer, values):  # written to by the forward pass itself
                    buffer.copy_(values)
        for module, state in states:
            _restore(module.__dict__, state)
        for holder, items in held:
            _restore(holder, items)


def _restore(now: dict[str, Any], then: dict[str, Any]) -> None:
    """Put a dict back as it was; objects are compared by identity."""
    if len(now) == len(then):
        for key, value in then.items():
            if now.get(key) is not value:
                break
        else:
            return
    now.clear()
    now.update(then)


_STANDARD = frozenset(nn.Module().__dict__)


_HOOKS = tuple(name for name, value in nn.Module().__dict__.items() if isinstance(value, dict) and "hooks" in name)


class Stage:
    """Copies of a network, in eval mode, for its code to play on: they share its tensors and nothing else.

    A network that keeps things besides modules, tensors and plain values (caches, lists, hooks) gets a new copy every time.

    Raises:
        UserError: the network holds something that cannot be copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._originals = dict(model.named_modules())
        kinds = {type(module) for module in self._originals.values()}
        self._overridden = any(kind.train is not nn.Module.train or kind.eval is not nn.Module.eval for kind in kinds)
        self._stateful = self._overridden or any(_keeps(module) for module in self._originals.values())
        self._copy: nn.Module | None = None
        self.modules: dict[str, nn.Module] = {}  # of the copy, by qualified name

    def get(self) -> nn.Module:
        """A copy as fresh as the original."""
        if self._copy is None or self._stateful:
            memo: dict[int, Any] = {}
            if not self._overridden:  # eval mode may change weights there, so the copy has its own
                memo = {id(tensor): tensor for _, tensor in named_tensors(self._originals)}
            self._copy = copy_module(self._model, memo, apart=True)
            self.modules = dict(self._copy.named_modules())
            if self._overridden:
                self._copy.eval()
            else:
                for module in self.modules.values():
                    module.__dict__["training"] = False
        return self._copy

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Attributes that the code sets are put back."""
        assert self._copy is not None
        own = () if self._stateful else (m for m in self.modules.values() if not type(m).__module__.startswith("torch.nn.modules."))
        states = [(module, module.__dict__.copy()) for module in own]  # torch's own layers set no attributes
        try:
            yield
        finally:
            for module, state in states:
                _restore(module.__dict__, state)


def _keeps(module: nn.Module) -> bool:
    """Whether a module holds something that its code may fill or change."""
    if type(module).__module__.startswith("torch.nn.modules."):  # they hold numbers
        return any(module.__dict__[name] for name in _HOOKS)
    for name, value in module.__dict__.items():
        kind = type(value)
        if (
            kind in _ATOMS
            or name in ("_modules", "_parameters", "_buffers")
            or (kind is tuple and all(type(item) in _ATOMS for item in value))
        ):
            continue
        if name not in _STANDARD or value:
            return True
    return False


def named_tensors(modules: Mapping[str, nn.Module]) -> list[tuple[str, Tensor]]:
    """Parameters and behind them buffers, each once, by the first name it has; one walk over the modules of a network."""
    found: dict[int, tuple[str, Tensor]] = {}
    for kind in ("_parameters", "_buffers"):
        for name, module in modules.items():
            for key, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in found:
                    found[id(tensor)] = (f"{name}.{key}" if name else key, tensor)
    return list(found.values())
