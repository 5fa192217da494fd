"""What a run writes while it goes on, and its last word, `result.json`."""

import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rlprune.files import write_sealed, write_text

if TYPE_CHECKING:
    import torch

FORMAT = 1  # of result.json; it rises when what an older version reads changes its meaning
PACKAGES = ("rlprune", "torch", "torchvision", "hydra-core", "numpy")


@dataclass(frozen=True)
class StepRecord:
    """One pruning step, a row of metrics.csv. Accuracies are fractions on the search split.

    In joint training it is an epoch, and sparsity, MACs and parameters are those of the decision, which goes behind the last.
    """

    step: int
    sparsity: float
    macs: int
    params: int
    reward: float
    accuracy_pruned: float
    accuracy_recovered: float
    candidates: int
    repeated: int
    search_seconds: float
    recovery_seconds: float
    accuracy_unpruned: float | None = None  # in joint training
    train_loss: float | None = None  # likewise, and the time that the epoch took without its search
    training_seconds: float | None = None
    latency_predicted: float | None = None  # seconds a pass, where a latency model was asked for


@dataclass(frozen=True)
class Identity:
    """Which run this is: its folder, what was chosen in each config group, its seed."""

    command: str
    run_dir: Path
    choices: dict[str, str]
    seed: int


@dataclass
class History:
    """Of a search so far.

    Rows of metrics.csv, layers.csv and episodes.csv, saved levels (folder, level, sparsity, macs), recoveries (phase, epochs).
    """

    steps: list[StepRecord] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    levels: list[dict[str, Any]] = field(default_factory=list)
    recoveries: list[tuple[str, int]] = field(default_factory=list)
    candidates: int = 0  # distinct ones measured
    repeated: int = 0  # answered from the cache
    stopped: str = ""  # why the search ended before its last step


@dataclass(frozen=True)
class Row:
    """One network of the final table. Accuracies are fractions, on the test split except `search_top1`."""

    name: str
    level: float
    top1: float
    standard_error: float
    n: int
    top5: float | None
    search_top1: float
    params: int
    macs: int
    sparsity: float
    latency_ms: float


def elapsed(start: float) -> float:
    """Seconds since a time of time.perf_counter; none where the clock was put back, as that of a virtual machine may be."""
    return max(0.0, time.perf_counter() - start)


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed(start)


def write_steps(run_dir: Path, history: History) -> None:
    """metrics.csv, a row a step, layers.csv, the units kept in every group at every step, and episodes.csv."""
    write_episodes(run_dir, history)
    metrics = pd.DataFrame([asdict(step) for step in history.steps]).dropna(axis="columns", how="all")
    write_text(run_dir / "metrics.csv", metrics.to_csv(index=False))
    write_text(run_dir / "layers.csv", pd.DataFrame(history.layers).to_csv(index=False))


def write_episodes(run_dir: Path, history: History) -> None:
    """episodes.csv, a row for every episode that an agent has reported; none where it knows no episodes."""
    if history.episodes:
        write_text(run_dir / "episodes.csv", pd.DataFrame(history.episodes).to_csv(index=False))


def environment(device: "torch.device") -> dict[str, Any]:
    """Versions, device and peak memory, for result.json."""
    import torch  # not above: a report reads these files without it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_cpu_name()}, {torch.get_num_threads()} threads",
        "peak_memory_bytes": peak,
        "peak_device_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def _cpu_name() -> str:
    """What the processor calls itself, with what bfloat16 runs on."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if ":" in line)
    except OSError:  # not Linux
        return platform.processor() or platform.machine() or "cpu"
    known = {key.strip(): value.strip() for key, value in lines.items()}
    unit = next(
        (f" ({name})" for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 bf16")) if flag in known.get("flags", "").split()),
        "",
    )
    return f"{known.get('model name') or platform.machine() or 'cpu'}{unit}"


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Write result.json atomically; its presence means that the run is done."""
    write_sealed(run_dir / "result.json", result)
