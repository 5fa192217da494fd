"""One call of `rlprune.compress`, checked and carried out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlprune.agents.base import Agent
from rlprune.api.data import Examples, FixedBatches
from rlprune.api.learning import BatchLoss, Learner, Metric, make_score, measured, pair
from rlprune.api.result import Level, Report, Result, Row, latency_ms, takes_images
from rlprune.api.search import DONE, Search, architecture
from rlprune.api.settings import ARGUMENTS, SECTIONS
from rlprune.checkpoint import tensors_checksum
from rlprune.config import build
from rlprune.cost import count_params
from rlprune.errors import UserError
from rlprune.files import write_sealed
from rlprune.graph import ChannelGraph, freeze_failures, trace
from rlprune.graph.run import call_model, copy_module, map_tensors
from rlprune.results.record import Clock
from rlprune.results.tables import CONTROL
from rlprune.search.candidates import as_it_is
from rlprune.search.latency import LatencyQuestion
from rlprune.search.ledger import Ledger
from rlprune.search.outcome import targets_reached
from rlprune.search.plan import kept_counts, make_plan, targets_of
from rlprune.search.resume import forget_states
from rlprune.search.runner import SearchState
from rlprune.search.schedule import Schedule, Targets, size_of
from rlprune.search.task import Environment
from rlprune.skeleton import PruneConfig
from rlprune.training.execution import Execution, Way
from rlprune.training.recipe import make_recovery


@dataclass
class Call:
    """One call of `compress`, checked and carried out."""

    model: nn.Module
    config: PruneConfig
    data: dict[str, Examples]
    loss: BatchLoss
    metric: Metric
    example_inputs: Any
    device: torch.device
    progress: bool
    begun: Path | None = None  # folder of the states of a call that this one may go on with
    multiple: int = 1  # that the device likes, with round_to=auto

    def check(self) -> None:
        """Refuse what cannot be pruned, or not so far, and functions that do not fit, before anything is searched.

        Raises:
            UserError: see `compress`.
        """
        loader = self.data["train_data"].loader
        if loader is not None and len(loader) == 0:
            raise UserError("train_data: its loader makes no batch of so few examples; drop_last=False, or a smaller batch_size")
        with torch.no_grad():
            call_model(self.dense, self.example)
        _ = self.plan
        if hasattr(self.agent, "check"):
            self.agent.check(self.dense, self.graph, self.example)
        recovery = self.learner.recovery
        if recovery.epochs or recovery.final_epochs or self.config.search.recover_batches:
            self.learner.rehearse(self.dense, self.dense)

    def facts(self, functions: Mapping[str, Any]) -> dict[str, Any]:
        """What tells this call from others; functions by their names alone."""
        config = asdict(self.config)
        return {
            **{section: config[section] for section in (*SECTIONS, "budget", "ignore", "seed")},
            "network": [architecture(self.dense), tensors_checksum(self.dense.state_dict())],
            "data": {key: examples.checksum() for key, examples in self.data.items()},
            "functions": {name: getattr(function, "__qualname__", type(function).__name__) for name, function in functions.items()},
            "device": self.device.type,
        }

    def run(self, folder: Path, *, keeps: bool) -> Result:
        """Search, recover, measure, write."""
        clock = Clock()
        if keeps:  # a call that goes on sees the same predictions
            self.graph, self.multiple = self.question.settle(folder / "checkpoint", self.graph, self.multiple)
            self.plan = self._plan_of(self.graph)
        search = self._search(folder, keeps)
        state = search.run()
        levels = search.levels(state)
        for phase in ("search", "recovery"):
            clock.seconds[phase] = sum(getattr(record, f"{phase}_seconds") for record in state.history.steps)
        report = self._report(state, levels, clock)
        level = levels["pruned"]
        result = Result(
            network=level.network,
            graph=self.graph,
            keep=level.keep,
            report=report,
            levels=levels,
            architecture=f"{type(self.model).__module__}.{type(self.model).__qualname__}",
            example=self.example,
            facts=self._plan_facts,
            ignore=list(self.config.ignore),
        )
        if keeps:
            if takes_images(self.example):
                result.save(folder / "pruned")
            write_sealed(folder / DONE, asdict(report))
            forget_states(folder / "checkpoint")
        return result

    # -- what a search consists of -------------------------------------------------------------------------------------------------

    @cached_property
    def agent(self) -> Agent:
        """That decides."""
        agent: Agent = build(self.config.agent, "agent")
        return agent

    @cached_property
    def dense(self) -> nn.Module:
        """A copy of the model, on the device, in eval mode."""
        if not isinstance(self.model, nn.Module):
            raise UserError(f"model: is a {type(self.model).__name__}; pass a torch.nn.Module")
        return copy_module(self.model).to(self.device).eval()

    @cached_property
    def example(self) -> Any:
        """Inputs of the network."""
        if self.example_inputs is not None:
            return map_tensors(self.example_inputs, lambda tensor: tensor.detach().to(self.device))
        inputs, _ = pair(self.data["train_data"].first(2), "example_inputs=, training_step= and metric=")
        return tuple(inputs) if isinstance(inputs, list) else inputs

    @cached_property
    def graph(self) -> ChannelGraph:
        """Of the dense network; zeroed equals removed for all that is in it."""
        traced = self._clocked(self._with_groups(trace(self.dense, self.example, ignore=self.config.ignore, prove=False)))
        self._plan_of(traced)  # refuses what is out of reach before the groups are proved
        proved = self._with_groups(freeze_failures(self.dense, traced, self.example))
        return proved if len(proved.groups) == len(traced.groups) else self._clocked(proved)

    @cached_property
    def question(self) -> LatencyQuestion:
        """What this call wants to know of latency."""
        config = self.config
        return LatencyQuestion(self._one_example, config.budget.latency, self.reward, config.schedule.round_to, cache=None, folder=None)

    @cached_property
    def reward(self) -> Any:
        """What a candidate is worth."""
        return build(self.config.reward, "reward")

    def _clocked(self, graph: ChannelGraph) -> ChannelGraph:
        """With a latency model, where one is wanted, and the multiple that the device likes, likewise."""
        if self.begun is not None:
            known, multiple = self.question.begun(self.begun, graph)
            if multiple is not None:
                self.multiple = multiple
                return known
        self.multiple = self.question.multiple(self.dense, graph) or 1
        return self.question.clocked(self.dense, graph, self._kept_counts(graph))

    def _kept_counts(self, graph: ChannelGraph) -> dict[str, np.ndarray]:
        return kept_counts(self.agent, self.config.schedule, graph, multiple=self.multiple)

    def _plan_of(self, graph: ChannelGraph) -> Schedule:
        return make_plan(self.agent, self.config.schedule, self.targets, graph, multiple=self.multiple)

    @property
    def targets(self) -> Targets:
        """How far the search goes."""
        return targets_of(self.config.schedule, self.config.budget)

    @cached_property
    def plan(self) -> Schedule:
        """What goes in which step."""
        return self._plan_of(self.graph)

    @cached_property
    def learner(self) -> Learner:
        """That recovers."""
        execution = Execution(self.device, None, (Way(None, torch.contiguous_format),), "false", compile=False)
        recovery = make_recovery(self.config.recovery)
        return Learner(self.loss, self.data["train_data"], recovery, execution, self.config.seed, self.progress)

    def _with_groups(self, graph: ChannelGraph) -> ChannelGraph:
        if not graph.groups:
            reasons = "; ".join(dict.fromkeys(f"{frozen.layer}: {frozen.reason}" for frozen in graph.frozen))
            raise UserError(f"model: no channel can be removed ({reasons or 'no convolution or linear layer found'})")
        return graph

    @property
    def _plan_facts(self) -> dict[str, Any]:
        chooses = getattr(self.agent, "chooses_units", False)
        name = type(self.agent).__module__.rpartition(".")[2]
        criterion = self.config.criterion["_target_"].split(".")[-2]
        by = {"criterion": None, "units_chosen_by": "agent"} if chooses else {"criterion": criterion, "units_chosen_by": "criterion"}
        return {"agent": name, **by, "seed": self.config.seed}

    def _search(self, folder: Path, keeps: bool) -> Search:
        config, learner, dense, seed = self.config, self.learner, self.dense, self.config.seed
        val = self.data["val_data"]
        chosen = val.draw(config.search.samples, seed, "search samples")
        images, batches = config.search.recalibrate_bn, config.search.recover_batches
        environment = Environment(
            measure=partial(measured, self.metric, self._batches["val_data"] if chosen is val else FixedBatches(chosen, seed)),
            reward=self.reward,
            score=make_score(build(config.criterion, "criterion"), learner.examples, self.loss, dense, seed),
            dense=size_of(self.graph, np.zeros(len(self.graph.groups), dtype=int)),
            goals=self.plan.goals,
            kept_counts=self._kept_counts(self.graph),
            ledger=Ledger(max_candidates=config.search.max_candidates),
            refresh=learner.renewing(dense, images) if images else as_it_is,
            prepare=learner.briefly(dense, batches) if batches else as_it_is,
            finetune=partial(learner.finetune, dense),
            example=self.example if isinstance(self.example, Tensor) else None,
        )
        minutes = config.schedule.max_minutes
        return Search(self.agent, environment, self.plan, learner, dense, self.graph, seed, folder, keeps, minutes)

    # -- the report ----------------------------------------------------------------------------------------------------------------

    def _report(self, state: SearchState, levels: Mapping[str, Level], clock: Clock) -> Report:
        none = size_of(self.graph, np.zeros(len(self.graph.groups), dtype=int))
        networks = [("dense", self.dense, none.macs, 0.0)]
        if self.config.recovery.control and state.history.recoveries:
            trained = copy_module(self.dense)
            with clock.phase("control"):
                for phase, epochs in state.history.recoveries:
                    self.learner.recover(trained, self.dense, epochs, phase)
            networks.append((CONTROL, trained, none.macs, 0.0))
        unique = {level.sparsity: level for level in levels.values()}  # `pruned` may be a level as well
        for level in unique.values():
            percent = f"{100 * level.sparsity:.0f} %"
            networks.append((f"pruned {percent}", level.before, level.macs, level.sparsity))
            if level.recovered:
                networks.append((f"recovered {percent}", level.network, level.macs, level.sparsity))
        with clock.phase("report"):
            rows = self._rows(networks)
        history = state.history
        asked = {ARGUMENTS.get(key, key): reached for key, reached in targets_reached(history, self.targets, none).items()}
        return Report(
            rows=rows,
            examples={key: len(examples) for key, examples in self.data.items()},
            steps=len(history.steps),
            candidates=history.candidates,
            stopped=history.stopped,
            targets=asked,
            seconds=clock.seconds,
            epochs=sum(epochs for _, epochs in history.recoveries),
        )

    def _rows(self, networks: Sequence[tuple[str, nn.Module, int, float]]) -> tuple[Row, ...]:
        """Networks (name, network, MACs, sparsity) as they are measured."""
        rows = []
        for name, network, macs, sparsity in networks:
            found = {key: measured(self.metric, batches, network) for key, batches in self._batches.items()}
            milliseconds = latency_ms(network, self._one_example)
            rows.append(Row(name, found["val_data"], found.get("test_data"), macs, count_params(network), sparsity, milliseconds))
        return tuple(rows)

    @cached_property
    def _batches(self) -> dict[str, FixedBatches]:
        """What networks are measured on."""
        return {key: FixedBatches(self.data[key], self.config.seed) for key in ("val_data", "test_data") if key in self.data}

    @property
    def _one_example(self) -> Any:
        """What latency is measured on: one example, or the inputs that the user has named."""
        if self.example_inputs is not None:
            return self.example
        return map_tensors(self.example, lambda tensor: tensor[:1])
