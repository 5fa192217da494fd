"""Proof on the user's own model: zeroing units gives the same outputs and gradients as removing them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from rlprune.errors import UserError
from rlprune.graph import rules
from rlprune.graph.calls import Whereabouts, operation_name
from rlprune.graph.channel_graph import ChannelGraph
from rlprune.graph.labels import tensors_in
from rlprune.graph.run import call_model, copy_inputs, copy_module, evaluating
from rlprune.graph.surgery import Slices, prune

TOLERANCE = 1e-7
"""Largest relative difference, in float64, that still counts as equal."""
OWN_PRECISION = {torch.float32: 1e-4}
"""The same for networks that only run in the precision they have; 0.05 for half precisions."""
_SHARES = (0.5, 1.0, 0.0)
"""Of the units that are kept: half of them, all but one, a single one."""
_FLOOR = 1e-6
"""Gradients smaller than this share of the largest are compared on its scale: some are zero but for rounding."""


@dataclass(frozen=True)
class Verdict:
    """What the check found for one group: largest relative differences, or why the pruned network could not run.

    `gradients` is nan where the network has none.
    """

    outputs: float
    gradients: float = 0.0
    error: str = ""
    tolerance: float = TOLERANCE
    reached: bool = True  # some gradient of the group is not zero, so that an error in it would show

    @property
    def difference(self) -> float:
        """The larger difference."""
        return max(self.outputs, 0.0 if np.isnan(self.gradients) else self.gradients)

    @property
    def exact(self) -> bool:
        """Zeroed and removed agree."""
        return not self.error and self.difference <= self.tolerance

    def __str__(self) -> str:
        if self.error:
            return self.error
        if self.exact:
            return f"exact: outputs differ by {self.outputs:.1e}, gradients by {self.gradients:.1e}"
        return f"removing differs from zeroing by {self.difference:.1e}"


@dataclass(frozen=True)
class Report:
    """Verdict by group, and on all groups pruned at once."""

    groups: Mapping[str, Verdict]
    together: Verdict

    @property
    def exact(self) -> bool:
        """Every group is exact, alone and with the others."""
        return self.together.exact and not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """Groups for which removing differs from zeroing."""
        return tuple(name for name, verdict in self.groups.items() if not verdict.exact)

    def __str__(self) -> str:
        lines = [f"{name}: {verdict}" for name, verdict in self.groups.items()]
        return "\n".join([*lines, f"all together: {self.together}" if self.groups else "no group to check"])


def verify(model: nn.Module, example_inputs: Any, graph: ChannelGraph | None = None, *, seed: int = 0) -> Report:
    """Check every group: units picked at random are zeroed and removed, outputs and gradients are compared in float64.

    The zeroing does not use the removal's index map: channels are zeroed where they are produced, and the network's own forward pass
    carries the zeros on; behind functions that turn zero into something else they are zeroed again. Half of the units of all groups go at
    once, then one of each, then all but one; gradients tell the groups apart. If that fails, every group is checked alone.

    Args:
        model: the network; it is left as it was.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        graph: its channel graph; None: traced now, without proof.
        seed: of the choice of units.

    Raises:
        UserError: the model cannot run on the example inputs.
    """
    if graph is None:
        from rlprune.graph.trace import trace  # which proves with this module where it has doubts

        graph = trace(model, example_inputs, prove=False)
    names = [group.name for group in graph.groups]
    if not names:
        return Report({}, Verdict(0.0))
    checker = _Checker(model, example_inputs, graph)
    generator = np.random.default_rng(seed)
    bar = tqdm(_SHARES, desc=f"verify {len(names)} groups at once", unit="pass", leave=False, disable=None)
    passes = [checker.check(names, generator, share) for share in bar]
    together = _worst(verdict for found in passes for verdict in found.values())
    if together.exact:
        alone = [name for name in names if not any(found[name].reached for found in passes)]
        verdicts = {name: _worst(found[name] for found in passes) for name in names}
    else:
        alone, verdicts = names, {}
    for name in tqdm(alone, desc="verify", unit="group", leave=False, disable=None if len(alone) > 10 else True):
        verdicts[name] = _worst(checker.check([name], generator, share)[name] for share in _SHARES)
    return Report({name: verdicts[name] for name in names}, together)


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    return max(verdicts, key=lambda verdict: (bool(verdict.error), verdict.difference))


def freeze_failures(model: nn.Module, graph: ChannelGraph, example_inputs: Any) -> ChannelGraph:
    """The graph without the groups that fail the check; they are frozen and say why.

    Raises:
        UserError: the groups that pass alone fail together.
    """
    if not graph.groups:
        return graph
    report = verify(model, example_inputs, graph)
    if report.exact:
        return graph
    reasons = {name: f"its channels cannot be removed exactly ({report.groups[name]})" for name in report.failed}
    graph = graph.freeze(reasons)
    if graph.groups:
        report = verify(model, example_inputs, graph)
        if not report.exact:
            raise UserError(
                f"{type(model).__name__}: the channel graph is not exact for this network: {report.together}; name layers in `ignore`"
            )
    return graph


class _Checker:
    def __init__(self, model: nn.Module, example_inputs: Any, graph: ChannelGraph) -> None:
        self.graph, self.tolerance = graph, TOLERANCE
        self.model = _copy(model, torch.float64)
        _stir(self.model)
        self.inputs = copy_inputs(example_inputs, torch.float64)
        try:
            with torch.no_grad():
                call_model(self.model, copy_inputs(self.inputs))
        except UserError:  # a type is written into the code
            self.model, self.inputs = _copy(model, None), copy_inputs(example_inputs)
            _stir(self.model)
            dtype = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.float32)
            self.tolerance = OWN_PRECISION.get(dtype, 0.05)

    def check(self, names: Sequence[str], generator: np.random.Generator, share: float) -> dict[str, Verdict]:
        """Keep this share of the units of each of these groups, at least one, picked at random."""
        keep = {}
        for group in self.graph.groups:
            if group.name in names and group.num_units > 1:
                kept = min(group.num_units - 1, max(1, round(share * group.num_units)))
                keep[group.name] = np.sort(generator.permutation(group.num_units)[:kept])
        try:
            removed, found = self._pass(prune(self.model, self.graph, keep), None)
            masked, wanted = self._pass(self.model, _Zeroing(self.model, self.graph, keep))
        except UserError as error:
            return dict.fromkeys(names, Verdict(float("inf"), float("inf"), str(error), self.tolerance))
        if [tensor.shape for tensor in removed] != [tensor.shape for tensor in masked]:
            return dict.fromkeys(names, Verdict(float("inf"), float("inf"), "the output changes its shape", self.tolerance))
        outputs = max((_difference(a, b) for a, b in zip(removed, masked, strict=True)), default=0.0)
        if found is None or wanted is None:
            return dict.fromkeys(names, Verdict(outputs, float("nan"), "", self.tolerance))
        return self._by_group(names, keep, outputs, found, wanted)

    def _by_group(
        self, names: Sequence[str], keep: Mapping[str, np.ndarray], outputs: float, found: dict[str, Tensor], wanted: dict[str, Tensor]
    ) -> dict[str, Verdict]:
        """The gradients of a group's tensors are its own evidence."""
        slices = Slices(self.graph, keep)
        largest = max((float(gradient.abs().max()) for gradient in wanted.values() if gradient.numel()), default=0.0)
        differences, sizes = {}, {}
        for name, gradient in wanted.items():
            kept = slices.cut(name, gradient)
            differences[name] = _difference(found[name], kept, _FLOOR * largest)
            sizes[name] = float(kept.abs().max()) if kept.numel() else 0.0
        verdicts = {}
        for group in self.graph.groups:
            if group.name in names:
                own = [member.tensor for member in group.members if member.tensor in differences]
                worst = max((differences[name] for name in own), default=0.0)
                reached = any(sizes[name] > 0 for name in own)
                verdicts[group.name] = Verdict(outputs, worst, "", self.tolerance, reached)
        return verdicts

    def _pass(self, model: nn.Module, mode: Any) -> tuple[list[Tensor], dict[str, Tensor] | None]:
        """Outputs, and gradients of a fixed mix of them by parameter name; None where there are none."""
        inputs = copy_inputs(self.inputs)
        parameters = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        with evaluating(model), torch.enable_grad(), _protecting_saved_tensors():
            try:
                outputs = list(tensors_in(call_model(model, inputs, mode)))
            except UserError:  # code that only runs without gradients
                with torch.no_grad():
                    outputs = list(tensors_in(call_model(model, copy_inputs(self.inputs), None if mode is None else mode.again())))
            plain = [output.detach() for output in outputs]
            mixed = [output for output in outputs if output.requires_grad]
            if not mixed or not parameters:
                return plain, None
            generator = torch.Generator().manual_seed(0)
            loss = mixed[0].new_zeros(())
            for output in mixed:
                loss = loss + (output * torch.randn(output.shape, generator=generator).to(output)).sum()
            try:
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            except (RuntimeError, NotImplementedError):  # an operation without a derivative
                return plain, None
        named = zip(parameters.items(), found, strict=True)
        return plain, {name: torch.zeros_like(tensor) if gradient is None else gradient for (name, tensor), gradient in named}


def _copy(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy in eval mode, in another precision if one is given, all parameters with gradients."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        other = tensor.detach().to(dtype) if dtype is not None and tensor.is_floating_point() else tensor.detach().clone()
        other = other.clone() if other.data_ptr() == tensor.data_ptr() else other
        memo[id(tensor)] = nn.Parameter(other, requires_grad=other.is_floating_point()) if isinstance(tensor, nn.Parameter) else other
    return copy_module(model, memo).eval()


@torch.no_grad()
def _stir(model: nn.Module) -> None:
    """Make parameters with one value everywhere, such as fresh biases and zero-initialised heads, able to show an error."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.parameters():
        if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator).to(tensor))


@contextmanager
def _protecting_saved_tensors() -> Iterator[None]:
    """Zeroing writes into activations: what autograd keeps of them must not change."""
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor if tensor.is_leaf else tensor.clone(), lambda tensor: tensor):
        yield


def _difference(first: Tensor, second: Tensor, floor: float = 0.0) -> float:
    if first.shape != second.shape:
        return float("inf")
    if not second.numel():
        return 0.0
    scale = max(float(second.double().abs().max()), floor, 1e-30)
    difference = float((first.double() - second.double()).abs().max()) / scale
    return difference if np.isfinite(difference) else float("inf")


class _Zeroing(TorchFunctionMode):
    """Repeats a traced forward pass with some units zeroed behind the calls that produce them."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, keep: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.model, self.graph, self.keep = model, graph, keep
        self.places = Whereabouts(model)
        self.points = {}
        for point in graph.zero_points:
            gone = np.flatnonzero(graph.removed_from(keep, point))
            if len(gone):
                self.points[point.key] = (point.axis, len(point.groups), torch.from_numpy(gone))
        self.operations: dict[Any, tuple[str, bool]] = {}

    def again(self) -> "_Zeroing":
        """The same for another pass."""
        return _Zeroing(self.model, self.graph, self.keep)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not args and "input" in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"),)
        result = func(*args, **kwargs)
        known = self.operations.get(func)
        if known is None:
            known = self.operations[func] = operation_name(func)
        name, in_place = known
        point = self.points.pop(self.places.key(name, args, kwargs), None) if name in rules.MAY_ZERO else None
        if point is None:
            return result
        axis, size, gone = point
        for tensor in [args[0]] if name in rules.WITHOUT_RESULT else tensors_in(result):
            if axis >= tensor.ndim or tensor.shape[axis] != size:
                raise UserError(f"the calls of {name} differ from one pass to the next")
            gone = gone.to(tensor.device)
            if isinstance(result, Tensor) and not in_place and not kwargs.get("inplace"):
                return result.index_fill(axis, gone, 0)
            tensor.index_fill_(axis, gone, 0)
        return result

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if exception[0] is None and self.points:
            name, where, _ = next(iter(self.points))
            raise UserError(f"the calls of {name} in {where or 'the network'} differ from one pass to the next")
