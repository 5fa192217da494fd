import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import last_line, metrics
from PIL import Image

import rlprune as package
from rlprune.checkpoint import load_tensors
from rlprune.config import build, shipped
from rlprune.data.batches import Batches
from rlprune.data.digits import Digits
from rlprune.errors import UserError
from rlprune.files import hold
from rlprune.models.resnet import CifarResNet
from rlprune.provenance import Provenance, mark
from rlprune.search.job import PruneJob
from rlprune.search.ledger import Ledger

SMALL = ("debug=smoke", "device=cpu", "model.depth=8", "model.width=0.5", "dataset.image_size=16")
SMOKE = ("prune", *SMALL)


class Grey(torch.nn.Conv2d):
    """Takes images of one channel."""

    def __init__(self):
        super().__init__(1, 10, 32)


class TwoFaced(torch.nn.Linear):
    """Returns a tuple in training."""

    def __init__(self):
        super().__init__(3 * 32 * 32, 10)

    def forward(self, images):
        scores = super().forward(images.flatten(1))
        return (scores, scores) if self.training else scores


def run_dirs(command="prune"):
    return sorted(Path("outputs", command).iterdir())


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.drawn
def test_prune_evaluate_and_report(rlprune, monkeypatch):
    reads = []
    read_test = Digits.read_test
    monkeypatch.setattr(
        Digits, "read_test", lambda self: reads.append(len(list(Path("outputs/prune").glob("*/metrics.csv")))) or read_test(self)
    )
    code, out, err = rlprune(*SMOKE)
    assert (code, reads) == (0, [1])  # opened once, after the search
    assert "recovered 50 %" in out
    assert "at most 12 candidates (6 a step)" in out
    assert "search step" in err  # a progress bar
    (folder,) = run_dirs()
    names = "config.yaml log.txt metrics.csv layers.csv pruned result.json table.md table.csv accuracy.png layers.png channels.png"
    assert {path.name for path in folder.iterdir()} == set(names.split())
    done = result(folder)
    assert [row["name"] for row in done["rows"]] == ["dense", "dense + same recovery epochs", "pruned 50 %", "recovered 50 %"]
    assert done["rows"][3]["sparsity"] == pytest.approx(0.5, abs=0.003)
    assert done["splits"] == {"train": 128, "search": 32, "search_used": 32, "test": 160}
    assert done["search_split_seen"] == "no"
    steps, layers = pd.read_csv(folder / "metrics.csv"), pd.read_csv(folder / "layers.csv")
    assert len(steps) == 2
    assert steps["candidates"].tolist() == [6, 6]
    assert sorted(layers["step"].unique()) == [0, 1, 2]

    network = package.load(folder)
    assert sum(parameter.numel() for parameter in network.parameters()) == done["rows"][3]["params"]
    code, out, _ = rlprune("evaluate", f"run={folder}")
    assert code == 0
    evaluated = result(run_dirs("evaluate")[0])["rows"][0]
    for key in ("top1", "n", "params", "macs", "sparsity", "search_top1"):
        assert evaluated[key] == done["rows"][3][key]

    Path("outputs/prune/half").mkdir()
    Path("outputs/prune/half/config.yaml").write_text("agent: {}\n")
    code, out, _ = rlprune("report", "runs=outputs/**")
    assert code == 0
    assert "outputs/prune/half: no result.json: unfinished" in out
    (report,) = run_dirs("report")
    assert pd.read_csv(report / "report.csv")["network"].tolist() == ["dense", "dense + same recovery epochs", "mcq"]
    assert {path.stem for path in (report / "plots").iterdir()} == {"accuracy", "steps", "channels", "rewards", "time"}
    assert "dense + same recovery epochs" in (report / "report.md").read_text()


def test_two_runs_with_one_seed_are_equal_and_the_dense_network_is_kept(rlprune):
    line = (*SMOKE, "schedule.save_at=[0.25]")
    assert rlprune(*line)[0] == 0
    kept = list(Path("outputs/dense").iterdir())
    stamp = kept[0].stat().st_mtime_ns
    code, out, _ = rlprune(*line)
    assert (code, "dense network: loaded" in out) == (0, True)
    assert rlprune(*line, "seed=1")[0] == 0
    first, second, other = (metrics(result(folder)) for folder in run_dirs())
    assert first == second != other
    assert (len(kept), kept[0].stat().st_mtime_ns) == (1, stamp)
    assert [row["name"] for row in first["rows"]][2:] == ["pruned 25 %", "recovered 25 %", "pruned 50 %", "recovered 50 %"]
    assert (run_dirs()[0] / "pruned-0.25/plan.json").exists()


def test_nothing_is_trained_on_search_or_test_images(rlprune, monkeypatch):
    seen = []

    class Spy(Batches):
        def __init__(self, images, **settings):
            super().__init__(images, **settings)
            seen.append({image.numpy().tobytes() for image in images.pixels})

    held_out = []
    monkeypatch.setattr("rlprune.training.recover.Batches", Spy)
    from rlprune.training.evaluate import Evaluator

    original = Evaluator.__init__

    def spy(self, images, *arguments, **settings):
        held_out.append({image.numpy().tobytes() for image in images.pixels})
        original(self, images, *arguments, **settings)

    monkeypatch.setattr(Evaluator, "__init__", spy)
    assert rlprune(*SMOKE)[0] == 0
    assert len(seen) >= 5  # dense, timing, two recoveries, control
    assert len(held_out) == 2  # search and test
    assert not held_out[0] & held_out[1]
    for trained in seen:
        for images in held_out:
            assert not trained & images


@pytest.mark.parametrize(
    "choice", ["agent=uniform", "channels_last=true", "recovery=finetune", "recovery=none", "criterion=l1", "reward=params", "model=vgg11"]
)
def test_choices_run_whole(rlprune, choice):
    line = ("prune", "debug=smoke", "model.width=0.125") if choice == "model=vgg11" else SMOKE
    code, _, err = rlprune(*line, choice)
    assert code == 0, err
    done = result(run_dirs()[0])
    assert choice == "channels_last=true" or done["choices"][choice.split("=")[0]] == choice.split("=")[1]
    if choice == "recovery=none":
        assert [row["name"] for row in done["rows"]] == ["dense", "pruned 50 %"]


def test_train_then_prune_from_a_checkpoint(rlprune):
    code, out, _ = rlprune("train", *SMALL)
    assert code == 0
    (dense,) = Path("outputs/dense").iterdir()
    code, out, _ = rlprune(*SMOKE, f"checkpoint={dense}")
    assert code == 0
    assert "may have been trained on the search split" in out
    assert result(run_dirs()[0])["search_split_seen"] == "unknown"
    code, out, _ = rlprune("evaluate", *SMALL, f"checkpoint={dense}")
    assert code == 0
    assert result(run_dirs("evaluate")[0])["rows"][0]["top1"] == result(run_dirs("train")[0])["rows"][0]["top1"]
    code, _, err = rlprune("prune", "model=vgg11", f"checkpoint={dense}", "debug=smoke")
    assert code == 2
    assert "weights of another architecture" in last_line(err)[-1]


def test_max_minutes_ends_a_search_with_what_it_has(rlprune):
    code, out, _ = rlprune(*SMOKE, "schedule.max_minutes=1e-6", "schedule.steps=5")
    assert code == 0
    done = result(run_dirs()[0])
    assert done["search"]["stopped"] == "max_minutes"
    assert done["search"]["steps"] == 1
    assert done["rows"][-1]["sparsity"] == pytest.approx(0.1, abs=0.01)
    assert "the search stopped behind step 1" in out


def test_a_sweep_goes_on_past_a_failure_and_says_so(rlprune):
    code, _, err = rlprune(*SMOKE, "-m", "agent=uniform", "model.depth=21,20")
    assert code == 2
    assert "model.depth=21: must be 6n + 2" in err
    (sweep,) = run_dirs()
    code, out, _ = rlprune("report", "runs=outputs/prune/*")
    assert (code, "model.depth=21" in out, out.count("| uniform")) == (0, True, 1)
    assert sorted(path.name for path in sweep.glob("*/*.json")) == ["failed.json", "result.json"]


def command(*arguments):
    return [sys.executable, "-c", "from rlprune.cli import entry; entry()", *arguments]


KILLER = """
import os, signal, sys
from rlprune.cli import main
replace = os.replace

def killed(source, target):
    if os.path.basename(target) == "{name}":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = killed
sys.exit(main(sys.argv[1:]))
"""


def kill_at(name, *line):
    """Run a command that dies when the file of this name is written, but not yet in its place."""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    died = subprocess.run([sys.executable, "-c", KILLER.format(name=name), *line], env=environment, capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def kill_when(path, *line):
    """Start a command, kill it when the file is there, and say whether it was in time."""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command(*line), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("after", ["step-0001", "step-0003"])
def test_a_killed_run_resumes_to_the_same_result(rlprune, tmp_path, after):
    line = (*SMOKE, "schedule.steps=4", "schedule.save_at=[0.25]", "precision=fp32", "search.max_candidates=12")
    assert rlprune(*line)[0] == 0
    kill_when(Path("outputs/killed/checkpoint") / f"{after}.safetensors", *line, "paths.run=outputs/killed")
    if Path("outputs/killed/result.json").exists():
        pytest.skip("the run was faster than the kill")
    code, _, err = rlprune(*line, "resume=outputs/killed", "agent.noise_std=0.1")
    assert code == 2
    assert "agent.noise_std was 0.04, is 0.1" in last_line(err)[-1]
    code, out, _ = rlprune(*line, "resume=outputs/killed")
    assert code == 0
    assert "resuming behind step" in out
    assert metrics(result(Path("outputs/killed"))) == metrics(result(run_dirs()[0]))
    code, _, err = rlprune(*line, "resume=outputs/killed")
    assert (code, "that run is done" in err) == (2, True)
    assert not Path("outputs/killed/failed.json").exists()
    assert not Path("outputs/killed/checkpoint").exists()


STEPS = (*SMOKE, "schedule.steps=3", "precision=fp32", "reward=flops", "recovery.control=false")


def test_a_run_killed_while_it_writes_goes_on_to_the_same_result(rlprune):
    whole = Path("outputs/whole")
    assert rlprune(*STEPS, f"paths.run={whole}")[0] == 0
    for name, left, named, behind in (
        ("step-0001.safetensors", "checkpoint/.step-0001-*", (), None),
        ("plan.json", "pruned/.plan-*", ("paths.run=outputs/prune/mine",), 1),
    ):
        kill_at(name, *STEPS, *named)
        (folder,) = run_dirs()
        assert len(list(folder.glob(left))) == 1
        if named:  # and the disk has lost the end of the newest state
            newest = folder / "checkpoint/step-0002.safetensors"
            newest.write_bytes(newest.read_bytes()[:-20])
        code, out, _ = rlprune(*STEPS, *(named or ["resume=true"]))
        assert (code, f"going on with the run in {folder}" in out) == (0, True)
        assert (f"resuming behind step {behind}:" in out) == (behind is not None)
        assert ("candidates were measured before the interruption" in out) == (not named)
        assert metrics(result(folder)) == metrics(result(whole))
        rows = [pd.read_csv(path / "metrics.csv").filter(regex="^(?!.*seconds)") for path in (folder, whole)]
        assert rows[0].equals(rows[1])
        assert run_dirs() == [folder]
        assert {path.name for path in folder.rglob("*")} == {path.name for path in whole.rglob("*")}
        shutil.rmtree(folder)


@pytest.mark.usefixtures("_heard")
def test_ctrl_c_in_a_search_keeps_what_was_measured(rlprune, monkeypatch):
    measured = []

    def counted(self, subject, measure):
        def once():
            measured.append(self.step_start)
            if len(measured) == stop:
                signal.raise_signal(signal.SIGINT)
            return measure()

        return accuracy(self, subject, once)

    accuracy = Ledger.accuracy
    monkeypatch.setattr(Ledger, "accuracy", counted)
    monkeypatch.setattr(sys, "argv", ["rlprune"])
    line = (*STEPS, "search.max_candidates=40")
    stop = 0
    assert rlprune(*line, "paths.run=outputs/whole")[0] == 0
    whole, stop = len(measured), len(measured) - 13
    assert whole > 90
    measured.clear()
    code, out, err = rlprune(*line)
    (folder,) = run_dirs()
    assert (code, len(measured)) == (130, stop)
    assert f"interrupted; to go on: rlprune prune {shlex.join(line[1:])} resume={folder}" in out
    assert last_line(err)[-1] == "rlprune prune: interrupted; what was finished is kept"
    assert not (folder / "failed.json").exists()
    kept = json.loads((folder / "checkpoint/measured.json").read_text())
    assert (kept["step"], len(kept["accuracies"])) == (3, measured.count(measured[-1]))
    stop = 0
    code, out, _ = rlprune(*line, "resume=True")
    assert (code, f"step 3: {len(kept['accuracies'])} candidates were measured before" in out) == (0, True)
    assert len(measured) == whole
    assert metrics(result(folder)) == metrics(result(Path("outputs/whole")))
    assert not (folder / "checkpoint").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_process_works_in_a_run_folder(rlprune, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(PruneJob, "run", interrupt)
        assert rlprune(*SMOKE, "agent=uniform")[0] == 130
    (folder,) = run_dirs()
    before = snapshot("outputs/prune")
    with hold(folder / "config.yaml"):
        for line in ((f"resume={folder}",), (f"paths.run={folder}",), (f"paths.run={folder}", "resume=true", "seed=3")):
            code, out, err = rlprune(*SMOKE, "agent=uniform", *line)
            assert (code, out, len(last_line(err))) == (2, "", 1)
            assert f"{folder}: another process works on this run" in err
        assert rlprune(*SMOKE, "agent=uniform", f"paths.run={folder}", "schedule.sparsity=2")[0] == 2  # refused before it is looked at
        assert snapshot("outputs/prune") == before
        code, out, _ = rlprune(*SMOKE, "agent=uniform", "resume=true")  # somebody is at it: a run of one's own
        assert (code, "no unfinished run of this line; starting anew" in out) == (0, True)
    assert len(run_dirs()) == 2
    assert rlprune(*SMOKE, "agent=uniform", f"resume={folder}")[0] == 0


def interrupt(*arguments, **settings):
    raise KeyboardInterrupt


EPISODES = (
    "agent.episodes=12",
    "agent.batch_size=4",
    "search.max_candidates=null",
    "schedule.steps=1",
    "recovery.control=false",
    "precision=fp32",
)


@pytest.mark.parametrize(
    "line",
    [
        ("agent=ddpg", *EPISODES, "agent.finetune_batches=1", "agent.policy=final"),
        ("agent=amc", *EPISODES, "agent.warmup=4", "schedule.sparsity=null", "budget.macs=0.4", "budget.params=0.5"),
    ],
)
def test_a_search_by_episodes_is_killed_and_goes_on_to_the_same_result(rlprune, monkeypatch, line):
    whole, killed = Path("outputs/whole"), Path("outputs/killed")
    assert rlprune(*SMOKE, *line, f"paths.run={whole}")[0] == 0
    episodes, steps = pd.read_csv(whole / "episodes.csv"), pd.read_csv(whole / "metrics.csv")
    assert (len(episodes), episodes["critic_loss"].notna().sum()) == (12, 12 if "agent=ddpg" in line else 8)
    assert steps["reward"][0] == steps["accuracy_pruned"][0] == result(whole)["rows"][-2]["search_top1"]
    spare = [abs(target["reached"] - target["asked"]) for target in result(whole)["targets"].values()]
    assert min(spare) < 0.01  # the one that binds is met within a unit
    measured, accuracy = [], Ledger.accuracy

    def counted(self, subject, measure):
        measured.append(1)
        if len(measured) == 9:
            raise KeyboardInterrupt  # as a second Ctrl-C does
        return accuracy(self, subject, measure)

    monkeypatch.setattr(Ledger, "accuracy", counted)
    assert rlprune(*SMOKE, *line, f"paths.run={killed}")[0] == 130
    assert len(json.loads((killed / "checkpoint/measured.json").read_text())["accuracies"]) == 8
    code, out, _ = rlprune(*SMOKE, *line, f"paths.run={killed}")
    assert (code, "step 1: 8 candidates were measured before the interruption" in out) == (0, True)
    assert metrics(result(killed)) == metrics(result(whole))
    pd.testing.assert_frame_equal(pd.read_csv(killed / "episodes.csv"), episodes)
    assert {path.name for path in killed.rglob("*")} == {path.name for path in whole.rglob("*")} >= {"episodes.csv", "episodes.png"}


def test_an_agent_that_weighs_size_itself_needs_no_target(rlprune):
    assert (
        rlprune(*SMOKE, "agent=ddpg", "schedule=free", "schedule.steps=1", "agent.noise_std=0", "agent.pr_max=0.5", "recovery=none")[0] == 0
    )
    (folder,) = run_dirs()
    sparsity = pd.read_csv(folder / "metrics.csv")["sparsity"][0]
    assert sparsity == pytest.approx(0.25, abs=0.05)  # without noise and lessons the actor says half of pr_max
    assert result(folder)["targets"] == {}
    for agent in ("mcq", "amc", "uniform"):
        code, _, err = rlprune(*SMOKE, f"agent={agent}", "schedule=free")
        assert (code, "schedule.sparsity=null: nothing says how much goes" in err) == (2, True)


def test_resume_true_means_the_newest_unfinished_run_of_the_line(rlprune, monkeypatch):
    line = (*SMOKE, "agent=uniform")
    with monkeypatch.context() as patch:
        patch.setattr(PruneJob, "run", interrupt)
        for seed in (0, 0, 1):
            assert rlprune(*line, f"seed={seed}", "resume=false")[0] == 130
        patch.setattr(PruneJob, "run", lambda *arguments: (_ for _ in ()).throw(UserError("failed")))
        assert rlprune(*line, "seed=2")[0] == 2
    old, new, other, failed = run_dirs()
    before = snapshot("outputs")
    code, out, err = rlprune(*line, "seed=3", "resume=true")
    assert (code, out, len(last_line(err))) == (2, "", 1)
    assert f"the unfinished run {other} has another config: seed was 1, is 3; drop resume=true to start anew" in err
    code, _, err = rlprune(*line, "seed=3", f"paths.run={old}")
    assert (code, f"{old}: holds a run already, with another config (seed was 0, is 3)" in last_line(err)[-1]) == (2, True)
    assert snapshot("outputs") == before
    code, out, _ = rlprune(*line, "resume=true")
    assert (code, f"going on with the run in {new}" in out) == (0, True)
    assert (run_dirs(), (new / "result.json").exists()) == ([old, new, other, failed], True)
    assert "going on with the run in" in (new / "log.txt").read_text()
    for path in (old, other):
        assert {file: before[file] for file in before if path in file.parents} == snapshot(path)
    for path in (old, other):
        shutil.rmtree(path)
    code, out, _ = rlprune(*line, "seed=2", "resume=true")  # what failed early is no run to go on with
    assert (code, "there is no unfinished run of this line" in out, len(run_dirs())) == (0, True, 3)
    with monkeypatch.context() as patch:
        patch.setattr(PruneJob, "run", interrupt)
        assert rlprune(*SMOKE, "agent=mcq")[0] == 130
    code, out, _ = rlprune(*line, "seed=4", "resume=true")  # another agent's run is in nobody's way
    assert (code, "starting anew" in out) == (0, True)


def test_a_sweep_goes_on_job_by_job(rlprune, monkeypatch):
    line = (*SMOKE, "-m", "agent=uniform", "seed=0,1", "resume=true", "hydra.sweep.dir=outputs/sweep")
    with monkeypatch.context() as patch:
        run = PruneJob.run
        patch.setattr(PruneJob, "run", lambda job, dense: interrupt() if job.identity.seed else run(job, dense))
        patch.setattr(sys, "argv", ["rlprune"])
        code, out, _ = rlprune(*line)
    assert (code, "resume=true hydra.sweep.dir=outputs/sweep" in out.split("to go on: rlprune prune -m")[1]) == (130, True)
    first, second = (Path("outputs/sweep") / f"{number}_resnet20_digits_uniform" for number in (0, 1))
    before = snapshot(first)
    assert first / "result.json" in before
    code, out, _ = rlprune(*line)
    assert (code, f"{first}: that run is done" in out, f"going on with the run in {second}" in out) == (0, True, True)
    assert snapshot(first) == before
    assert result(second)["seed"] == 1
    code, _, err = rlprune(*(word for word in line if word != "resume=true"), "recovery=none")
    assert (code, f"{second}: holds a run already, with another config (recovery.enabled was True" in err) == (2, True)
    assert snapshot(first) == before


@pytest.mark.parametrize("job", ["train", "prune"])
def test_a_killed_training_resumes_to_the_same_weights(rlprune, job):
    line = (job, *SMALL, "dataset.limit=640", "training.epochs=6", "training.save_minutes=0")
    line += ("agent=uniform",) if job == "prune" else ("training.ema=0.9", "training.mixup=0.2")
    assert rlprune(*line)[0] == 0
    (dense,) = Path("outputs/dense").iterdir()
    whole = load_tensors(dense)
    dense.unlink()
    if not kill_when(Path("outputs/killed/checkpoint/dense.safetensors"), *line, "paths.run=outputs/killed"):
        pytest.skip("the run was faster than the kill")
    assert not dense.exists()
    code, out, _ = rlprune(*line, "resume=outputs/killed")
    assert (code, "going on behind epoch" in out) == (0, True)
    again = load_tensors(dense)
    assert again[1] == whole[1]
    assert all(torch.equal(again[0][name], tensor) for name, tensor in whole[0].items())
    assert metrics(result(Path("outputs/killed"))) == metrics(result(run_dirs(job)[0]))
    assert not list(Path("outputs/killed").glob("checkpoint/*"))
    assert "that run is done" in rlprune(*line, "resume=outputs/killed")[2]


def test_a_checkpoint_that_does_not_fit_says_what_would(rlprune, monkeypatch):
    tried = {}  # every shipped network is tried for every message: they are made once

    def made(node, key, **images):
        facts = json.dumps([node, images], sort_keys=True)
        if facts not in tried:
            tried[facts] = build(node, key, **images)
        return tried[facts]

    monkeypatch.setattr("rlprune.commands.fitting.build", made)
    network = build(shipped("model", "resnet20", {"shortcut": "A"}), "model", in_channels=3, num_classes=4)
    wrapped = {"epoch": 3, "net": {f"module.{name}": tensor for name, tensor in network.state_dict().items()}}
    torch.save(wrapped, "w.pth")
    for line, message in (
        (
            ("evaluate", "model.shortcut=A"),
            "fits this model with 4 classes, here it has 10 (linear.weight has shape (4, 64), not (10, 64))",
        ),
        (("train", "model=vgg11"), "(they fit model=resnet20 model.shortcut=A with 4 classes)"),
        (("inspect", "model=resnet20"), "10 missing (first: layer2.0.shortcut.0.weight), 2 misshapen (first: linear.weight"),
    ):
        code, _, err = rlprune(*line, "checkpoint=w.pth")
        assert (code, len(last_line(err))) == (2, 1)
        assert message in last_line(err)[0]
    assert rlprune("inspect", "model.shortcut=A", "checkpoint=w.pth")[0] == 2  # ten classes here, too


def test_a_network_of_ones_own_is_pruned_and_tested_again(rlprune, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_nets.py").write_text(
        "from rlprune.models.resnet import CifarResNet\n\n\ndef net(num_classes, width):\n"
        "    return CifarResNet(depth=8, width=width, shortcut='B', in_channels=3, num_classes=num_classes)\n"
    )
    own = ("model=custom", "model.target=my_nets.net", "model.kwargs={width: 0.5}")
    assert rlprune("prune", "debug=smoke", "agent=uniform", *own)[0] == 0
    (folder,) = run_dirs()
    done = result(folder)
    code, _, err = rlprune("evaluate", f"run={folder}")
    assert (code, "model=custom model.target=my_nets.net" in last_line(err)[-1]) == (2, True)
    with pytest.raises(UserError, match="code is never taken from a file"):
        package.load(folder)
    assert rlprune("evaluate", f"run={folder}", *own)[0] == 0
    assert result(run_dirs("evaluate")[-1])["rows"][0]["top1"] == done["rows"][-1]["top1"]
    import my_nets

    network = package.load(folder, my_nets.net(10, 0.5))
    assert sum(parameter.numel() for parameter in network.parameters()) == done["rows"][-1]["params"]
    with pytest.raises(UserError, match=r"plan\.json: "):
        package.load(folder, torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()))


def test_kept_weights_bring_their_normalisation_along(rlprune):
    line = SMALL
    assert rlprune("train", *line, "dataset.mean=[0.1,0.2,0.3]", "dataset.std=[0.5,0.6,0.7]")[0] == 0
    (dense,) = Path("outputs/dense").iterdir()
    assert rlprune("evaluate", *line, f"checkpoint={dense}")[0] == 0
    assert result(run_dirs("evaluate")[0])["rows"][0]["top1"] == result(run_dirs("train")[0])["rows"][0]["top1"]
    assert rlprune("prune", *line, "agent=uniform", f"checkpoint={dense}", "dataset.mean=[0.4,0.4,0.4]")[0] == 0
    plan = json.loads((run_dirs()[0] / "pruned/plan.json").read_text())
    assert (plan["origin"]["mean"], plan["origin"]["std"]) == ([0.4] * 3, [0.5, 0.6, 0.7])


def test_a_training_killed_in_its_test_goes_on_behind_its_last_save(rlprune, monkeypatch):
    def killed(*arguments, **settings):
        raise KeyboardInterrupt

    line = ("train", *SMALL, "training.epochs=3", "training.save_minutes=0")
    with monkeypatch.context() as patch:
        patch.setattr("rlprune.training.progress.SHARE", 1e9)
        patch.setattr("rlprune.results.finish.measure_rows", killed)
        assert rlprune(*line, "paths.run=outputs/train/killed")[0] == 130
    code, out, _ = rlprune(*line, "resume=true")
    assert (code, "going on behind epoch 3, batch 0" in out) == (0, True)
    assert not Path("outputs/train/killed/checkpoint").exists()


def test_networks_that_train_otherwise_can_be_evaluated(rlprune):
    torch.save(TwoFaced().state_dict(), "w.pt")
    line = ("debug=smoke", "model=custom", "model.target=test_commands.TwoFaced", "checkpoint=w.pt")
    assert rlprune("evaluate", *line)[0] == 0
    assert "returns a tuple for 2 images in training" in rlprune("train", *line)[2]


def test_weights_trained_for_other_code_are_not_taken(rlprune, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    code = (
        "import torch\n\n\nclass Net(torch.nn.Conv2d):\n"
        "    def forward(self, images):\n        return {}super().forward(images).flatten(1)\n"
    )
    Path("my_code.py").write_text(code.format(""))
    line = (
        "train",
        "debug=smoke",
        "model=custom",
        "model.target=my_code.Net",
        "model.kwargs={in_channels: 3, out_channels: 10, kernel_size: 32}",
    )
    for sign in ("", "", "-"):
        Path("my_code.py").write_text(code.format(sign))
        assert rlprune(*line)[0] == 0
    assert len(list(Path("outputs/dense").iterdir())) == 2


def published(*, weights, in_channels, num_classes):
    """A network whose weights come from elsewhere: all of them, or all but the classifier's."""
    network = CifarResNet(depth=8, width=0.5, shortcut="B", in_channels=in_channels, num_classes=num_classes)
    return mark(network, Provenance("somebody's", weights == "ALL", 32, (0.5,) * 3, (0.25,) * 3))


def test_published_weights_are_pruned_without_training(rlprune):
    Path("my_conf/model").mkdir(parents=True)
    Path("my_conf/model/theirs.yaml").write_text("_target_: test_commands.published\nweights: null\n")
    for weights, seen in (("ALL", "dense network: somebody's"), ("BODY", "none kept for these settings")):
        line = ("debug=smoke", "--config-dir", "my_conf", "model=theirs", f"model.weights={weights}", "agent=uniform")
        code, out, err = rlprune("prune", *line)
        assert (code, seen in out) == (0, True), err
        assert result(run_dirs()[-1])["search_split_seen"] == "unknown"
        plan = json.loads((run_dirs()[-1] / "pruned/plan.json").read_text())
        assert (plan["origin"]["mean"], plan["origin"]["model_settings"]["weights"]) == ([0.5] * 3, None)
    code, _, err = rlprune("evaluate", f"run={run_dirs()[-1]}")
    assert (code, "model=theirs: is not shipped" in err) == (2, True)
    assert rlprune("evaluate", f"run={run_dirs()[-1]}", "--config-dir", "my_conf", "model=theirs")[0] == 0


def test_inspect_shows_a_data_set(rlprune):
    code, out, _ = rlprune("inspect", "dataset=digits", "sheet=true")
    assert code == 0
    assert "dataset=digits: 3×32×32 pixels; 1150 training (in memory), 288 search, 359 test images; 10 classes of 139 to 147 images" in out
    (folder,) = run_dirs("inspect")
    assert (folder / "dataset.md").read_text().strip() in out
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.size == (10 * 64 + 32, 10 * (64 + 14))
        assert np.asarray(sheet).std() > 50


def test_a_folder_takes_one_run(rlprune):
    line = (*SMOKE, "agent=uniform", "paths.run=outputs/prune/mine")
    assert rlprune(*line)[0] == 0
    before = result(Path("outputs/prune/mine"))
    code, _, err = rlprune(*line, "seed=3")
    assert (code, "holds a run already, with another config (seed was 0, is 3)" in last_line(err)[-1]) == (2, True)
    code, _, err = rlprune(*line)
    assert (code, "that run is done" in last_line(err)[-1]) == (2, True)
    code, out, err = rlprune(*line, "resume=true")
    assert (code, out.strip(), err) == (0, "outputs/prune/mine: that run is done; nothing is left to do", "")
    assert result(Path("outputs/prune/mine")) == before
    assert not Path("outputs/prune/mine/failed.json").exists()
    for damage in ("- a", "paths: 3", "a: ["):
        Path("outputs/other").mkdir(exist_ok=True)
        Path("outputs/other/config.yaml").write_text(damage)
        code, _, err = rlprune(*SMOKE, "resume=outputs/other")
        assert (code, "config.yaml: is damaged" in last_line(err)[-1]) == (2, True)


def test_the_dense_network_belongs_to_its_images(rlprune, monkeypatch):
    line = (*SMOKE, "agent=uniform")
    assert rlprune(*line)[0] == 0
    read_train = Digits.read_train
    monkeypatch.setattr(Digits, "read_train", lambda self: (read_train(self)[0], tuple("abcdefghij")))
    code, out, _ = rlprune(*line)
    assert (code, "none kept for these settings" in out) == (0, True)
    for dense in Path("outputs/dense").iterdir():
        data = bytearray(dense.read_bytes())
        data[-100] ^= 64
        dense.write_bytes(data)
    code, out, _ = rlprune(*line)
    assert (code, "its checksum differs); copy or train it again; training it again" in out) == (0, True)


def test_inspect_prints_groups_kept_layers_and_the_proof(rlprune):
    code, out, _ = rlprune("inspect", "model=resnet20", "verify=true", "ignore=[layer1.0.conv1]")
    assert code == 0
    assert "every group, and all at once: zeroed equals removed" in out
    assert "layer1.0.conv1" in out
    assert "left alone as asked" in out
    assert "11 groups, 768 prunable channels; 40.81 M MACs, 272.47 k parameters" in out
    assert (run_dirs("inspect")[0] / "groups.md").read_text().strip() in out


def test_the_readme_agent_is_one_file_and_one_yaml(rlprune, monkeypatch, tmp_path):
    text = (Path(__file__).parent.parent / "README.md").read_text()
    Path("my_conf/agent").mkdir(parents=True)
    Path("my_agents.py").write_text(text.split("```python\n# my_agents.py\n")[1].split("```")[0])
    Path("my_conf/agent/half.yaml").write_text(text.split("```yaml\n# my_conf/agent/half.yaml\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    assert rlprune(*SMOKE, "--config-dir", "my_conf", "agent=half", "agent.power=3")[0] == 0
    assert result(run_dirs()[0])["choices"]["agent"] == "half"
    code, _, err = rlprune(*SMOKE, "--config-dir", "my_conf", "agent=half", "agent.power=much")
    assert (code, "agent.power=much: must be a finite number" in err) == (2, True)


def test_the_readme_agent_that_learns_works_layer_by_layer(rlprune, monkeypatch, tmp_path):
    text = (Path(__file__).parent.parent / "README.md").read_text()
    Path("my_conf/agent").mkdir(parents=True)
    Path("my_climber.py").write_text(text.split("```python\n# my_climber.py\n")[1].split("```")[0])
    Path("my_conf/agent/climber.yaml").write_text(text.split("```yaml\n# my_conf/agent/climber.yaml\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    line = (*SMOKE, "--config-dir", "my_conf", "agent=climber", "schedule.steps=1", "schedule.sparsity=null", "budget.macs=0.5")
    line += ("model.depth=20",)  # with fewer groups it would come to a candidate twice
    assert rlprune(*line, "search.max_candidates=20")[0] == 0
    episodes = pd.read_csv(run_dirs()[0] / "episodes.csv")
    assert len(episodes) == 20
    assert (episodes["best"] == episodes["reward"].cummax()).all()
    chosen = result(run_dirs()[0])
    assert chosen["targets"]["budget.macs"]["reached"] <= 0.5
    assert pd.read_csv(run_dirs()[0] / "metrics.csv")["accuracy_pruned"][0] == episodes["best"].iloc[-1]
    code, _, err = rlprune(*line, "agent.episodes=0")
    assert (code, "agent.episodes=0: must be ≥ 1" in err) == (2, True)


def test_a_truncated_artefact_is_one_line(rlprune):  # more in test_artefact.py
    assert rlprune(*SMOKE)[0] == 0
    folder = run_dirs()[0] / "pruned"
    (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-9])
    code, _, err = rlprune("evaluate", f"run={folder}")
    assert code == 2
    assert "weights.safetensors" in last_line(err)[-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("prune", "device=cuda:77"), "device=cuda:77: this machine has"),
        (
            ("prune", "agent=sac"),
            "agent=sac: unknown; choose one of amc, ddpg, depgraph, global, like, mcq, random_rates, random_search, reinforce, rlal, "
            "uniform",
        ),
        (("prune", "schedule.stepz=1"), "schedule.stepz: no such key (did you mean schedule.steps?)"),
        (("prune", "+foo=1"), "foo: no such key"),
        (("prune", "~seed"), "seed: is missing"),
        (("prune", "model=[resnet20,vgg11]"), "model: takes one choice"),
        (("prune", "seed=${oops}"), "oops"),
        (("prune", "paths.outputs="), "paths.outputs: is empty"),
        (("prune", "dataset.crop=4000"), "dataset.crop=4000: must be smaller"),
        (
            (
                "prune",
                "criterion._target_=rlprune.agents.uniform.Uniform",
                "~criterion.mode",
                "~criterion.reduction",
                "~criterion.calibration_images",
                "~criterion.aggregation",
                "~criterion.normalization",
            ),
            "has no `scores`",
        ),
        (("prune", "channels_last=maybe"), "channels_last=maybe"),
        (
            ("prune", "agent="),
            "agent=: unknown; choose one of amc, ddpg, depgraph, global, like, mcq, random_rates, random_search, reinforce, rlal, uniform",
        ),
        (("prune", "model=null"), "a group was set to null"),
        (("prune", "agent=ddpg", "agent.pr_max=1.5"), "agent.pr_max=1.5: must be in (0, 1)"),
        (("prune", "agent=amc", "agent.pr_max=0"), "agent.pr_max=0.0: must be in (0, 1)"),
        (("prune", "agent=ddpg", "agent.episodes=0"), "agent.episodes=0: must be ≥ 1"),
        (("prune", "agent=ddpg", "agent.replay_size=64"), "agent.replay_size=64: must hold a batch, ≥ batch_size=128"),
        (
            ("prune", "agent=amc", "agent.pr_max=0.3", "budget.macs=0.2"),
            "budget.macs=0.2: 0.529 to 1 of the dense network's is within reach",
        ),
        (("prune", "agent=amc", "schedule.sparsity=0.9"), "agent.pr_max"),
        (("prune", "agent=amc", "agent.warmup=400"), "agent.warmup=400: must be in [0, episodes=400)"),
        (("prune", "agent=ddpg", "agent.reward=twice"), "agent.reward=twice: must be one of layer, end"),
        (("prune", "experiment=foo"), "experiment=foo: unknown; choose one of cifar10_resnet20"),
        (("prune", "training.optimizer=adamw"), "choose one with optimizer@training.optimizer=NAME: adamw, sgd"),
        (("prune", "schedule.save_at=0.5"), "schedule.save_at: must be a list"),
        (("prune", "+schedule.foo=1"), "schedule.foo: no such key"),
        (("prune", "+agent.foo=1"), "agent.foo: no such setting"),
        (("prune", "foo"), "foo: is no setting"),
        (("report", "runs=[a/*-[012],b]"), "runs=[a/*-[012],b]: is no setting; write key=value, and quote values"),
        (("prune", "agent.noise_std=abc"), "agent.noise_std=abc: must be a finite number"),
        (("prune", "schedule.steps=abc"), "schedule.steps=abc: must be of type integer"),
        (("prune", "schedule.sparsity=1.5"), "schedule.sparsity=1.5: must be in (0, 1)"),
        (("prune", "schedule.sparsity=0.99"), "is within reach"),
        (("prune", "schedule.save_at=[0.6]"), "schedule.save_at=[0.6]"),
        (("prune", "training.optimizer.lr=abc"), "training.optimizer.lr=abc"),
        (("prune", "training.optimizer.lr=-1"), "training.optimizer: Invalid learning rate"),
        (("prune", "optimizer@training.optimizer=sgd", "training.optimizer._target_=torch.nn.ReLU"), "training.optimizer"),
        (("prune", "model._target_=builtins.dict"), "model"),
        (("prune", "dataset=imagefolder"), "dataset.root: is missing"),
        (("prune", "dataset=imagefolder", "dataset.root=/nowhere"), "has no folder /nowhere/train"),
        (("prune", "checkpoint=/nowhere.pt"), "/nowhere.pt: cannot be read"),
        (("train", "model=torchvision", "model.name=resnet5"), "torchvision has no such network; did you mean resnet50"),
        (("train", "model=custom"), "model.target: is missing"),
        (
            ("train", "model=custom", "model.target=torch.nn.ReLU"),
            "returns a tensor of shape (2, 3, 32, 32) for 2 images, not class scores",
        ),
        (("train", "model=custom", "model.target=test_commands.Grey"), "cannot take the data set's images of shape (3, 32, 32); Grey"),
        (("train", "model=custom", "model.target=test_commands.TwoFaced"), "returns a tuple for 2 images in training, not class scores"),
        (("train", "training.lr_milestones=[3]"), "training.lr_milestones=[3]: goes with lr_schedule=step alone"),
        (("train", "training.lr_milestones=[3,2]"), "training.lr_milestones=[3, 2]: must be epochs in ascending order"),
        (("train", "training.warmup_epochs=1"), "training.warmup_epochs=1.0: goes not with lr_schedule=one_cycle"),
        (("train", "training.randaugment=31"), "training.randaugment=31: must be in 0..30"),
        (("train", "training.ema=1"), "training.ema=1.0: must be in (0, 1)"),
        (("train", "resume=nowhere"), "resume=nowhere: holds no run"),
        (("prune", "ignore=[nolayer]"), "matches no layer"),
        (("prune", "ignore=['.*']"), "no channel can be removed"),
        (("prune", "resume=nowhere"), "resume=nowhere: holds no run"),
        (("prune", "resume="), "resume=: is empty; name a folder, true or false"),
        (("prune", "-m", "seed=0,1", "resume=true"), "resume=true: several runs go on with resume=true and the sweep's folder"),
        (("prune", "paths.outputs=/proc/nowhere"), "free space or choose another folder"),
        (("prune", "debug=smoke", "training.optimizer.lr=1e30"), "no longer finite"),
        (("evaluate",), "name a run folder"),
        (("evaluate", "run=/nowhere"), "has no pruned/plan.json"),
        (("report", "runs=/nowhere/*"), "no run of prune or train matches"),
        (("fly",), "fly: no such command; choose one of train, prune"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(rlprune, line, message):
    code, _, err = rlprune(*line)
    lines = last_line(err)
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err
    assert not list(Path().glob("outputs/dense/*"))


def test_a_read_only_or_full_disk_loses_nothing(rlprune, monkeypatch):
    assert rlprune(*SMOKE)[0] == 0
    before = metrics(result(run_dirs()[0]))
    import errno

    def full(source, target):
        if Path(target).name == "metrics.csv":
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    real = os.replace
    monkeypatch.setattr(os, "replace", full)
    code, _, err = rlprune(*SMOKE)
    monkeypatch.setattr(os, "replace", real)
    assert code == 2
    assert "No space left on device" in last_line(err)[-1]
    assert metrics(result(run_dirs()[0])) == before
    failed = run_dirs()[1]
    assert "No space left" in json.loads((failed / "failed.json").read_text())["error"]
    assert not list(failed.glob(".metrics*"))


def test_the_bare_command_help_version_and_completion(rlprune, monkeypatch):
    code, out, _ = rlprune()
    assert code == 0
    for name in ("train", "prune", "evaluate", "export", "sensitivity", "bench", "inspect", "report"):
        assert f"\n  {name}" in out
    assert rlprune("--version")[1].startswith("rlprune ")
    code, out, _ = rlprune("prune", "--help")
    assert code == 0
    assert "agent: amc, ddpg, depgraph, global, like, mcq, random_rates, random_search, reinforce, rlal, uniform" in out
    code, out, _ = rlprune("prune", "--cfg", "job", "agent=uniform")
    assert (code, "rlprune.agents.uniform.Uniform" in out) == (0, True)
    monkeypatch.setenv("COMP_LINE", "rlprune pr")
    assert rlprune("-sc", "query=bash")[1].split() == ["prune"]
    monkeypatch.setenv("COMP_LINE", "rlprune prune agent=")
    agents = "amc ddpg depgraph global like mcq random_rates random_search reinforce rlal uniform".split()
    assert rlprune("-sc", "query=bash")[1].split() == [f"agent={name}" for name in agents]
    monkeypatch.delenv("COMP_LINE")
    code, out, _ = rlprune("-sc", "install=bash")
    assert (code, "complete" in out) == (0, True)
