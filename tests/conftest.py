import os
import signal

import pytest
import torch

from rlprune import cli


def pytest_collection_modifyitems(items):
    """Lines are counted in the first case of every test alone: counting takes more than half as long as the tests, and the bar stays."""
    seen = set()
    for item in items:
        name = item.nodeid.partition("[")[0]
        if name in seen:
            item.add_marker("no_cover")
        seen.add(name)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def _heard():
    """Ctrl-C is heard even where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def rlprune(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setenv("HYDRA_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "1"))
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def last_line(text):
    """What is left on the screen: progress bars erase themselves."""
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    return [line for line in lines if line and "|" not in line]


VARIES = {"seconds", "latency_ms", "peak_memory_bytes"}


def metrics(value):
    """A result without what differs from run to run."""
    if isinstance(value, dict):
        return {key: metrics(item) for key, item in value.items() if key not in VARIES}
    return [metrics(item) for item in value] if isinstance(value, list) else value
