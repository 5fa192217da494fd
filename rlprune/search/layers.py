"""One pruning step as episodes: an action a channel group, in network order, in the shape of a Gymnasium environment."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from rlprune.agents.base import FEATURES, Finetuning, LayerReward, LayerState
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph, graft, prune
from rlprune.search.allocate import give_back

if TYPE_CHECKING:
    from rlprune.search.task import Task


class LayerEnv:
    """Prunes one channel group after another; every episode starts from the network that the pruning step started from.

    An action is the share of its units that a group loses, shape (1,), in [0, `pr_max`]; it is rounded to what the group may lose, and the
    action wall raises it where the groups that follow could not meet the step's goal any more, even if each lost all it may. After the last
    group units come back as long as the goal is still met, the heaviest that can first, so that it is met within one unit. Where the step
    asks for nothing there is no wall.

    An observation names the group that is next and what has been done, shape (feature,), float32 in [0, 1]; `rlprune.agents.base.FEATURES`
    describes them. Reward: that of a layer, or, where none is given, zero until the last action and then the run's reward. Networks are
    measured behind every action where the reward or the observation needs it, otherwise behind the last; equal ones once.

    `info` names the `group` of the action, the share of its units that it took (`rate`), the share of the dense network's MACs that is gone
    (`flops_ratio`), the units that go from every group by now (`counts`, shape (group,)), and where it was measured the `accuracy`. Behind
    the last action `flops_ratio` and `counts` know what came back; `rate` does not.

    When the search may measure no more, an episode is cut short (`truncated`). Where none has come to an end yet, or reset was told
    `options={"complete": True}`, this waits for the last action: the groups before are decided without looking, and nothing is trained.

    Args:
        task: the pruning step.
        features: what an observation says, in this order.
        pr_max: largest action, in (0, 1).
        reward: of a layer: states before and after → number. None: the run's reward, at the end.
        finetuning: after every action; then the criterion ranks the units of each group on the network as it has become by then.

    Raises:
        UserError: an unknown feature.
    """

    def __init__(
        self, task: "Task", *, features: Sequence[str], pr_max: float, reward: LayerReward | None, finetuning: Finetuning | None
    ) -> None:
        unknown = [name for name in features if name not in FEATURES]
        if unknown:
            raise UserError(f"features: {unknown[0]} is unknown; choose from {', '.join(FEATURES)}")
        self.task, self.features, self.pr_max, self.reward = task, tuple(features), pr_max, reward
        self._by_layer = reward is not None or "accuracy" in features
        self._facts = layer_facts(task.network, task.graph)
        self._walk = Walk(task, finetuning) if finetuning is not None and finetuning.batches != 0 else None
        self._ended = False  # an episode has come to its end
        self._complete, self._next, self._previous = False, self.num_steps, 0.0  # until reset is called, no episode goes on
        self._path: list[int] = []  # units that the actions took
        self._taken = np.zeros(self.num_steps, dtype=int)  # chunks of each group
        self._state = LayerState(0.0, 0.0)

    @property
    def num_features(self) -> int:
        """Of an observation."""
        return len(self.features)

    @property
    def num_steps(self) -> int:
        """Actions of an episode."""
        return len(self.task.graph.groups)

    @property
    def counts(self) -> np.ndarray:
        """Units that go from each group by now, shape (group,)."""
        return self.task.room.units(self._taken)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Back to the network that the step started from. Nothing here is random, so a seed changes nothing."""
        self._begin(complete=bool((options or {}).get("complete", not self._ended)))
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Prune the next group: observation, reward, terminated, truncated, info.

        Raises:
            ValueError: the episode is over, or the action is not one finite number.
        """
        if self._next == self.num_steps:
            raise ValueError("the episode is over: call reset")
        rates = np.asarray(action, dtype=float).ravel()
        if len(rates) != 1 or not np.isfinite(rates).all():
            raise ValueError(f"action {action}: must be one number in [0, {self.pr_max}]")
        group = self._next
        self._taken[group] = self._chunks(group, rates[0])
        self._path.append(int(self.counts[group]))
        self._previous = self._path[-1] / int(self.task.graph.num_units[group])
        self._next += 1
        terminated = self._next == self.num_steps
        if terminated and not self.task.goal.free:
            self._taken = give_back(self._taken, self.task.room, self.task.goal)
        before, measures = self._state, terminated or self._by_layer
        blind = measures and self.task.exhausted
        if blind and (terminated or not self._complete):
            observation, self._next = self._observe(), self.num_steps
            return observation, 0.0, False, True, self._info(group)
        measures &= not blind
        accuracy = self._measure() if measures else before.accuracy
        self._state = self._state_with(accuracy)
        if self.reward is not None:
            reward = self.reward(before, self._state)
        else:
            reward = self.task.worth(accuracy, self.counts) if terminated else 0.0
        self._ended |= terminated
        return self._observe(), float(reward), terminated, False, self._info(group) | ({"accuracy": accuracy} if measures else {})

    def _begin(self, *, complete: bool) -> None:
        self._complete, self._next, self._previous, self._path = complete, 0, 0.0, []
        self._taken = np.zeros(self.num_steps, dtype=int)
        self._state = self._state_with(self.task.accuracy if self._by_layer else 0.0)

    def _state_with(self, accuracy: float) -> LayerState:
        return LayerState(accuracy, self._flops_ratio())

    def _flops_ratio(self) -> float:
        return 1 - self.task.graph.cost.macs(self.counts) / self.task.environment.dense.macs

    def _chunks(self, group: int, rate: float) -> int:
        """The number of chunks nearest to an action that the wall lets through."""
        units = self.task.graph.num_units[group] * min(max(rate, 0.0), self.pr_max)
        wished = int(np.argmin(np.abs(self.task.room.series(group) - units)))
        chunks = max(wished, self._wall(group))
        while chunks < self.task.room.num_chunks[group] and not self._within_reach(group, chunks):
            chunks += 1  # a width that kernels do not like may be slower than a larger one
        return chunks

    def _wall(self, group: int) -> int:
        """The fewest chunks of a group that leave the goal within reach of those behind it."""
        low, high = 0, int(self.task.room.num_chunks[group])
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._within_reach(group, middle) else (middle + 1, high)
        return low

    def _within_reach(self, group: int, chunks: int) -> bool:
        """Whether the goal is met where a group loses so many chunks and those behind it all that they may."""
        taken = self._taken.copy()
        taken[group], taken[group + 1 :] = chunks, self.task.room.num_chunks[group + 1 :]
        return bool(self.task.goal.excess(self.task.graph, self.task.room.units(taken)) <= 0)

    def _measure(self) -> float:
        """Accuracy of the network as it is now."""
        counts = self.counts
        if self._walk is not None:
            return self._walk.accuracy(tuple(self._path), counts)
        return self.task.evaluate_counts(counts).accuracy if counts.any() else self.task.accuracy

    def _info(self, group: int) -> dict[str, Any]:
        name = self.task.graph.groups[group].name
        return {"group": name, "rate": self._previous, "flops_ratio": self._flops_ratio(), "counts": self.counts}

    def _observe(self) -> np.ndarray:
        group = min(self._next, self.num_steps - 1)  # behind the last action it is the last group once more
        now = {"accuracy": self._state.accuracy, "flops_ratio": self._state.flops_ratio, "previous_action": self._previous}
        values = [now[name] if name in now else self._facts[name][group] for name in self.features]
        return np.clip(np.array(values, dtype=np.float32), 0.0, 1.0)


class Walk:
    """The networks of an episode whose every action is followed by fine-tuning. What comes of a path is the same in every episode.

    Args:
        task: the pruning step.
        finetuning: behind every action.
    """

    def __init__(self, task: "Task", finetuning: Finetuning) -> None:
        self.task, self.finetuning = task, finetuning
        self._known: dict[tuple[tuple[int, ...], ...], float] = {}
        self._restart()

    def accuracy(self, path: tuple[int, ...], counts: np.ndarray) -> float:
        """Of the network behind these actions.

        Args:
            path: units that each action took from its group, (action,).
            counts: units that are gone, shape (group,); fewer than the path says where some came back.
        """
        key = (path, tuple(counts.tolist()))
        if key in self._known:
            self.task.environment.ledger.repeated += 1
        else:
            self._known[key] = self.task.environment.ledger.accuracy(list(map(np.array, key)), partial(self._measure, path, counts))
        return self._known[key]

    def _restart(self) -> None:
        self._network, self._graph = self.task.network, self.task.graph
        self._path: tuple[int, ...] = ()
        self._kept = {group.name: np.arange(group.num_units) for group in self._graph.groups}
        self._gone = {group.name: np.arange(0) for group in self._graph.groups}  # in the order in which they went

    def _measure(self, path: tuple[int, ...], counts: np.ndarray) -> float:
        if self._path != path[: len(self._path)]:
            self._restart()
        while len(self._path) < len(path):
            self._advance(path[len(self._path)])
        environment = self.task.environment
        return environment.measure(environment.prepare(self._with_units_back(counts)))

    def _advance(self, count: int) -> None:
        """Take units from the next group, and fine-tune (FPRL, Algorithm 1, lines 10 to 12)."""
        environment, group = self.task.environment, len(self._path)
        name = self._graph.groups[group].name
        scores = environment.score(self._network, self._graph)[name].numpy() if self._path else self.task.scores[group]
        order = np.argsort(scores, kind="stable")
        keep = {name: np.sort(order[count:])}
        self._gone[name], self._kept[name] = self._kept[name][order[:count]], self._kept[name][keep[name]]
        self._network, self._graph = prune(self._network, self._graph, keep), self._graph.after(keep)
        environment.refresh(self._network)
        environment.finetune(self._network, self.finetuning, f"fine-tune layer {group}")
        self._path = (*self._path, count)

    def _with_units_back(self, counts: np.ndarray) -> nn.Module:
        """The network with the last of the units that went, as they were before the episode; itself where none comes back."""
        keep, places = {}, {}
        for (name, kept), count in zip(self._kept.items(), counts.tolist(), strict=True):
            keep[name] = np.sort(np.concatenate([kept, self._gone[name][count:]]))
            places[name] = np.searchsorted(keep[name], kept)
        if all(len(places[name]) == len(keep[name]) for name in keep):
            return self._network
        network = prune(self.task.network, self.task.graph, keep)
        graft(self._network, network, self.task.graph.after(keep), places)
        self.task.environment.refresh(network)
        return network


def layer_facts(network: nn.Module, graph: ChannelGraph) -> dict[str, np.ndarray]:
    """What does not change in an episode: feature → value of every group, shape (group,), as a share of the largest group's.

    A group of several producing layers is described by the largest of them, and by the sum of their MACs. Feature maps are taken to be
    square.
    """
    modules, rows = dict(network.named_modules()), {name: row for row, name in enumerate(graph.cost.names)}
    macs = graph.cost.numels(np.zeros(len(graph.groups))) * graph.cost.uses
    table = []
    for group in graph.groups:
        found = []
        for member in group.producers:
            row = rows[member.tensor]
            shape = [int(size[row]) for size in graph.cost.sizes]
            found.append(_layer(modules.get(member.layer), shape, member.dim, max(graph.cost.uses[row], 1.0)))
        table.append([*np.max(found, axis=0), sum(macs[row] for row in {rows[member.tensor] for member in group.producers})])
    names = ("out_channels", "in_channels", "height", "width", "stride", "kernel_size", "macs")
    columns = dict(zip(names, np.array(table).T, strict=True))
    facts = {name: column / (column.max() or 1.0) for name, column in columns.items()}
    behind = np.append(np.cumsum(columns["macs"][::-1])[::-1], 0.0)
    number = len(graph.groups)
    return facts | {"layer": np.arange(1, number + 1) / number, "macs_left": behind[1:] / (behind[0] or 1.0)}


def _layer(module: nn.Module | None, shape: list[int], dim: int, uses: float) -> tuple[float, ...]:
    """Output channels, input channels, height and width of the input, stride and kernel size of a layer.

    Args:
        module: that owns the weight, if one does.
        shape: of the weight.
        dim: of the weight's output channels; of a transposed convolution it is the second, whatever goes with its groups.
        uses: multiplications of each of its elements for one example: places of its output, of a transposed convolution's input.
    """
    transposed, splits = isinstance(module, nn.modules.conv._ConvTransposeNd), int(getattr(module, "groups", 1))
    outputs = shape[1] * splits if transposed else shape[dim]
    inputs = shape[0] if transposed else shape[1 - dim] * (splits if dim == 0 else 1)
    stride = max(np.atleast_1d(getattr(module, "stride", 1)).tolist())
    side = math.sqrt(uses) * (1 if transposed else stride)
    return outputs, inputs, side, side, stride, 1 if isinstance(module, nn.Bilinear) else max(shape[2:], default=1)
