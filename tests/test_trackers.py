import errno
import json
import os
import random
import re
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import last_line, metrics
from test_commands import SMALL, SMOKE, result, run_dirs

from rlprune.checkpoint import load_tensors
from rlprune.errors import UserError
from rlprune.results.record import History, StepRecord
from rlprune.search.ledger import Ledger
from rlprune.search.tracked import TrackedSearch
from rlprune.trackers.base import flat
from rlprune.trackers.mlflow import MLflow
from rlprune.trackers.tracking import Tracking

LINE = (*SMOKE, "agent=amc", "agent.episodes=6", "agent.warmup=3", "agent.batch_size=4", "search.max_candidates=null", "precision=fp32")
STEPS = (*LINE, "schedule.steps=2", "recovery.epochs=2", "recovery.final_epochs=1")


def events(run):
    """Tag → (step, value) of every point in the order of the event files; the names of images, and the texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    tags = seen.Tags()
    scalars = {tag: [(event.step, event.value) for event in seen.Scalars(tag)] for tag in tags["scalars"]}
    texts = {tag: seen.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    return scalars, tags["images"], texts


def numbers(points):
    return [number for number, _ in points]


def values(points):
    return [value for _, value in points]


def near(column):
    """Event files hold float32."""
    return pytest.approx(list(column), rel=1e-6, abs=1e-12)


def test_tensorboard_shows_what_the_files_say_and_the_run_is_the_same_without(rlprune):
    run, plain = Path("outputs/tracked"), Path("outputs/plain")
    code, out, err = rlprune(*STEPS, "tracker=tensorboard", f"paths.run={run}")
    assert (code, "untracked" in out) == (0, False), err
    (dense,) = Path("outputs/dense").iterdir()
    weights = dense.read_bytes()
    dense.unlink()
    assert rlprune(*STEPS, f"paths.run={plain}")[0] == 0
    assert dense.read_bytes() == weights  # of the same name, to the bit
    found, expected = metrics(result(run)), metrics(result(plain))
    assert (found["choices"].pop("tracker"), expected["choices"].pop("tracker")) == ("tensorboard", "none")
    assert found == expected
    names = {path.name for path in run.rglob("*")} - {path.name for path in plain.rglob("*")}
    assert {name for name in names if "tfevents" not in name} == {"tensorboard", "logged.txt"}

    scalars, images, texts = events(run)
    steps, episodes, done = pd.read_csv(run / "metrics.csv"), pd.read_csv(run / "episodes.csv"), result(run)
    for name in set(steps) - {"step"}:
        assert numbers(scalars[f"step/{name}"]) == [1, 2]
        assert values(scalars[f"step/{name}"]) == near(steps[name])
    for name in episodes.select_dtypes("number"):
        known = episodes[name].notna()
        assert numbers(scalars[f"episode/{name}"]) == (1 + np.flatnonzero(known)).tolist()
        assert values(scalars[f"episode/{name}"]) == near(episodes[name][known])
    assert len(episodes) == 12
    assert values(scalars["dense training/loss"]) == near(done["losses"])
    assert done["losses"] == load_tensors(dense)[1]["losses"]
    for series in ("recovery", "control"):  # two epochs behind the first step, one behind the last
        assert numbers(scalars[f"{series}/loss"]) == numbers(scalars[f"{series}/learning_rate"]) == [1, 2, 3]
    for row in done["rows"]:
        for name in ("top1", "macs", "params", "latency_ms", "search_top1"):
            assert numbers(scalars[f"table/{row['name']}/{name}"]) == [0]
            assert values(scalars[f"table/{row['name']}/{name}"]) == near([row[name]])
    assert sorted(images) == [f"plots/{path.stem}" for path in sorted(run.glob("*.png"))]
    config = json.loads(texts["config/text_summary"].strip("`\n"))
    assert (config["choices"]["agent"], config["agent"]["episodes"], config["seed"]) == ("amc", 6, 0)
    assert not {"tracker", "resume"} & set(config)
    assert "| recovered 50 % |" in texts["table/text_summary"]


@pytest.fixture
def interrupted(monkeypatch):
    """Arms a Ctrl-C, as a second one is, at the n-th candidate that is measured from now on."""
    left, accuracy = [0], Ledger.accuracy

    def counted(self, subject, measure):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return accuracy(self, subject, measure)

    monkeypatch.setattr(Ledger, "accuracy", counted)
    return lambda at: left.__setitem__(0, at)


def test_a_killed_run_goes_on_in_the_same_curves_and_shows_nothing_twice(rlprune, interrupted):
    whole, killed = Path("outputs/whole"), Path("outputs/killed")
    line = (*STEPS, "schedule.steps=3", "tracker=tensorboard")
    assert rlprune(*line, f"paths.run={whole}")[0] == 0
    counts = pd.read_csv(whole / "metrics.csv")["candidates"]
    interrupted(counts[0] + counts[1] + 4)  # in the third step
    assert rlprune(*line, f"paths.run={killed}")[0] == 130
    shown = events(killed)[0]
    assert numbers(shown["step/macs"]) == [1, 2]
    assert numbers(shown["episode/reward"])[-1] > 12
    (killed / "checkpoint/step-0002.safetensors").unlink()  # so the second step, its episodes and recovery come again
    with next((killed / "tensorboard").glob("*tfevents*")).open("ab") as file:
        file.write(b"\x18\0\0\0\0")  # and the process died while it wrote
    assert rlprune(*line, f"paths.run={killed}")[0] == 0
    assert len(list((killed / "tensorboard").glob("*tfevents*"))) == 2
    found, expected = events(killed)[0], events(whole)[0]
    found, expected = (
        {tag: points for tag, points in scalars.items() if "seconds" not in tag and "latency" not in tag} for scalars in (found, expected)
    )
    expected = {tag: points for tag, points in expected.items() if not tag.startswith("dense training/")}  # it was kept
    assert found == expected
    assert numbers(found["episode/reward"]) == list(range(1, 19))


def test_a_killed_training_goes_on_in_the_same_curve(rlprune, monkeypatch):
    from rlprune.training.progress import Saver

    whole, killed = Path("outputs/whole"), Path("outputs/killed")
    line = ("train", *SMALL, "training.epochs=4", "training.save_minutes=0", "tracker=tensorboard")
    assert rlprune(*line, f"paths.run={whole}")[0] == 0
    with monkeypatch.context() as patch:

        def save(self, progress):
            if progress.epoch == 3:  # told of, and not saved
                raise KeyboardInterrupt
            save_if_due(self, progress)

        save_if_due = Saver.save_if_due
        patch.setattr("rlprune.training.progress.SHARE", 1e9)
        patch.setattr(Saver, "save_if_due", save)
        assert rlprune(*line, f"paths.run={killed}")[0] == 130
    assert numbers(events(killed)[0]["dense training/loss"]) == [1, 2, 3]
    code, out, _ = rlprune(*line, f"paths.run={killed}")
    assert (code, "going on behind epoch 2" in out) == (0, True)
    for name in ("loss", "learning_rate"):
        assert events(killed)[0][f"dense training/{name}"] == events(whole)[0][f"dense training/{name}"]
    assert values(events(killed)[0]["dense training/loss"]) == near(result(killed)["losses"])


def test_a_tracker_may_come_to_a_run_that_goes_on(rlprune, interrupted):
    run = Path("outputs/run")
    interrupted(8)
    assert rlprune(*STEPS, f"paths.run={run}")[0] == 130
    assert not (run / "tensorboard").exists()
    code, _, err = rlprune(*STEPS, f"resume={run}", "tracker=tensorboard")
    assert code == 0, err
    scalars = events(run)[0]
    assert values(scalars["step/macs"]) == near(pd.read_csv(run / "metrics.csv")["macs"])
    assert numbers(scalars["episode/reward"]) == list(range(1, 13))


def test_joint_training_is_watched(rlprune):
    code, _, err = rlprune(
        *SMOKE, "agent=rlal", "schedule.steps=3", "agent.warmup_epochs=1", "tracker=tensorboard", "recovery.control=false"
    )
    assert code == 0, err
    (run,) = run_dirs()
    scalars, steps = events(run)[0], pd.read_csv(run / "metrics.csv")
    assert values(scalars["joint training/loss"]) == values(scalars["step/train_loss"]) == near(steps["train_loss"])
    assert numbers(scalars["joint training/learning_rate"]) == [1, 2, 3]


def test_passes_of_a_bisection_are_series_of_their_own():
    class Listener:
        def __init__(self):
            self.heard = []

        def log(self, series, number, values):
            self.heard.append((series, number, values.get("sparsity", values.get("reward"))))

    record = StepRecord(1, 0.5, 1, 1, 0.0, 0.0, 0.0, 1, 0, 0.0, 0.0)
    listener, history = Listener(), History(steps=[record], episodes=[{"step": 1, "reward": 0.25}])
    tracked = TrackedSearch(listener, history, "pass-2/")
    history.episodes.append({"step": 2, "reward": 0.75})
    tracked.episode()
    assert listener.heard == [("pass-2/episode", 1, 0.25), ("pass-2/step", 1, 0.5), ("pass-2/episode", 2, 0.75)]


# -- other people's packages -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package; returns the runs that were begun with it."""
    runs = []

    class Run:
        def __init__(self, **settings):
            self.settings, self.summary, self.axes, self.points, self.code = settings, {}, {}, [], None
            runs.append(self)

        def define_metric(self, name, step_metric):
            self.axes[name] = step_metric

        def log(self, values):
            self.points.append(values)

        def finish(self, exit_code):
            self.code = exit_code

    module = types.ModuleType("wandb")
    module.init, module.Image, module.Settings = Run, lambda path: f"image {Path(path).name}", dict
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_gets_one_run_also_where_it_was_killed(rlprune, interrupted, wandb):
    run = Path("outputs/my run")
    line = (*STEPS, "tracker=wandb", "tracker.project=mine", "tracker.entity=us", "tracker.mode=offline", f"paths.run='{run}'")
    interrupted(8)
    assert rlprune(*line)[0] == 130
    code, _, err = rlprune(*line)
    assert code == 0, err
    first, second = wandb
    assert (first.code, second.code) == (1, 0)
    assert first.settings["id"] == second.settings["id"] == (run / "wandb/run_id.txt").read_text().strip()
    assert first.settings["id"].startswith("my-run-")
    chosen = {key: second.settings[key] for key in ("project", "entity", "mode", "resume", "name", "dir")}
    assert chosen == {"project": "mine", "entity": "us", "mode": "offline", "resume": "allow", "name": "my run", "dir": run}
    assert second.settings["config"]["choices"]["agent"] == second.settings["config"]["agent"]["_target_"].split(".")[2] == "amc"
    steps, points = pd.read_csv(run / "metrics.csv"), [*first.points, *second.points]
    assert second.axes["step/*"] == "step/number"
    assert [(point["step/number"], point["step/macs"]) for point in points if "step/macs" in point] == list(
        zip(steps["step"], steps["macs"], strict=True)
    )
    assert [point["episode/number"] for point in points if "episode/number" in point] == list(range(1, 13))
    for row in result(run)["rows"]:
        assert second.summary[f"table/{row['name']}/top1"] == row["top1"]
    assert points[-1] == {f"plots/{path.stem}": f"image {path.name}" for path in run.glob("*.png")}


@pytest.fixture
def mlflow(monkeypatch):
    """A stand-in for the package; returns what its servers hold."""
    server = {"experiments": {}, "runs": [], "uris": []}

    @dataclass
    class Metric:
        key: str
        value: float
        timestamp: int
        step: int

    @dataclass
    class Param:
        key: str
        value: str

    class Client:
        def __init__(self, tracking_uri):
            server["uris"].append(tracking_uri)

        def get_experiment_by_name(self, name):
            found = server["experiments"].get(name)
            return None if found is None else types.SimpleNamespace(experiment_id=name)

        def create_experiment(self, name, artifact_location):
            server["experiments"][name] = artifact_location
            return name

        def create_run(self, experiment_id, run_name):
            server["runs"].append(
                {"experiment": experiment_id, "name": run_name, "metrics": [], "params": {}, "files": [], "status": ["RUNNING"]}
            )
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=str(len(server["runs"]) - 1)))

        def update_run(self, run_id, status):
            server["runs"][int(run_id)]["status"].append(status)

        def log_batch(self, run_id, metrics=(), params=()):
            assert len(params) <= 100
            for entry in (*metrics, *params):
                assert re.fullmatch(r"[\w\-. :/]+", entry.key)
            server["runs"][int(run_id)]["metrics"] += [(metric.key, metric.step, metric.value) for metric in metrics]
            server["runs"][int(run_id)]["params"] |= {param.key: param.value for param in params}

        def log_artifact(self, run_id, path):
            server["runs"][int(run_id)]["files"].append(Path(path).name)

        def set_terminated(self, run_id, status):
            server["runs"][int(run_id)]["status"].append(status)

    module, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    module.MlflowClient, entities.Metric, entities.Param = Client, Metric, Param
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return server


def test_mlflow_gets_one_run_also_where_it_was_killed(rlprune, interrupted, mlflow):
    run = Path("outputs/run")
    line = (*STEPS, "tracker=mlflow", "tracker.experiment=mine", f"paths.run={run}", "schedule.max_sparsity={layer1.*:0.9}")
    interrupted(8)
    assert rlprune(*line)[0] == 130
    code, _, err = rlprune(*line)
    assert code == 0, err
    (kept,) = mlflow["runs"]
    assert (kept["name"], kept["status"]) == ("run", ["RUNNING", "FAILED", "RUNNING", "FINISHED"])
    assert mlflow["experiments"] == {"mine": Path("outputs/mlflow/artifacts").absolute().as_uri()}
    assert mlflow["uris"] == [f"sqlite:///{Path('outputs/mlflow/mlflow.db').absolute()}"] * 2
    assert (kept["params"]["choices.agent"], kept["params"]["schedule.max_sparsity.layer1._"]) == ("amc", "0.9")
    steps = pd.read_csv(run / "metrics.csv")
    assert [point[1:] for point in kept["metrics"] if point[0] == "step/macs"] == list(zip(steps["step"], steps["macs"], strict=True))
    assert [point[1] for point in kept["metrics"] if point[0] == "episode/reward"] == list(range(1, 13))
    assert ("table/recovered 50 percent/top1", 0, result(run)["rows"][-1]["top1"]) in kept["metrics"]
    assert sorted(kept["files"]) == sorted(path.name for path in run.glob("*.png"))


def test_mlflow_takes_the_server_that_is_named(mlflow, monkeypatch, tmp_path):
    (tmp_path / "mlflow").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    for uri in ("http://here", None):
        MLflow(experiment="x", tracking_uri=uri, store=str(tmp_path / "store")).start(tmp_path / "mlflow", {})
    assert mlflow["uris"] == ["http://here", "http://there"]
    assert mlflow["experiments"] == {"x": None}  # the server knows where
    assert not (tmp_path / "store").exists()


# -- where something is wrong ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
@pytest.mark.parametrize("command", ["prune", "train"])
def test_a_missing_package_is_one_line_before_anything_is_trained(rlprune, monkeypatch, name, command):
    monkeypatch.setitem(sys.modules, name, None)
    code, out, err = rlprune(command, "debug=smoke", f"tracker={name}")
    assert (code, out) == (2, "")
    assert err == f"rlprune {command}: tracker={name}: the package {name} is missing; pip install 'rlprune[{name}]'\n"
    assert not Path("outputs/dense").exists()


def test_a_tracker_that_cannot_begin_is_one_line_before_anything_is_trained(rlprune):
    Path("outputs/run").mkdir(parents=True)
    Path("outputs/run/tensorboard").touch()
    code, _, err = rlprune(*SMOKE, "tracker=tensorboard", "paths.run=outputs/run")
    (line,) = last_line(err)
    assert (code, line.startswith("rlprune prune: tracker=tensorboard: cannot begin (FileExistsError: ")) == (2, True)
    assert line.endswith("; mend it, or take tracker=none")
    assert not Path("outputs/dense").exists()


@pytest.mark.parametrize("after", [4, 20])
def test_a_tracker_that_fails_on_the_way_costs_a_warning(rlprune, monkeypatch, after):
    from tensorboard.summary.writer.record_writer import RecordWriter

    written, write = [], RecordWriter.write

    def full(self, data):
        written.append(data)
        if len(written) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    code, out, _ = rlprune(*STEPS, "tracker=tensorboard", "paths.run=outputs/run")
    assert code == 0
    warnings = [line for line in out.splitlines() if "tracker" in line]
    assert warnings == ["tracker=tensorboard: OSError: [Errno 28] No space left on device; the run goes on untracked"]
    assert len(written) == after  # nothing is asked of it any more
    assert "rows" in result(Path("outputs/run"))


def test_no_tracker_imports_nothing_and_leaves_nothing(tmp_path):
    code = f"""
import sys
from rlprune.cli import main
code = main({[*SMOKE, "agent=uniform"]!r})
sys.exit(code or bool({{"tensorboard", "wandb", "mlflow"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs/prune").iterdir()
    assert not [path for path in run.iterdir() if path.is_dir() and path.name != "pruned"]


# -- what stands between ---------------------------------------------------------------------------------------------------------------


@dataclass
class Config:
    resume: str | None = None
    tracker: str = "secret"
    seed: int = 3


class Recorder:
    folder = "recorder"

    def __init__(self):
        self.calls = []

    def start(self, folder, settings):
        self.calls.append(("start", settings))
        random.random()

    def log(self, series, number, values):
        self.calls.append((series, number, values))
        random.random()

    def finish(self, rows, images):
        self.calls.append(("finish", rows, [path.name for path in images]))

    def close(self, done):
        self.calls.append(("close", done))


def test_tracking_passes_on_each_finite_number_once_and_moves_no_random_stream(tmp_path):
    tracker = Recorder()
    tracking = Tracking(tracker, "recorder")
    tracking.log("step", 1, {"x": 1})  # before it has begun
    random.seed(0)
    state = random.getstate()
    with tracking.of(tmp_path, Config(), {"agent": "mcq"}):
        search = TrackedSearch(tracking, History(recoveries=[("recover step 1", 2)]), "")
        epochs = search.recovery()
        epochs(1, {"loss": 0.5})
        search.history.recoveries.append(("recover step 2", 3))
        epochs(2, {"loss": 0.25})  # the first was before a kill
        for number in (0, 1, 1, 0, 2):
            tracking.log("step", number, {"x": np.int64(number), "y": float("nan"), "z": None, "name": "best"})
        tracking.finish({"dense": {"name": "dense", "top1": 0.5, "top5": None}}, tmp_path)
    tracking.log("step", 3, {"x": 1})
    assert random.getstate() == state
    assert tracker.calls == [
        ("start", {"choices": {"agent": "mcq"}, "seed": 3}),
        ("recovery", 3, {"loss": 0.5}),
        ("recovery", 7, {"loss": 0.25}),
        *(("step", number, {"x": number}) for number in (0, 1, 2)),
        ("finish", {"dense": {"top1": 0.5}}, []),
        ("close", True),
    ]
    with (tmp_path / "recorder/logged.txt").open("a") as file:
        file.write("step\t9")  # 95, perhaps, whose end a full disk has lost
    again = Tracking(Recorder(), "recorder")

    def fail():
        with again.of(tmp_path, Config(), {}):
            for number in (2, 9, 96):
                again.log("step", number, {"x": number})
            raise UserError("failed")

    with pytest.raises(UserError, match="failed"):
        fail()
    assert again._tracker.calls[1:] == [("step", 96, {"x": 96}), ("close", False)]
    third = Tracking(Recorder(), "recorder")
    with third.of(tmp_path, Config(), {}):
        third.log("step", 96, {"x": 96})
        third.log("recovery", 4, {"loss": 0.25})
    assert third._tracker.calls[1:] == [("close", True)]


def test_flat_names_settings_as_the_command_line_does():
    assert dict(flat({"a": {"b": {"c": 1}, "d": [2]}, "e": None})) == {"a.b.c": 1, "a.d": [2], "e": None}
