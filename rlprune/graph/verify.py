"""Proof on the user's own model: zeroing units gives the same output as removing them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rlprune.errors import UserError
from rlprune.graph.channel_graph import ChannelGraph
from rlprune.graph.labels import tensors_in
from rlprune.graph.run import call_model, copy_inputs, copy_module, evaluating
from rlprune.graph.surgery import prune

TOLERANCE = 1e-9
"""Largest relative difference, in float64, that still counts as equal."""
OWN_PRECISION = {torch.float32: 1e-4}
"""The same for networks that only run in the precision they have; 0.05 for half precisions."""


@dataclass(frozen=True)
class Verdict:
    """What the check found: largest difference relative to the output's scale, or why the pruned network could not run."""

    groups: tuple[str, ...]
    difference: float
    error: str = ""
    tolerance: float = TOLERANCE

    @property
    def exact(self) -> bool:
        """Zeroed and removed agree."""
        return not self.error and self.difference <= self.tolerance

    def __str__(self) -> str:
        if self.error:
            return self.error
        return f"removing differs from zeroing by {self.difference:.1e}"


def verify(model: nn.Module, example_inputs: Any, graph: ChannelGraph, *, seed: int = 0) -> dict[str, Verdict]:
    """Check every group: half of its units, and all but one, picked at random, zeroed against removed, in float64.

    The zeroing does not use the removal's index map: channels are zeroed where they are produced, and the network's own forward pass
    carries the zeros on; behind functions that turn zero into something else they are zeroed again.
    """
    checker = _Checker(model, example_inputs, graph)
    generator = np.random.default_rng(seed)
    return {group.name: checker.check([group.name], generator) for group in graph.groups}


def verify_together(model: nn.Module, example_inputs: Any, graph: ChannelGraph, *, seed: int = 0) -> Verdict:
    """The same check on all groups at once: four forward passes."""
    return _Checker(model, example_inputs, graph).check([group.name for group in graph.groups], np.random.default_rng(seed))


def freeze_failures(model: nn.Module, graph: ChannelGraph, example_inputs: Any) -> ChannelGraph:
    """The graph without the groups that fail the check; they are frozen and say why.

    Raises:
        UserError: the groups that pass alone fail together.
    """
    if not graph.groups or verify_together(model, example_inputs, graph).exact:
        return graph
    failed = {name: str(verdict) for name, verdict in verify(model, example_inputs, graph).items() if not verdict.exact}
    graph = graph.freeze({name: f"its channels cannot be removed exactly ({reason})" for name, reason in failed.items()})
    if graph.groups:
        verdict = verify_together(model, example_inputs, graph)
        if not verdict.exact:
            raise UserError(f"{type(model).__name__}: the channel graph is not exact for this network: {verdict}; name layers in `ignore`")
    return graph


class _Checker:
    def __init__(self, model: nn.Module, example_inputs: Any, graph: ChannelGraph) -> None:
        self.graph = graph
        with evaluating(model):
            self.model = copy_module(model).eval().double()
        self.inputs, self.tolerance = copy_inputs(example_inputs, torch.float64), TOLERANCE
        try:
            with torch.no_grad():
                call_model(self.model, copy_inputs(self.inputs))
        except UserError:  # a type is written into the code
            self.model, self.inputs = copy_module(model).eval(), copy_inputs(example_inputs)
            dtype = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.float32)
            self.tolerance = OWN_PRECISION.get(dtype, 0.05)

    def check(self, names: Sequence[str], generator: np.random.Generator) -> Verdict:
        """The worse of two plans: half of the units, and a single one, picked at random."""
        verdicts = [self._check(names, generator, share) for share in (0.5, 0.0)]
        return max(verdicts, key=lambda verdict: verdict.difference)

    @torch.no_grad()
    def _check(self, names: Sequence[str], generator: np.random.Generator, share: float) -> Verdict:
        keep, zeroed = {}, {}
        for group in self.graph.groups:
            if group.name in names and group.num_units > 1:
                order = generator.permutation(group.num_units)
                kept = max(1, round(share * group.num_units))
                keep[group.name], zeroed[group.name] = order[:kept], order[kept:]
        try:
            removed = list(tensors_in(call_model(prune(self.model, self.graph, keep), copy_inputs(self.inputs))))
            masked = list(tensors_in(call_model(self.model, copy_inputs(self.inputs), _Zeroing(self.graph, zeroed))))
        except UserError as error:
            return Verdict(tuple(names), float("inf"), str(error))
        if [tensor.shape for tensor in removed] != [tensor.shape for tensor in masked]:
            return Verdict(tuple(names), float("inf"), "the output changes its shape")
        difference = max((_difference(a, b) for a, b in zip(removed, masked, strict=True)), default=0.0)
        return Verdict(tuple(names), difference, tolerance=self.tolerance)


def _difference(first: Tensor, second: Tensor) -> float:
    scale = second.double().abs().max().clamp_min(1e-30) if second.numel() else torch.ones(())
    difference = (first.double() - second.double()).abs().max() / scale if second.numel() else torch.zeros(())
    return float(difference) if bool(torch.isfinite(difference)) else float("inf")


class _Zeroing(TorchFunctionMode):
    """Repeats a traced forward pass with some units zeroed behind the calls that produce them."""

    def __init__(self, graph: ChannelGraph, zeroed: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.points = {point.call: point for point in graph.zero_points}
        self.gone = [np.isin(np.arange(group.num_units), zeroed.get(group.name, [])) for group in graph.groups]
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        number = self.calls
        result = func(*args, **(kwargs or {}))
        point = self.points.get(number)
        if point is not None:
            gone = np.zeros(len(point.groups), dtype=bool)
            for index in np.unique(point.groups[point.groups >= 0]):
                mine = point.groups == index
                gone[mine] = self.gone[index][point.units[mine]]
            for tensor in tensors_in(result):
                tensor.index_fill_(point.axis, torch.from_numpy(np.flatnonzero(gone)).to(tensor.device), 0)
        return result
