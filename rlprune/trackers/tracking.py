"""A run and its tracker: every point once, a failure to start in one line, and no failure later that would end the run."""

import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from numbers import Real
from pathlib import Path
from typing import IO, Any

from rlprune.errors import UserError
from rlprune.trackers.base import Tracker

log = logging.getLogger(__name__)
LOGGED = "logged.txt"  # series and number of every point that the tracker has


class Tracking:
    """What the loops report to. Unless it is within `of`, and wherever the tracker shows nothing, all it does is return.

    What a killed run had logged behind its last checkpoint comes again when it is resumed; a file in the tracker's folder remembers the
    last number of every series, so that it is passed over.

    Args:
        tracker: that shows the run.
        name: by which it was chosen.
    """

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker, self._name, self._on = tracker, name, False
        self._last: dict[str, int] = {}
        self._memory: IO[str] | None = None

    @contextmanager
    def of(self, run_dir: Path, config: Any, choices: Mapping[str, str]) -> Iterator[None]:
        """Track the run that goes on inside.

        Args:
            run_dir: its folder.
            config: a dataclass, resolved; all of it is shown but how the run is tracked, which may name a password, and resumed.
            choices: names chosen in each config group.

        Raises:
            UserError: the tracker cannot begin.
        """
        if self._tracker.folder is None:
            yield
            return
        settings = {key: value for key, value in asdict(config).items() if key not in ("tracker", "resume")}
        self._start(run_dir / self._tracker.folder, {"choices": dict(choices), **settings})
        try:
            yield
        except BaseException:
            self._close(done=False)
            raise
        self._close(done=True)

    def log(self, series: str, number: int, values: Mapping[str, Any]) -> None:
        """Show what is numeric and finite among the values at a place of a series, unless it was shown before.

        Args:
            series: such as `step`.
            number: place in it; they rise.
            values: by name.
        """
        if not self._on or number <= self._last.get(series, -1):
            return
        numbers = _numbers(values)
        self._attempt(lambda: self._tracker.log(series, number, numbers))
        if self._on:
            self._last[series] = number
            self._attempt(lambda: self._remember(series, number))

    def finish(self, rows: Mapping[str, Mapping[str, Any]], run_dir: Path) -> None:
        """Show the last table, network → column → value, and the plots in the run's folder."""
        if self._on:
            table = {name: _numbers(row) for name, row in rows.items()}
            self._attempt(lambda: self._tracker.finish(table, sorted(run_dir.glob("*.png"))))

    def _start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            folder.mkdir(exist_ok=True)
            self._last = _last_numbers(folder / LOGGED)
            self._memory = (folder / LOGGED).open("a", encoding="utf-8", buffering=1)  # a line goes to the system at once
            self._memory.write("\n" * bool(self._last))  # the last line may lack its end
            with _unmoved():
                self._tracker.start(folder, settings)
        except UserError:
            self._forget()
            raise
        except (Exception, SystemExit) as error:
            self._forget()
            raise UserError(f"tracker={self._name}: cannot begin ({_line(error)}); mend it, or take tracker=none") from error
        self._on = True

    def _attempt(self, action: Callable[[], object]) -> None:
        """A run is worth more than its curves."""
        try:
            with _unmoved():
                action()
        except Exception as error:
            self._on = False  # nothing is asked of it any more: a server that is gone would be waited for every time
            log.warning("tracker=%s: %s; the run goes on untracked", self._name, _line(error))

    def _remember(self, series: str, number: int) -> None:
        if self._memory is not None:
            self._memory.write(f"{series}\t{number}\n")

    def _close(self, done: bool) -> None:
        if self._on:
            self._attempt(lambda: self._tracker.close(done))
        self._on = False
        self._forget()

    def _forget(self) -> None:
        if self._memory is not None:
            with suppress(OSError):  # on a full disk
                self._memory.close()
            self._memory = None


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, Real) and math.isfinite(value)}


def _last_numbers(path: Path) -> dict[str, int]:
    """The last number of every series; one whose end was lost is smaller than it was, and as the numbers rise it was shown, too."""
    last: dict[str, int] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            series, tab, number = line.rpartition("\t")
            if tab and number.isdecimal():
                last[series] = max(int(number), last.get(series, -1))
    return last


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def _unmoved() -> Iterator[None]:
    """Python's random numbers stay where they are: libraries draw names and pauses between attempts from them."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
