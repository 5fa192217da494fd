"""A whole pruning run: everything between a dense network and the last file in its folder."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from rlprune.agents.base import Agent
from rlprune.checkpoint import read_metadata, tensors_checksum
from rlprune.criteria.base import Criterion
from rlprune.errors import UserError
from rlprune.evaluators.base import CandidateEvaluator, Kit
from rlprune.graph import ChannelGraph, freeze_failures, trace
from rlprune.results.artefact import read_plan, save_artefact
from rlprune.results.finish import finish
from rlprune.results.record import Clock, History, Identity, write_episodes, write_steps
from rlprune.results.tables import to_markdown
from rlprune.search.bisection import Pass, bisected_search, forget_passes, seconds_of_passes
from rlprune.search.candidates import as_it_is
from rlprune.search.execution import MULTIPLES, choose_execution
from rlprune.search.forecast import Forecast
from rlprune.search.latency import LatencyQuestion
from rlprune.search.ledger import Ledger
from rlprune.search.limits import Room
from rlprune.search.measure import make_score, search_evaluator
from rlprune.search.outcome import compared, targets_reached
from rlprune.search.plan import kept_counts, make_plan, num_steps, targets_of
from rlprune.search.resume import forget_states, keep_measured, load_state, save_state
from rlprune.search.runner import SearchState, run_search, start_state, step_candidates
from rlprune.search.schedule import Schedule, Size, Targets, reach_rows, size_of
from rlprune.search.task import Environment, Reward, Task
from rlprune.search.tracked import TrackedSearch
from rlprune.setup import Setup
from rlprune.skeleton import BudgetConfig, LatencyConfig, ScheduleConfig, SearchConfig
from rlprune.trackers.tracking import Tracking
from rlprune.training.alignment import Alignment
from rlprune.training.dense import Dense
from rlprune.training.evaluate import Evaluator
from rlprune.training.fit import OnEpoch
from rlprune.training.joint import JointTraining
from rlprune.training.progress import Saver
from rlprune.training.recover import Recovery, recover
from rlprune.training.refresh import BriefRecovery, FineTuning, Recalibration

log = logging.getLogger(__name__)
FEWEST_IMAGES = 256  # a candidate of joint training is measured on, where nothing is said
EPISODES_EVERY = 30.0  # seconds between two writes of episodes.csv


@dataclass
class PruneJob:
    """One run of `rlprune prune`; `run` carries it out, from the start or from where a killed run left it."""

    agent: Agent
    reward: Reward
    criterion: Criterion
    workers: CandidateEvaluator
    recovery: Recovery
    setup: Setup
    schedule: ScheduleConfig
    budget: BudgetConfig
    search: SearchConfig
    latency: LatencyConfig
    ignore: list[str]
    identity: Identity
    resume: bool
    save_minutes: float  # between two saves of a recovery, from which a killed one goes on
    cache: Path  # folder of what was measured before
    tracking: Tracking  # of the run, begun before `run`
    joint: Callable[[nn.Module, int], JointTraining] | None = None  # (network, epochs): how schedule.joint trains
    reference: Callable[[], Dense] | None = None  # the dense network that joint training is compared with
    clock: Clock = field(default_factory=Clock)
    _episodes_due: float = 0.0  # on the clock of time.monotonic
    _begun: bool = False
    _training: JointTraining | None = None
    _multiple: int = 1  # that the device likes, with schedule.round_to=auto

    def run(self, dense: Dense) -> None:
        """Trace, search, recover, test, write.

        Args:
            dense: the network that is pruned; in joint training with its first weights, and trained in place.
        """
        with self.clock.phase("trace and verify"):
            graph = self._graph(dense.network)
        with self.clock.phase("measure latency"):
            graph = self._clocked(dense.network, graph)
        self._tell_reach(graph)
        evaluator = self._evaluator(dense.network, bool(graph.doubts))
        plan = self._plan(graph)
        with self.clock.phase("choose execution"):
            execution = self._execution(dense.network, graph, evaluator, plan)
        environment = self._environment(graph, evaluator, plan, dense.network, execution)
        states = self.identity.run_dir / "checkpoint"
        if plan.joint and self.joint is not None:
            self._training = self.joint(dense.network, plan.steps)
        with self._at_work(environment, evaluator) as environment:
            load = partial(self._load, dense.network, graph, environment, plan, len(evaluator))
            state, passes = self._search(states, environment, plan, load)
        self._require_a_level(state)
        for phase in ("search", "recovery", *(["training"] if plan.joint else [])):
            spent = [getattr(record, f"{phase}_seconds") for record in state.history.steps[-1 if passes else 0 :]]
            self.clock.seconds[phase] = sum(spent) + sum(getattr(entry, f"{phase}_seconds") for entry in passes)
        if plan.joint:
            share = self.clock.seconds["search"] / max(self.clock.seconds["training"], 1e-9)
            log.info("the agent took %.0f %% of the time of training", 100 * share)
        pruned_from = dense.network
        networks, dense = compared(
            state.history,
            dense,
            graph,
            run_dir=self.identity.run_dir,
            kept=states / "control.safetensors",
            resume=self.resume,
            recover=partial(self._recover_control, state.history),
            control=self.recovery.control,
            clock=self.clock,
            trained=None if self._training is None else self._training.losses,
            reference=self.reference,
        )
        rows = finish(
            networks,
            history=state.history,
            dense=dense,
            evaluator=evaluator,
            setup=self.setup,
            clock=self.clock,
            job=self.identity,
            facts={
                "execution": execution,
                "targets": targets_reached(state.history, self._targets, environment.dense),
                **self._question.facts(graph, pruned_from, read_plan(self.identity.run_dir / "pruned" / "plan.json")[2]),
                "units_chosen_by": self._units_chosen_by,
                **({"passes": [entry.facts() for entry in passes]} if passes else {}),
            },
        )
        self.tracking.finish({row.name: asdict(row) for row in rows}, self.identity.run_dir)
        forget_states(states)

    def check(self, network: nn.Module) -> None:
        """Refuse what cannot be pruned, or not so far, before a dense network is trained.

        Raises:
            UserError: no group, limits or targets that do not fit the network, levels that collide, or the agent cannot prune it.
        """
        network.to(self.setup.execution.device)
        self._plan(self._clocked(network, self._traced(network)))
        if hasattr(self.agent, "check"):
            self.agent.check(network, self._traced(network), self.setup.example())

    # -- the search ----------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _at_work(self, environment: Environment, evaluator: Evaluator) -> Iterator[Environment]:
        """The same environment, with the workers that measure candidates, where there are some."""
        if (finetuning := getattr(self.agent, "finetuning", None)) is not None and finetuning.batches != 0:
            if getattr(self.workers, "workers", None) is not None:
                log.warning("evaluator: agent=%s fine-tunes candidates, in this process alone", self.identity.choices["agent"])
            yield environment
            return
        alike = environment.alike is not None
        kit = Kit(evaluator, environment.refresh, environment.prepare, MULTIPLES[environment.execution], alike)
        workers = self.workers.start(kit)
        if workers is None:
            yield environment
            return
        log.info("candidates are measured by %s", workers)
        try:
            yield replace(environment, workers=workers)
        finally:
            workers.close()

    def _search(
        self, states: Path, environment: Environment, plan: Schedule, load: Callable[[Path], SearchState]
    ) -> tuple[SearchState, list[Pass]]:
        """Where the search ends, and the passes of a bisection; `states` is the folder that it goes through."""

        def run(state: SearchState, folder: Path, until: int | None) -> SearchState:
            tracked = TrackedSearch(self.tracking, state.history, f"{folder.name}/" if plan.bisected else "")
            return run_search(
                state,
                agent=self.agent,
                environment=environment,
                schedule=plan,
                recover=partial(self._recover, on_epoch=tracked.recovery()),
                epochs=self.recovery.epochs,
                final_epochs=self.recovery.final_epochs,
                seed=self.identity.seed,
                on_step=lambda state: self._after_step(state, folder, tracked),
                on_level=partial(self._save_level, plan),
                deciding=partial(keep_measured, folder / "measured.json", environment.ledger),
                on_episode=lambda state: self._after_episode(state, tracked),
                until=until,
                train=None if self._training is None else partial(self._train, self._training, environment),
            )

        if not self.resume:
            forget_passes(states)
        if plan.bisected:
            self._set_deadline(environment.ledger, seconds_of_passes(states))
            return bisected_search(states, agent=self.agent, schedule=plan, ledger=environment.ledger, load=load, run=run)
        return run(load(states), states, None), []

    def _load(
        self, dense: nn.Module, graph: ChannelGraph, environment: Environment, plan: Schedule, images: int, folder: Path
    ) -> SearchState:
        """The search as its folder has it, or before its first step."""
        training, state = self._training, None
        if self.resume or plan.bisected:
            state = load_state(folder, dense, graph, self.agent, environment.ledger, None if training is None else training.take)
        if state is None:
            if plan.bisected:
                self.agent.load_state_dict({})
            state = start_state(dense, graph, environment.measure(dense))
        elif training is not None and state.aim is not None:  # nothing has gone yet
            state.network = state.teacher = training.network
        if not self._begun:
            self._begun = True
            parts = ("search_seconds", "recovery_seconds", "training_seconds")
            spent = sum(getattr(record, part) or 0.0 for record in state.history.steps for part in parts)
            self._set_deadline(environment.ledger, spent + seconds_of_passes(folder.parent))
            forecast = Forecast(self.setup, self.recovery, self.agent, self.identity.seed, training)
            forecast.announce(
                state,
                environment,
                plan,
                images=images,
                power=1.0 if environment.workers is None else environment.workers.power,
                per_step=self._candidates_per_step(state.graph, plan, environment.kept_counts),
                max_minutes=self.schedule.max_minutes,
            )
        return state

    # -- before the search ---------------------------------------------------------------------------------------------------------

    def _graph(self, network: nn.Module) -> ChannelGraph:
        graph = freeze_failures(network, self._traced(network), self.setup.example())
        for warning in graph.warnings:
            log.warning("%s", warning)
        log.info(
            "channel graph: %d groups, %d prunable channels, %d layers with kept channels; zeroed equals removed",
            len(graph.groups), graph.num_channels, len(graph.frozen),
        )  # fmt: skip
        return graph

    def _traced(self, network: nn.Module) -> ChannelGraph:
        graph = trace(network, self.setup.example(), ignore=self.ignore, prove=False)
        if not graph.groups:
            reasons = "; ".join(dict.fromkeys(f"{frozen.layer}: {frozen.reason}" for frozen in graph.frozen))
            raise UserError(
                f"model={self.identity.choices['model']}: no channel can be removed ({reasons or 'no convolution or linear layer found'})"
            )
        return graph

    @cached_property
    def _question(self) -> LatencyQuestion:
        """What this run wants to know of latency."""
        size, images = self.latency.batch_size, self.setup.example()
        return LatencyQuestion(
            images.repeat(-(-size // len(images)), 1, 1, 1)[:size].contiguous(),
            budget=self.budget.latency,
            reward=self.reward,
            round_to=self.schedule.round_to,
            cache=self.cache,
            folder=self.identity.run_dir / "checkpoint",
        )

    def _clocked(self, network: nn.Module, graph: ChannelGraph) -> ChannelGraph:
        """The graph with a latency model, where one is wanted, and the multiple that the device likes, likewise."""
        self._multiple = self._question.multiple(network, graph) or self._multiple
        return self._question.clocked(network, graph, self._kept_counts(graph))

    def _tell_reach(self, graph: ChannelGraph) -> None:
        dense, smallest = self._sizes(graph)
        log.info(
            "within reach, as shares of the dense network's:\n%s", to_markdown(pd.DataFrame(reach_rows(self._targets, dense, smallest)))
        )

    def _sizes(self, graph: ChannelGraph) -> tuple[Size, Size]:
        """Of the dense network, and of the one that has lost all it may lose."""
        smallest = Room(graph, list(self._kept_counts(graph).values())).capacity
        return size_of(graph, np.zeros(len(graph.groups), dtype=int)), size_of(graph, smallest)

    def _evaluator(self, network: nn.Module, doubtful: bool) -> Evaluator:
        samples = self.search.samples
        if samples is None and self.schedule.joint:
            samples = max(FEWEST_IMAGES, len(self.setup.splits.train) // (2 * self.agent.candidates_per_step))
        return search_evaluator(self.setup, network, samples=samples, seed=self.identity.seed, doubtful=doubtful)

    def _plan(self, graph: ChannelGraph) -> Schedule:
        if self.schedule.joint:
            self._check_joint(num_steps(self.agent, self.schedule, graph, multiple=self._multiple))
        return make_plan(self.agent, self.schedule, self._targets, graph, multiple=self._multiple)

    @property
    def _targets(self) -> Targets:
        return targets_of(self.schedule, self.budget)

    def _check_joint(self, epochs: int) -> None:
        warmup: int | None = getattr(self.agent, "warmup_epochs", None)
        if warmup is None:
            raise UserError(
                f"schedule.joint=true: agent={self.identity.choices['agent']} prunes trained networks; use agent=rlal or another schedule"
            )
        if epochs < warmup:
            raise UserError(
                f"schedule.steps={epochs} (training.epochs): fewer epochs than the agent's warm-up, agent.warmup_epochs={warmup}; "
                "train longer or lower it"
            )

    def _kept_counts(self, graph: ChannelGraph) -> dict[str, np.ndarray]:
        return kept_counts(self.agent, self.schedule, graph, multiple=self._multiple)

    def _execution(self, network: nn.Module, graph: ChannelGraph, evaluator: Evaluator, plan: Schedule) -> str:
        if self.search.recover_batches:  # what is zero would be trained
            return "sliced"
        return choose_execution(
            self.search.execution,
            network,
            graph,
            evaluator,
            schedule=plan,
            candidates=self._candidates_per_step(graph, plan, self._kept_counts(graph)) * plan.steps,
            cache=self.cache,
            chosen=self.identity.run_dir / "checkpoint" / "execution.json",
        )

    def _candidates_per_step(self, graph: ChannelGraph, plan: Schedule, kept_counts: dict[str, np.ndarray]) -> int:
        layers = sum(len(counts) > 1 for counts in kept_counts.values())
        steps = max(1, sum(goal.free for goal in plan.goals))
        return step_candidates(self.agent, graph, self.search.max_candidates, math.ceil(layers / steps))

    def _environment(self, graph: ChannelGraph, evaluator: Evaluator, plan: Schedule, teacher: nn.Module, execution: str) -> Environment:
        seed, images, batches = self.identity.seed, self.search.recalibrate_bn, self.search.recover_batches
        return Environment(
            measure=lambda network: evaluator.accuracy(network).top1,
            reward=self.reward,
            score=make_score(self.criterion, self.setup, seed),
            dense=size_of(graph, np.zeros(len(graph.groups), dtype=int)),
            goals=plan.goals,
            kept_counts=self._kept_counts(graph),
            ledger=Ledger(max_candidates=self.search.max_candidates),
            refresh=Recalibration(self.setup, images, seed) if images else as_it_is,
            prepare=BriefRecovery(self.setup, self.recovery, teacher, batches, seed) if batches else as_it_is,
            finetune=FineTuning(self.setup, self.recovery, seed),
            example=self.setup.example(),
            execution=execution,
            alike=None if batches else evaluator.alike,
        )

    def _set_deadline(self, ledger: Ledger, spent: float) -> None:
        if self.schedule.max_minutes is not None:
            ledger.deadline = time.monotonic() + 60 * self.schedule.max_minutes - spent

    # -- during the search ---------------------------------------------------------------------------------------------------------

    def _train(self, training: JointTraining, environment: Environment, state: SearchState) -> float:
        """An epoch, aligned with the best policy so far, m*, scored anew on the weights as they are now (RLAL, section 3.2.3)."""
        beta, alignment = float(getattr(self.agent, "beta", 0.0)), None
        if beta > 0 and state.aim is not None:
            task = Task(environment, state.network, state.graph, state.step)
            alignment = Alignment(state.network, state.graph, task.keep(state.aim))
        return training.train(state.step + 1, alignment, beta)

    def _recover(self, network: nn.Module, teacher: nn.Module, epochs: int, phase: str, *, on_epoch: OnEpoch) -> None:
        recover(
            network,
            teacher,
            self.setup.splits,
            epochs=epochs,
            recovery=self.recovery,
            execution=self.setup.execution,
            seed=self.identity.seed,
            phase=phase,
            saver=self._saver(f"{phase} {tensors_checksum(network.state_dict())}"),
            on_epoch=on_epoch,
        )

    def _recover_control(self, history: History, network: nn.Module, teacher: nn.Module, epochs: int, phase: str) -> None:
        before = sum(epochs for _, epochs in history.recoveries[: [name for name, _ in history.recoveries].index(phase)])
        on_epoch = partial(_counted_on, self.tracking, before)
        self._recover(network, teacher, epochs, phase, on_epoch=on_epoch)

    def _saver(self, identity: str) -> Saver:
        """Keeps the state of a recovery; one that was left by another recovery is not taken up."""
        path = self.identity.run_dir / "checkpoint" / "recovery.safetensors"
        left = self.resume and str(read_metadata(path).get("identity", "")).startswith(identity)
        return Saver(path, identity=identity, minutes=self.save_minutes, resume=left)

    def _after_episode(self, state: SearchState, tracked: TrackedSearch) -> None:
        """episodes.csv is there to be looked at while a long step goes on; a search is worth more than it."""
        tracked.episode()
        if not 0 <= self._episodes_due - time.monotonic() <= EPISODES_EVERY:  # or the clock was put back
            self._episodes_due = time.monotonic() + EPISODES_EVERY
            with suppress(OSError):
                write_episodes(self.identity.run_dir, state.history)

    def _after_step(self, state: SearchState, folder: Path, tracked: TrackedSearch) -> None:
        write_steps(self.identity.run_dir, state.history)
        tracked.step()  # before the state is saved that is behind it
        save_state(folder, state, self.agent, None if self._training is None else self._training.state())

    @property
    def _units_chosen_by(self) -> str:
        return "agent" if getattr(self.agent, "chooses_units", False) else "criterion"

    def _save_level(self, plan: Schedule, state: SearchState, level: float | None, before: nn.Module) -> None:
        """Write the artefact of a level; with a bound on the drop, `pruned` is the smallest network within it so far."""
        last = state.step == plan.steps or bool(state.history.stopped)
        names = [] if last or level is None else [f"pruned-{level:g}"]
        if last or self.budget.max_drop is not None:
            names.append("pruned")
        record = state.history.steps[-1]
        facts = {
            "sparsity": record.sparsity,
            "macs": record.macs,
            "params": record.params,
            "agent": self.identity.choices["agent"],
            "criterion": self.identity.choices["criterion"] if self._units_chosen_by == "criterion" else None,
            "units_chosen_by": self._units_chosen_by,
            "seed": self.identity.seed,
            "dense_seed": self.setup.dense_seed,
        }
        for name in names:
            save_artefact(
                self.identity.run_dir / name,
                before=before,
                after=state.network,
                origin=self.setup.origin,
                keep=state.kept,
                ignore=self.ignore,
                facts=facts,
            )
            entry = {"folder": name, "level": round(record.sparsity, 4) if level is None or last else level}
            entry |= {"sparsity": record.sparsity, "macs": record.macs, "params": record.params, "recovered": record.recovery_seconds > 0}
            if state.graph.clock is not None:
                entry["latency"] = state.graph.latency({})
            state.history.levels = [*(known for known in state.history.levels if known["folder"] != name), entry]

    def _require_a_level(self, state: SearchState) -> None:
        """A search that was to stay within a drop has found something.

        Raises:
            UserError: the first look was beyond it already.
        """
        if not any(level["folder"] == "pruned" for level in state.history.levels):
            record = state.history.steps[-1]
            lost = 100 * (state.dense_accuracy - record.accuracy_recovered)
            raise UserError(
                f"budget.max_drop={self.budget.max_drop}: {100 * record.sparsity:.1f} % of the channels cost {lost:.2f} points already; "
                "raise it, recovery.final_epochs, or schedule.steps for smaller steps"
            )


def _counted_on(tracking: Tracking, before: int, epoch: int, values: Mapping[str, float]) -> None:
    """Report an epoch of the control, whose recoveries are counted through."""
    tracking.log("control", before + epoch, values)
