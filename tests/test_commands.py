import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import last_line

import rlprune as package
from rlprune.data.digits import Digits
from rlprune.errors import UserError
from rlprune.results.artefact import load_artefact
from rlprune.training import fit

SMOKE = ("prune", "debug=smoke", "model.width=0.5", "device=cpu")
VARIES = {"seconds", "latency_ms", "peak_memory_bytes"}


def metrics(value):
    """A result without what differs from run to run."""
    if isinstance(value, dict):
        return {key: metrics(item) for key, item in value.items() if key not in VARIES}
    return [metrics(item) for item in value] if isinstance(value, list) else value


def run_dirs(command="prune"):
    return sorted(Path("outputs", command).iterdir())


def result(folder):
    return json.loads((folder / "result.json").read_text())


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
    names = "config.yaml log.txt metrics.csv layers.csv pruned result.json table.md table.csv accuracy.png layers.png"
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
    assert len(pd.read_csv(report / "report.csv")) == 4
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

    class Spy(fit.Batches):
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
    width = "model.width=0.125" if choice == "model=vgg11" else "model.width=0.5"
    code, _, err = rlprune("prune", "debug=smoke", width, choice)
    assert code == 0, err
    done = result(run_dirs()[0])
    assert choice == "channels_last=true" or done["choices"][choice.split("=")[0]] == choice.split("=")[1]
    if choice == "recovery=none":
        assert [row["name"] for row in done["rows"]] == ["dense", "pruned 50 %"]


def test_train_then_prune_from_a_checkpoint(rlprune):
    code, out, _ = rlprune("train", "debug=smoke", "model.width=0.5")
    assert code == 0
    (dense,) = Path("outputs/dense").iterdir()
    code, out, _ = rlprune(*SMOKE, f"checkpoint={dense}")
    assert code == 0
    assert "may have seen the search split" in out
    assert result(run_dirs()[0])["search_split_seen"] == "unknown"
    code, out, _ = rlprune("evaluate", "model.width=0.5", "debug=smoke", f"checkpoint={dense}")
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
    assert (code, "model.depth=21" in out, out.count("| recovered")) == (0, True, 1)
    assert sorted(path.name for path in sweep.glob("*/*.json")) == ["failed.json", "result.json"]


def command(*arguments):
    return [sys.executable, "-c", "from rlprune.cli import entry; entry()", *arguments]


@pytest.mark.parametrize("after", ["step-0001", "step-0003"])
def test_a_killed_run_resumes_to_the_same_result(rlprune, tmp_path, after):
    line = (*SMOKE, "schedule.steps=4", "schedule.save_at=[0.25]", "precision=fp32", "search.max_candidates=12")
    assert rlprune(*line)[0] == 0
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        command(*line, "paths.run=outputs/killed"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    state = Path("outputs/killed/checkpoint") / f"{after}.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
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


def test_a_folder_takes_one_run(rlprune):
    line = (*SMOKE, "agent=uniform", "paths.run=outputs/prune/mine")
    assert rlprune(*line)[0] == 0
    before = result(Path("outputs/prune/mine"))
    code, _, err = rlprune(*line, "seed=3")
    assert (code, "holds a run already" in last_line(err)[-1]) == (2, True)
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


def test_plans_and_weights_that_do_not_fit_are_refused(rlprune):
    assert rlprune(*SMOKE)[0] == 0
    folder = run_dirs()[0] / "pruned"
    plan = json.loads((folder / "plan.json").read_text())

    def refused(change, message):
        (folder / "plan.json").write_text(json.dumps(plan | change))
        with pytest.raises(UserError, match=message):
            load_artefact(folder)

    refused({"format": 99}, "format 99")
    refused({"keep": {"nope": [1]}}, "no such group")
    refused({"keep": "x"}, "the file is damaged")
    refused({"weights_sha256": "0"}, "its hash differs")
    refused({"origin": plan["origin"] | {"model": "../../etc"}}, "is not shipped")
    refused({"origin": plan["origin"] | {"model_settings": {"_target_": "os.system"}}}, "no setting")
    refused({"origin": {}}, "the file is damaged")
    for key, value in (
        ("mean", [float("nan")] * 3),
        ("std", [0, 0, 0]),
        ("in_channels", -1),
        ("image_size", [10**6, 10**6]),
        ("class_names", []),
    ):
        refused({"origin": plan["origin"] | {key: value}}, f"{key} has an impossible value")
    for key, value in (("seed", "abc"), ("seed", -5), ("sparsity", None)):
        refused({key: value}, f"{key} has an impossible value")
    refused({"format": True}, "format True")
    (folder / "plan.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not valid JSON"):
        load_artefact(folder)
    (folder / "plan.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_artefact(folder)
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-9])
    code, _, err = rlprune("evaluate", f"run={folder}")
    assert code == 2
    assert "weights.safetensors" in last_line(err)[-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("prune", "device=cuda:77"), "device=cuda:77: this machine has"),
        (("prune", "agent=sac"), "agent=sac: unknown; choose one of mcq, uniform"),
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
            ),
            "has no `scores`",
        ),
        (("prune", "channels_last=maybe"), "channels_last=maybe"),
        (("prune", "agent="), "agent=: unknown; choose one of mcq, uniform"),
        (("prune", "model=null"), "a group was set to null"),
        (("prune", "experiment=foo"), "experiment=foo: unknown; choose one of cifar10_resnet20"),
        (("prune", "training.optimizer=adamw"), "choose one with optimizer@training.optimizer=NAME: adamw, sgd"),
        (("prune", "schedule.save_at=0.5"), "schedule.save_at: must be a list"),
        (("prune", "+schedule.foo=1"), "schedule.foo: no such key"),
        (("prune", "+agent.foo=1"), "agent.foo: no such setting"),
        (("prune", "foo"), "foo: is no setting"),
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
        (("prune", "ignore=[nolayer]"), "matches no layer"),
        (("prune", "ignore=['.*']"), "no channel can be removed"),
        (("prune", "resume=nowhere"), "resume=nowhere: holds no run"),
        (("prune", "paths.outputs=/proc/nowhere"), "free space or choose another folder"),
        (("prune", "debug=smoke", "training.optimizer.lr=1e30"), "no longer finite"),
        (("evaluate",), "name a run folder"),
        (("evaluate", "run=/nowhere"), "has no pruned/plan.json"),
        (("report", "runs=/nowhere/*"), "no finished prune run there"),
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
    for name in ("train", "prune", "evaluate", "inspect", "report"):
        assert f"\n  {name}" in out
    assert rlprune("--version")[1].startswith("rlprune ")
    code, out, _ = rlprune("prune", "--help")
    assert code == 0
    assert "agent: mcq, uniform" in out
    code, out, _ = rlprune("prune", "--cfg", "job", "agent=uniform")
    assert (code, "rlprune.agents.uniform.Uniform" in out) == (0, True)
    monkeypatch.setenv("COMP_LINE", "rlprune pr")
    assert rlprune("-sc", "query=bash")[1].split() == ["prune"]
    monkeypatch.setenv("COMP_LINE", "rlprune prune agent=")
    assert rlprune("-sc", "query=bash")[1].split() == ["agent=mcq", "agent=uniform"]
    monkeypatch.delenv("COMP_LINE")
    code, out, _ = rlprune("-sc", "install=bash")
    assert (code, "complete" in out) == (0, True)
