"""Latency, throughput and memory of networks beside each other: every runtime, precision and batch size."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rlprune.benchmark.runtimes import RUNTIMES, Prepare, Ready, Task, forward, laid_out
from rlprune.benchmark.timing import Clock, in_turns, summarize
from rlprune.errors import UserError
from rlprune.graph.run import call_model, copy_module

DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
FORMATS = {"true": (torch.channels_last,), "false": (torch.contiguous_format,), "auto": (torch.contiguous_format, torch.channels_last)}
TOLERANCES = {"fp32": 1e-2, "bf16": 0.25}
"""How far scores may be off, as a share of the largest: wide enough for sums in another order, too narrow for another network."""
TRIALS = 3  # passes that choose between two memory formats
LONGEST = 120  # letters of a reason


@dataclass(frozen=True)
class Case:
    """What the networks are compared under."""

    precision: str
    runtime: str
    batch_size: int


@dataclass
class Bench:
    """One comparison.

    Args:
        networks: by name; the others' speed-up is to the first. They are copied.
        example: images on the device that is timed, (N, C, H, W); repeated to the batch sizes.
        batch_sizes: images a pass.
        runtimes: words of `RUNTIMES`.
        precisions: fp32, bf16 (autocast; not in onnxruntime).
        channels_last: memory format of torch: true, false, or auto, the faster of the two for each network and batch size.
        threads: of torch and onnxruntime on the CPU; None: as torch is set.
        seconds: that a network is timed for in each case.
        rounds: turns in which that happens.
        clock: gives seconds.
        prepare: makes networks ready, by runtime.
    """

    networks: Mapping[str, nn.Module]
    example: Tensor
    batch_sizes: Sequence[int]
    runtimes: Sequence[str]
    precisions: Sequence[str]
    channels_last: str
    threads: int | None
    seconds: float
    rounds: int
    clock: Clock = time.perf_counter
    prepare: Mapping[str, Prepare] = field(default_factory=lambda: RUNTIMES)

    def __post_init__(self) -> None:
        self._copies = {name: copy_module(network).to(self.example.device).eval() for name, network in self.networks.items()}
        self._references: dict[tuple[str, int], Tensor] = {}
        self._formats: dict[tuple[str, int, str], torch.memory_format] = {}

    def run(self, on_rows: Callable[[pd.DataFrame], object] = lambda frame: None) -> pd.DataFrame:
        """A row a case and network, as in bench.csv; what cannot run has a note that says why, and no numbers.

        Args:
            on_rows: is given the rows so far whenever there are more.

        Raises:
            UserError: nothing can run.
        """
        cases = [Case(*words) for words in product(self.precisions, self.runtimes, self.batch_sizes)]
        cases = [case for case in cases if (case.runtime, case.precision) != ("onnxruntime", "bf16")]
        if not cases or not self.networks:
            raise UserError("there is nothing to time; name networks, runtimes, precisions and batch sizes (onnxruntime: fp32 alone)")
        rows: list[dict[str, Any]] = []
        with cpu_threads(self.threads), tqdm(total=len(cases) * len(self.networks), unit="row", leave=False) as bar:
            for case in cases:
                rows += self._rows(case, bar)
                frame = pd.DataFrame(rows).astype({"memory_bytes": "Int64"})
                on_rows(frame)
        if frame["passes"].eq(0).all():
            raise UserError("; ".join(dict.fromkeys(f"{row['runtime']}: {row['note']}" for row in rows)))
        return frame

    def _rows(self, case: Case, bar: Any) -> list[dict[str, Any]]:
        ready: dict[str, Ready] = {}
        rows: dict[str, dict[str, Any]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for place, name in enumerate(self.networks):
                bar.set_description(f"{name} {case.runtime} {case.precision} batch {case.batch_size}")
                rows[name] = {"network": name, **asdict(case), **NOTHING}
                (own := Path(folder) / str(place)).mkdir()
                try:
                    ready[name], rows[name]["max_difference"] = self._checked(case, name, own)
                except UserError as error:
                    rows[name]["note"] = str(error)
                except Exception as error:  # whatever a compiler or an exporter may raise
                    rows[name]["note"] = reason(error)
            passes = {name: partial(_finished, each, self.example.device) for name, each in ready.items()}
            taken = in_turns(passes, seconds=self.seconds, rounds=self.rounds, clock=self.clock)
            for name, each in ready.items():
                rows[name] |= asdict(summarize(taken[name]))
                rows[name]["images_per_second"] = 1000 * case.batch_size / rows[name]["median_ms"]
                rows[name]["memory_bytes"] = _number(each.memory())
                rows[name]["compile_seconds"] = _number(each.compile_seconds)
                rows[name]["memory_format"] = "channels_last" if each.memory_format is torch.channels_last else "plain"
        for each in ready.values():
            if each.release is not None:
                each.release()
        first = next(iter(rows.values()))
        for row in rows.values():
            row["speed_up"] = first["median_ms"] / row["median_ms"]
            bar.update()
        return list(rows.values())

    def _checked(self, case: Case, name: str, folder: Path) -> tuple[Ready, float]:
        """A network that is ready, and how far its scores are from those of eager float32, as a share of the largest.

        Raises:
            UserError: it cannot run, or computes something else.
        """
        images = self._images(case.batch_size)
        reference = self._reference(name, images)
        task = Task(
            self._copies[name],
            images,
            dtype=DTYPES[case.precision],
            memory_format=partial(self._format, name, images, case.precision),
            folder=folder,
            clock=self.clock,
        )
        ready = self.prepare[case.runtime](task)
        difference = float((ready.run().float() - reference).abs().max() / reference.abs().max().clamp(min=1e-30))
        if math.isnan(difference):
            raise UserError("scores are not finite, so they cannot be held against those of eager float32; not timed")
        if difference > TOLERANCES[case.precision]:
            raise UserError(f"computes something else: scores are off by {100 * difference:.3g} % of the largest; not timed")
        return ready, difference

    def _images(self, count: int) -> Tensor:
        return self.example[torch.arange(count) % len(self.example)]

    def _reference(self, name: str, images: Tensor) -> Tensor:
        """Scores of eager float32."""
        key = (name, len(images))
        if key not in self._references:
            network, images = laid_out(self._copies[name], images, torch.contiguous_format)
            scores = call_model(network, images, torch.inference_mode())
            if not isinstance(scores, Tensor):
                raise UserError(f"returns a {type(scores).__name__}, not a tensor")
            self._references[key] = scores.float()
        return self._references[key]

    def _format(self, name: str, images: Tensor, precision: str) -> torch.memory_format:
        """What was asked for; where that is `auto`, the format in which the fastest of a few eager passes is the faster."""
        network, formats = self._copies[name], FORMATS[self.channels_last]
        if images.ndim != 4 or not any(isinstance(module, nn.Conv2d) for module in network.modules()):
            return torch.contiguous_format
        key = (name, len(images), precision)
        if key not in self._formats:
            best = {}
            for memory_format in formats if len(formats) > 1 else ():
                run = partial(forward, *laid_out(network, images, memory_format), DTYPES[precision])
                passes = {"": partial(_finished, Ready(run, lambda: None), images.device)}
                trials = [in_turns(passes, seconds=0.0, rounds=1, clock=self.clock) for _ in range(TRIALS)]
                best[memory_format] = min(trial[""][0] for trial in trials)
            self._formats[key] = min(formats, key=lambda each: best.get(each, 0.0))
        return self._formats[key]


NOTHING = {
    "passes": 0,
    **dict.fromkeys(("median_ms", "q25_ms", "q75_ms", "p95_ms", "images_per_second", "speed_up"), math.nan),
    **dict.fromkeys(("memory_bytes", "compile_seconds", "max_difference"), math.nan),
    "memory_format": "",
    "note": "",
}
"""Of a network that was not timed."""


def bench(
    networks: Mapping[str, nn.Module],
    example: Tensor,
    *,
    batch_sizes: Sequence[int] = (1, 64),
    runtimes: Sequence[str] = ("eager", "compiled", "onnxruntime"),
    precisions: Sequence[str] = ("fp32",),
    channels_last: str = "auto",
    threads: int | None = None,
    seconds: float = 2.0,
    rounds: int = 5,
) -> pd.DataFrame:
    """Time networks beside each other, as `rlprune bench` does: a row for every network, runtime, precision and batch size.

    Args:
        networks: by name, such as `{"dense": model, "pruned": smaller}`; speed-ups are to the first.
        example: images, (N, C, H, W), on the device that is timed.
        batch_sizes: images a pass.
        runtimes: of eager, compiled, onnxruntime.
        precisions: of fp32, bf16.
        channels_last: true, false, or auto: where it is faster.
        threads: on the CPU; None: as torch is set.
        seconds: that each row is timed for.
        rounds: turns in which that happens.

    Raises:
        UserError: nothing can run.
    """
    return Bench(networks, example, batch_sizes, runtimes, precisions, channels_last, threads, seconds, rounds).run()


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with so many threads inside of this context; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reason(error: Exception) -> str:
    """The first line of what was raised, short enough for a line of a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _finished(ready: Ready, device: torch.device) -> Tensor:
    """A pass to its end: a GPU goes on when the call has returned."""
    scores = ready.run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return scores
