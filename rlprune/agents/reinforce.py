"""RLP: a learned decision for every filter (Yang and Xu, "From Rule-based to Learning-based Network Pruning").

Layer after layer, a policy reads the filters of the layer and says which stay. No criterion ranks anything.
"""

import difflib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from rlprune.agents.base import StepTask
from rlprune.errors import UserError
from rlprune.graph import ChannelGraph
from rlprune.graph.filters import unit_filters
from rlprune.rl.reinforce import Baseline, Learning, Reinforce, start_looks

Keep = dict[str, np.ndarray]


class RLP:
    """The agent of RLP. Every layer has a policy of its own, which is learned when its turn comes and is not needed behind it.

    Args:
        mode: `entire` prunes all channel groups, from low to high; `individual` prunes that of `layer` alone.
        layer: a layer, or a channel group, by name; for `mode=individual`.
        drop_bound: b, points of accuracy on the search split whose loss makes a reward zero. Where the run has a target it is bisected.
        reward_gains: whether accuracy above the dense network's raises a reward, as in the paper. Otherwise φ ≤ 1: what a search split of
            some thousand images gains by chance is then worth nothing.
        passes: searches through the network at most that the bisection may take.
        updates: of the policy of a layer.
        samples: K, decisions measured for an update.
        baseline: `leave_one_out`, the mean reward of an update's other samples; or `none`.
        policy: what is carried out: the `best` decision that was measured, or the `final` policy's own.
        hidden: widths of the policy's hidden layers.
        lr: its learning rate.
        initial_keep: probability at the start that a filter is kept; null: the one that is worth most where all filters have the same.

    Raises:
        ValueError: a setting is out of range.
    """

    by_layer = True
    chooses_units = True
    decides_size = True

    def __init__(
        self,
        *,
        mode: Literal["individual", "entire"],
        layer: str | None,
        drop_bound: float,
        reward_gains: bool,
        passes: int,
        updates: int,
        samples: int,
        baseline: Baseline,
        policy: Literal["best", "final"],
        hidden: list[int],
        lr: float,
        initial_keep: float | None,
    ) -> None:
        if not drop_bound > 0:
            raise ValueError(f"drop_bound={drop_bound}: must be > 0 points of accuracy; the paper's are 0.5, 1, 2 and 3")
        if mode == "individual" and layer is None:
            raise ValueError("layer=null: mode=individual prunes one layer; name it (rlprune inspect lists them), or take mode=entire")
        if mode == "entire" and layer is not None:
            raise ValueError(f"layer={layer}: goes with mode=individual; mode=entire prunes all of them")
        for name, count in (("passes", passes), ("updates", updates)):
            if count < 1:
                raise ValueError(f"{name}={count}: must be ≥ 1")
        self.learning = Learning(samples, baseline, hidden, lr, initial_keep)
        self.reward_gains = reward_gains
        self.layer, self.drop_bound, self.passes, self.updates, self.policy = layer, drop_bound, passes, updates, policy
        self.candidates_per_step = updates * samples + 2  # a layer, without what the start takes: also all of it, and the final policy
        self._keep_probability: dict[str, list[float]] = {}  # of the units that are left of decided groups

    def groups(self, graph: ChannelGraph) -> list[str]:
        """The channel groups that it prunes.

        Raises:
            UserError: there is no such layer, or its channels are kept.
        """
        names = [group.name for group in graph.groups]
        if self.layer is None:
            return names
        found = [group for group in graph.groups if self.layer in (group.name, *group.layers)]
        if found and all(group.num_units == 1 for group in found):
            raise UserError(f"agent.layer={self.layer}: has one unit, which stays; choose another layer")
        if found:  # several, where a layer's channels part ways
            return [group.name for group in found]
        frozen = next((frozen for frozen in graph.frozen if frozen.layer == self.layer), None)
        if frozen is not None:
            raise UserError(f"agent.layer={self.layer}: its channels are kept ({frozen.reason}); choose from {', '.join(names)}")
        known = list(dict.fromkeys([*names, *(layer for group in graph.groups for layer in group.layers)]))
        near = difflib.get_close_matches(self.layer, known, n=3, cutoff=0.3) or names[:3]
        raise UserError(f"agent.layer={self.layer}: there is no such layer; did you mean {', '.join(near)}? rlprune inspect lists all")

    def candidates_of_layer(self, units: int) -> int:
        """At most so many candidates are measured for a layer of so many units."""
        start = 0 if self.learning.initial_keep is not None else start_looks(units) * self.learning.samples
        return self.candidates_per_step + start

    def decide(self, task: StepTask, generator: np.random.Generator) -> Any:
        """Decide on the groups whose turn it is, one after another; where the step has a goal, cut down to it by the policies."""
        if task.bounded:
            return task.evaluate_ranking(self._ranking(task.graph), within=True)
        keep: Keep = {}
        for number, index in enumerate(task.turn, start=1):
            layer = _Layer(self, task, int(index), keep, number / len(task.turn))
            keep[layer.name], logits = layer.decide(Reinforce(self.learning, layer.filters, generator))
            self._keep_probability[layer.name] = (1 / (1 + np.exp(-logits[keep[layer.name]]))).tolist()
        return task.evaluate_keep(keep)

    def state_dict(self) -> dict[str, Any]:
        """Keep probabilities of the units that are left."""
        return {"keep_probability": self._keep_probability} if self._keep_probability else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; an empty one is that before the first layer."""
        self._keep_probability = {str(name): [float(p) for p in values] for name, values in state.get("keep_probability", {}).items()}

    def reward(self, drop: float, units: int, kept: int) -> float:
        """R = φ ψ, equations 1 to 3: ψ = N / C and φ = 1 − (a* − a) / b, which is negative beyond the bound.

        The paper prints a − a* in φ, which would reward a loss.

        Args:
            drop: a* − a, points of accuracy that are lost against the dense network.
            units: N, of the group.
            kept: C, of them.
        """
        phi = 1 - drop / self.drop_bound
        return (phi if self.reward_gains else min(phi, 1.0)) * units / kept

    def _ranking(self, graph: ChannelGraph) -> list[np.ndarray]:
        """Keep probabilities of all units, group after group; groups that were not decided on are kept longest."""
        return [np.array(self._keep_probability.get(group.name, [1.0] * group.num_units)) for group in graph.groups]


class _Layer:
    """The search for one group's decision.

    Args:
        agent: whose settings count.
        task: the pruning step.
        index: of the group.
        decided: units that stay of groups that had their turn in this step.
        share: of the step's candidates that may be measured by the end of this group, so that the groups behind it get theirs.
    """

    def __init__(self, agent: RLP, task: StepTask, index: int, decided: Keep, share: float) -> None:
        self.agent, self.task, self.decided, self.share = agent, task, dict(decided), share
        group = task.graph.groups[index]
        self.name, self.num_units, self.allowed = group.name, group.num_units, task.kept_counts(index)
        self.filters = unit_filters(task.network, group)
        self.best, self.stays = -np.inf, np.arange(group.num_units)  # the highest reward, and the units that it kept

    def decide(self, learner: Reinforce) -> tuple[np.ndarray, np.ndarray]:
        """Units that stay, and the policy's logits for all of them, shape (unit,)."""
        if not self.task.exhausted_at(self.share):
            self._measure(np.ones(self.num_units))  # all stay
        if self.agent.learning.initial_keep is None:
            learner.start(self._mean_reward)
        for update in range(1, self.agent.updates + 1):
            draws = learner.sample()
            rewards = self._measure_all(draws, update)
            if len(rewards) < len(draws):
                break
            learner.update(draws > 0, rewards)
        logits = learner.logits()
        if not self.task.exhausted_at(self.share):
            self._measure(logits)
        return (kept_units(logits, self.allowed) if self.agent.policy == "final" else self.stays), logits

    def _measure(self, draw: np.ndarray) -> tuple[float, float]:
        """Reward and accuracy of the decision that a draw leads to."""
        (result,) = self._measure_some([draw])
        return result

    def _measure_some(self, draws: Sequence[np.ndarray]) -> list[tuple[float, float]]:
        """Rewards and accuracies of the decisions that draws lead to, as many as may be measured, but the first."""
        stay = [kept_units(draw, self.allowed) for draw in draws]
        keeps = [{**self.decided, self.name: units} for units in stay]
        results = []
        for units, found in zip(stay, self.task.evaluate_keeps(keeps, among=self.name, share=self.share), strict=False):
            accuracy = found.accuracy
            reward = self.agent.reward(100 * (self.task.dense_accuracy - accuracy), self.num_units, len(units))
            if reward > self.best:
                self.best, self.stays = reward, units
            results.append((reward, accuracy))
        return results

    def _measure_all(self, draws: np.ndarray, update: int) -> list[float]:
        """Rewards of as many draws as may be measured."""
        measured = [] if self.task.exhausted_at(self.share) else self._measure_some(list(draws))
        if measured:
            reward, accuracy = np.mean(measured, axis=0).tolist()
            kept = float((draws > 0).sum(1).mean())
            self.task.report(
                episode=update,
                group=self.name,
                reward=reward,
                best=self.best,
                accuracy=accuracy,
                kept=kept,
                drop_bound=self.agent.drop_bound,
            )
        return [reward for reward, _ in measured]

    def _mean_reward(self, draws: np.ndarray) -> float | None:
        """None where not all may be measured."""
        rewards = self._measure_all(draws, 0)
        return float(np.mean(rewards)) if len(rewards) == len(draws) else None


def kept_units(draw: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Units whose draw is above 0, and the next highest until their number is one that is allowed; ascending.

    Args:
        draw: of each unit, shape (unit,).
        allowed: numbers of units that may be kept, the largest of which is all.
    """
    number = int(allowed[allowed >= (draw > 0).sum()].min())
    return np.sort(np.argsort(-draw, kind="stable")[:number])
