"""When how many channels are gone, and which steps end in a saved level."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlprune.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """When a search removes, recovers and saves.

    `targets[k]` are the channels removed after step k + 1, `levels` maps steps (from 1) to the sparsity saved there, and the network
    recovers every `period` steps.
    """

    targets: tuple[int, ...]
    levels: dict[int, float]
    period: int

    @property
    def steps(self) -> int:
        """Pruning steps."""
        return len(self.targets)

    def recovers(self, step: int) -> bool:
        """Whether a recovery follows this step (from 1): every `period` steps and at every level."""
        return step % self.period == 0 or step in self.levels


def level_steps(*, sparsity: float, steps: int, save_at: Sequence[float]) -> dict[int, float]:
    """The step (from 1) at which each level is saved.

    Raises:
        UserError: two levels fall on one step.
    """
    levels: dict[int, float] = {}
    for level in sorted({*save_at, sparsity}):
        step = steps if level == sparsity else max(1, round(level / sparsity * steps))
        if step in levels:
            raise UserError(f"schedule.save_at: {levels[step]} and {level} fall on one step; raise schedule.steps={steps} or drop a level")
        levels[step] = level
    return levels


def make_schedule(*, sparsity: float, steps: int, period: int, save_at: Sequence[float], channels: int, removable: int) -> Schedule:
    """Equal steps up to `sparsity` of `channels`; the step nearest to a level reaches it exactly.

    Raises:
        UserError: as `level_steps`, or more than the `removable` channels would have to go.
    """
    if round(sparsity * channels) > removable:
        raise UserError(
            f"schedule.sparsity={sparsity}: at most {removable / channels:.3f} is within reach, as schedule.min_keep units stay"
        )
    shares = [sparsity * step / steps for step in range(1, steps + 1)]
    levels = level_steps(sparsity=sparsity, steps=steps, save_at=save_at)
    for step, level in levels.items():
        shares[step - 1] = level
    return Schedule(tuple(round(share * channels) for share in shares), levels, period)
