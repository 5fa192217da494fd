"""Which bound leaves a network of the size asked for: whole searches, one after another, each with a bound between two others."""

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlprune.errors import UserError
from rlprune.files import read_json, write_sealed
from rlprune.search.ledger import Ledger
from rlprune.search.runner import SearchState
from rlprune.search.schedule import Schedule

log = logging.getLogger(__name__)
TOLERANCE = 0.01  # of the target
FACTOR = 4.0  # from one bound to the next until the target lies between two
WIDEST = (0.01, 200.0)  # bounds that are tried, points; beyond, accuracy counts for nothing
CLOSEST = 1.02  # two bounds so near to one another are the same


@dataclass(frozen=True)
class Pass:
    """One search with one bound; a ValueError for what is none.

    `excess` says by how much the network is larger than the target, as a share of it: 0 is met, negative is smaller. `candidates` and
    `repeated` count from the start of the run. A pass that is not `complete` was ended by the clock.
    """

    bound: float
    excess: float
    complete: bool
    candidates: int
    repeated: int
    search_seconds: float
    recovery_seconds: float

    def __post_init__(self) -> None:
        numbers = (self.bound, self.excess, self.search_seconds, self.recovery_seconds)
        counts = (self.candidates, self.repeated)
        kinds = all(type(number) in (int, float) for number in numbers) and all(type(count) is int for count in counts)
        if not (kinds and type(self.complete) is bool and all(map(math.isfinite, numbers)) and self.bound > 0):
            raise ValueError(f"{asdict(self)} is no pass")

    def facts(self) -> dict[str, Any]:
        """For result.json, where what differs from run to run is named `seconds`."""
        seconds = {"search": self.search_seconds, "recovery": self.recovery_seconds}
        return {
            "drop_bound": self.bound,
            "excess": self.excess,
            "complete": self.complete,
            "candidates": self.candidates,
            "seconds": seconds,
        }


class Bisection:
    """The passes so far, kept in a file, and what to try next.

    Larger bounds leave smaller networks, on average; a search is random, so two passes may contradict one another. Then it ends.

    Args:
        path: of the file; what it holds is gone on with.
        first: bound of the first pass.
        most: passes.
    """

    def __init__(self, path: Path, *, first: float, most: int) -> None:
        self.path, self.first, self.most = path, first, most
        self.passes: list[Pass] = []
        if path.exists():
            try:
                self.passes = [Pass(**entry) for entry in read_json(path)["passes"]]
            except (UserError, KeyError, TypeError, ValueError) as error:
                log.warning("%s: cannot be used (%s); searching for the bound anew", path, error)

    def add(self, result: Pass) -> None:
        """Remember a pass."""
        self.passes.append(result)
        write_sealed(self.path, {"passes": [asdict(entry) for entry in self.passes]})

    def next_bound(self) -> float | None:
        """The bound to try next; None where a pass is near enough, or nothing is left to try."""
        if not self.passes:
            return self.first
        if len(self.passes) >= self.most or not self.passes[-1].complete or min(abs(entry.excess) for entry in self.passes) <= TOLERANCE:
            return None
        low = max((entry.bound for entry in self.passes if entry.excess > 0), default=0.0)
        high = min((entry.bound for entry in self.passes if entry.excess < 0), default=math.inf)
        if low == 0:
            return max(high / FACTOR, WIDEST[0]) if high > WIDEST[0] else None
        if high == math.inf:
            return min(low * FACTOR, WIDEST[1]) if low < WIDEST[1] else None
        return math.sqrt(low * high) if high > CLOSEST * low else None

    @property
    def chosen(self) -> int:
        """The pass to go on with: the nearest that is within the tolerance, else the nearest that is still too large, else the nearest.

        What is too large can be cut down; what is too small has lost more than was asked for.
        """

        def rank(number: int) -> tuple[bool, bool, bool, float]:
            entry = self.passes[number]
            near = abs(entry.excess) <= TOLERANCE
            return not entry.complete, not near, not near and entry.excess < 0, abs(entry.excess)

        return min(range(len(self.passes)), key=rank)


def bisected_search(
    folder: Path,
    *,
    agent: Any,
    schedule: Schedule,
    ledger: Ledger,
    load: Callable[[Path], SearchState],
    run: Callable[[SearchState, Path, int | None], object],
) -> tuple[SearchState, list[Pass]]:
    """Search with one bound after another, and carry the pass that is nearest to the target through the last step.

    Args:
        folder: of saved states; each pass has one of its own in it.
        agent: with `drop_bound` and `passes`.
        schedule: whose last step has the target.
        ledger: of all passes.
        load: the search of a pass from where its folder says that it is, or from its start.
        run: carries it on to a step, or to its end.

    Returns:
        The state at the end, and all passes.
    """
    search = Bisection(folder / "passes.json", first=agent.drop_bound, most=agent.passes)
    last, target = schedule.steps - 1, schedule.goals[-1]

    def begin(number: int, bound: float) -> SearchState:
        """The search of a pass, from 0; it counts on from the pass before."""
        agent.drop_bound = bound
        state = load(_folder(folder, number))
        if number and state.step == 0:
            ledger.distinct, ledger.repeated = search.passes[number - 1].candidates, search.passes[number - 1].repeated
        return state

    while (bound := search.next_bound()) is not None and not (search.passes and ledger.expired):
        state = begin(len(search.passes), bound)
        if search.passes and state.step == 0 and ledger.expired:  # it was already before an interruption
            break
        log.info("pass %d: agent.drop_bound=%.4g", len(search.passes) + 1, bound)
        run(state, _folder(folder, len(search.passes)), last)
        size = state.graph.num_channels, state.graph.macs({}), state.graph.params({})
        seconds = state.graph.latency({}) if state.graph.clock is not None else 0.0
        search.add(
            Pass(
                bound=bound,
                excess=target.relative_excess(*size, seconds),
                complete=state.step == last,
                candidates=ledger.distinct,
                repeated=ledger.repeated,
                search_seconds=sum(record.search_seconds for record in state.history.steps),
                recovery_seconds=sum(record.recovery_seconds for record in state.history.steps),
            )
        )
        log.info("pass %d: %+.1f %% from the target", len(search.passes), 100 * search.passes[-1].excess)
    chosen = search.passes[search.chosen]
    state = begin(search.chosen, chosen.bound)
    if state.step < schedule.steps:
        log.info("going on with pass %d, agent.drop_bound=%.4g", search.chosen + 1, chosen.bound)
        if abs(chosen.excess) > TOLERANCE:
            log.warning(
                "the bound alone leaves a network %+.1f %% from the target; what is too large loses the units least worth keeping",
                100 * chosen.excess,
            )
        if chosen.complete and state.step < last:  # its newest state was damaged
            run(state, _folder(folder, search.chosen), last)
        ledger.distinct, ledger.repeated = search.passes[-1].candidates, search.passes[-1].repeated
        state.step, state.history.stopped = last, ""
        run(state, _folder(folder, search.chosen), None)
    if not search.passes[-1].complete or (search.next_bound() is not None and ledger.expired):
        state.history.stopped = "max_minutes"
    return state, search.passes


def seconds_of_passes(folder: Path) -> float:
    """What the complete passes in a folder have taken; 0 where there are none."""
    passes = Bisection(folder / "passes.json", first=1.0, most=1).passes
    return sum(entry.search_seconds + entry.recovery_seconds for entry in passes)


def forget_passes(folder: Path) -> None:
    """Remove what an earlier run left."""
    (folder / "passes.json").unlink(missing_ok=True)
    for old in folder.glob("pass-*"):
        shutil.rmtree(old)


def _folder(folder: Path, number: int) -> Path:
    return folder / f"pass-{number + 1}"
