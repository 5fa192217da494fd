"""Compilers, exporters and profilers talk; what they have to say is in what they raise."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is printed inside of this context, not by libraries in C++ either; no warnings, no log lines."""
    level = logging.root.manager.disable
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            logging.disable(logging.ERROR)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(level)
            for place, handle in enumerate(kept, start=1):
                os.dup2(handle, place)
                os.close(handle)
