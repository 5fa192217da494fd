"""What runs a network: torch as it is, torch.compile, or onnxruntime. Each makes one network ready for one batch."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from rlprune.benchmark.memory import pass_memory, resident_memory
from rlprune.benchmark.resident import open_session
from rlprune.benchmark.silence import silence
from rlprune.benchmark.timing import Clock
from rlprune.errors import UserError
from rlprune.export.onnx import export_onnx, require_onnx


@dataclass(frozen=True)
class Task:
    """A network in eval mode, the images that it is timed on, and how.

    Args:
        network: is brought into the memory format that it runs in.
        images: (N, C, H, W), float32.
        dtype: of autocast; None: float32.
        memory_format: chooses that of torch.
        folder: for files, empty.
        clock: times the compilation.
    """

    network: nn.Module
    images: Tensor
    dtype: torch.dtype | None
    memory_format: Callable[[], torch.memory_format]
    folder: Path
    clock: Clock


@dataclass(frozen=True)
class Ready:
    """What can be timed.

    Args:
        run: one pass; returns the scores.
        memory: bytes that it takes; None where that cannot be known.
        memory_format: that it runs in.
        compile_seconds: until the first pass was over; for onnxruntime, of exporting and loading. None where nothing is compiled.
        release: gives back what outlives this object.
    """

    run: Callable[[], Tensor]
    memory: Callable[[], int | None]
    memory_format: torch.memory_format = torch.contiguous_format
    compile_seconds: float | None = None
    release: Callable[[], object] | None = None


Prepare = Callable[[Task], Ready]


def forward(network: Callable[[Tensor], Tensor], images: Tensor, dtype: torch.dtype | None) -> Tensor:
    """One pass without gradients; with a type, under an autocast of its own, which casts the weights in every pass."""
    with torch.inference_mode(), nullcontext() if dtype is None else torch.autocast(images.device.type, dtype):
        return network(images)


def eager(task: Task) -> Ready:
    """Torch as it is."""
    chosen = task.memory_format()
    network, images = laid_out(task.network, task.images, chosen)
    run = partial(forward, network, images, task.dtype)
    return Ready(run, partial(pass_memory, run, network, images), chosen)


def compiled(task: Task) -> Ready:
    """torch.compile for this batch size alone; kernels that torch keeps from an earlier compilation are used again."""
    chosen = task.memory_format()
    network, images = laid_out(task.network, task.images, chosen)
    run = partial(forward, torch.compile(network, dynamic=False), images, task.dtype)
    with silence():
        torch.compile(torch.neg, dynamic=False)(images)  # so that the first network does not pay for the start of the compiler
        start = task.clock()
        run()
    return Ready(run, partial(pass_memory, run, network, images), chosen, task.clock() - start, torch.compiler.reset)


def onnxruntime(task: Task) -> Ready:
    """The session of onnxruntime on the CPU, with as many threads as torch.

    Raises:
        UserError: it is not installed, or the images are elsewhere.
    """
    if task.images.device.type != "cpu":
        raise UserError("is timed on the CPU alone; device=cpu does so")
    if find_spec("onnxruntime") is None:
        raise UserError("not installed; pip install 'rlprune[onnx]'")
    require_onnx()
    network, images = laid_out(task.network, task.images, torch.contiguous_format)
    path, threads, start = task.folder / "network.onnx", torch.get_num_threads(), task.clock()
    with silence():
        export_onnx(network, images, path, opset=None, dynamic_batch=False, metadata={})
        session = open_session(str(path), threads)
    seconds, inputs = task.clock() - start, {session.get_inputs()[0].name: images.numpy()}
    memory = partial(resident_memory, path, tuple(images.shape), threads)
    return Ready(lambda: torch.from_numpy(session.run(None, inputs)[0]), memory, compile_seconds=seconds)


RUNTIMES: dict[str, Prepare] = {"eager": eager, "compiled": compiled, "onnxruntime": onnxruntime}


def laid_out(network: nn.Module, images: Tensor, memory_format: torch.memory_format) -> tuple[nn.Module, Tensor]:
    """A network, changed in place, and images in a memory format."""
    if images.ndim != 4:
        return network, images
    return network.to(memory_format=memory_format), images.contiguous(memory_format=memory_format)
