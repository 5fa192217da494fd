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
from rlprune.files import write_json
from rlprune.graph import ChannelGraph, prune
from rlprune.latency.build import latency_model, measure_networks
from rlprune.latency.keeping import recall
from rlprune.latency.rounding import preferred_multiple
from rlprune.results.artefact import read_plan
from rlprune.setup import Setup

log = logging.getLogger(__name__)


@dataclass
class LatencyQuestion:
    """Latency models and preferred multiples, only where a run asks for them.

    Args:
        setup: data and device.
        batch_size: images a pass.
        budget: largest share of the dense network's latency; None: no bound.
        rewarded: the reward is told the latency ratio.
        rounds: the multiple that the device likes is wanted.
        cache: folder of what was measured before.
        folder: that keeps what this run has found, so that it goes on as it began.
    """

    setup: Setup
    batch_size: int
    budget: float | None
    rewarded: bool
    rounds: bool
    cache: Path
    folder: Path

    @cached_property
    def example(self) -> torch.Tensor:
        """A batch of images."""
        images = self.setup.example()
        return images.repeat(-(-self.batch_size // len(images)), 1, 1, 1)[: self.batch_size].contiguous()

    @cached_property
    def _machine(self) -> str:
        return machine(self.setup.execution.device)

    def multiple(self, network: nn.Module, graph: ChannelGraph) -> int | None:
        """What the device likes the numbers of units to be divided by; None where nobody asks."""
        path = self.folder / "rounding.json"
        kept = recall(path).get("multiple")
        if not self.rounds or isinstance(kept, int):
            return kept if self.rounds else None
        found = preferred_multiple(network, graph, self.example, where=self._machine, cache=self.cache)
        log.info("schedule.round_to=auto: %s", found)
        write_json(path, {"multiple": found.multiple})
        return found.multiple

    def clocked(self, network: nn.Module, graph: ChannelGraph, kept_counts: Mapping[str, np.ndarray]) -> ChannelGraph:
        """The graph with a latency model; as it is where nobody asks.

        Raises:
            UserError: the calls of the network change when units go.
        """
        if self.budget is None and not self.rewarded:
            return graph
        own = self.folder / "latency.json"
        return replace(
            graph, clock=latency_model(network, graph, kept_counts, self.example, where=self._machine, cache=self.cache, own=own)
        )

    def facts(self, graph: ChannelGraph, dense: nn.Module, artefact: Path) -> dict[str, Any]:
        """Entries of result.json, with the latency of the dense and the pruned network on the clock; also said in the log.

        Args:
            graph: of the dense network.
            dense: the network that was pruned.
            artefact: folder of the pruned one.
        """
        rounding = {"round_to": self.multiple(dense, graph)} if self.rounds else {}
        if graph.clock is None:
            return rounding
        keep = read_plan(artefact / "plan.json")[2]
        networks = {
            name: prune(dense, graph, units).to(memory_format=torch.contiguous_format) for name, units in (("dense", {}), ("pruned", keep))
        }
        measured, predicted = measure_networks(networks, self.example), graph.latency(keep)
        dense_predicted, error = graph.clock.dense, predicted / measured["pruned"] - 1
        log.info(
            "latency of %d: predicted %.3f ms, %.3f of dense; measured %.3f ms, %.3f of dense's %.3f ms; error of the prediction %+.1f %% "
            "(%.1f %% on average over %d networks before the search)",
            self.batch_size, 1000 * predicted, predicted / dense_predicted, 1000 * measured["pruned"],
            measured["pruned"] / measured["dense"], 1000 * measured["dense"], 100 * error,
            100 * graph.clock.error, len(graph.clock.checks),
        )  # fmt: skip
        checks = [{**vars(check), "error": check.error} for check in graph.clock.checks]
        return rounding | {
            "latency": {
                "batch_size": self.batch_size,
                "predicted": {"dense": dense_predicted, "pruned": predicted},
                "measured": measured,
                "error": error,
                "checks": checks,
            }
        }
