"""What a tracker is, and what several of them share: the check for their package, settings as flat names."""

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlprune.errors import UserError


class Tracker(Protocol):
    """Shows a run's numbers elsewhere while it goes on.

    The constructor refuses a package that is missing with a UserError, and imports nothing; `start` imports. Every method may raise what
    it likes: `Tracking`, which calls them, makes one line of it. `log` is behind `Tracking`'s memory, so it is given no point twice, over
    all the processes that a run has been in.
    """

    folder: str | None
    """Name of its folder in the run's, which keeps what a resumed run needs; None: it shows nothing, and its methods are not called."""

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Begin to show a run, or go on with the one that its folder knows.

        Args:
            folder: its folder in the run's, which is there.
            settings: the resolved configuration, nested, and the choices.
        """
        ...

    def log(self, series: str, number: int, values: Mapping[str, float]) -> None:
        """Show finite values, by name, at a place of a series such as `step`; within a series the numbers rise."""
        ...

    def finish(self, rows: Mapping[str, Mapping[str, float]], images: Sequence[Path]) -> None:
        """Show the last table, network → column → value, and the plots, which are png files."""
        ...

    def close(self, done: bool) -> None:
        """Show nothing more in this process; `done`: the run has come to its end."""
        ...


def require_package(package: str, tracker: str) -> None:
    """Look for a package without importing it.

    Raises:
        UserError: it is missing; says how to install it.
    """
    found = sys.modules[package] if package in sys.modules else importlib.util.find_spec(package)
    if found is None:
        raise UserError(f"tracker={tracker}: the package {package} is missing; pip install 'rlprune[{tracker}]'")


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as (`schedule.sparsity`, value), values that are no mapping as they are."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
