"""A process of its own that prints how many bytes it holds to run an ONNX file. Imports no torch."""

import ctypes
import json
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


def open_session(path: str, threads: int) -> Any:
    """An onnxruntime session on the CPU that computes with so many threads and keeps its warnings to itself."""
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def resident(entry: str) -> int | None:
    """Bytes of this process that lie in memory, VmRSS, or did at most, VmHWM; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{entry}:")), None)
    return None if found is None else 1024 * int(found.split()[1])


def forget_peak() -> None:
    """Hand back what was freed, and let VmHWM begin anew; a no-op where the system cannot."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # glibc keeps what was read and freed while the file was loaded
        library.malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def main(job: str) -> None:
    """Three passes of `job`: JSON with `path`, `shape` and `threads`; prints the bytes as JSON."""
    settings = json.loads(job)
    import_module("onnxruntime")
    images = np.ones(settings["shape"], dtype=np.float32)
    before = resident("VmRSS")
    session = open_session(settings["path"], settings["threads"])
    forget_peak()
    for _ in range(3):
        session.run(None, {session.get_inputs()[0].name: images})
    peak = resident("VmHWM")
    sys.stdout.write(json.dumps(None if before is None or peak is None else peak - before + images.nbytes))


if __name__ == "__main__":
    main(sys.argv[1])
