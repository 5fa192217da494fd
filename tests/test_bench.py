import json
import os
import sys
import warnings
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import last_line
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

import rlprune as package
from rlprune.benchmark import runtimes
from rlprune.benchmark.bench import LONGEST, Bench, reason
from rlprune.benchmark.memory import pass_memory, resident_memory
from rlprune.benchmark.runtimes import RUNTIMES, Ready
from rlprune.benchmark.silence import silence
from rlprune.benchmark.timing import Timing, in_turns, summarize
from rlprune.data.digits import Digits
from rlprune.errors import UserError
from rlprune.results.bench import bench_figure, bench_notes, bench_table

COLUMNS = [
    "network", "precision", "runtime", "batch_size", "passes", "median_ms", "q25_ms", "q75_ms", "p95_ms", "images_per_second", "speed_up",
    "memory_bytes", "compile_seconds", "max_difference", "memory_format", "note",
]  # fmt: skip


class Time:
    """A clock that passes move on."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self):
        return self.now

    def spend(self, name, seconds):
        def run():
            self.order.append(name)
            self.now += seconds

        return run


def test_networks_take_turns_forwards_and_backwards_and_the_first_pass_of_a_turn_is_not_timed():
    time = Time()
    passes = {"a": time.spend("a", 0.125), "b": time.spend("b", 0.25)}
    taken = in_turns(passes, seconds=2.0, rounds=4, clock=time)
    assert "".join(time.order) == "aaaabb" + "bbaaaa" + "aaaabb" + "bbaaaa"
    assert taken == {"a": 12 * [0.125], "b": 4 * [0.25]}


def test_where_a_pass_takes_longer_than_there_is_time_for_all_have_two_turns():
    time = Time()
    taken = in_turns({"fast": time.spend("f", 0.25), "slow": time.spend("s", 4.0)}, seconds=2.0, rounds=4, clock=time)
    assert ("".join(time.order), taken) == ("ffs" + "sff", {"fast": [0.25, 0.25], "slow": [4.0, 4.0]})


def test_statistics_are_those_of_the_passes():
    assert summarize([0.005, 0.001, 0.002, 0.004, 0.003]) == Timing(5, *map(pytest.approx, (3.0, 2.0, 4.0, 4.8)))


@pytest.mark.parametrize(
    ("network", "numbers"),
    [
        (nn.ReLU(), 60 + 60),  # images and scores
        (nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU()), 60 + 120),  # a layer's input lives while its output is computed
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), 60 + 7 * 12 + 7 + 5 * 7),
        (nn.Sequential(nn.Flatten(), shared := nn.Linear(12, 12), shared), 60 + 12 * 13 + 120),  # weights count once
    ],
)
def test_memory_is_weights_images_and_what_a_pass_holds_at_most(network, numbers):
    images = torch.randn(5, 3, 2, 2)

    def run():
        with torch.inference_mode():
            return network.eval()(images)

    run()
    assert pass_memory(run, network, images) == 4 * numbers


def test_nothing_is_printed_inside_of_silence_and_all_is_as_before_behind_it(capfd):
    with silence():
        sys.stdout.write("python")
        os.write(2, b"library")
        warnings.warn("warning", stacklevel=1)
    sys.stdout.write("behind")
    assert capfd.readouterr() == ("behind", "")


def test_a_reason_is_one_short_line():
    assert reason(RuntimeError("\n  first\nsecond")) == "RuntimeError: first"
    assert reason(RuntimeError()) == "RuntimeError"
    assert len(reason(ValueError("x" * 500))) == LONGEST + 2


# -- comparisons ---------------------------------------------------------------------------------------------------------------------------


def net(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)
    )


def job(networks, **settings):
    given = {
        "batch_sizes": [1, 3], "runtimes": ["eager"], "precisions": ["fp32"], "channels_last": "auto", "threads": None,
        "seconds": 1e-4, "rounds": 2,
    }  # fmt: skip
    return Bench(networks, torch.randn(2, 3, 8, 8), **given | settings)


def test_a_row_for_every_network_runtime_precision_and_batch_size():
    networks, threads = {"dense": net(16), "pruned": net(5)}, torch.get_num_threads()
    example = torch.randn(2, 3, 8, 8)
    frame = package.bench(
        networks, example, batch_sizes=[3], runtimes=["eager", "onnxruntime"], precisions=["fp32", "bf16"], seconds=0.01, rounds=2,
        threads=1,
    )  # fmt: skip
    assert list(frame) == COLUMNS
    cases = [("fp32", "eager", 3), ("fp32", "onnxruntime", 3), ("bf16", "eager", 3)]  # onnxruntime has no bf16
    expected = [(*case, name) for case in cases for name in networks]
    assert list(frame[["precision", "runtime", "batch_size", "network"]].itertuples(index=False, name=None)) == expected
    assert set(frame["note"]) == {""}
    assert (frame["passes"] >= 2).all()
    assert frame[["q25_ms", "median_ms", "q75_ms", "p95_ms"]].apply(lambda row: row.is_monotonic_increasing, axis=1).all()
    np.testing.assert_allclose(frame["images_per_second"], 1000 * frame["batch_size"] / frame["median_ms"])
    dense, pruned = (frame.loc[frame["network"] == name, "median_ms"].to_numpy() for name in networks)
    np.testing.assert_allclose(frame.loc[frame["network"] == "pruned", "speed_up"], dense / pruned)
    assert (frame.loc[frame["precision"] == "fp32", "max_difference"] < 1e-5).all()
    assert frame["compile_seconds"].notna().tolist() == (frame["runtime"] == "onnxruntime").tolist()
    assert (frame.loc[frame["runtime"] == "onnxruntime", "memory_bytes"].dropna() > 1e6).all()  # a whole runtime
    assert torch.get_num_threads() == threads
    assert all(network.training for network in networks.values())  # they were copied


def test_onnxruntime_holds_the_weights_and_the_pass(tmp_path):
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3072)).eval(), torch.zeros(1, 3, 32, 32)
    runtimes.export_onnx(network, images, tmp_path / "net.onnx", opset=None, dynamic_batch=False, metadata={})
    grown = resident_memory(tmp_path / "net.onnx", tuple(images.shape), 1)
    assert (grown is None) == (not Path("/proc/self/status").exists())
    assert grown is None or 1.0 < grown / (4 * 3072 * 3072) < 1.8  # reading the file takes more, but not what runs


def broken(task):
    raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nin a long\ntraceback")


def test_a_compiler_that_fails_is_told_once_and_the_rest_goes_on():
    frame = job({"dense": net(6), "pruned": net(3)}, runtimes=["compiled", "eager"], prepare=RUNTIMES | {"compiled": broken}).run()
    failed = frame[frame["runtime"] == "compiled"]
    assert (failed["passes"].tolist(), frame["passes"].tolist()[4:] > [0] * 4) == ([0] * 4, True)
    assert failed[["median_ms", "speed_up", "memory_bytes", "images_per_second"]].isna().all(axis=None)
    assert bench_notes(frame) == ["compiled: RuntimeError: InvalidCxxCompiler: No working C++ compiler found"]
    assert bench_table(frame)["median ms"].tolist()[:4] == ["–"] * 4
    with pytest.raises(UserError, match=r"^compiled: RuntimeError: InvalidCxxCompiler"):
        job({"dense": net(6)}, runtimes=["compiled"], prepare={"compiled": broken}).run()


def test_what_computes_something_else_is_told_and_not_timed():
    calls = []

    def rounded(task):
        ready = RUNTIMES["eager"](task)
        return Ready(lambda: calls.append(1) or 1.5 * ready.run(), ready.memory)

    def endless(task):
        return Ready(lambda: torch.full((len(task.images), 4), torch.nan), lambda: 0)

    frame = job({"dense": net(6)}, runtimes=["other", "nan", "eager"], prepare=RUNTIMES | {"other": rounded, "nan": endless}).run()
    assert frame["passes"].gt(0).tolist() == [False] * 4 + [True] * 2
    assert len(calls) == 2  # the comparisons
    assert "other: computes something else: scores are off by 50 % of the largest; not timed" in bench_notes(frame)
    assert any(note.startswith("nan: scores are not finite") for note in bench_notes(frame))


class Single(nn.Module):
    """Takes one image."""

    def __init__(self):
        super().__init__()
        self.body = net(4)

    def forward(self, images):
        return self.body(images.view(1, 3, 8, 8))


class Pair(nn.Identity):
    def forward(self, images):
        return images, images


def test_a_batch_that_a_network_cannot_take_is_told_and_the_others_are_timed():
    frame = job({"dense": net(4), "pruned": Single()}).run()
    assert frame["passes"].gt(0).tolist() == [True, True, True, False]
    (note,) = bench_notes(frame)
    assert note.startswith("eager, batch 3, pruned: Single: cannot run on the example inputs: shape '[1, 3, 8, 8]' is invalid")
    with pytest.raises(UserError, match="returns a tuple, not a tensor"):
        job({"dense": Pair()}).run()
    with pytest.raises(UserError, match="there is nothing to time"):
        job({"dense": net(4)}, runtimes=["onnxruntime"], precisions=["bf16"]).run()


def test_without_onnxruntime_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    frame = job({"dense": net(4)}, runtimes=["onnxruntime", "eager"]).run()
    assert bench_notes(frame) == ["onnxruntime: not installed; pip install 'rlprune[onnx]'"]
    with pytest.raises(UserError, match=r"^onnxruntime: not installed; pip install 'rlprune\[onnx\]'$"):
        job({"dense": net(4)}, runtimes=["onnxruntime"]).run()


def test_compilation_is_for_one_batch_size_timed_apart_and_forgotten_afterwards(monkeypatch):
    asked, forgotten, time = [], [], Time()

    def compiling(network, *, dynamic):
        asked.append(dynamic)
        fresh = [8.0]

        def run(images):
            time.now += fresh.pop() if fresh else 0.0
            return network(images)

        return run

    def pace(images, *_):
        time.now += 0.5

    monkeypatch.setattr(torch, "compile", compiling)
    monkeypatch.setattr(torch.compiler, "reset", lambda: forgotten.append(1))
    network = net(4)
    network.register_forward_pre_hook(pace)
    frame = job({"dense": network}, runtimes=["compiled"], channels_last="false", clock=time, seconds=2.0, rounds=1).run()
    assert (asked, len(forgotten)) == (4 * [False], 2)  # beside the network something small, to start the compiler
    assert frame["compile_seconds"].tolist() == [8.5, 8.5]  # until the first pass is over
    assert frame["median_ms"].tolist() == [500.0, 500.0]
    assert frame["passes"].tolist() == [3, 3]


@pytest.mark.parametrize(("word", "formats"), [("true", {"channels_last"}), ("false", {"plain"})])
def test_the_memory_format_is_that_asked_for(word, formats):
    assert set(job({"dense": net(4)}, channels_last=word).run()["memory_format"]) == formats


def test_auto_takes_the_faster_memory_format():
    time = Time()

    def pace(_, inputs):
        time.now += 0.25 if inputs[0].is_contiguous(memory_format=torch.channels_last) else 0.5

    network = net(4)
    network[0].register_forward_pre_hook(pace)
    frame = job({"dense": network}, batch_sizes=[2], clock=time).run()
    assert (frame["memory_format"].item(), frame["median_ms"].item()) == ("channels_last", 250.0)


# -- what is shown -------------------------------------------------------------------------------------------------------------------------


def made_up(networks=("dense", "pruned"), precisions=("fp32",), batches=(1, 64), missed=()):
    rows = []
    for precision, runtime, batch, name in product(precisions, RUNTIMES, batches, networks):
        median = 1.5 * batch * (1.0 if name == "dense" else 0.5)
        row = dict.fromkeys(COLUMNS, float("nan")) | {
            "network": name, "precision": precision, "runtime": runtime, "batch_size": batch, "passes": 9, "median_ms": median,
            "q25_ms": 0.9 * median, "q75_ms": 1.2 * median, "p95_ms": 2 * median, "images_per_second": 1000 * batch / median,
            "speed_up": 1.5 * batch / median, "memory_bytes": 2_500_000, "note": "",
        }  # fmt: skip
        if (runtime, name) in missed:
            row |= {"passes": 0, "note": "gone"} | dict.fromkeys(
                ["median_ms", "q25_ms", "q75_ms", "speed_up", "memory_bytes"], float("nan")
            )
        rows.append(row)
    return pd.DataFrame(rows)


def test_the_table_shows_the_numbers_of_the_rows():
    table = bench_table(made_up())
    line = table[(table["runtime"] == "eager") & (table["batch"] == 64) & (table["network"] == "pruned")].iloc[0]
    assert line.drop(["runtime", "batch", "network"]).to_dict() == {
        "median ms": "48", "spread ms": "14.4", "p95 ms": "96", "images/s": "1333", "speed-up": "2.00×", "memory MB": "2.5",
        "compile s": "–", "passes": 9,
    }  # fmt: skip
    assert bench_table(made_up(batches=[4096]))["median ms"].iloc[0] == "6144"  # no exponent
    assert "precision" in bench_table(made_up(precisions=["fp32", "bf16"]))


def test_a_note_names_places_only_where_it_holds_not_for_all():
    frame = made_up(precisions=["fp32", "bf16"], batches=[1], missed=[("compiled", "pruned"), ("eager", "dense"), ("eager", "pruned")])
    assert bench_notes(frame) == ["eager: gone", "compiled, batch 1, pruned, fp32; batch 1, pruned, bf16: gone"]


@pytest.mark.parametrize(
    "frame",
    [
        made_up(),
        made_up(["dense"], batches=[8]),
        made_up(precisions=["fp32", "bf16"], batches=[1, 8, 256]),
        made_up(["dense", "a network with a name", "pruned"], missed=[("eager", "pruned")]),
    ],
    ids=["two", "one", "precisions", "three"],
)
def test_bars_are_medians_and_every_label_can_be_read(frame):
    figure = bench_figure(frame)
    FigureCanvasAgg(figure).draw()
    assert len(figure.axes) == frame["batch_size"].nunique()
    for axes, batch in zip(figure.axes, frame["batch_size"].unique(), strict=True):
        rows = frame[frame["batch_size"] == batch].sort_values("network", key=lambda names: names.map(list(frame["network"]).index))
        assert [bar.get_height() for bar in axes.patches] == rows["median_ms"].fillna(0).tolist()
        others = rows[rows["network"] != frame["network"].iloc[0]]
        shown = ["not\ntimed" if row.passes == 0 else f"{row.speed_up:.2f}×" for row in others.itertuples()]
        assert [text.get_text() for text in axes.texts if text.get_text()] == shown
        ticks = [label.get_window_extent() for label in axes.get_xticklabels()]
        texts = sorted((text.get_window_extent() for text in axes.texts if text.get_text()), key=lambda box: box.x0)
        assert all(left.x1 < right.x0 for left, right in pairwise(ticks))
        assert all(left.x1 < right.x0 for left, right in pairwise(texts))
        assert all(figure.bbox.contains(box.x0, box.y0) and figure.bbox.contains(box.x1, box.y1) for box in [*ticks, *texts])
        assert all(text.y1 <= axes.get_window_extent().y1 for text in texts)


# -- the command -------------------------------------------------------------------------------------------------------------------------

QUICK = ("device=cpu", "runtimes=[eager]", "batch_sizes=[2]", "seconds=0.01", "rounds=2")


def read(folder):
    return pd.read_csv(Path(folder) / "bench.csv"), json.loads((Path(folder) / "result.json").read_text())


def test_of_a_run_both_networks_are_timed_and_no_image_is_read(rlprune, monkeypatch):
    line = ("prune", "debug=smoke", "device=cpu", "precision=fp32", "model.width=0.25", "agent=uniform", "recovery=none")
    assert rlprune(*line, "schedule.save_at=[0.25]", "paths.run=outputs/run")[0] == 0
    rows = json.loads(Path("outputs/run/result.json").read_text())["rows"]

    def read_train(self):
        raise AssertionError("the data set is not needed")

    monkeypatch.setattr(Digits, "read_train", read_train)
    quick = (*QUICK, "channels_last=false", "batch_sizes=[2,2]", "runtimes=[eager,onnxruntime,eager]")
    code, out, err = rlprune("bench", *quick, "run=outputs/run", "threads=1", "paths.run=outputs/b")
    assert (code, "pruned onnxruntime fp32 batch 2" in err) == (0, True)  # the bar says where it is
    frame, result = read("outputs/b")
    assert list(frame) == COLUMNS
    assert frame[["runtime", "batch_size", "network"]].to_numpy().tolist() == [
        list(words)
        for words in product(["eager", "onnxruntime"], [2], ["dense", "pruned"])  # what is named twice is timed once
    ]
    names = {"bench.csv", "bench.md", "bench.png", "config.yaml", "result.json"}
    assert {path.name for path in Path("outputs/b").iterdir()} - {"log.txt"} == names
    assert Path("outputs/b/bench.md").read_text().strip() in out
    assert (result["command"], result["run"], result["image_shape"]) == ("bench", "outputs/run", [3, 32, 32])
    assert {"model": "resnet20", "dataset": "digits"}.items() <= result["choices"].items()
    assert {"torch", "onnxruntime"} <= set(result["versions"])
    assert result["device"].endswith("1 threads")
    assert [(each["params"], each["macs"]) for each in result["networks"]] == [(row["params"], row["macs"]) for row in (rows[0], rows[-1])]
    assert [row["passes"] for row in result["rows"]] == frame["passes"].tolist()
    memory = frame.groupby("network")["memory_bytes"].first()
    assert memory["pruned"] < memory["dense"]

    (dense,) = Path("outputs/dense").iterdir()
    dense.unlink()  # first weights are as fast
    code, out, err = rlprune("bench", *QUICK, "run=outputs/run/pruned-0.25", "image_size=16", "paths.run=outputs/less")
    assert (code, "is no file" in out + err) == (0, False)
    less = read("outputs/less")[1]
    assert (less["image_shape"], less["networks"][1]["params"]) == ([3, 16, 16], rows[1]["params"])

    assert rlprune("report", "runs=outputs/*", "plots=false")[0] == 0  # a run of bench is none that a report shows
    assert "outputs/b" not in next(Path("outputs/report").glob("*/*.md")).read_text()

    plan = Path("outputs/run/pruned/weights.safetensors")
    plan.write_bytes(plan.read_bytes()[:-9])
    code, _, err = rlprune("bench", *QUICK, "run=outputs/run")
    assert (code, len(last_line(err)), "weights.safetensors" in err) == (2, 1, True)


def test_a_network_of_the_line_is_timed_alone_and_ones_own_is_named_again(rlprune, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    Path("own_nets.py").write_text(
        "from rlprune.models.resnet import CifarResNet\n\n\nclass Net(CifarResNet):\n"
        "    def __init__(self, num_classes, most=999):\n"
        "        super().__init__(depth=8, width=0.25, shortcut='B', in_channels=3, num_classes=num_classes)\n"
        "        self.most = most\n\n"
        "    def forward(self, images):\n"
        "        assert len(images) <= self.most, 'too many'\n"
        "        return super().forward(images)\n"
    )
    own = ("model=custom", "model.target=own_nets.Net")
    assert rlprune("prune", "debug=smoke", "device=cpu", "agent=uniform", *own, "recovery=none", "paths.run=outputs/run")[0] == 0
    code, _, err = rlprune("bench", *QUICK, "run=outputs/run")
    assert (code, len(last_line(err)), "model=custom model.target=own_nets.Net" in err) == (2, 1, True)
    assert rlprune("bench", *QUICK, *own, "run=outputs/run", "paths.run=outputs/both")[0] == 0
    assert read("outputs/both")[0]["network"].tolist() == ["dense", "pruned"]

    small = (*own, "model.kwargs={most: 4}")
    assert rlprune("bench", *QUICK, *small, "batch_sizes=[2,5]", "paths.run=outputs/alone")[0] == 0
    frame, result = read("outputs/alone")
    assert (frame["network"].tolist(), frame["passes"].gt(0).tolist()) == (["dense", "dense"], [True, False])
    assert (result["run"], result["choices"]["model"]) == (None, "custom")
    code, _, err = rlprune("bench", *QUICK, *small, "batch_sizes=[5]")
    assert (code, len(last_line(err)), "too many" in err) == (2, 1, True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("runtimes=[eager,jax]", "runtimes=['eager', 'jax']: jax is unknown; choose from eager, compiled, onnxruntime"),
        ("runtimes=[]", "runtimes=[]: name at least one of"),
        ("precisions=[fp16]", "precisions=['fp16']: fp16 is unknown; choose from fp32, bf16"),
        ("precisions=[]", "precisions=[]: name at least one of"),
        ("runtimes=[onnxruntime] precisions=[bf16]", "onnxruntime computes in fp32 alone"),
        ("batch_sizes=[]", "batch_sizes=[]: name at least one number"),
        ("batch_sizes=[0]", "batch_sizes=[0]: each must be ≥ 1"),
        ("batch_sizes=8", "batch_sizes: must be a list"),
        ("threads=0", "threads=0: must be ≥ 1"),
        ("seconds=0", "seconds=0.0: must be > 0"),
        ("rounds=0", "rounds=0: must be ≥ 1"),
        ("image_size=0", "image_size=0: must be ≥ 1"),
        ("channels_last=maybe", "channels_last=maybe: unknown; choose auto, true, false"),
        ("device=cuda:77", "device=cuda:77: this machine has"),
        ("seed=-1", "seed=-1: must be ≥ 0"),
        ("run=/nowhere", "run=/nowhere: has no pruned/plan.json"),
        ("checkpoint=/nowhere.pt model=resnet20", "/nowhere.pt: cannot be read"),
        ("seed=0", "run: name a run folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(rlprune, override, message):
    code, _, err = rlprune("bench", *override.split())
    assert (code, len(last_line(err)), "Traceback" in err) == (2, 1, False)
    assert message in last_line(err)[0]


def test_rows_are_handed_over_as_they_come():
    seen = []
    bench = Bench(
        {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(3, 2, 3)}, torch.randn(2, 3, 8, 8), batch_sizes=[1, 2], runtimes=["eager"],
        precisions=["fp32"], channels_last="false", threads=1, seconds=0.0, rounds=1,
    )  # fmt: skip
    frame = bench.run(lambda rows: seen.append(len(rows)))
    assert seen == [2, 4]
    assert len(frame) == 4
