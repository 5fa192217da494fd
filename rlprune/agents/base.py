"""What an agent is, and what it may ask of its task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor, nn

from rlprune.graph import ChannelGraph
from rlprune.rl.episode import Episode

Normalization = Literal["mean", "l2", "max", "none"]
"""What a group's scores are divided by to be comparable with those of others: their mean, l2 norm (Molchanov et al. 2017), maximum, 1."""


FEATURES = {
    "layer": "place of the group in network order, the last is 1",
    "out_channels": "output channels (FPRL, AMC: n), as a share of the largest layer's, like all that follow but the last four",
    "in_channels": "input channels (AMC: c)",
    "height": "height of the input feature map, taken to be square (AMC: h)",
    "width": "its width, the same (AMC: w)",
    "stride": "stride",
    "kernel_size": "kernel size (FPRL, AMC: k)",
    "macs": "MACs of the producing layers (AMC: FLOPs[t])",
    "macs_left": "share of the MACs of all groups that belongs to those behind (AMC: rest)",
    "flops_ratio": "share of the dense network's MACs that is gone (FPRL: f; AMC: reduced)",
    "accuracy": "on the search split (FPRL: acc)",
    "previous_action": "share of its units that the group before lost, 0 at the first (AMC: a of t − 1)",
}
"""What an observation of one channel group may say; a group of several producing layers is described by the largest of them."""


@dataclass(frozen=True)
class LayerState:
    """Where an episode is: accuracy on the search split, and the share of the dense network's MACs that is gone; fractions."""

    accuracy: float
    flops_ratio: float


LayerReward = Callable[[LayerState, LayerState], float]
"""(before, after one action) → its reward."""


@dataclass(frozen=True)
class Finetuning:
    """Training behind every action of an episode, on the labels, at a constant rate.

    `epochs` over so many `batches` of the training split; None takes all of it, 0 none.
    """

    epochs: int
    batches: int | None
    lr: float


class LayerEnv(Protocol):
    """A pruning step as episodes: `rlprune.search.layers.LayerEnv` documents every member."""

    @property
    def num_features(self) -> int: ...  # noqa: D102

    @property
    def num_steps(self) -> int: ...  # noqa: D102

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]: ...  # noqa: D102

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]: ...  # noqa: D102


class Outcome(Protocol):
    """A measured candidate."""

    @property
    def action(self) -> np.ndarray:
        """The distribution over groups that led to it, shape (group,)."""
        ...

    @property
    def reward(self) -> float:
        """Its reward."""
        ...

    @property
    def accuracy(self) -> float:
        """Its accuracy on the search split, a fraction."""
        ...


class StepTask(Protocol):
    """One pruning step: `rlprune.search.task.Task` documents every member."""

    step: int

    @property
    def steps(self) -> int: ...  # noqa: D102

    @property
    def exhausted(self) -> bool: ...  # noqa: D102

    def exhausted_at(self, share: float) -> bool: ...  # noqa: D102

    @property
    def accuracy(self) -> float: ...  # noqa: D102

    @property
    def network(self) -> nn.Module: ...  # noqa: D102

    @property
    def graph(self) -> ChannelGraph: ...  # noqa: D102

    @property
    def example(self) -> Tensor: ...  # noqa: D102

    @property
    def channel_shares(self) -> np.ndarray: ...  # noqa: D102

    @property
    def scores(self) -> list[np.ndarray]: ...  # noqa: D102

    @property
    def bounded(self) -> bool: ...  # noqa: D102

    @property
    def turn(self) -> np.ndarray: ...  # noqa: D102

    @property
    def dense_accuracy(self) -> float: ...  # noqa: D102

    def kept_counts(self, index: int) -> np.ndarray: ...  # noqa: D102

    def evaluate(self, action: np.ndarray, scores: Sequence[np.ndarray] | None = None) -> Outcome: ...  # noqa: D102

    def evaluate_many(self, actions: Sequence[np.ndarray]) -> Sequence[Outcome]: ...  # noqa: D102

    def evaluate_counts(self, counts: np.ndarray) -> Outcome: ...  # noqa: D102

    def evaluate_keep(self, keep: Mapping[str, np.ndarray], *, among: str | None = None) -> Outcome: ...  # noqa: D102

    def evaluate_keeps(  # noqa: D102
        self, keeps: Sequence[Mapping[str, np.ndarray]], *, among: str, share: float = 1.0
    ) -> Sequence[Outcome]: ...

    def evaluate_ranking(self, scores: Sequence[np.ndarray], *, within: bool = False) -> Outcome: ...  # noqa: D102

    def layers(  # noqa: D102
        self, *, features: Sequence[str], pr_max: float, reward: LayerReward | None = None, finetuning: Finetuning | None = None
    ) -> LayerEnv: ...

    def report(self, **values: float | str | None) -> None: ...  # noqa: D102

    def after(self, candidate: Any) -> "StepTask | None": ...  # noqa: D102


class Agent(Protocol):
    """Decides what a pruning step removes. Its numbers are set in its yaml; it draws from the generator it is given and from no other.

    It may also have `measures_layers = True` (`candidates_per_step` counts episodes, each of which measures a candidate for every group),
    `pr_max` (share of its units that a group may lose at most), `steps` (of the search, where the schedule leaves them open), `finetuning`
    (that it asks of every candidate, for the time announced), `decides_size = True` (it can do without any target),
    `chooses_units = True` (it says which units go, no criterion is asked),
    `groups(graph)` (names of the channel groups that it prunes; the others stay whole), `by_layer = True` (it goes from layer to layer, a
    step each, and measures `candidates_of_layer(units)` at most for one; where the run has a target its `drop_bound` is bisected, in
    `passes` at most: `rlprune.search.bisection`), and
    `check(network, graph, example)`, which raises a UserError for a network that it cannot prune, before that is trained. One that decides
    while the network is trained (`schedule.joint`) has `warmup_epochs`, which a training must at least have, and `beta`, the weight of the
    regulariser that aligns the weights with what it has decided last.
    """

    candidates_per_step: int
    """At most so many candidates are measured in a step; printed before a search."""

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """Measure candidates with `task.evaluate` and return the one to carry out."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the agent carries from step to step: JSON values and tensors, in dicts and lists."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        ...


class Stateless:
    """An agent that carries nothing from one pruning step to the next."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore.

        Raises:
            ValueError: the state is of another agent.
        """
        if state:
            agent = type(self).__module__.rpartition(".")[2]
            raise ValueError(f"{agent} keeps no state, got {sorted(state)}")


def noisy(distribution: np.ndarray, noise_std: float, generator: np.random.Generator) -> np.ndarray:
    """An action near a distribution over groups (RL-Pruner, equations 11 and 12).

    a = PD + ε, ε_i = noise_std · u · N(0, 1), u ~ U(0, 1) once a draw; clamped at 0 and renormalised. Shapes (group,).
    """
    noise = noise_std * generator.random() * generator.standard_normal(len(distribution))
    action = np.maximum(distribution + noise, 0)
    return action / action.sum() if action.sum() > 0 else distribution.copy()


def comparable(scores: Sequence[np.ndarray], normalization: Normalization) -> list[np.ndarray]:
    """Scores of each group's units, shape (unit,), divided by what makes them comparable over groups; zeros stay zeros."""
    scales = []
    for sizes in map(np.abs, scores):
        scales.append({"mean": sizes.mean(), "l2": np.linalg.norm(sizes), "max": sizes.max(), "none": 1.0}[normalization])
    return [values / (scale or 1.0) for values, scale in zip(scores, scales, strict=True)]


def best_episode(
    task: StepTask,
    episodes: int,
    play_one: Callable[[int], tuple[Episode, dict[str, Any]]],
    known: np.ndarray | None = None,
) -> np.ndarray:
    """Play episodes, report each, and return the units that the one with the highest reward took, shape (group,); the first among equals.

    It ends early where the search may measure no more. What was cut short does not count, unless it is all there is.

    Args:
        task: that the episodes belong to.
        episodes: at most.
        play_one: number of an episode, from 0 → the episode, and what else is reported of it.
        known: units that an earlier search took, shape (group,): measured first, and beaten or returned.
    """
    best, counts = -np.inf, np.zeros(len(task.graph.groups), dtype=int)
    if known is not None:
        best, counts = task.evaluate_counts(known).reward, known
        if task.exhausted:
            return counts
    for number in range(episodes):
        episode, further = play_one(number)
        if not episode.complete:
            return episode.info["counts"] if best == -np.inf else counts
        if episode.reward > best:
            best, counts = episode.reward, episode.info["counts"]
        state = {name: float(episode.info[name]) for name in ("accuracy", "flops_ratio")}
        task.report(episode=number + 1, reward=episode.reward, best=best, **state, **further)
        if task.exhausted:
            break
    return counts
