import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import metrics
from PIL import Image

from rlprune import cli
from rlprune.data.base import Augmentation, Images, Normalization
from rlprune.data.batches import Batches, Part
from rlprune.data.files import Geometry, ImageFiles
from rlprune.distributed import Group
from rlprune.errors import UserError
from rlprune.launch import Launch, launched

SMALL = ("debug=smoke", "device=cpu", "precision=fp32", "model.depth=8", "model.width=0.5", "dataset.image_size=16")
PRUNE = ("prune", *SMALL, "schedule.steps=3", "search.max_candidates=6", "training.save_minutes=0")
CPU = torch.device("cpu")


def torchrun(*words, folder):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(start, cwd=folder, env=environment, **streams)


def finished(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


# -- what is computed --------------------------------------------------------------------------------------------------------------------


def test_two_processes_compute_what_one_does(tmp_path):
    code, out, err = finished(torchrun(str(Path(__file__).with_name("together.py")), folder=tmp_path))
    assert code == 0, err
    assert [line.split()[-1] for line in out.splitlines() if line.endswith(" holds")] == ["holds"] * 5, out


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.4, "cutmix": 1.0, "randaugment": 9}])
@pytest.mark.parametrize("kind", ["memory", "files"])
def test_parts_of_a_batch_are_the_batch(tmp_path, mixing, kind):
    pixels, labels = torch.randint(0, 255, (11, 3, 6, 6)).byte(), torch.arange(11) % 3
    images = Images(pixels, labels)
    if kind == "files":
        paths = [tmp_path / f"{place}.png" for place in range(11)]
        for path, values in zip(paths, pixels, strict=True):
            Image.fromarray(np.asarray(values.permute(1, 2, 0))).save(path)
        images = ImageFiles(paths, labels, Geometry(6, None), 0)
    normalization, augmentation = Normalization((0.5,) * 3, (0.25,) * 3), Augmentation(crop=1, flip=True, **mixing)
    how = {"normalization": normalization, "augmentation": augmentation, "num_classes": 3, "seed": 1, "device": CPU}
    batches = Batches(images, batch_size=4, **how)
    for number, whole in enumerate(batches.epoch(0)):
        assert batches.count(number) == len(whole[0]) == (4, 4, 3)[number]
    for size in (2, 3, 5):  # of five parts one is always empty, and the first image stands in
        parts = [batches.epoch(0, 1, Part(rank, size)) for rank in range(size)]
        for whole, *together in zip(batches.epoch(0, 1), *parts, strict=True):
            count = len(whole[0])
            own = [Part(rank, size).of(count) for rank in range(size)]
            assert [place for places in own for place in places] == list(range(count))
            for places, part in zip(own, together, strict=True):
                for one, all_of_them in zip(part, whole, strict=True):
                    assert torch.equal(one, all_of_them[list(places) or [0]])


# -- the command line --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rank(monkeypatch, tmp_path):
    """Start lines as torchrun would, which tells every process its rank."""

    def be(number, size=2):
        names = {"RANK": number, "WORLD_SIZE": size, "LOCAL_RANK": number, "LOCAL_WORLD_SIZE": size, "TORCHELASTIC_RUN_ID": "none"}
        for name, value in (names | {"TORCHELASTIC_ERROR_FILE": tmp_path / "error.json"}).items():
            monkeypatch.setenv(name, str(value))

    return be


def test_one_process_is_no_group(rank, monkeypatch):
    assert launched() is None
    monkeypatch.setenv("WORLD_SIZE", "2")  # which others set as well
    assert launched() is None
    rank(1, size=2)
    assert launched() == Launch(1, 2, 1, 2)
    rank(0, size=1)
    assert launched() is None


@pytest.mark.parametrize(
    "line", [("evaluate", "run=x"), ("bench",), ("sensitivity",), ("train", "-m", "seed=0,1"), ("prune", "--multirun")]
)
def test_what_is_not_split_is_refused_once(rlprune, rank, tmp_path, line):
    rank(0)
    code, _, err = rlprune(*line)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "start this line without it" in err
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == err.strip()
    rank(1)
    assert rlprune(*line) == (0, "", "")
    assert rlprune("--help") == (0, "", "")


def test_a_grid_is_refused(rank, rlprune):
    rank(0)
    assert cli.run("prune", ["experiment=rlp_table1_small"]) == 2
    assert not list(Path().glob("**/result.json"))


def test_devices_are_one_a_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    group = SimpleNamespace(here=Launch(0, 4, 0, 2))
    Group.check(group, CPU)
    Group.check(group, torch.device("cuda"))
    with pytest.raises(UserError, match="use device=auto or device=cuda"):
        Group.check(group, torch.device("cuda:1"))
    group.here = Launch(0, 3, 0, 3)
    with pytest.raises(UserError, match=r"2 CUDA devices for 3 processes; start torchrun with --nproc-per-node=2"):
        Group.check(group, torch.device("cuda"))


def result(folder):
    return json.loads((folder / "result.json").read_text())


def child(process, rank):
    """The process of a rank; None before it has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and f"\0RANK={rank}\0" in (folder / "environ").read_text():
                return int(folder.name)
        except (OSError, ValueError):
            continue
    return None


def test_a_run_of_two_processes_is_one_run_and_goes_on_when_one_is_killed(tmp_path):
    code, out, err = finished(torchrun("-m", "rlprune", *PRUNE, "paths.run=whole", folder=tmp_path))
    assert code == 0, err
    assert out.count("2 processes share every training batch") == 1
    assert [path.parent.name for path in tmp_path.glob("**/result.json")] == ["whole"]
    killed = torchrun("-m", "rlprune", *PRUNE, "paths.run=killed", folder=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed/checkpoint/step-0001.safetensors").exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child(killed, 1), signal.SIGKILL)
    assert finished(killed)[0] == 1
    assert not (tmp_path / "killed/result.json").exists()
    code, out, err = finished(torchrun("-m", "rlprune", *PRUNE, "resume=killed", folder=tmp_path))
    assert code == 0, err
    assert "resuming behind step" in out
    assert metrics(result(tmp_path / "killed")) == metrics(result(tmp_path / "whole"))


def test_a_failure_of_another_process_is_the_runs(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import os, torch\n\n\nclass Net(torch.nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(768, 10))\n\n    def forward(self, x):\n"
        "        if os.environ['RANK'] == '1':\n            raise ValueError('not here')\n        return super().forward(x)\n"
    )
    line = ("train", "debug=smoke", "device=cpu", "dataset.image_size=16", "model=custom", "model.target=mine.Net", "paths.run=run")
    code, _, err = finished(torchrun("-m", "rlprune", *line, folder=tmp_path))
    assert code == 1
    assert json.loads((tmp_path / "run/failed.json").read_text()) == {"error": "rank 1: ValueError: not here"}
    assert err.count("rlprune train: rank 1: ValueError: not here\n") == 2  # there, and below in what torchrun reports
