"""What a run wants to know of latency: predicted in the search, measured at its end."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlprune.cost import machine
from rlprune.files import recall, write_sealed
from rlprune.graph import ChannelGraph, prune
from rlprune.latency.build import keep_model, latency_model, measure_networks, recall_model
from rlprune.latency.rounding import preferred_multiple
from rlprune.latency.timing import device_of

log = logging.getLogger(__name__)


@dataclass
class LatencyQuestion:
    """Latency models and preferred multiples, only where a run asks for them.

    Args:
        example: a batch of inputs, on the device.
        budget: largest share of the dense network's latency; None: no bound.
        reward: of the run, which may want the latency ratio.
        round_to: of the schedule; auto: the multiple that the device likes is wanted.
        cache: folder of what was measured before; None: nothing is kept there.
        folder: that keeps what this run has found, so that it goes on as it began; None: nothing is kept there either.
    """

    example: Any
    budget: float | None
    reward: object
    round_to: int | str
    cache: Path | None
    folder: Path | None

    @property
    def rounds(self) -> bool:
        """Whether the multiple that the device likes is wanted."""
        return self.round_to == "auto"

    @property
    def wanted(self) -> bool:
        """Whether a latency model is."""
        return self.budget is not None or bool(getattr(self.reward, "reads_latency", False))

    @cached_property
    def _machine(self) -> str:
        return machine(device_of(self.example))

    def multiple(self, network: nn.Module, graph: ChannelGraph) -> int | None:
        """What the device likes the numbers of units to be divided by; None where nobody asks."""
        kept = recall(self._path("rounding")).get("multiple")
        if not self.rounds or isinstance(kept, int):
            return kept if self.rounds else None
        found = preferred_multiple(network, graph, self.example, where=self._machine, cache=self.cache)
        log.info("schedule.round_to=auto: %s", found)
        self._keep_multiple(found.multiple)
        return found.multiple

    def clocked(self, network: nn.Module, graph: ChannelGraph, kept_counts: Mapping[str, np.ndarray]) -> ChannelGraph:
        """The graph with a latency model; as it is where nobody asks.

        Raises:
            UserError: the calls of the network change when units go.
        """
        if not self.wanted:
            return graph
        model = latency_model(network, graph, kept_counts, self.example, where=self._machine, cache=self.cache, own=self._path("latency"))
        return replace(graph, clock=model)

    def begun(self, folder: Path, graph: ChannelGraph) -> tuple[ChannelGraph, int | None]:
        """What a run in a folder began with, where all that is wanted is kept there; else the graph as it is, and None."""
        multiple = recall(folder / "rounding.json").get("multiple") if self.rounds else 1
        model = recall_model(folder / "latency.json") if self.wanted else None
        names = tuple(group.name for group in graph.groups)
        fits = model is not None and model.groups == names and np.array_equal(model.units, graph.num_units)
        if not isinstance(multiple, int) or (self.wanted and not fits):
            return graph, None
        return replace(graph, clock=model), multiple

    def settle(self, folder: Path, graph: ChannelGraph, multiple: int) -> tuple[ChannelGraph, int]:
        """From now on keep what was found in a folder; where it was kept there before, that is taken instead."""
        self.folder = folder
        path, known = self._path("latency"), recall(self._path("rounding")).get("multiple")
        if self.rounds and not isinstance(known, int):
            self._keep_multiple(multiple)
        if graph.clock is not None and path is not None:
            model = recall_model(path) or graph.clock
            keep_model(model, "", path)
            graph = replace(graph, clock=model)
        return graph, known if isinstance(known, int) else multiple

    def facts(self, graph: ChannelGraph, dense: nn.Module, keep: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Entries of result.json, with the latency of the dense and the pruned network on the clock; also said in the log.

        Args:
            graph: of the dense network.
            dense: the network that was pruned.
            keep: its units that stayed, by group.
        """
        rounding = {"round_to": self.multiple(dense, graph)} if self.rounds else {}
        if graph.clock is None:
            return rounding
        networks = {
            name: prune(dense, graph, units).to(memory_format=torch.contiguous_format) for name, units in (("dense", {}), ("pruned", keep))
        }
        measured, predicted = measure_networks(networks, self.example), graph.latency(keep)
        dense_predicted, error = graph.clock.dense, predicted / measured["pruned"] - 1
        log.info(
            "latency of %d: predicted %.3f ms, %.3f of dense; measured %.3f ms, %.3f of dense's %.3f ms; error of the prediction %+.1f %% "
            "(%.1f %% on average over %d networks before the search)",
            graph.clock.batch_size, 1000 * predicted, predicted / dense_predicted, 1000 * measured["pruned"],
            measured["pruned"] / measured["dense"], 1000 * measured["dense"], 100 * error,
            100 * graph.clock.error, len(graph.clock.checks),
        )  # fmt: skip
        checks = [{**vars(check), "error": check.error} for check in graph.clock.checks]
        return rounding | {
            "latency": {
                "batch_size": graph.clock.batch_size,
                "predicted": {"dense": dense_predicted, "pruned": predicted},
                "measured": measured,
                "error": error,
                "checks": checks,
            }
        }

    def _keep_multiple(self, multiple: int) -> None:
        path = self._path("rounding")
        if path is not None:
            write_sealed(path, {"multiple": multiple})

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.json"
