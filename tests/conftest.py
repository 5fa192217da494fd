import base64
import copy
import os
import signal
from functools import partial

import pytest
import torch
from hydra._internal.hydra import Hydra
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from rlprune import cli
from rlprune.config import conf_dir
from rlprune.results import final_test

ONE_PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


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


@pytest.fixture(scope="session", autouse=True)
def _composed_once():
    """Hydra composes a line twice, first to ask for its mode, and parses every file anew: here a mode is asked once, a file parsed once."""
    load, get_mode, shipped, files, modes = OmegaConf.load, Hydra.get_mode, str(conf_dir().resolve()), {}, {}

    def load_once(file):
        name = file if isinstance(file, str | os.PathLike) else file.name
        if not str(name).startswith(shipped):
            return load(file)
        if name not in files:
            files[name] = load(file)
        return copy.deepcopy(files[name])

    def mode_once(hydra, config_name, overrides):
        elsewhere = any(source.scheme() == "file" and source.path != shipped for source in hydra.config_loader.get_sources())
        if elsewhere or any("experiment" in word or "hydra" in word for word in overrides):  # what may set a mode
            return get_mode(hydra, config_name, overrides)
        if config_name not in modes:
            modes[config_name] = get_mode(hydra, config_name, [])
        return modes[config_name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", load_once)
        patch.setattr(Hydra, "get_mode", mode_once)
        yield


@pytest.fixture
def _sketched(monkeypatch):
    """Figures are made but not drawn, and a latency is one run's: both are long, and have tests of their own."""

    def save(figure, file, **_):
        stream = file if hasattr(file, "write") else open(file, "wb")  # noqa: SIM115
        stream.write(ONE_PIXEL)
        if stream is not file:
            stream.close()

    monkeypatch.setattr(Figure, "savefig", save)
    monkeypatch.setattr(final_test, "measure_latency", partial(final_test.measure_latency, repeats=1))


@pytest.fixture
def rlprune(tmp_path, monkeypatch, capsys, request):
    """Run a command line in an empty folder; returns exit code, standard output and standard error. Marked `drawn`, its plots are drawn."""
    if request.node.get_closest_marker("drawn") is None:
        request.getfixturevalue("_sketched")
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


VARIES = {"seconds", "latency_ms", "peak_memory_bytes", "crc32"}


def metrics(value):
    """A result without what differs from run to run."""
    if isinstance(value, dict):
        return {key: metrics(item) for key, item in value.items() if key not in VARIES}
    return [metrics(item) for item in value] if isinstance(value, list) else value
