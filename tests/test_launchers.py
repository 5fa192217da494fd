"""Sweeps whose runs stand beside each other: every run is done once and to the same result, whatever happens to the others."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from conftest import metrics
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from test_grid import TINY

from rlprune import places
from rlprune.commands import parallel
from rlprune.commands.launchers import OneBoxLauncher, RayLauncher, _failed
from rlprune.commands.sweeper import GridSweeper
from rlprune.config import conf_dir
from rlprune.errors import UserError
from rlprune.grid import read_grid
from rlprune.skeleton import EvaluateConfig

SWEEP = ("prune", "-m", *TINY, "recovery=none", "schedule.steps=3", "dense_seed=0", "resume=true")
BESIDE = ("hydra/launcher=one_box", "hydra.launcher.n_jobs=2")


@pytest.fixture(autouse=True)
def _own_places(tmp_path, monkeypatch):
    """Locks of this test alone."""
    monkeypatch.setattr(places.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(places, "SECONDS", 0.01)


# -- places ----------------------------------------------------------------------------------------------------------------------------


def _hold(names, told, until):
    with places.one_of(names, lambda: None) as index:
        told.send(index)
        until.recv()


def test_two_take_one_place_each_and_a_killed_one_lets_go(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    context = get_context("fork")
    (told, tell), (until, _) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    other = context.Process(target=_hold, args=(["a", "b"], tell, until))
    other.start()
    assert told.recv() == 0
    waits = []
    with places.one_of(["a", "b"], lambda: waits.append("b")) as index:
        assert (index, waits) == (1, [])
        with places.taken("b"):  # used all the same

            def kill():
                other.kill()
                other.join()

            with places.one_of(["a", "b"], kill) as freed:
                assert freed == 0
    with places.one_of(["a"], pytest.fail) as index:
        assert index == 0


def test_a_folder_of_somebody_else_is_not_trusted(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"rlprune-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="belongs to somebody else; name another folder with TMPDIR=FOLDER"), places.taken("a"):
        pytest.fail("it was used")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("device", "launcher", "held", "chosen"),
    [
        ("auto", {}, [], "auto"),
        ("auto", {}, [0], "auto"),  # as it always was: the user has not asked for a free one
        ("free", {}, [], "cuda:0"),
        ("free", {}, [0, 1], "cuda:2"),
        ("auto", {"_target_": "hydra_plugins.rlprune_launchers.OneBoxLauncher"}, [0], "cuda:1"),
        ("auto", {"_target_": "hydra_plugins.rlprune_launchers.RayLauncher"}, [0], "auto"),  # Ray has chosen
        ("cuda:1", {"_target_": "x.JoblibLauncher"}, [0, 1], "cuda:1"),
        ("cpu", {"_target_": "x.JoblibLauncher"}, [0, 1, 2], "cpu"),
        ("cuda:9", {}, [], "cuda:9"),  # refused where it is used
    ],
)
def test_which_gpu_a_run_takes(monkeypatch, device, launcher, held, chosen):
    names = ["gpu-x", "gpu-y", "gpu-z"]
    monkeypatch.setattr(parallel, "gpus", lambda: names)
    monkeypatch.setattr(parallel, "_launcher", lambda: launcher)
    config = EvaluateConfig(device=device)
    with ExitStack() as stack:
        for index in held:
            stack.enter_context(places.taken(names[index]))
        with parallel.a_place_for(config):
            assert config.device == chosen
            if chosen[-1].isdecimal() and int(chosen[-1]) < 3:
                assert places._held(names[int(chosen[-1])]) is None  # held
    for name in names:
        assert places._held(name) is not None  # let go of


def test_free_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(parallel, "gpus", list)
    monkeypatch.setattr(parallel, "_launcher", dict)
    config = EvaluateConfig(device="free")
    with parallel.a_place_for(config):
        assert config.device == "auto"


@pytest.mark.parametrize(("told", "wanted", "threads", "seats"), [("", None, 1, 4), ("2", None, 2, 2), ("1", 3, 3, 1), ("9", None, 9, 1)])
def test_jobs_that_start_all_at_once_share_the_cores(monkeypatch, told, wanted, threads, seats):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr(parallel, "cores", lambda: 4)
    before, waits = torch.get_num_threads(), []
    with ExitStack() as stack:
        for number in range(seats - 1):
            stack.enter_context(places.taken(f"cores-{threads}-{number}"))
        try:
            with parallel._some_cores(wanted):
                assert torch.get_num_threads() == threads
                assert all(places._held(f"cores-{threads}-{number}") is None for number in range(seats))
        finally:
            torch.set_num_threads(before)
    assert waits == []


@pytest.mark.parametrize(
    ("told", "n_jobs", "threads", "jobs", "each"),
    [("", 4, None, 9, 4), ("", 4, None, 2, 8), ("1", 4, None, 9, 1), ("64", 4, None, 9, 4), ("", 99, None, 50, 1), ("", 2, 3, 9, 3)],
)
def test_threads_of_a_run(monkeypatch, told, n_jobs, threads, jobs, each):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr("rlprune.commands.launchers.cores", lambda: 16)
    assert OneBoxLauncher(n_jobs=n_jobs, threads=threads)._threads(jobs) == each


# -- launchers -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("hydra/launcher=nonsense",), "hydra/launcher=nonsense: unknown; choose one of one_box, ray_cluster, slurm"),
        (("hydra/launcher=one_box", "hydra.launcher.n_jobs=0"), "hydra.launcher.n_jobs=0: must be an integer ≥ 1"),
        (("hydra/launcher=one_box", "hydra.launcher.threads=x"), "hydra.launcher.threads=x: must be an integer ≥ 1"),
    ],
)
def test_bad_input(rlprune, words, message):
    code, _, err = rlprune("prune", "-m", *words, "seed=0,1")
    assert (code, message in err.splitlines()[-1], "Traceback" in err) == (2, True, False), err


@pytest.mark.parametrize(("preset", "launcher", "module"), [("slurm", "submitit_slurm", "submitit"), ("ray_cluster", "", "ray")])
def test_what_is_not_installed_is_named(rlprune, monkeypatch, preset, launcher, module):
    if __import__("importlib.util").util.find_spec(module) is not None:
        if launcher:
            pytest.skip("is installed, and Hydra keeps what it has found")
        monkeypatch.setitem(sys.modules, module, None)
    code, _, err = rlprune("prune", "-m", f"hydra/launcher={preset}", "seed=0,1")
    assert (code, f"pip install 'rlprune[{module}]'" in err.splitlines()[-1]) == (2, True), err


@pytest.mark.parametrize("name", ["slurm", "joblib"])
def test_a_preset_has_only_settings_of_its_launcher(rlprune, name):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher" if name == "slurm" else "hydra_plugins.hydra_joblib_launcher")
    code, out, err = rlprune("prune", f"hydra/launcher={name}", "--cfg", "hydra", "--package", "hydra.launcher")
    assert code == 0, err
    ours = conf_dir() / "hydra" / "launcher" / f"{name}.yaml"
    expected = {key: value for key, value in OmegaConf.load(ours).items() if key != "defaults"} if ours.exists() else {}
    shown = OmegaConf.create(out[out.index("\n") :] if out.startswith("#") else out)
    assert {key: shown[key] for key in expected} == expected


class Waves:
    """A launcher that writes down what it was given at once."""

    def __init__(self):
        self.given = []

    def launch(self, jobs, initial_job_idx):
        self.given.append((initial_job_idx, jobs))
        return [JobReturn(overrides=job, status=JobStatus.COMPLETED) for job in jobs]


def test_those_that_follow_others_wait_for_them_and_results_keep_their_order():
    grid = {
        "each": {"seed": [0, 1]},
        "runs": [{"agent": "mcq"}, {"follows": {"agent": "mcq"}, "agent": "like"}, {"agent": "amc"}],
    }
    cells, sweeper = read_grid(grid), GridSweeper()
    sweeper.launcher = Waves()
    jobs = [[cell.name] for cell in cells]
    assert [result.overrides for result in sweeper._in_waves(cells, jobs)] == jobs
    first = [["mcq_seed-0"], ["amc_seed-0"], ["mcq_seed-1"], ["amc_seed-1"]]
    assert sweeper.launcher.given == [(0, first), (4, [["mcq_like_seed-0"], ["mcq_like_seed-1"]])]


# -- as a user runs them ---------------------------------------------------------------------------------------------------------------


def start(*words, folder):
    """A line in a process group of its own."""
    code = "import sys; from rlprune import cli; sys.exit(cli.main())"
    with (folder / "screen.txt").open("a") as screen:
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            cwd=folder, stdout=screen, stderr=screen, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def wait_for(what, seconds=90):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def test_killed_runs_go_on_to_the_same_result_and_a_failed_or_killed_one_leaves_the_others_alone(rlprune, tmp_path):
    line = (*SWEEP, "agent=random_search", "seed=0,1,-1", "hydra.sweep.dir=killed", *BESIDE)
    sweep = start(*line, folder=tmp_path)
    wait_for(lambda: any(len(path.read_text().splitlines()) > 1 for path in tmp_path.glob("killed/*/metrics.csv")))
    os.killpg(sweep.pid, signal.SIGKILL)
    assert sweep.wait() == -signal.SIGKILL
    sweep = start(*line, folder=tmp_path)
    assert sweep.wait() == 2
    screen = (tmp_path / "screen.txt").read_text()
    assert "Traceback" not in screen
    assert screen.splitlines()[-1] == "rlprune prune: seed=-1: must be ≥ 0"
    assert rlprune(*SWEEP, "agent=random_search", "seed=0,1", "hydra.sweep.dir=whole")[0] == 0
    for path in sorted(Path("whole").glob("*/result.json")):
        other = Path("killed") / path.parent.name
        assert metrics(json.loads(path.read_text())) == metrics(json.loads((other / "result.json").read_text()))
        assert (path.parent / "pruned/weights.safetensors").read_bytes() == (other / "pruned/weights.safetensors").read_bytes()
    assert sorted(path.parent.name[0] for path in Path("killed").glob("*/result.json")) == ["0", "1"]
    assert json.loads(next(Path("killed").glob("2_*/failed.json")).read_text())["error"] == "seed=-1: must be ≥ 0"


class DefectError(Exception):
    def __init__(self, one, other):
        super().__init__(one)


def _job(shared, overrides, number):
    if overrides[0] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if overrides[0] == "interrupted":
        raise KeyboardInterrupt
    if overrides[0] == "ends":
        sys.exit(3)
    if overrides[0] == "defect":
        return _failed(DefectError("a", "b"), overrides)
    return JobReturn(overrides=[*overrides, number, os.environ["OMP_NUM_THREADS"]], status=JobStatus.COMPLETED)


def test_processes_that_die_are_told_of_and_the_others_go_on(monkeypatch, capfd):
    launcher = OneBoxLauncher(n_jobs=2, threads=3)
    monkeypatch.setattr(launcher, "_shared", dict)
    monkeypatch.setattr("rlprune.commands.launchers.get_context", lambda _: get_context("fork"))
    monkeypatch.setattr("rlprune.commands.launchers.run_one", _job)
    words = ["one", "dies", "defect", "interrupted", "ends", "two"]
    results = launcher.launch([[word] for word in words], 7)
    assert [result.status for result in results] == [JobStatus.COMPLETED, *[JobStatus.FAILED] * 4, JobStatus.COMPLETED]
    assert (results[0].overrides, results[-1].overrides) == (["one", 7, "3"], ["two", 12, "3"])
    whys = [str(result._return_value) for result in results[1:-1]]
    assert whys[0].startswith("dies: its process was killed by signal 9 (out of memory?); the same line with resume=true")
    assert whys[1] == "DefectError: a"
    assert [why.partition(";")[0] for why in whys[2:]] == ["interrupted: its process ended with 130", "ends: its process ended with 3"]
    assert "Traceback" not in capfd.readouterr().err


def test_runs_end_with_the_sweep_that_started_them(tmp_path):
    sweep = start(*SWEEP, "agent=mcq", "schedule.steps=50", "seed=0,1", "hydra.sweep.dir=left", *BESIDE, folder=tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("left/*/metrics.csv"))) == 2)
    sweep.kill()  # it alone
    sweep.wait()
    from rlprune.files import is_held

    wait_for(lambda: not any(is_held(path) for path in tmp_path.glob("left/*/config.yaml")))
    assert list(tmp_path.glob("left/*/result.json")) == []
    assert "Traceback" not in (tmp_path / "screen.txt").read_text()


@pytest.mark.cluster
def test_ray(rlprune):
    ray = pytest.importorskip("ray")
    launcher = RayLauncher(address=None, num_cpus=1, num_gpus=None)
    assert (launcher._gpus({"CPU": 2.0}), launcher._gpus({"CPU": 2.0, "GPU": 1.0})) == (0, 1)
    with pytest.raises(UserError, match=r"hydra.launcher.num_gpus=2: the cluster has 1 GPUs; ask for fewer"):
        RayLauncher(address=None, num_cpus=1, num_gpus=2)._gpus({"CPU": 2.0, "GPU": 1.0})
    line = (*SWEEP, "agent=uniform", "seed=0,-1", "hydra.sweep.dir=ray", "hydra/launcher=ray_cluster")
    code, _, err = rlprune(*line)
    assert (code, err.splitlines()[-1]) == (2, "rlprune prune: seed=-1: must be ≥ 0")
    assert [path.parent.name[0] for path in Path("ray").glob("*/result.json")] == ["0"]
    assert not ray.is_initialized()
