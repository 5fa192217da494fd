import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread

import nets
import numpy as np
import pytest
import torch
from conftest import last_line, metrics
from PIL import Image
from torch import nn

from rlprune.data.base import Images, Normalization
from rlprune.data.files import Geometry, ImageFiles
from rlprune.errors import UserError
from rlprune.evaluators import scheduler
from rlprune.evaluators.base import Job, Kit, Measuring, dumps, read_answer
from rlprune.evaluators.local import Local
from rlprune.evaluators.scheduler import Event, Scheduler, parts_of
from rlprune.evaluators.wire import MARK, FrameError, Frames, read_shared, send, shared_file
from rlprune.graph import Slicer, trace
from rlprune.search.candidates import Cutter, Request, Stage, as_it_is
from rlprune.search.ledger import Ledger
from rlprune.training.evaluate import Evaluator
from rlprune.training.execution import choose_execution

COUNT, BATCH = 38, 8  # the last batch is smaller
SETTINGS = {"workers": 2, "threads": 1, "timeout": 60.0}


@dataclass
class Trouble:
    """What a candidate gets before it is looked at, once in the life of a file."""

    path: str
    what: str

    def __call__(self, network):
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        if self.what == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "hangs":
            os.kill(os.getpid(), signal.SIGSTOP)
        Measuring.answer = lambda measuring, message: b"\x00nonsense"


class Failing:
    """A plug-in's mistake."""

    def __init__(self, error):
        self.error = error

    def __call__(self, network):
        raise self.error


@pytest.fixture
def subject():
    return make_subject()


def make_subject():
    """A stage, an evaluator, and plans for it."""
    torch.manual_seed(3)
    execution = choose_execution(device="cpu", precision="fp32", channels_last="auto", compile=False)
    images = Images(torch.randint(0, 255, (COUNT, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 5, (COUNT,)))
    evaluator = Evaluator(images, Normalization((0.5,) * 3, (0.25,) * 3), execution, batch_size=BATCH)
    network = nets.randomised(nets.Concat()).eval()
    stage = Stage(network, trace(network, torch.randn(2, 3, 8, 8)))
    generator = np.random.default_rng(0)
    plans = []
    for _ in range(7):
        sizes = [(group.name, group.num_units, generator.integers(1, group.num_units + 1)) for group in stage.graph.groups]
        plans.append({name: np.sort(generator.permutation(units)[:stay]) for name, units, stay in sizes})
    return stage, evaluator, [Request(keep) for keep in plans]


def kit(evaluator, refresh=as_it_is):
    return Kit(evaluator, refresh, as_it_is, 1, True)


def here(stage, evaluator, requests):
    cutter = Cutter(stage, measure=lambda network: evaluator.accuracy(network).top1)
    return [cutter(request) for request in requests]


def measured(settings, stage, evaluator, requests, refresh=as_it_is):
    team = Local(**{**SETTINGS, **settings}).start(kit(evaluator, refresh))
    try:
        return list(team.measure(stage, requests))
    finally:
        team.close()


# -- what goes to and fro --------------------------------------------------------------------------------------------------------------


def test_a_job_comes_back_from_its_bytes(subject):
    stage, _, requests = subject
    for number, request in enumerate(requests):
        job = Job(number, Request(request.keep, "stem"), (1, 3))
        packed = job.packed(stage.graph)
        again = Job.unpacked(packed, stage.graph)
        assert (again.number, again.batches, again.request.among) == (number, (1, 3), "stem")
        assert all((again.request.keep[name] == units).all() for name, units in request.keep.items())
        assert len(packed.partition(b"\n")[2]) == -(-int(stage.graph.num_units.sum()) // 8)  # a bit for each unit
        with pytest.raises(ValueError, match="damaged"):
            Job.unpacked(packed[:-1] + bytes([packed[-1] ^ 128]), stage.graph)
        with pytest.raises(ValueError, match="damaged"):
            Job.unpacked(packed + b"\0", stage.graph)


def said(**other):
    return json.dumps({"job": 4, "correct": 1, "images": 8, "seconds": 0.1, **other}).encode()


@pytest.mark.parametrize(
    "message",
    [
        b"", b"null", b"7", b"[]", b"\xff\xfe", b"{}", b'{"job": 4}', b"[" * 50_000, said(job=5), said(job=[]), said(job=None),
        said(correct=9), said(correct=-1), said(correct=1.0), said(correct=True), said(correct="1"), said(correct=float("nan")),
        said(images=9), said(seconds=None), said(seconds="1"),
    ],
)  # fmt: skip
def test_nonsense_is_no_answer(message):
    with pytest.raises(ValueError):  # noqa: PT011 (each is told in its own words)
        read_answer(message, Job(4, Request({}), (0, 1)), 8)


def test_an_answer_is_read_and_failures_are_raised_as_they_are():
    job = Job(4, Request({}), (0, 1))
    assert read_answer(b'{"job": 4, "correct": 5, "images": 8, "seconds": 0.1}', job, 8) == (4, 5, 8, 0.1)
    with pytest.raises(UserError, match="lower it"):
        read_answer(b'{"job": 4, "error": "lr=9: lower it", "mendable": true}', job, 8)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        read_answer(b'{"job": null, "error": "ZeroDivisionError: by zero"}', job, 8)


def test_frames_are_whole_and_carry_files():
    one, other = socket.socketpair()
    frames, came = Frames(other), []
    send(one, b"abc", shared_file(b"content"))
    send(one, b"")
    sender = Thread(target=send, args=(one, b"x" * 300_000))
    sender.start()
    while len(came) < 3:
        came += frames.read()
    sender.join()
    assert came == [b"abc", b"", b"x" * 300_000]
    assert read_shared(frames.descriptors.pop()) == b"content"
    one.sendall(MARK + b"\xff\xff\xff\xff")
    with pytest.raises(FrameError):
        frames.read()
    one.close()
    assert Frames(other).read() is None
    other.close()


def test_what_is_sent_arrives_as_it_was(subject):
    stage, evaluator, requests = subject
    evaluator.accuracy(stage.network)  # makes batches, which stay here
    worker = Measuring(dumps(kit(evaluator)))
    assert worker.kit.evaluator._resident is None
    assert b"there is no network" in worker.answer(Job(0, requests[0], (0, 5)).packed(stage.graph))
    worker.begin(dumps(stage))
    said = [json.loads(worker.answer(Job(3, request, (0, 5)).packed(stage.graph))) for request in requests]
    assert [answer["correct"] / COUNT for answer in said] == here(stage, evaluator, requests)


def test_images_on_disk_are_decoded_by_the_worker_itself(subject, tmp_path):
    stage, evaluator, requests = subject
    paths = [tmp_path / f"{place}.png" for place in range(COUNT)]
    for path, pixels in zip(paths, evaluator.images.pixels, strict=True):
        Image.fromarray(np.asarray(pixels.permute(1, 2, 0))).save(path)
    files = ImageFiles(paths, evaluator.images.labels, Geometry(8, None), None)
    streaming = Evaluator(files, evaluator.normalization, evaluator.execution, batch_size=BATCH)
    worker = Measuring(dumps(kit(streaming)))
    assert (files.workers, worker.kit.evaluator.images.workers) == (None, 0)
    worker.begin(dumps(stage))
    parts = [json.loads(worker.answer(Job(0, requests[0], part).packed(stage.graph))) for part in ((0, 2), (2, 5))]
    assert sum(part["correct"] for part in parts) / COUNT == here(stage, evaluator, requests[:1])[0]


def test_parts_of_the_images_add_up(subject):
    stage, evaluator, _ = subject
    whole = evaluator.accuracy(stage.network)
    for fresh in (False, True):
        parts = [evaluator.part(*bounds) for bounds in ((0, 2), (2, 3), (3, 5))]
        assert [len(part) for part in parts] == [16, 8, 14]
        found = [part.accuracy(stage.network) for part in parts]
        assert sum(part.correct for part in found) == whole.correct
        assert sum(part.correct_top5 for part in found) == whole.correct_top5
        if fresh:
            evaluator._resident = None
    assert evaluator.part(0, 5) is evaluator


# -- sharing out -----------------------------------------------------------------------------------------------------------------------


class Script:
    """A crew whose workers do as they are told: answers come in any order, workers are lost when it is their turn."""

    def __init__(self, size, evaluator, worth, seed=0, lose=lambda worker, job: "", gone=lambda worker: False, stuck=lambda worker: False):
        self.size, self.evaluator, self.worth, self.lose, self.gone, self.stuck = size, evaluator, worth, lose, gone, stuck
        self.random, self.busy, self.new, self.started, self.dismissed, self.given, self.power = (
            np.random.default_rng(seed), {}, deque(), 0, [], [], 1.0,
        )  # fmt: skip
        for _ in range(size):
            self._start()

    def _start(self):
        self.new.append(self.started)
        self.started += 1

    def begin(self, stage):
        self.stage = stage

    def give(self, worker, job):
        assert worker not in self.busy
        self.busy[worker] = Job.unpacked(job, self.stage.graph)
        self.given.append(self.busy[worker])

    def wait(self, seconds):
        if self.new:
            worker = self.new.popleft()
            if self.gone(worker):
                self._start()
                return [Event(worker, lost="was never there")]
            return [Event(worker)]
        workers = [worker for worker in self.busy if not self.stuck(worker)]
        if not workers:
            return []
        worker = int(self.random.choice(workers))
        job = self.busy.pop(worker)
        if why := self.lose(worker, job):
            self._start()
            return [Event(worker, lost=why)]
        first, last = (min(batch * BATCH, COUNT) for batch in job.batches)
        correct = sum(self.worth(job.request, image) for image in range(first, last))
        return [Event(worker, json.dumps({"job": job.number, "correct": correct, "images": last - first, "seconds": 0.1}).encode())]

    def dismiss(self, worker):
        self.dismissed.append(worker)
        self.busy.pop(worker, None)
        self._start()

    def close(self):
        self.busy.clear()


def worth(request, image):
    """Whether an image is told right, by the plan alone."""
    return int((sum(int(units.sum()) for units in request.keep.values()) + image) % 3 == 0)


def expected(requests):
    return [sum(worth(request, image) for image in range(COUNT)) / COUNT for request in requests]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 50])
def test_answers_come_in_order_and_do_not_depend_on_the_crew(subject, size):
    stage, evaluator, requests = subject
    for seed in range(5):
        team = Scheduler(Script(size, evaluator, worth, seed), evaluator, timeout=60)
        assert list(team.measure(stage, requests)) == expected(requests)
        assert list(team.measure(stage, requests[:1])) == expected(requests[:1])
        assert list(team.measure(stage, [])) == []


def test_few_candidates_are_cut_into_parts_of_whole_batches(subject):
    stage, evaluator, requests = subject
    for size, count, jobs in (
        (1, 7, 7),
        (2, 7, 6 + 2),
        (5, 7, 5 + 2 * 5),
        (8, 7, 7),
        (14, 7, 14),
        (2, 1, 2),
        (3, 1, 3),
        (50, 1, 5),
        (50, 2, 10),
    ):
        crew = Script(size, evaluator, worth)
        assert list(Scheduler(crew, evaluator, timeout=60).measure(stage, requests[:count])) == expected(requests[:count])
        assert len(crew.given) == jobs == sum(parts_of(count, size, 5))
        assert sum(last - first for first, last in (job.batches for job in crew.given)) == 5 * count


def test_lost_workers_cost_time_alone(subject):
    stage, evaluator, requests = subject
    for seed in range(10):
        falls = iter(np.random.default_rng(seed).random(1000) < 0.12)
        crew = Script(3, evaluator, worth, seed, lose=lambda worker, job, falls=falls: "fell" if next(falls) else "")
        assert list(Scheduler(crew, evaluator, timeout=60).measure(stage, requests)) == expected(requests)


def test_a_candidate_that_costs_every_worker_ends_the_search(subject):
    stage, evaluator, requests = subject
    crew = Script(2, evaluator, worth, lose=lambda worker, job: "fell" if job.number == 4 else "")
    with pytest.raises(UserError, match="a candidate has cost 3 workers, the last fell; use fewer"):
        list(Scheduler(crew, evaluator, timeout=60).measure(stage, requests))


def test_workers_that_never_begin_end_the_search(subject):
    stage, evaluator, requests = subject
    with pytest.raises(UserError, match="7 workers were lost without an answer between, the last as it was never there"):
        list(Scheduler(Script(2, evaluator, worth, gone=lambda worker: True), evaluator, timeout=60).measure(stage, requests))
    silent = Script(2, evaluator, worth)
    silent.new.clear()
    with pytest.raises(UserError, match=r"no worker has come for 0\.01 s"):
        list(Scheduler(silent, evaluator, timeout=0.01).measure(stage, requests))


def test_an_overdue_worker_is_dismissed_and_its_candidate_measured_again(subject, monkeypatch):
    stage, evaluator, requests = subject
    now = [0.0]
    monkeypatch.setattr(scheduler.time, "monotonic", lambda: now[0])

    class Slow(Script):
        def wait(self, seconds):
            now[0] += 1
            return super().wait(seconds)

    crew = Slow(2, evaluator, worth, stuck=lambda worker: worker == 0)
    assert list(Scheduler(crew, evaluator, timeout=30).measure(stage, requests)) == expected(requests)
    assert crew.dismissed == [0]


def test_what_is_left_of_an_abandoned_call_does_not_disturb_the_next(subject):
    stage, evaluator, requests = subject
    for seed in range(5):
        crew = Script(3, evaluator, worth, seed)
        team = Scheduler(crew, evaluator, timeout=60)
        first = team.measure(stage, requests)
        assert next(first) == expected(requests)[0]
        first.close()
        other = Stage(stage.network, stage.graph)
        assert list(team.measure(other, requests[3:])) == expected(requests[3:])


# -- processes -------------------------------------------------------------------------------------------------------------------------


def children():
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    return [line for line in found.splitlines() if "rlprune.evaluators.process" in line]


def test_processes_measure_what_this_one_does(subject):
    stage, evaluator, requests = subject
    wanted = here(stage, evaluator, requests)
    assert Local(**{**SETTINGS, "workers": None}).start(kit(evaluator)) is None
    team = Local(**SETTINGS).start(kit(evaluator))
    assert str(team) == "2 processes of 1 thread each"
    assert list(team.measure(stage, requests)) == wanted
    small = Stage(Slicer(stage.network, stage.graph)(requests[0].keep), stage.graph.after(requests[0].keep))
    whole = Request({group.name: np.arange(group.num_units) for group in small.graph.groups}, small.graph.groups[0].name)
    assert list(team.measure(small, [whole])) == [wanted[0]]  # in two parts
    assert len(children()) == 2
    team.close()
    assert children() == []


@pytest.mark.parametrize("what", ["dies", "raves", pytest.param("hangs", marks=pytest.mark.processes)])
def test_trouble_with_a_worker_changes_nothing(subject, tmp_path, caplog, what):
    stage, evaluator, requests = subject
    settings = {"timeout": 15.0 if what == "hangs" else 60.0}
    found = measured(settings, stage, evaluator, requests, Trouble(str(tmp_path / "once"), what))
    assert found == here(stage, evaluator, requests)
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "its candidate is measured again" in line
    assert {"dies": "was ended by SIGKILL", "hangs": "has not answered for 15 s", "raves": "gave an answer that is none"}[what] in line
    assert children() == []


def test_what_fails_in_a_worker_fails_here(subject):
    stage, evaluator, requests = subject
    with pytest.raises(UserError, match="mend me"):
        measured({"workers": 1}, stage, evaluator, requests, Failing(UserError("mend me")))
    with pytest.raises(RuntimeError, match="ZeroDivisionError: by nothing"):
        measured({"workers": 1}, stage, evaluator, requests, Failing(ZeroDivisionError("by nothing")))


def test_what_cannot_be_sent_is_told(subject):
    stage, evaluator, _ = subject
    with pytest.raises(UserError, match=r"the data or a plug-in cannot be sent to another process .*evaluator\.workers=null"):
        Local(**SETTINGS).start(kit(evaluator, Failing(Lock())))

    class Here(nn.Module):
        def __init__(self):
            super().__init__()
            self.lock = Lock()

    team = Local(**{**SETTINGS, "workers": 1}).start(kit(evaluator))
    with pytest.raises(UserError, match="the network cannot be sent"):
        list(team.measure(Stage(Here(), stage.graph), [Request({})]))
    team.close()


def test_workers_end_with_a_search_that_is_killed(tmp_path):
    program = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_evaluators as t
stage, evaluator, requests = t.make_subject()
team = t.Local(**{{**t.SETTINGS, "workers": 1}}).start(t.kit(evaluator))
list(team.measure(stage, requests))
print(*[worker.process.pid for worker in team.crew._workers.values()], flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 1
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- whole runs ------------------------------------------------------------------------------------------------------------------------

SMOKE = ("prune", "debug=smoke", "model.width=0.25", "seed=3", "recovery.control=false")
AGENTS = {
    "mcq": ("agent=mcq", "agent.sample_steps=2", "agent.sample_num=3"),
    "reinforce": ("agent=reinforce", "agent.mode=individual", "agent.layer=layer2.0.conv1", "agent.updates=2"),
    "rlal": ("agent=rlal", "schedule=joint", "training.epochs=3"),
}


def outcome(folder):
    return metrics(json.loads((Path(folder) / "result.json").read_text())), (Path(folder) / "pruned/weights.safetensors").read_bytes()


def same(one, other):
    (first, weights), (second, others) = outcome(one), outcome(other)
    assert first == second
    assert weights == others


@pytest.mark.no_cover
@pytest.mark.parametrize("agent", ["mcq", *(pytest.param(name, marks=pytest.mark.processes) for name in ("reinforce", "rlal"))])
def test_a_run_is_the_same_with_any_number_of_workers(rlprune, agent):
    line = (*SMOKE, *AGENTS[agent])
    torch.set_num_threads(1)  # as many as a worker has
    for workers in ("null", 2):
        code, out, err = rlprune(*line, f"evaluator.workers={workers}", f"paths.run=outputs/{workers}")
        assert code == 0, err
        assert ("candidates are measured by 2 processes of 1 thread each" in out) == (workers == 2)
    same("outputs/null", "outputs/2")


@pytest.mark.processes
@pytest.mark.usefixtures("_heard")
def test_a_search_goes_on_with_another_number_of_workers(rlprune, monkeypatch):
    line, accuracy, stop = (*SMOKE, "agent=random_search", "search.max_candidates=9"), Ledger.accuracy, [13]

    def counted(self, subject, measure):
        stop[0] -= 1
        if stop[0] == 0:
            signal.raise_signal(signal.SIGINT)
        return accuracy(self, subject, measure)

    monkeypatch.setattr(Ledger, "accuracy", counted)
    assert rlprune(*line, "evaluator.workers=2", "paths.run=outputs/run")[0] == 130
    assert len(json.loads(Path("outputs/run/checkpoint/measured.json").read_text())["accuracies"]) == 4
    code, out, _ = rlprune(*line, "evaluator.workers=1", "resume=outputs/run")
    assert (code, "step 2: 4 candidates were measured before the interruption" in out) == (0, True)
    assert rlprune(*line, "paths.run=outputs/whole")[0] == 0
    same("outputs/run", "outputs/whole")


RAY = """
import logging, sys
sys.path.insert(0, sys.argv[1])
logging.basicConfig(level=logging.INFO, format="%(message)s")
import ray
import test_evaluators as t
from ray.cluster_utils import Cluster
from rlprune.evaluators.ray import Ray
stage, evaluator, requests = t.make_subject()
wanted = t.here(stage, evaluator, requests)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
crew = Ray(address=cluster.address, workers=2, threads=1, num_gpus=None, timeout=120.0)
team = crew.start(t.kit(evaluator, t.Trouble(sys.argv[2], "dies")))
print("equal", list(team.measure(stage, requests)) == wanted, len(team._idle))
other = cluster.add_node(num_cpus=1)
while len(team._idle) < 2:
    list(team.measure(stage, requests[:1]))
print("equal", list(team.measure(t.Stage(stage.network, stage.graph), requests)) == wanted, len(team._idle))
cluster.remove_node(other)
print("equal", list(team.measure(stage, requests)) == wanted)
team.close()
cluster.shutdown()
"""


@pytest.mark.cluster
def test_ray_measures_what_this_process_does_while_workers_and_nodes_come_and_go(tmp_path):
    pytest.importorskip("ray")
    line = [sys.executable, "-c", RAY, str(Path(__file__).parent), str(tmp_path / "once")]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert [text for text in done.stdout.splitlines() if text.startswith("equal")] == ["equal True 1", "equal True 2", "equal True"], (
        done.stderr
    )
    assert done.stderr.count("its candidate is measured again") in (1, 2)  # the node that went may have had none


def test_ray_that_is_not_there_is_told(rlprune, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = rlprune(*SMOKE, "evaluator=ray")
    assert code == 2
    assert last_line(err)[-1] == "rlprune prune: evaluator=ray: needs the package ray; pip install 'rlprune[ray]'"


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("evaluator.workers=0", "evaluator.workers=0: must be ≥ 1, auto, or null for this process alone"),
        ("evaluator.workers=many", "evaluator.workers=many: "),
        ("evaluator.threads=0", "evaluator.threads=0: must be ≥ 1"),
        ("evaluator.timeout=0", "evaluator.timeout=0: must be > 0 seconds"),
        ("evaluator=slurm", "evaluator=slurm: unknown; choose one of local, ray"),
        ("evaluator.gpus=2", "evaluator.gpus"),
        ("evaluator=ray evaluator.num_gpus=-1", "evaluator.num_gpus=-1: must be ≥ 0"),
    ],
)
def test_wrong_settings_are_told_in_one_line(rlprune, word, wanted):
    code, _, err = rlprune(*SMOKE, *word.split())
    assert code == 2
    assert wanted in last_line(err)[-1]
    assert not Path("outputs").exists() or not list(Path("outputs").glob("dense/*"))
