"""TensorBoard: event files in the run folder, `tensorboard --logdir outputs`."""

import io
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlprune.trackers.base import flat, require_package


class TensorBoard:
    """Writes one event file a process; TensorBoard reads those of a folder as one run.

    The records are written here and not by a `SummaryWriter`: its thread would print a traceback on a full disk, and a killed process
    would take along what the thread had not written.
    """

    folder = "tensorboard"

    def __init__(self) -> None:
        require_package("tensorboard", "tensorboard")

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Begin a file, with the settings as hyper-parameters and as text."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._event, self._summary, self._make = Event, Summary, summary
        resumed = any(folder.glob("*tfevents*"))
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"  # read in the order of their names
        self._writer = RecordWriter((folder / name).open("xb"))
        self._write(file_version="brain.Event:2")
        if not resumed:
            plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in flat(settings)}
            _, started, _ = summary.hparams(plain, {})  # without the first, TensorBoard gathers the names over all runs
            self._write(summary=started)
            self._text("config", f"```\n{json.dumps(settings, indent=2, default=str)}\n```")

    def log(self, series: str, number: int, values: Mapping[str, float]) -> None:
        """One event of scalars, named `series/name`."""
        scalars = [self._summary.Value(tag=f"{series}/{name}", simple_value=value) for name, value in values.items()]
        self._write(step=number, summary=self._summary(value=scalars))

    def finish(self, rows: Mapping[str, Mapping[str, float]], images: Sequence[Path]) -> None:
        """Scalars `table/network/column`, the table as text, the plots as they are."""
        for network, values in rows.items():
            self.log(f"table/{network}", 0, values)
        names = list(dict.fromkeys(name for values in rows.values() for name in values))
        lines = [["network", *names], ["---"] * (1 + len(names))]
        lines += [[network, *(f"{values[name]:.6g}" if name in values else "" for name in names)] for network, values in rows.items()]
        self._text("table", "\n".join(f"| {' | '.join(line)} |" for line in lines))
        for path in images:
            self._image(path)
        self._write(summary=self._make.hparams({}, {})[2])  # the session is over

    def close(self, done: bool) -> None:
        """Close the file."""
        self._writer.close()

    def _text(self, tag: str, text: str) -> None:
        self._write(summary=self._make.text(tag, text))

    def _image(self, path: Path) -> None:
        from PIL import Image

        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
        image = self._summary.Image(width=width, height=height, colorspace=4, encoded_image_string=data)
        self._write(summary=self._summary(value=[self._summary.Value(tag=f"plots/{path.stem}", image=image)]))

    def _write(self, **content: Any) -> None:
        """One event, on disk when this returns: a kill must not lose it."""
        try:
            self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())
            self._writer.flush()
        except OSError:
            with suppress(OSError):  # it will not be closed by anybody else
                self._writer.close()
            raise
