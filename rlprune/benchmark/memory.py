"""The memory that a network takes to run: its weights, its input, and what a pass holds at most besides."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlprune.benchmark.silence import silence


def pass_memory(run: Callable[[], object], network: nn.Module, images: Tensor) -> int:
    """Bytes of parameters, buffers and images, and the most that torch's allocator holds beyond them during one pass.

    That counts every tensor of the pass to the byte. Scratch memory that a kernel gets for itself on a CPU is not seen.
    """
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in [*network.parameters(), *network.buffers()]}  # shared ones count once
    added = _added_on_device(run, images.device) if images.is_cuda else _added_on_cpu(run)
    return sum(tensors.values()) + images.nbytes + added


def _added_on_device(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _added_on_cpu(run: Callable[[], object]) -> int:
    """From the profiler's record of what is allocated (bytes > 0) and freed (bytes < 0)."""
    with silence(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    results: Any = profile.profiler.kineto_results
    events = sorted((event for event in results.events() if event.name() == "[memory]"), key=lambda event: event.start_ns())
    held = most = 0
    for event in events:
        held += event.nbytes()
        most = max(most, held)
    return most


def resident_memory(path: Path, shape: tuple[int, ...], threads: int) -> int | None:
    """Bytes that a process of its own holds for an ONNX file while onnxruntime runs it.

    Resident memory at its peak during the passes, less that before the file was loaded. None where the system does not tell it
    (`/proc`), or that process fails.
    """
    job = json.dumps({"path": str(path), "shape": shape, "threads": threads})
    done = subprocess.run([sys.executable, "-m", "rlprune.benchmark.resident", job], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 and done.stdout.isdigit() else None
