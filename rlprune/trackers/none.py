"""No tracker: the files in the run folder say it all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class NoTracker:
    """Shows nothing, and costs nothing."""

    folder = None

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Nothing to begin."""

    def log(self, series: str, number: int, values: Mapping[str, float]) -> None:
        """Nothing to show."""

    def finish(self, rows: Mapping[str, Mapping[str, float]], images: Sequence[Path]) -> None:
        """Likewise."""

    def close(self, done: bool) -> None:
        """Nothing to end."""
