"""How long forward passes take, measured in turns, so that a busy moment of the machine hurts all networks alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Pass = Callable[[], object]
"""One forward pass; it returns when the pass is over."""
Clock = Callable[[], float]
"""Seconds since some moment."""


@dataclass(frozen=True)
class Timing:
    """What the times of some passes come to, in milliseconds: median, quartiles, 95th percentile."""

    passes: int
    median_ms: float
    q25_ms: float
    q75_ms: float
    p95_ms: float


def summarize(seconds: Sequence[float]) -> Timing:
    """The statistics of passes that took so many seconds each."""
    median, q25, q75, p95 = 1000 * np.percentile(seconds, [50, 25, 75, 95])
    return Timing(len(seconds), float(median), float(q25), float(q75), float(p95))


def in_turns(passes: Mapping[str, Pass], *, seconds: float, rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of single passes, by name.

    In every round each name has a turn of `seconds` / `rounds`; every other round goes backwards (A B B A …), so that a machine that
    slows down steadily favours none. The first pass of a turn is not timed, as the caches hold what another network has left there, unless
    it fills the turn.

    Args:
        passes: what is timed, by name.
        seconds: for each name, in all; where single passes take long, there are fewer rounds, but at least two.
        rounds: turns of a name.
        clock: is asked before and after a pass.
    """
    names, spent = list(passes), dict.fromkeys(passes, 0.0)
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            start = clock()
            passes[name]()
            after = clock()
            if after - start >= seconds / rounds:  # so long that caches do not matter
                taken[name].append(after - start)
            while after - start < seconds / rounds:
                before = clock()
                passes[name]()
                after = clock()
                taken[name].append(after - before)
            spent[name] += after - start
        if number >= 1 and max(spent.values(), default=seconds) >= seconds:
            break
    return taken
