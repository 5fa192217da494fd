"""Weights & Biases. `WANDB_MODE=offline` writes to the run folder alone, and `wandb sync` sends that later."""

import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rlprune.files import write_text
from rlprune.trackers.base import require_package


class WandB:
    """One run there for each run here, also where it was killed and goes on.

    Its own process writes every few seconds: points of the last moment before a SIGKILL are missing from its curves, not from metrics.csv.

    Args:
        project: that the run belongs to.
        entity: user or team that the project belongs to; None: the user's own.
        mode: `online`, `offline`, or None: what `WANDB_MODE` says.
    """

    folder = "wandb"

    def __init__(self, *, project: str, entity: str | None, mode: Literal["online", "offline"] | None) -> None:
        if not project:
            raise ValueError(f"project={project}: must be a name")
        self.project, self.entity, self.mode = project, entity, mode
        require_package("wandb", "wandb")

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Begin the run, or take it up by the name that the folder keeps."""
        import wandb

        kept = folder / "run_id.txt"
        if not kept.exists():  # random at its end, as a folder may be deleted and its name given again
            name = re.sub(r"[^\w-]+", "-", folder.resolve().parent.name)[:100]
            write_text(kept, f"{name}-{secrets.token_hex(4)}\n")
        self._image = wandb.Image
        self._series: set[str] = set()
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            id=kept.read_text(encoding="utf-8").strip(),
            name=folder.resolve().parent.name,
            dir=folder.parent,
            config=dict(settings),
            allow_val_change=True,  # a resumed run may be in another folder
            resume="allow",
            settings=wandb.Settings(console="off", quiet=True),  # else it stands between the bars and the screen
        )

    def log(self, series: str, number: int, values: Mapping[str, float]) -> None:
        """`series/name` over an axis of the series' own, `series/number`."""
        axis = f"{series}/number"
        if series not in self._series:
            self._series.add(series)
            self._run.define_metric(f"{series}/*", step_metric=axis)
        self._run.log({axis: number, **{f"{series}/{name}": value for name, value in values.items()}})

    def finish(self, rows: Mapping[str, Mapping[str, float]], images: Sequence[Path]) -> None:
        """`table/network/column` in the run's summary, and the plots."""
        self._run.summary.update({f"table/{network}/{name}": value for network, row in rows.items() for name, value in row.items()})
        if images:
            self._run.log({f"plots/{path.stem}": self._image(str(path)) for path in images})

    def close(self, done: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=0 if done else 1)
