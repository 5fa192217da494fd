"""How long a search will take, said before it starts."""

import copy
import logging
import time
from dataclasses import dataclass, replace

from rlprune.agents.base import Agent, Finetuning
from rlprune.search.runner import SearchState
from rlprune.search.schedule import Schedule
from rlprune.search.task import Environment
from rlprune.setup import Setup
from rlprune.training.joint import JointTraining
from rlprune.training.recover import Recovery, epoch_seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forecast:
    """Seconds of what a search consists of, measured on the network as it is.

    Args:
        setup: data and device.
        recovery: how pruned networks recover.
        agent: that searches.
        seed: of the run.
        training: that the search goes along with, if it does.
    """

    setup: Setup
    recovery: Recovery
    agent: Agent
    seed: int
    training: JointTraining | None = None

    def announce(
        self,
        state: SearchState,
        environment: Environment,
        plan: Schedule,
        *,
        images: int,
        power: float,
        per_step: int,
        max_minutes: float | None,
    ) -> None:
        """Log what is ahead, in minutes.

        Args:
            state: where the search is.
            environment: that measures candidates.
            plan: what is ahead.
            images: that a candidate is measured on.
            power: how much faster than this process alone the workers are that measure candidates.
            per_step: candidates a step, at most.
            max_minutes: at which the search ends.
        """
        trial = copy.deepcopy(state.network)
        environment.measure(trial)  # warms up
        start = time.perf_counter()
        environment.refresh(trial)
        environment.measure(environment.prepare(trial))
        one = (time.perf_counter() - start) / power + self._finetuning_seconds(state)
        ahead = range(state.step + 1, plan.steps + 1)
        epochs = sum(self.recovery.final_epochs if plan.saves(step) else self.recovery.epochs for step in ahead if plan.recovers(step))
        epochs *= 1 + self.recovery.control
        epoch = self._epoch_seconds(state, self.recovery) if epochs else 0.0
        candidates = per_step * len(ahead)
        minutes, training, alone = (candidates * one + epochs * epoch) / 60, "", ""
        if self.training is not None:
            how = self.training.training
            whole = self._epoch_seconds(state, replace(self.recovery, recipe=how.recipe, batch_size=how.batch_size, rho=0.0))
            training = f"; training: {len(ahead)} epochs of {whole:.1f} s: {len(ahead) * whole / 60:.1f} min"
            minutes += len(ahead) * whole / 60
            if self.recovery.control:
                alone = "; then a dense network is trained alone, unless one is kept, as recovery.control=true wants it for comparison"
        passes = f"; a pass, of {getattr(self.agent, 'passes', 1)} at most that bisect agent.drop_bound" if plan.bisected else ""
        limit = "" if max_minutes is None else f"; the search ends after {max_minutes:g} min at the latest"
        log.info(
            "%s: at most %d candidates (%d a step) on %d images, %.3f s each: %.1f min%s; recovery: %d epochs of %.1f s: %.1f min; "
            "expected: %.1f min%s%s%s",
            f"resuming behind step {state.step}" if state.step else "search", candidates, per_step, images, one,
            candidates * one / 60, training, epochs, epoch, epochs * epoch / 60, minutes, passes, limit, alone,
        )  # fmt: skip

    def _epoch_seconds(self, state: SearchState, recovery: Recovery) -> float:
        network, setup = copy.deepcopy(state.network), self.setup
        return epoch_seconds(network, state.teacher, setup.splits, recovery=recovery, execution=setup.execution, seed=self.seed)

    def _finetuning_seconds(self, state: SearchState) -> float:
        """What an agent that fine-tunes candidates spends on one, measured on two batches."""
        finetuning: Finetuning | None = getattr(self.agent, "finetuning", None)
        if finetuning is None or finetuning.batches == 0:
            return 0.0
        whole, images = self._epoch_seconds(state, replace(self.recovery, rho=0.0)), len(self.setup.splits.train)
        share = 1.0 if finetuning.batches is None else min(1.0, finetuning.batches * self.recovery.batch_size / images)
        return finetuning.epochs * share * whole
