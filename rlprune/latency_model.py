"""Predicted latency of any plan: look-up tables over channel counts, one for every kind of call, and their sum."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

AXES = 2  # of a table: widths that a call's time depends on; a call with more has one table over all of them together
LUMP = 16  # kernels work in multiples of so many channels, if of any
ALIGNED = -1.0  # in place of the second width: the second axis says whether LUMP divides the first, 0 or 1


@dataclass(frozen=True)
class Check:
    """A whole network, predicted and on the clock; seconds. `kept` is the share of the dense network's channels that it keeps."""

    name: str
    kept: float
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class LatencyModel:
    """Seconds of one forward pass after any plan.

    Terms are the calls of the network whose tensors shrink with it; equal ones are counted, not repeated. The time of term t is looked up
    in table `table[t]` at two widths, of which unit losses take `taken[t]`, and interpolated. Calls of one width have two columns, for
    widths that 16 divides and for others, as some kernels take twice as long there. What no plan changes takes `fixed` seconds.
    The prediction is `overhead + Σ over kinds of factor · (fixed + Σ times · looked up)`, where kind 0 are calls without weights and kind 1
    those with; overhead and factors come from whole networks.
    """

    groups: tuple[str, ...]
    units: np.ndarray  # of the dense network, (group,)
    table: np.ndarray  # (term,)
    widths: np.ndarray  # of the dense network, (axis, term)
    taken: np.ndarray  # width that a unit takes, (axis, term, group)
    times: np.ndarray  # calls that a term stands for, by kind: zero but for its own, (kind, term)
    nodes: np.ndarray  # ascending widths, infinite behind the last, (axis, table, node)
    values: np.ndarray  # seconds, (table, node, node)
    fixed: np.ndarray  # (kind,)
    overhead: float
    factors: np.ndarray  # (kind,)
    batch_size: int
    checks: tuple[Check, ...] = ()

    def seconds(self, left: np.ndarray) -> np.ndarray:
        """Predicted seconds where so many units of each group are left; shape (..., group) → (...)."""
        plans = np.asarray(left).reshape(-1, len(self.units))
        total = self.overhead + self.by_kind(plans) @ self.factors
        return np.asarray(total.reshape(np.shape(left)[:-1]))

    def by_kind(self, left: np.ndarray) -> np.ndarray:
        """Seconds of all calls of a kind by their tables, (plan, group) → (plan, kind)."""
        found: np.ndarray = self.fixed + self.lookups(left) @ self.times.T
        return found

    @cached_property
    def dense(self) -> float:
        """Predicted seconds of the dense network."""
        return float(self.seconds(self.units))

    @property
    def error(self) -> float:
        """Mean relative error over the whole networks that it was checked on."""
        return float(np.mean([abs(check.error) for check in self.checks])) if self.checks else float("nan")

    def lookups(self, left: np.ndarray) -> np.ndarray:
        """Seconds of every term by its table, (plan, group) → (plan, term)."""
        gone = self.units - left
        widths = [self.widths[axis] - gone @ self.taken[axis].T for axis in range(AXES)]
        widths[1] = np.where(self.widths[1] == ALIGNED, widths[0] % LUMP == 0, widths[1])
        low, weight = zip(*(self._place(axis, widths[axis]) for axis in range(AXES)), strict=True)
        found = np.zeros(low[0].shape)
        for first in (0, 1):
            for second in (0, 1):
                share = (weight[0] if first else 1 - weight[0]) * (weight[1] if second else 1 - weight[1])
                found += share * self.values[self.table, low[0] + first, low[1] + second]
        return found

    def _place(self, axis: int, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The node below each width, and how far it is to the next, in [0, 1]; all (plan, term)."""
        nodes = self.nodes[axis, self.table]  # (term, node)
        low = np.clip((nodes[None] <= widths[..., None]).sum(axis=-1) - 1, 0, np.isfinite(nodes).sum(axis=-1) - 2)
        terms = np.arange(len(self.table))
        below, above = nodes[terms, low], nodes[terms, low + 1]
        return low, np.clip((widths - below) / (above - below), 0.0, 1.0)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        plain |= {name: value.tolist() for name, value in plain.items() if isinstance(value, np.ndarray)}
        plain["nodes"] = [[[node for node in row if np.isfinite(node)] for row in axis] for axis in self.nodes.tolist()]
        return plain | {"groups": list(self.groups), "checks": [vars(check) for check in self.checks]}

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> "LatencyModel":
        """The reverse.

        Raises:
            KeyError, TypeError, ValueError: it is damaged.
        """
        entries = {entry.name: plain[entry.name] for entry in fields(LatencyModel)}
        whole = ("units", "table", "taken", "times", "widths", "values", "fixed", "factors")
        try:
            entries |= {name: np.array(entries[name]) for name in whole} | {"nodes": padded(entries["nodes"], entries["values"])}
            entries |= {"groups": tuple(entries["groups"]), "checks": tuple(Check(**check) for check in entries["checks"])}
            model = LatencyModel(**entries)
            if not np.isfinite(model.nodes[..., :2]).all():
                raise ValueError("some of its tables have no nodes")
            if not (len(model.groups) == len(model.units) and 0 < model.dense < float("inf")):
                raise ValueError(f"predicts {model.dense} seconds for {len(model.groups)} groups")
        except IndexError as error:
            raise ValueError(f"its tables do not fit its terms: {error}") from error
        return model


def padded(nodes: Sequence[Sequence[Sequence[float]]], values: Sequence[Sequence[Sequence[float]]]) -> np.ndarray:
    """Nodes of every axis and table, infinite behind the last, (axis, table, node)."""
    longest = len(values[0]) if len(values) else 2
    found = np.full((AXES, len(values), longest), np.inf)
    for axis, tables in enumerate(nodes):
        for table, row in enumerate(tables):
            found[axis, table, : len(row)] = row
    return found
