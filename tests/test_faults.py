"""What may happen to a run: kills, full disks, damaged files, numbers that are none, clocks that jump. Long form: scripts/faults.py."""

import errno
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import last_line, metrics
from test_commands import snapshot
from torch import nn

from rlprune import cli, load
from rlprune.checkpoint import load_tensors, save_tensors
from rlprune.commands.runs import RunFolder
from rlprune.errors import UserError
from rlprune.files import is_whole, read_json, recall, write_atomically, write_sealed, write_text
from rlprune.rl.optimizer import finite
from rlprune.search.job import PruneJob
from rlprune.search.outcome import _keep_control, _restore_control
from rlprune.streams import open_standard_streams
from rlprune.training.progress import Saver

TINY = ("debug=smoke", "device=cpu", "precision=fp32", "channels_last=false", "model.depth=8", "model.width=0.25", "dataset.image_size=8")
TINY += ("dataset.limit=64", "training.save_minutes=0")
PRUNE = ("prune", *TINY, "search.execution=sliced")
LINES = {
    "train": ("train", *TINY, "training.epochs=2"),
    "mcq": (*PRUNE, "agent=mcq"),
    "ddpg": (*PRUNE, "agent=ddpg", "agent.episodes=8", "agent.batch_size=4", "recovery.control=false"),
    "rlal": (*PRUNE, "agent=rlal", "agent.episodes=3", "schedule.steps=2", "budget.macs=0.5", "recovery.control=false"),
}


def child(*line, before=lambda: None):
    """A forked process that carries out a line, `before` that something else; its exit code (minus the signal) and what it has said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: this one uses none of them
        process = os.fork()
    if not process:
        said = open("said.txt", "w", buffering=1)  # noqa: SIM115
        sys.stdout = sys.stderr = said
        code = 70
        try:
            torch.set_num_threads(1)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            before()
            code = cli.main([str(word) for word in line])
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, Path("said.txt").read_text()


def at_write(count, *, number=signal.SIGKILL, within=False):
    """Let this process get a signal at its write number `count`, when half of the file is there, or all of it."""
    replace, writes = os.replace, 0

    def counted(source, target):
        nonlocal writes
        writes += 1
        if writes == count:
            if within:
                os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), number)
        replace(source, target)

    def prepare():
        os.replace = counted

    return prepare


def outcome(folder):
    """What a run has come to, without times."""
    found = {"result": metrics(read_json(folder / "result.json")), "names": {path.name for path in folder.rglob("*")}}
    for path in folder.glob("*.csv"):
        found[path.name] = pd.read_csv(path).filter(regex="^(?!.*(seconds|latency))").to_csv()
    if (folder / "pruned").exists():
        found["weights"] = {name: tensor.numpy().tobytes() for name, tensor in load(folder).state_dict().items()}
    for path in Path("outputs/dense").glob("[!.]*"):
        found[path.name] = {name: tensor.numpy().tobytes() for name, tensor in load_tensors(path)[0].items()}
    return found


# -- kills -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LINES)
def test_a_run_that_is_killed_twice_at_its_writes_ends_as_an_unbroken_one(rlprune, name):
    line, run, random = LINES[name], Path("outputs/run"), np.random.default_rng(len(name))
    assert rlprune(*line, f"paths.run={run}")[0] == 0
    whole = outcome(run)
    shutil.rmtree("outputs")
    for number in (int(random.integers(3, 5)), int(random.integers(2, 4))):
        assert child(*line, f"paths.run={run}", before=at_write(number, within=True))[0] == -signal.SIGKILL
        assert not (run / "result.json").exists()
    code, out, err = rlprune(*line, f"paths.run={run}")
    assert (code, "Traceback" in err, f"going on with the run in {run}" in out) == (0, False, True)
    assert outcome(run) == whole


def test_a_report_that_is_killed_leaves_nothing_in_the_way(rlprune):
    assert rlprune(*PRUNE, "agent=uniform", "paths.run=outputs/run")[0] == 0
    line = ("report", "runs=outputs/run", "plots=false")
    before = snapshot("outputs")
    assert child(*line, "paths.run=a", before=at_write(2, within=True))[0] == -signal.SIGKILL
    assert child(*line, "paths.run=b", before=at_write(99))[0] == 0
    assert rlprune(*line, "paths.run=c")[0] == 0
    assert snapshot("outputs") == before
    assert Path("b/report.csv").read_bytes() == Path("c/report.csv").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_with_the_line_to_go_on(rlprune, number, code):
    line = (*PRUNE, "agent=uniform", "recovery=none", "paths.run=outputs/run")
    assert rlprune(*line)[0] == 0
    whole = outcome(Path("outputs/run"))
    shutil.rmtree("outputs")
    found, said = child(*line, before=at_write(4, number=number))
    assert (found, "Traceback" in said) == (code, False)
    assert "interrupted; to go on: " in said
    assert "resume=outputs/run" in said
    assert last_line(said)[-1] == "rlprune prune: interrupted; what was finished is kept"
    assert not list(Path("outputs").rglob(".*-????????.*"))
    assert rlprune(*line, "resume=outputs/run")[0] == 0
    assert outcome(Path("outputs/run")) == whole


def test_what_the_killed_have_left_of_a_file_goes_when_it_is_written_again(tmp_path):
    old, young, other = (tmp_path / f".{name}-abcdefg{number}.txt" for number, name in enumerate(("kept", "kept", "another")))
    for path in (old, young, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (1, 1))

    def nested(temporary):
        os.utime(temporary, (1, 1))
        if not (tmp_path / "kept.txt").exists():  # two write at once: neither takes the other's away
            write_atomically(tmp_path / "kept.txt", lambda inner: inner.write_text("inner"))
        temporary.write_text("outer")

    write_atomically(tmp_path / "kept.txt", nested)
    assert ((tmp_path / "kept.txt").read_text(), set(tmp_path.iterdir())) == ("outer", {tmp_path / "kept.txt", young, other})


def test_a_killed_recovery_and_control_go_on_within_themselves(rlprune, monkeypatch):
    line = (*PRUNE, "agent=uniform", "recovery.epochs=2", "recovery.final_epochs=2", "paths.run=outputs/run")
    epochs = []
    save = Saver.save_if_due

    def counted(saver, progress):
        epochs.append((saver.path.name, saver.identity.rpartition(" ")[0], progress.epoch, progress.batch))
        save(saver, progress)
        if len(epochs) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(Saver, "save_if_due", counted)
    monkeypatch.setattr("rlprune.training.progress.SHARE", 1e9)  # every batch is saved
    stop = 0
    assert rlprune(*line)[0] == 0
    whole, wanted = outcome(Path("outputs/run")), list(epochs)
    recoveries = [number for number, (name, *_) in enumerate(wanted) if name == "recovery.safetensors"]
    assert len(recoveries) == 4 * 2 * 2  # two recoveries and two of the control, two epochs of two batches
    for stop in (recoveries[5] + 1, recoveries[-2] + 1):
        shutil.rmtree("outputs")
        epochs.clear()
        assert rlprune(*line)[0] == 130
        assert epochs == wanted[:stop]
        done, stop = stop, 0
        epochs.clear()
        assert rlprune(*line)[0] == 0
        assert epochs == wanted[done:]
        assert outcome(Path("outputs/run")) == whole


def test_a_control_that_cannot_be_taken_up_begins_anew(tmp_path, caplog):
    network, path = nn.Linear(2, 3), tmp_path / "control.safetensors"
    before = network.weight.clone()
    assert _restore_control(path, network, 1) == 0
    _keep_control(path, nn.Linear(2, 3), {"begun_from": 1, "done": 2})
    assert (_restore_control(path, network, 2), torch.equal(network.weight, before)) == (0, True)
    assert "it began from another network" in caplog.text
    assert (_restore_control(path, network, 1), torch.equal(network.weight, before)) == (2, False)
    path.write_bytes(path.read_bytes()[:-1])
    assert _restore_control(path, network, 1) == 0
    _keep_control(Path("/proc/nowhere/control.safetensors"), network, {})
    assert "the control cannot be saved" in caplog.text


def test_states_of_a_run_that_was_killed_behind_its_result_go(rlprune):
    line, states = (*PRUNE, "agent=uniform", "recovery=none"), Path("outputs/prune/run/checkpoint")
    assert rlprune(*line, "paths.run=outputs/prune/run")[0] == 0
    for words, message in (("resume=true",), "starting anew"), (("paths.run=outputs/prune/run", "resume=true"), "that run is done"):
        states.mkdir()
        (states / "step-0002.safetensors").write_bytes(b"")
        code, out, _ = rlprune(*line, *words)
        assert (code, message in out, states.exists()) == (0, True, False)


# -- disks -----------------------------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_at_any_write_ends_in_one_line_and_loses_nothing(rlprune, monkeypatch):
    line = (*PRUNE, "agent=uniform", "recovery.control=false", "paths.run=outputs/run")
    assert rlprune(*line)[0] == 0
    whole = outcome(Path("outputs/run"))
    shutil.rmtree("outputs")
    make, failures = tempfile.mkstemp, 0

    def full(*arguments, **settings):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device", settings["dir"] / "file")
        return make(*arguments, **settings)

    monkeypatch.setattr(tempfile, "mkstemp", full)
    for room in range(40):
        left = room
        code, out, err = rlprune(*line)
        if code == 0:
            break
        failures += 1
        assert (code, "Traceback" in err + out, len(last_line(err))) == (2, False, 1)
        assert "No space left on device; free space or choose another folder" in err
        assert not (Path("outputs/run") / "result.json").exists()
        assert not list(Path("outputs").rglob(".*-????????.*"))
    assert failures >= 8
    assert outcome(Path("outputs/run")) == whole


def test_files_that_may_not_grow_end_in_one_line(rlprune):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    line = (*PRUNE, "agent=uniform", "paths.run=outputs/run")
    code, said = child(*line, before=limit)
    assert (code, "Traceback" in said) == (2, False)
    assert "free space or choose another folder" in last_line(said)[-1]
    assert rlprune(*line)[0] == 0


@pytest.mark.parametrize("where", ["paths.outputs=file", "paths.outputs=/proc/nowhere", "paths.run=file/run", "paths.run=/proc/run"])
def test_a_folder_that_cannot_be_written_to_is_one_line(rlprune, where):
    Path("file").write_text("")
    code, out, err = rlprune(*PRUNE, where)
    assert (code, out, len(last_line(err))) == (2, "", 1)
    assert "choose another folder" in err


# -- damage ----------------------------------------------------------------------------------------------------------------------------


def test_no_flipped_bit_of_a_sealed_file_changes_what_is_read(tmp_path):
    entries = {"accuracies": [0.1, 0.25, 1e-9], "units": {"3": [1, 2]}, "name": "mcq", "none": None}
    path = tmp_path / "kept.json"
    write_sealed(path, entries)
    whole = path.read_bytes()
    assert read_json(path) == entries
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            found = recall(path)
            assert found == {} or {key: found.get(key) for key in entries} == entries
        path.write_bytes(whole[:place])
        assert recall(path) == ({} if place < len(whole) - 1 else entries)
    write_sealed(path, {3: (1, 2)})  # as JSON has it
    assert read_json(path) == {"3": [1, 2]}
    write_text(path, json.dumps({"of": "an older version"}))
    assert read_json(path) == {"of": "an older version"}


def test_no_flipped_bit_of_tensors_changes_what_is_read(tmp_path):
    path, random = tmp_path / "kept.safetensors", np.random.default_rng(0)
    tensors, facts = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}, {"losses": [0.5, 0.25], "name": "dense"}
    save_tensors(path, tensors, facts)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(random.integers(8))]) + whole[place + 1 :])
        with suppress(UserError):
            found, told = load_tensors(path)
            assert {name: tensor.tolist() for name, tensor in found.items()} == {name: t.tolist() for name, t in tensors.items()}
            assert told == facts


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_a_killed_run_whose_files_are_damaged_ends_as_an_unbroken_one(rlprune, how):
    line, random = (*PRUNE, "agent=mcq", "schedule.steps=3", "recovery.control=false", "paths.run=outputs/run"), np.random.default_rng(1)
    assert rlprune(*line)[0] == 0
    whole = outcome(Path("outputs/run"))
    shutil.rmtree("outputs")
    states = Path("outputs/run/checkpoint")
    assert child(*line, before=at_write(23))[0] == -signal.SIGKILL
    files = [*states.glob("[!.]*"), *Path("outputs/cache").glob("*"), *Path("outputs/dense").iterdir(), Path("outputs/run/metrics.csv")]
    assert {"step-0002.safetensors", "measured.json", "metrics.csv"} <= {path.name for path in files}
    for path in files:
        data = bytearray(path.read_bytes())
        place = int(random.integers(len(data)))
        data[place] ^= 1 << int(random.integers(8))
        path.write_bytes(data if how == "flipped" else data[:place])
    code, out, err = rlprune(*line)
    assert (code, "Traceback" in err) == (0, False)
    assert "cannot be used" in out
    assert outcome(Path("outputs/run")) == whole


def test_a_damaged_result_is_no_result(rlprune):
    line, run = (*PRUNE, "agent=uniform", "recovery=none"), Path("outputs/prune/mine")
    assert rlprune(*line, f"paths.run={run}")[0] == 0
    whole, path = outcome(run), run / "result.json"
    text = path.read_text()
    digit = text.index('"top1": 0.') + len('"top1": 0.')
    flipped = f"{text[:digit]}{(int(text[digit]) + 1) % 10}{text[digit + 1 :]}"
    assert not rlprune("report", f"runs={run}", "plots=false")[0]
    for damaged, words in ((flipped, ("resume=true",)), (text[:200], (f"paths.run={run}",)), ("", (f"resume={run}",))):
        path.write_text(damaged)
        assert not is_whole(path)
        code, out, err = rlprune("report", f"runs={run}", "plots=false")
        assert (str(path) in out + err, "Traceback" in err) == (True, False)
        code, out, err = rlprune(*line, *words)
        assert (code, f"{path}: is damaged; the run is done again" in out, "Traceback" in err) == (0, True, False)
        assert outcome(run) == whole
    code, _, err = rlprune(*line, f"paths.run={run}")
    assert (code, "that run is done" in err) == (2, True)
    path.write_text(flipped)
    code, out, _ = rlprune(*line, "seed=3", "resume=true")  # another line has nothing to do with it
    assert (code, "starting anew" in out, path.read_text()) == (0, True, flipped)


# -- numbers that are none -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("agent=uniform", "recovery.optimizer.lr=1e30"), "no longer finite (loss nan); lower optimizer.lr"),
        ((*LINES["rlal"][-5:], "training.optimizer.lr=1e30"), "no longer finite (loss nan); lower optimizer.lr"),
        (
            (*LINES["ddpg"][-4:], "agent.critic_lr=1e30"),
            "agent.actor_lr: the agent's networks are no longer finite; lower agent.",
        ),
        (
            ("agent=amc", "agent.episodes=12", "agent.warmup=4", "agent.batch_size=4", "agent.actor_lr=1e30"),
            "no longer finite; lower agent.",
        ),
        ((*LINES["rlal"][-5:], "agent.batch_size=4", "agent.decoder_lr=1e30"), "no longer finite; lower agent.decoder_lr"),
        (("agent=mcq", "reward.alpha=.nan"), "reward.alpha=.nan: must be a finite number"),
    ],
)
def test_numbers_that_are_not_finite_are_one_line(rlprune, words, message):
    code, out, err = rlprune(*PRUNE, *words)
    assert (code, "Traceback" in out + err, len(last_line(err))) == (2, False, 1)
    assert message in err


class Touchy(nn.Module):
    """A network that answers nothing but NaN when it has lost many channels."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, x):
        x = self.classifier(self.layers(x).mean((2, 3)))
        return x * float("nan") if self.layers[0].weight.shape[0] < 13 else x


@pytest.mark.parametrize("agent", ["mcq", "ddpg"])
def test_a_candidate_that_answers_nan_is_worth_nothing(rlprune, agent):
    words = [word for word in LINES[agent] if not word.startswith("model.")]
    assert rlprune(*words, "model=custom", "model.target=test_faults.Touchy", "recovery=none", "paths.run=outputs/run")[0] == 0
    steps, last = pd.read_csv("outputs/run/metrics.csv").iloc[-1], read_json(Path("outputs/run/result.json"))["rows"][-1]
    kept = len(load("outputs/run", model=Touchy(10, 3)).layers[0].weight)
    assert (last["top1"] > 0, steps["accuracy_pruned"] > 0) == (kept >= 13, kept >= 13)


def test_a_number_is_finite_or_says_which_rate_is_too_high():
    assert finite(0.5, "lr") == 0.5
    with pytest.raises(UserError, match=r"agent\.lr: the agent's networks are no longer finite; lower agent\.lr$"):
        finite(float("inf"), "lr")


# -- two at once, and clocks -----------------------------------------------------------------------------------------------------------


def test_two_runs_that_train_one_dense_network_at_once_both_end(rlprune):
    line = (*PRUNE, "agent=uniform", "recovery=none")
    assert rlprune(*line, "paths.run=outputs/run", "paths.outputs=alone")[0] == 0

    def both():
        if not os.fork():  # the two go on from here
            sys.argv[0] = "second"

    def main(words):
        run = "outputs/b" if sys.argv[0] == "second" else "outputs/a"
        code = real([*words, f"paths.run={run}"])
        if run == "outputs/b":
            Path("b.txt").write_text(str(code))
            os._exit(code)
        deadline = time.monotonic() + 60
        while not Path("b.txt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return code

    real, cli.main = cli.main, main
    try:
        code, _ = child(*line, before=both)
    finally:
        cli.main = real
    assert (code, Path("b.txt").read_text()) == (0, "0")
    found = [metrics(read_json(Path(run, "result.json"))) for run in ("outputs/run", "outputs/a", "outputs/b")]
    assert found[1] == found[2]
    assert found[0]["rows"] == found[1]["rows"]
    assert len(list(Path("outputs/dense").iterdir())) == 1


def test_a_clock_that_jumps_changes_no_result(rlprune, monkeypatch):
    line = (*LINES["rlal"], "precision=auto", "search.samples=16")
    assert rlprune(*line, "paths.run=outputs/a")[0] == 0
    shutil.rmtree("outputs/dense", ignore_errors=True)
    random, clocks = np.random.default_rng(0), {name: getattr(time, name) for name in ("time", "monotonic", "perf_counter")}
    with monkeypatch.context() as patch:
        for name, clock in clocks.items():
            patch.setattr(time, name, lambda clock=clock: clock() + 3600 * int(random.integers(-5, 6)))
        assert rlprune(*line, "paths.run=outputs/b")[0] == 0
    seconds = read_json(Path("outputs/b/result.json"))["seconds"]
    assert all(value >= 0 for value in seconds.values())
    assert metrics(read_json(Path("outputs/b/result.json")))["search"] == metrics(read_json(Path("outputs/a/result.json")))["search"]


def test_a_clock_that_is_put_back_delays_no_save(tmp_path, monkeypatch):
    now = 1e6
    monkeypatch.setattr("rlprune.training.progress.time.monotonic", lambda: now)
    saved = []
    monkeypatch.setattr("rlprune.training.progress.save_tensors", lambda *arguments: saved.append(now))
    saver = Saver(tmp_path / "state.safetensors", identity="", minutes=10, resume=False)

    class Progress:
        def state(self):
            return {}, {}

    for jump in (599, 600, -7200, -7100, -6600, 7200):
        now = 1e6 + jump
        saver.save_if_due(Progress())
    assert saved == [1e6 + 600, 1e6 - 7200, 1e6 - 6600, 1e6 + 7200]


def test_the_time_of_a_search_that_slept_is_over(rlprune, monkeypatch):
    real, jump = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: real() + jump)
    begin = PruneJob._set_deadline

    def slept(job, ledger, spent):
        nonlocal jump
        begin(job, ledger, spent)
        jump = 7200.0

    monkeypatch.setattr(PruneJob, "_set_deadline", slept)
    assert rlprune(*PRUNE, "agent=mcq", "schedule.max_minutes=60", "paths.run=outputs/run")[0] == 0
    assert read_json(Path("outputs/run/result.json"))["search"]["stopped"] == "max_minutes"


# -- folders and streams that go -------------------------------------------------------------------------------------------------------


def test_a_run_folder_that_goes_while_the_run_goes_on(rlprune, monkeypatch):
    line, save = (*PRUNE, "agent=uniform", "recovery.control=false", "paths.run=outputs/run"), PruneJob._after_step

    def deleted(job, state, *arguments):
        save(job, state, *arguments)
        if state.step == when:
            shutil.rmtree("outputs/run")

    monkeypatch.setattr(PruneJob, "_after_step", deleted)
    when = 2  # behind the last level: it is lost
    code, _, err = rlprune(*line)
    assert (code, len(last_line(err)), Path("outputs/run").exists()) == (2, 1, False)
    assert "outputs/run: was deleted or moved while the run went on, start it anew (outputs/run/pruned/plan.json: cannot be read" in err
    when = 1
    code, out, err = rlprune(*line)
    assert (code, "was deleted or moved while the run went on; its log is lost, its result is there" in out) == (0, True)
    assert "that run is done" in rlprune(*line)[2]  # config.yaml is there, too
    assert RunFolder(Path("outputs/run")).explain("other") == "other"


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_closed_standard_streams_are_filled(rlprune, stream):
    def close():
        os.close(("stdin", "stdout", "stderr").index(stream))
        if stream != "stdin":
            setattr(sys, stream, None)
        open_standard_streams()

    code, said = child("inspect", *TINY[:1], "device=cpu", "model.depth=8", before=close)
    assert (code, "Traceback" in said) == (0, False)


@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_log_that_nobody_reads_ends_no_run_and_says_nothing(rlprune, streams):
    def pipe():
        reading, writing = os.pipe()
        os.close(reading)
        for name in streams:
            number = ("stdin", "stdout", "stderr").index(name)
            os.dup2(writing, number)
            setattr(sys, name, os.fdopen(number, "w", buffering=1))

    code, said = child(*PRUNE, "agent=uniform", "recovery=none", "paths.run=outputs/run", before=pipe)
    assert (code, "Traceback" in said, is_whole(Path("outputs/run/result.json"))) == (0, False, True)


def test_a_working_directory_that_is_gone_is_one_line(rlprune):
    Path("gone").mkdir()
    said = Path("said.txt").absolute()

    def go():
        os.chdir("gone")
        os.rmdir(said.parent / "gone")

    code, text = child(*PRUNE, before=go)
    assert (code, last_line(text)) == (
        2,
        ["rlprune prune: the folder that this was started in is gone; change to one that is there (cd FOLDER)"],
    )
