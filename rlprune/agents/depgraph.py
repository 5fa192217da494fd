"""DepGraph (Fang et al. 2023): coupled layers and their group norms as the package torch-pruning finds them; no search."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from rlprune.agents.base import Stateless, StepTask
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph
from rlprune.graph.run import call, copy_module

INSTEAD = "take agent=global criterion=l1"
MOST_WALKS = 1000  # over one node's dependencies in one group; DenseNet-121 needs 4
Slot = tuple[str, int]
"""A weight's qualified name and one of its dimensions."""


class DepGraph(Stateless):
    """Removes what torch-pruning's group importance ranks lowest; one candidate a step.

    Channel k of a group's root layer scores the mean over all weights tied to it of Σ |w_k|^p: filters that make the channel, columns that
    read it, scales of batch norms. A unit scores the mean over its root channels. Goals, recovery and what may go at all are rlprune's.

    Args:
        p: degree of the norm.
        group_reduction: over the weights of a group: their `mean` or `sum`, or the `first`, which is the root layer's alone.
        normalizer: of a group's scores, in torch-pruning's words; None leaves them as they are.
        scope: `global`: one ranking of the whole network; `uniform`: every group loses the same share of its units.

    Raises:
        UserError: torch-pruning is missing.
        ValueError: a setting is out of range.
    """

    candidates_per_step = 1
    chooses_units = True

    def __init__(
        self,
        *,
        p: int,
        group_reduction: Literal["mean", "sum", "first"],
        normalizer: Literal["mean", "sum", "max", "standarization", "gaussian", "lamp"] | None,
        scope: Literal["global", "uniform"],
    ) -> None:
        if p < 1:
            raise ValueError(f"p={p}: must be ≥ 1")
        try:
            import torch_pruning
        except ModuleNotFoundError as error:
            raise UserError("agent=depgraph: needs the package torch-pruning; pip install 'rlprune[depgraph]'") from error
        self.make_graph = torch_pruning.DependencyGraph
        self.importance = torch_pruning.importance.GroupMagnitudeImportance(p=p, group_reduction=group_reduction, normalizer=normalizer)
        self.scope = scope

    def check(self, network: nn.Module, graph: ChannelGraph, example: Tensor) -> None:
        """Refuse a network that torch-pruning cannot do, before it is trained.

        Raises:
            UserError: as `scores` does.
        """
        self.scores(network, graph, example)

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """The candidate of the ranking."""
        scores = self.scores(task.network, task.graph, task.example)
        if self.scope == "uniform":
            return task.evaluate(task.channel_shares, scores)
        return task.evaluate_ranking(scores, within=True)

    def scores(self, network: nn.Module, graph: ChannelGraph, example: Tensor) -> list[np.ndarray]:
        """The importance of every unit, group after group, each of shape (unit,). `network` stays as it was.

        Raises:
            UserError: torch-pruning fails on the network, ties other channels than the network does, or gives a group no score.
        """
        roots = self._roots(network, graph, example)
        scores = []
        for group in graph.groups:
            slots = [(member.tensor, member.dim) for member in group.producers]
            channels = [roots[slot][m.units] for slot, m in zip(slots, group.producers, strict=True) if slot in roots]
            if not channels and group.num_units > 1:  # a last unit stays; torch-pruning takes a depthwise layer of one for a plain one
                raise UserError(
                    f"agent=depgraph: torch-pruning gives the channel group {group.name} no score; "
                    f"ignore=[{group.layers[0]}] leaves it whole, or {INSTEAD}"
                )
            scores.append(np.concatenate(channels, axis=1).mean(axis=1) if channels else np.zeros(group.num_units))
        return scores

    def _roots(self, network: nn.Module, graph: ChannelGraph, example: Tensor) -> dict[Slot, np.ndarray]:
        """The outputs of every root layer → their importance, shape (channel,)."""
        prunable = {member.layer for group in graph.groups for member in group.producers}
        kept = {frozen.layer for frozen in graph.frozen} - prunable
        roots, owners = {}, _owners(graph)
        model = copy_module(network, apart=True)
        try:
            with warnings.catch_warnings(), redirect_stdout(None), torch.enable_grad():
                warnings.simplefilter("ignore")
                model = model.cpu().requires_grad_(True)  # it follows autograd; on a GPU its sums have no fixed order
                names = {id(parameter): name for name, parameter in model.named_parameters()}
                dependencies = self.make_graph().build_dependency(model, example.cpu(), forward_fn=call, verbose=False)
                is_output = dependencies.is_out_channel_pruning_fn
                for tied in _groups(dependencies, [module for name, module in model.named_modules() if name in kept]):
                    slots = [_slot(item.dep.target.module, is_output(item.dep.handler), names) for item in tied]
                    if slots[0] is not None:
                        _compare(graph, owners, tied, slots)
                        roots[slots[0]] = self.importance(tied).double().nan_to_num(nan=0.0).numpy()  # 0/0 where all weights are 0
        except UserError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"agent=depgraph: torch-pruning fails on {type(network).__name__}{_where(model, error)} ({reason}); {INSTEAD}"
            ) from error
        return roots


class _Walked(list[Any]):
    """Dependencies of a node that end a walk which has no end: torch-pruning's has none where indices shift in a circle."""

    walks = 0

    def __iter__(self) -> Iterator[Any]:
        self.walks += 1
        if self.walks > MOST_WALKS:
            raise RecursionError(f"it comes by one layer more than {MOST_WALKS} times")
        return super().__iter__()


def _groups(dependencies: Any, ignored: list[nn.Module]) -> Iterator[Any]:
    """torch-pruning's groups, each with all indices of its root layer."""
    nodes = list(dependencies.module2node.values())
    for node in nodes:
        node.dependencies = _Walked(node.dependencies)
    for tied in dependencies.get_all_groups(ignored_layers=ignored):
        yield tied
        for node in nodes:
            node.dependencies.walks = 0


def _slot(layer: Any, outputs: bool, names: Mapping[int, str]) -> Slot | None:
    """The weight and its dimension that hold a layer's outputs or inputs one to one; None where there is none."""
    if not isinstance(layer, _ConvNd | nn.Linear | _BatchNorm) or id(layer.weight) not in names:
        return None
    name, groups, transposed = names[id(layer.weight)], getattr(layer, "groups", 1), getattr(layer, "transposed", False)
    if layer.weight.ndim == 1 or groups == getattr(layer, "out_channels", 0) > 1:  # depthwise
        return name, 0
    if groups > 1 and (transposed or not outputs):  # the dimension has the entries of one group
        return None
    return name, int(outputs == transposed)


def _where(model: nn.Module, error: BaseException) -> str:
    """The layer that torch-pruning was at when the error came up."""
    paths = {id(module): name for name, module in model.named_modules()}
    found, step = "", error.__traceback__
    while step is not None:
        local = step.tb_frame.f_locals
        found = next((paths[id(local[key])] for key in ("layer", "module") if id(local.get(key)) in paths), found)
        step = step.tb_next
    return f", at {found}" if found else ""


def _owners(graph: ChannelGraph) -> dict[Slot, np.ndarray]:
    """The unit that owns each index of a dimension, counted through all groups, -1 where none that can go; shape (size,)."""
    owners: dict[Slot, np.ndarray] = {}
    first = 0
    for group in graph.groups:
        for member in group.members if group.num_units > 1 else ():
            slot = (member.tensor, member.dim)
            owner = owners.setdefault(slot, np.full(graph.size(*slot), -1))
            owner[member.units] = first + np.arange(group.num_units)[:, None]
        first += group.num_units
    return owners


def _compare(graph: ChannelGraph, owners: Mapping[Slot, np.ndarray], tied: Any, slots: Sequence[Slot | None]) -> None:
    """Refuse scores of channels that have nothing to do with each other.

    torch-pruning takes what it does not know for an operation channel by channel; the graph here was proven on the network.

    Raises:
        UserError: an index and the root's that torch-pruning ties it to belong to different units.
    """

    def owned(slot: Slot, indices: Sequence[int]) -> np.ndarray:
        owner = owners.get(slot, np.full(graph.size(*slot), -1))
        return np.array([owner[index] if index < len(owner) else -2 for index in indices])  # -2: there is no such channel

    for item, slot in zip(tied, slots, strict=True):
        if slot is None or slots[0] is None:
            continue
        mine, root = owned(slot, item.idxs), owned(slots[0], item.root_idxs)
        wrong = np.unique([mine[mine != root], root[mine != root]])
        if (wrong >= 0).any():
            names = np.repeat([group.layers[0] for group in graph.groups], graph.num_units)[wrong[wrong >= 0]]
            layers = [name.rpartition(".")[0] for name, _ in (slot, slots[0])]
            raise UserError(
                f"agent=depgraph: torch-pruning ties channels of {layers[0]} to others of {layers[1]} than the network does; "
                f"ignore=[{','.join(dict.fromkeys(names))}] leaves them whole, or {INSTEAD}"
            )
