"""A whole pruning run: everything between a dense network and the last file in its folder."""

import copy
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rlprune.agents.base import Agent
from rlprune.checkpoint import save_tensors
from rlprune.config import ScheduleConfig, SearchConfig
from rlprune.cost import count_params
from rlprune.criteria.base import Criterion
from rlprune.data.base import Dataset, Splits, stratified_order
from rlprune.errors import UserError
from rlprune.files import write_text
from rlprune.graph import ChannelGraph, freeze_failures, trace
from rlprune.results.artefact import Origin, save_artefact
from rlprune.results.final_test import final_test, latency_ms
from rlprune.results.plots import plot_accuracy, plot_layers
from rlprune.results.record import Clock, Row, environment, write_result, write_steps
from rlprune.results.tables import run_table, to_markdown
from rlprune.search.runner import SearchState, run_search, start_state
from rlprune.search.schedule import Schedule, make_schedule
from rlprune.search.task import DenseCost, Environment, Ledger, Reward
from rlprune.seeding import numpy_generator
from rlprune.training.dense import Dense
from rlprune.training.evaluate import Evaluator
from rlprune.training.execution import Execution
from rlprune.training.recover import Recovery, recover

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Level:
    """A saved level: its networks before and after recovery."""

    sparsity: float
    before: nn.Module
    after: nn.Module
    macs: int
    achieved: float


@dataclass
class PruneJob:
    """One run of `rlprune prune`; `run` carries it out."""

    agent: Agent
    reward: Reward
    criterion: Criterion
    recovery: Recovery
    execution: Execution
    dataset: Dataset
    splits: Splits
    origin: Origin
    example: Tensor
    schedule: ScheduleConfig
    search: SearchConfig
    ignore: list[str]
    seed: int
    run_dir: Path
    choices: dict[str, str]
    clock: Clock = field(default_factory=Clock)
    levels: list[Level] = field(default_factory=list)

    def run(self, dense: Dense) -> list[Row]:
        """Trace, search, recover, test, write; returns the rows of the table."""
        with self.clock.phase("trace and verify"):
            graph = self._graph(dense.network)
        evaluator = self._evaluator()
        plan = self._plan(graph)
        environment_ = self._environment(graph, evaluator, plan)
        dense_accuracy = environment_.measure(dense.network)
        state = start_state(dense.network, graph, dense_accuracy)
        self._announce(state, environment_, plan)
        started = time.perf_counter()
        run_search(
            state,
            agent=self.agent,
            environment=environment_,
            schedule=plan,
            recover=self._recover,
            epochs=self.recovery.epochs,
            final_epochs=self.recovery.final_epochs,
            seed=self.seed,
            on_step=lambda state: write_steps(self.run_dir, state.steps, state.layers),
            on_level=self._save_level,
        )
        recovering = sum(record.recovery_seconds for record in state.steps)
        self.clock.seconds["search"] = time.perf_counter() - started - recovering
        self.clock.seconds["recovery"] = recovering
        networks = {"dense": dense.network} | self._control(state, dense)
        rows = self._test(networks, graph, evaluator)
        self._write(rows, state, environment_, dense, dense_accuracy)
        return rows

    # -- before the search ---------------------------------------------------------------------------------------------------------

    def _graph(self, network: nn.Module) -> ChannelGraph:
        graph = freeze_failures(network, trace(network, self.example, ignore=self.ignore), self.example)
        for warning in graph.warnings:
            log.warning("%s", warning)
        if not graph.groups:
            reasons = "; ".join(dict.fromkeys(f"{frozen.layer}: {frozen.reason}" for frozen in graph.frozen))
            raise UserError(f"model={self.choices['model']}: no channel can be removed ({reasons or 'no convolution or linear layer found'})")
        log.info(
            "channel graph: %d groups, %d prunable channels, %d layers with kept channels; zeroed equals removed",
            len(graph.groups), graph.num_channels, len(graph.frozen),
        )  # fmt: skip
        return graph

    def _evaluator(self) -> Evaluator:
        images, samples = self.splits.search, self.search.samples
        if samples is not None and samples < len(images):
            images = images.subset(np.sort(stratified_order(images.labels, numpy_generator(self.seed, "search samples"))[:samples]))
        return Evaluator(images, self.splits.normalization, self.execution)

    def _plan(self, graph: ChannelGraph) -> Schedule:
        capacity = np.maximum(0, graph.num_units - self.schedule.min_keep)
        return make_schedule(
            sparsity=self.schedule.sparsity,
            steps=self.schedule.steps,
            period=self.schedule.period,
            save_at=self.schedule.save_at,
            channels=graph.num_channels,
            removable=int(graph.channels_per_unit @ capacity),
        )

    def _environment(self, graph: ChannelGraph, evaluator: Evaluator, plan: Schedule) -> Environment:
        none = np.zeros(len(graph.groups))
        minutes = self.schedule.max_minutes
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        return Environment(
            measure=lambda network: evaluator.accuracy(network).top1,
            reward=self.reward,
            score=self._scorer(),
            dense=DenseCost(graph.cost.macs(none), graph.cost.params(none), graph.num_channels),
            targets=plan.targets,
            min_keep=self.schedule.min_keep,
            ledger=Ledger(max_candidates=self.search.max_candidates, deadline=deadline),
        )

    def _scorer(self) -> Any:
        count = min(self.criterion.calibration_images, len(self.splits.train))
        chosen = stratified_order(self.splits.train.labels, numpy_generator(self.seed, "calibration"))[:count]
        calibration = self.splits.train.subset(np.sort(chosen)).to(self.execution.device)
        images = self.splits.normalization(calibration.pixels)
        return lambda network, graph: self.criterion.scores(network, graph, images, calibration.labels)

    def _announce(self, state: SearchState, environment_: Environment, plan: Schedule) -> None:
        """Say how long it will take, from measured seconds."""
        environment_.measure(state.network)  # warms up
        start = time.perf_counter()
        environment_.measure(state.network)
        one = time.perf_counter() - start
        per_step = min(self.agent.candidates_per_step, self.search.max_candidates or self.agent.candidates_per_step)
        candidates = per_step * plan.steps
        epochs = sum(self.recovery.final_epochs if step in plan.levels else self.recovery.epochs for step in range(1, plan.steps + 1) if plan.recovers(step))
        epochs *= 1 + self.recovery.control
        epoch = self._epoch_seconds(state.network) if epochs else 0.0
        limit = "" if self.schedule.max_minutes is None else f"; the search ends after {self.schedule.max_minutes:g} min at the latest"
        log.info(
            "search: at most %d candidates (%d a step) of %.3f s each on %d images: %.1f min; recovery: %d epochs of %.1f s: %.1f min; expected %.1f min%s",
            candidates, per_step, one, len(self._evaluator()), candidates * one / 60, epochs, epoch, epochs * epoch / 60,
            (candidates * one + epochs * epoch) / 60, limit,
        )  # fmt: skip

    def _epoch_seconds(self, network: nn.Module) -> float:
        """Seconds of one recovery epoch, from two batches on a copy of the network."""
        few = self.splits.train.subset(np.arange(min(len(self.splits.train), self.recovery.batch_size * 2)))
        splits = Splits(few, few, self.splits.normalization, self.splits.class_names, self.splits.crop, self.splits.flip)
        start = time.perf_counter()
        recover(
            copy.deepcopy(network), network, splits,
            epochs=1, recovery=self.recovery, execution=self.execution, seed=self.seed, phase="time an epoch",
        )  # fmt: skip
        return (time.perf_counter() - start) * len(self.splits.train) / len(few)

    # -- during the search ---------------------------------------------------------------------------------------------------------

    def _recover(self, network: nn.Module, teacher: nn.Module, epochs: int, phase: str) -> None:
        recover(
            network, teacher, self.splits, epochs=epochs, recovery=self.recovery, execution=self.execution, seed=self.seed, phase=phase
        )

    def _save_level(self, state: SearchState, level: float, before: nn.Module) -> None:
        achieved = state.steps[-1].sparsity
        last = level == self.schedule.sparsity or bool(state.stopped)
        folder = self.run_dir / ("pruned" if last else f"pruned-{level:g}")
        facts = {"sparsity": achieved, "macs": state.steps[-1].macs, "params": state.steps[-1].params, "criterion": self.choices["criterion"]}
        save_tensors(folder / "before_recovery.safetensors", before.state_dict())
        save_artefact(folder, state.network, self.origin, state.kept, self.ignore, facts)
        self.levels.append(Level(level, before, state.network, state.steps[-1].macs, achieved))

    # -- after the search ----------------------------------------------------------------------------------------------------------

    def _control(self, state: SearchState, dense: Dense) -> dict[str, nn.Module]:
        """The dense network after the same recoveries: what pruning is fairly compared with."""
        if not self.recovery.control or not state.recoveries:
            return {}
        network = copy.deepcopy(dense.network)
        with self.clock.phase("control"):
            for phase, epochs in tqdm(state.recoveries, desc="dense + same recovery", unit="recovery", leave=False):
                self._recover(network, dense.network, epochs, phase)
        return {"dense + same recovery epochs": network}

    def _test(self, networks: dict[str, nn.Module], graph: ChannelGraph, evaluator: Evaluator) -> list[Row]:
        none = np.zeros(len(graph.groups))
        costs = dict.fromkeys(networks, (0.0, 0.0, graph.cost.macs(none)))
        for level in self.levels:
            for name, network in (("pruned", level.before), ("recovered", level.after)):
                if name == "recovered" and level.after is level.before:
                    continue
                label = f"{name} {100 * level.achieved:.0f} %"
                networks[label] = network
                costs[label] = (level.sparsity, level.achieved, level.macs)
        shape = (self.origin.in_channels, *self.origin.image_size)
        classes = len(self.origin.class_names)
        with self.clock.phase("test"):
            measured = final_test(networks, self.dataset, self.splits.normalization, self.execution, classes, shape)
            return [
                Row(
                    name=name,
                    level=costs[name][0],
                    top1=accuracy.top1,
                    standard_error=accuracy.standard_error,
                    n=accuracy.n,
                    top5=accuracy.top5 if classes > 10 else None,
                    search_top1=evaluator.accuracy(networks[name]).top1,
                    params=count_params(networks[name]),
                    macs=costs[name][2],
                    sparsity=costs[name][1],
                    latency_ms=latency_ms(networks[name], shape, self.execution),
                )
                for name, accuracy in measured.items()
            ]

    def _write(self, rows: list[Row], state: SearchState, environment_: Environment, dense: Dense, dense_accuracy: float) -> None:
        with self.clock.phase("plots"):
            plot_accuracy(self.run_dir / "accuracy.png", state.steps, rows, dense_accuracy)
            plot_layers(self.run_dir / "layers.png", state.layers)
        table = run_table(rows)
        write_text(self.run_dir / "table.md", to_markdown(table) + "\n")
        write_text(self.run_dir / "table.csv", table.to_csv(index=False))
        ledger = environment_.ledger
        write_result(
            self.run_dir,
            {
                "command": "prune",
                "choices": self.choices,
                "seed": self.seed,
                "rows": [asdict(row) for row in rows],
                "splits": {"train": len(self.splits.train), "search": len(self.splits.search), "test": rows[0].n},
                "search": {"candidates": ledger.distinct, "repeated": ledger.repeated, "stopped": state.stopped, "steps": state.step},
                "search_split_seen": dense.search_split_seen,
                "dense": dense.path,
                "seconds": self.clock.seconds,
                **environment(self.execution.device),
            },
        )
        print(f"\n{to_markdown(table)}\n")
        if dense.search_split_seen == "unknown":
            gap = 100 * (rows[0].search_top1 - rows[0].top1)
            log.warning("the checkpoint may have seen the search split: its accuracy there is %+.2f points above the test split's", gap)
        if state.stopped:
            log.warning("the search stopped at step %d (schedule.max_minutes) with what it had", state.step)
        for name in ("pruned", "table.md", "metrics.csv", "layers.csv", "accuracy.png", "layers.png", "result.json"):
            log.info("wrote %s", self.run_dir / name)
