import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import last_line, metrics
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_refresh import CPU, PLAIN
from torch import nn

import rlprune as package
from rlprune.criteria.l1 import L1
from rlprune.data.base import Augmentation, Images, Splits
from rlprune.graph import trace
from rlprune.results.record import Identity
from rlprune.results.sensitivity import CHEAP, curves, curves_figure, sensitivity_figure, sensitivity_table, steepest
from rlprune.search.ledger import Ledger
from rlprune.search.measure import make_score
from rlprune.search.sensitivity import SensitivityJob, Subject, removed_counts
from rlprune.setup import Setup
from rlprune.training.evaluate import Evaluator
from rlprune.training.refresh import Recalibration

SMOKE = ("debug=smoke", "device=cpu", "precision=fp32")
SMALL = ("model.depth=8", "dataset.image_size=16")
SHARES = [0.2, 0.25, 0.5, 0.75, 0.9]


class Toy(nn.Module):
    """Two groups: what the sum of `stem` and `back` holds, and `mid`, whose last five units do nothing."""

    def __init__(self):
        super().__init__()
        self.stem, self.mid, self.back = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(6, 5)
        with torch.no_grad():
            self.back.weight[:, 3:] = 0
            self.mid.weight[3:] *= 1e-3  # so that they rank lowest
            self.norm.running_mean.uniform_(-0.1, 0.1)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.back(self.norm(self.mid(x)).relu())).relu().mean((2, 3)))


def trained(network, images):
    """Its first and last layer."""
    optimizer = torch.optim.Adam([*network.stem.parameters(), *network.head.parameters()], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network.eval()(PLAIN(images.pixels)), images.labels).backward()
        optimizer.step()
    return network


@pytest.fixture
def job(tmp_path):
    """Makes a job on a toy network, of which each class has 60 images to train on and 40 to measure."""
    pixels = torch.randint(0, 256, (500, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(500) % 5
    pixels[torch.arange(500), labels % 3] //= 2 + 2 * (labels[:, None, None] // 3)  # a class has a colour
    images = Images(pixels, labels)
    splits = Splits(images.subset(np.arange(300)), images.subset(np.arange(300, 500)), PLAIN, tuple("abcde"), Augmentation())
    setup = Setup(CPU, None, splits, None, 0)
    network = trained(Toy(), splits.train)
    graph = trace(network, setup.example())
    whole = {"dense": (network, graph)}
    keep = {graph.groups[0].name: [0, 2, 3, 4], "mid": [1]}
    whole["pruned"] = (package.prune(network, graph, keep), graph.after(keep))
    score = make_score(L1(aggregation="mean", normalization="none"), setup, 0)

    def make(name="run", **settings):
        return SensitivityJob(
            [Subject(key, *parts, key) for key, parts in whole.items()],
            shares=SHARES, score=score, evaluator=Evaluator(splits.search, PLAIN, CPU), setup=setup,
            identity=Identity("sensitivity", tmp_path / name, {"model": "toy"}, 0), **settings,
        )  # fmt: skip

    return make


def plainly(job, subject, removed, group):
    """Top-1 of the network really pruned, measured without any shortcut."""
    scores = job.score(subject.network, subject.graph)[group].numpy()
    network = package.prune(subject.network, subject.graph, {group: np.sort(np.argsort(scores, kind="stable")[removed:])}).eval()
    job.refresh(network)
    images = job.setup.splits.search
    with torch.no_grad():
        return float((network(PLAIN(images.pixels)).argmax(1) == images.labels).float().mean())


@pytest.mark.parametrize("recalibrated", [False, True])
def test_what_is_measured_is_the_network_pruned(job, recalibrated):
    job = job()
    job.refresh = Recalibration(job.setup, 100, 0) if recalibrated else job.refresh
    frame = job.run()
    stem = job.subjects[0].graph.groups[0].name
    assert frame[["network", "group"]].drop_duplicates().to_numpy().tolist() == [["dense", stem], ["dense", "mid"], ["pruned", stem]]
    assert frame["removed"].tolist() == [1, 2, 3, 5, 5, 2, 2, 4, 6, 7, 1, 1, 2, 3, 3]
    subjects = {subject.name: subject for subject in job.subjects}
    for row in frame.itertuples():
        assert row.accuracy == pytest.approx(plainly(job, subjects[row.network], row.removed, row.group), abs=1e-6)
        assert row.drop == pytest.approx(plainly(job, subjects[row.network], 0, row.group) - row.accuracy, abs=1e-6)
    assert frame["drop"].max() > 0.05  # there is something to see
    result = json.loads((job.identity.run_dir / "result.json").read_text())
    assert result["candidates"] == 2 + 4 + 4 + 3  # equal counts are measured once, and each whole network
    pd.testing.assert_frame_equal(pd.read_csv(job.identity.run_dir / "sensitivity.csv"), frame)
    if not recalibrated:
        assert frame[(frame["group"] == "mid") & (frame["removed"] <= 4)]["drop"].tolist() == [0, 0, 0]  # they did nothing


@pytest.mark.parametrize("last", [1, 6, 11])
def test_a_killed_run_goes_on_to_the_same_result(job, monkeypatch, last):
    whole, accuracy, calls = job("whole").run(), Evaluator.accuracy, []

    def counted(self, *arguments):
        calls.append(1)
        if len(calls) == last:
            raise KeyboardInterrupt
        return accuracy(self, *arguments)

    monkeypatch.setattr(Evaluator, "accuracy", counted)
    with pytest.raises(KeyboardInterrupt):
        job("killed").run()
    assert not (job("killed").identity.run_dir / "result.json").exists()
    pd.testing.assert_frame_equal(job("killed").run(), whole)
    assert len(calls) == 13 + 1  # nothing was measured twice but what was interrupted
    assert not (job("killed").identity.run_dir / "checkpoint").exists()


@pytest.mark.parametrize(("units", "counts"), [(1, [0, 0, 0]), (2, [0, 1, 1]), (5, [1, 3, 4]), (16, [2, 8, 14]), (4, [0, 2, 3])])
def test_shares_are_rounded_and_one_unit_stays(units, counts):
    assert removed_counts(units, [0.1, 0.5, 0.9]) == counts


# -- the command -------------------------------------------------------------------------------------------------------------------------


def measured(folder):
    return pd.read_csv(Path(folder) / "sensitivity.csv"), json.loads((Path(folder) / "result.json").read_text())


def test_of_a_run_the_dense_and_the_pruned_network_are_measured(rlprune):
    line = ("prune", *SMOKE, "model.width=0.5", "agent=uniform", "training.epochs=4", "dataset.limit=600", "paths.run=outputs/run")
    assert rlprune(*line, "seed=3", "dense_seed=1", "ignore=[layer2.0.conv1]", *SMALL, "search.samples=80")[0] == 0
    rows = json.loads(Path("outputs/run/result.json").read_text())["rows"]
    line = ("sensitivity", *SMOKE, "run=outputs/run", "samples=80", "dataset.limit=600")
    code, out, err = rlprune(*line, "paths.run=outputs/s")
    assert (code, "pruned layer3.0.conv1" in err) == (0, True)  # the bar says where it is
    frame, result = measured("outputs/s")
    assert {path.name for path in Path("outputs/s").iterdir()} == {
        "config.yaml", "log.txt", "result.json", "sensitivity.csv", "sensitivity.png", "curves.png", "table.md",
    }  # fmt: skip
    assert list(frame) == ["network", "group", "units", "removed", "share", "accuracy", "drop"]
    whole = {network["name"]: network["search_top1"] for network in result["networks"]}
    assert whole == {"dense": rows[0]["search_top1"], "pruned": rows[-1]["search_top1"]}
    assert [network["params"] for network in result["networks"]] == [rows[0]["params"], rows[-1]["params"]]
    assert (result["seed"], result["dense_seed"], result["run"], result["command"]) == (3, 1, "outputs/run", "sensitivity")
    assert result["splits"]["search_used"] == 80
    assert frame["network"].drop_duplicates().tolist() == ["dense", "pruned"]
    assert "layer2.0.conv1" not in set(frame["group"])
    for name, rows in frame.groupby("network"):
        assert (rows["accuracy"] + rows["drop"]).to_numpy() == pytest.approx(whole[name])
    assert Path("outputs/s/table.md").read_text().strip() in out

    assert rlprune(*line, "ignore=['layer[12].*conv1']", "paths.run=outputs/less")[0] == 0
    less, _ = measured("outputs/less")
    pd.testing.assert_frame_equal(less, frame[~frame["group"].str.fullmatch("layer[12].*conv1")].reset_index(drop=True))

    (dense,) = Path("outputs/dense").iterdir()
    dense.rename("elsewhere.safetensors")
    assert rlprune(*line, "checkpoint=elsewhere.safetensors", "paths.run=outputs/given")[0] == 0
    pd.testing.assert_frame_equal(measured("outputs/given")[0], frame)
    code, out, _ = rlprune(*line, "paths.run=outputs/alone")
    assert (code, f"its dense network ({dense}) is no file here; measuring the pruned network alone" in out) == (0, True)
    alone, _ = measured("outputs/alone")
    pd.testing.assert_frame_equal(alone, frame[frame["network"] == "pruned"].reset_index(drop=True))


def test_a_dense_network_alone_is_trained_or_loaded_as_for_prune_and_a_killed_line_goes_on(rlprune, monkeypatch):
    line = ("sensitivity", *SMOKE, *SMALL, "model.width=0.25", "criterion=l1")
    assert rlprune(*line, "paths.run=outputs/whole")[0] == 0
    (dense,) = Path("outputs/dense").iterdir()
    frame, result = measured("outputs/whole")
    assert (set(frame["network"]), result["networks"][0]["source"]) == ({"dense"}, str(dense))
    accuracy, calls = Ledger.accuracy, []

    def counted(self, subject, measure):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return accuracy(self, subject, measure)

    monkeypatch.setattr(Ledger, "accuracy", counted)
    assert rlprune(*line)[0] == 130
    code, out, _ = rlprune(*line, "resume=true")
    assert (code, "dense network: 5 candidates were measured before the interruption" in out) == (0, True)
    (folder,) = Path("outputs/sensitivity").iterdir()
    again, same = measured(folder)
    pd.testing.assert_frame_equal(again, frame)
    assert metrics(same) == metrics(result)


def test_joint_training_has_no_dense_network_to_measure(rlprune):
    line = ("prune", *SMOKE, *SMALL, "model.width=0.25", "agent=rlal", "agent.warmup_epochs=1", "training.epochs=2", "schedule.steps=2")
    assert rlprune(*line, "recovery.control=false", "agent.episodes=2", "paths.run=outputs/run")[0] == 0
    code, out, _ = rlprune("sensitivity", *SMOKE, "run=outputs/run", "paths.run=outputs/s")
    assert (code, "its dense network (first weights) is no file here; measuring the pruned network alone" in out) == (0, True)
    assert set(measured("outputs/s")[0]["network"]) == {"pruned"}


def test_a_run_of_ones_own_network_is_named_again_and_damage_is_one_line(rlprune, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    Path("their_nets.py").write_text(
        "from rlprune.models.resnet import CifarResNet\n\n\ndef net(num_classes):\n"
        "    return CifarResNet(depth=8, width=0.5, shortcut='B', in_channels=3, num_classes=num_classes)\n"
    )
    own = ("model=custom", "model.target=their_nets.net")
    assert rlprune("prune", *SMOKE, "agent=uniform", *own, "paths.run=outputs/run")[0] == 0
    (dense,) = Path("outputs/dense").iterdir()

    def refused(message, *line):
        code, _, err = rlprune("sensitivity", *SMOKE, "run=outputs/run", *line)
        assert (code, len(last_line(err)), "Traceback" in err) == (2, 1, False)
        assert message in last_line(err)[0]

    refused("model=custom model.target=their_nets.net")
    assert rlprune("sensitivity", *SMOKE, "run=outputs/run", *own)[0] == 0
    refused("ignore=nolayer: matches no layer", *own, "ignore=[nolayer]")
    refused("no channel can be removed", *own, "ignore=['.*']")
    shutil.copy("outputs/run/result.json", "result.json")
    Path("outputs/run/result.json").write_text("{")
    refused("result.json: is not valid JSON", *own)
    shutil.copy("result.json", "outputs/run/result.json")
    dense.write_bytes(dense.read_bytes()[:-9])
    refused(str(dense), *own)
    torch.save(nn.Linear(2, 2).state_dict(), "w.pt")
    refused("checkpoint=w.pt", *own, "checkpoint=w.pt")
    Path("outputs/run/pruned/plan.json").unlink()
    refused("run=outputs/run: has no pruned/plan.json", *own)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("shares=[]", "shares=[]: name at least one"),
        ("shares=[0.5,1]", "shares=[0.5, 1.0]: each must be in (0, 1)"),
        ("shares=[0]", "shares=[0.0]: each must be in (0, 1)"),
        ("shares=[nan]", "shares=[nan]: must be a list of numbers"),
        ("shares=0.5", "shares: must be a list"),
        ("samples=0", "samples=0: must be ≥ 1"),
        ("recalibrate_bn=1", "recalibrate_bn=1: one image has no variance"),
        ("criterion.calibration_images=0", "criterion.calibration_images=0: must be ≥ 1"),
        ("run=/nowhere", "run=/nowhere: has no pruned/plan.json"),
        ("ignore=['.*']", "model=resnet20: no channel can be removed"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(rlprune, override, message):
    code, _, err = rlprune("sensitivity", *SMOKE, override)
    assert (code, len(last_line(err)), "Traceback" in err) == (2, 1, False)
    assert message in last_line(err)[0]
    assert not list(Path().glob("outputs/dense/*"))


# -- what is drawn -----------------------------------------------------------------------------------------------------------------------


def made_up(count, name="layer{}.conv1", networks=("dense", "pruned"), shares=9):
    rows, generator = [], np.random.default_rng(0)
    for network, index, share in itertools.product(networks, range(count), np.linspace(0.1, 0.9, shares)):
        if network == "dense" or index != 1:  # in the pruned network that group has one unit left
            drop = float(generator.uniform(-0.01, 0.4) * share)
            rows.append([network, name.format(index), 10, round(10 * share), round(share, 2), 0.9 - drop, drop])
    return pd.DataFrame(rows, columns=["network", "group", "units", "removed", "share", "accuracy", "drop"])


@pytest.mark.parametrize("width", [7.0, 3.8])
@pytest.mark.parametrize(
    "frame",
    [
        made_up(3), made_up(20), made_up(60, "features.denseblock{0}.denselayer{0}.conv1"), made_up(60, networks=["dense"]),
        made_up(12, shares=33), made_up(2, shares=1),
    ],
    ids=["3", "20", "60 long names", "dense alone", "33 shares", "one share"],
)  # fmt: skip
def test_every_label_can_be_read(frame, width):
    figure = sensitivity_figure(frame, width=width)
    FigureCanvasAgg(figure).draw()
    assert figure.get_size_inches()[0] == width
    panels = [axes for axes in figure.axes if axes.images]
    for axes in panels:
        across, down = (
            [label.get_window_extent() for label in labels if label.get_text()]
            for labels in (axes.get_xticklabels(), axes.get_yticklabels())
        )
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(across))
        assert all(upper.y0 >= lower.y1 - 1 for upper, lower in itertools.pairwise(down))
        for box in [*across, *down, axes.title.get_window_extent(), axes._right_title.get_window_extent()]:
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
        assert axes.get_window_extent().width > 90
    beside = len({axes.get_window_extent().y0 for axes in panels}) == 1
    assert beside == (width > 5 or len(panels) == 1)


def test_cells_are_drops_in_points_and_lines_stand_behind_what_is_cheap():
    frame = made_up(5)
    frame.loc[(frame["group"] == "layer3.conv1") & (frame["share"] == 0.1), ["removed", "drop"]] = 0, 0.0
    figure = sensitivity_figure(frame)
    panels = [axes for axes in figure.axes if axes.images]
    for axes, network in zip(panels, ("dense", "pruned"), strict=True):
        assert network in axes.get_title(loc="left")
        cells, rows = axes.images[0].get_array(), frame[frame["network"] == network]
        names = [label.get_text() for label in panels[0].get_yticklabels()]
        assert names == [f"layer{index}.conv1" for index in range(5)]
        lines = {round(float(np.mean(line.get_ydata()))): line.get_xdata()[0] for line in axes.lines}
        for place, name in enumerate(names):
            drops = 100 * rows.loc[rows["group"] == name, "drop"].to_numpy()
            if name == "layer3.conv1":  # no unit of it is a tenth
                assert cells.mask[place].tolist() == [True] + 8 * [False]
                drops[0] = np.nan
            if len(drops):
                np.testing.assert_allclose(cells[place].filled(np.nan), drops)
                assert lines[place] == max([index for index, drop in enumerate(drops) if drop <= CHEAP], default=-1) + 0.5
            else:
                assert cells.mask[place].all()
        assert axes.images[0].get_clim() == (0, 20)


def test_the_table_says_the_drop_at_half_and_what_is_cheap():
    frame = made_up(3)
    table = sensitivity_table(frame).set_index("group")
    rows = frame[(frame["network"] == "dense") & (frame["group"] == "layer2.conv1")]
    half = 100 * rows.loc[rows["share"] == 0.5, "drop"].item()
    cheap = rows.loc[100 * rows["drop"] <= CHEAP, "removed"].max()
    found = table.loc["layer2.conv1"]
    assert (found["drop at 50 % (dense)"], found["≤ 1 point (dense)"]) == (f"{half:.2f}", f"{0 if np.isnan(cheap) else 10 * cheap} %")
    assert (table.loc["layer1.conv1", "pruned: units"], table.loc["layer1.conv1", "drop at 50 % (pruned)"]) == (1, "–")


def test_curves_are_the_rows_of_the_table_and_begin_with_the_whole_network():
    frame = made_up(5)
    frame.loc[(frame["group"] == "layer3.conv1") & (frame["share"] == 0.2), ["removed", "accuracy", "drop"]] = 1, 0.5, 0.4
    found = curves(frame)
    assert list(found) == [f"layer{index}.conv1" for index in range(5)]
    assert list(found["layer0.conv1"]) == ["dense", "pruned"]
    assert list(found["layer1.conv1"]) == ["dense"]
    for (group, network), rows in frame.groupby(["group", "network"]):
        removed, top1 = found[group][network]
        assert (removed[0], top1[0]) == (0, pytest.approx(90))
        points = dict(zip(rows["removed"] * 10, rows["accuracy"] * 100, strict=True))
        assert dict(zip(removed[1:], top1[1:], strict=True)) == pytest.approx(points)
        assert removed == sorted(removed)


@pytest.mark.parametrize(
    "frame",
    [made_up(1), made_up(8), made_up(70, "features.denseblock{0}.denselayer{0}.conv1", ["dense"])],
    ids=["1", "8", "70 long names"],
)
def test_a_panel_a_group_the_steepest_of_many(frame):
    figure = curves_figure(frame)
    FigureCanvasAgg(figure).draw()
    everything = curves(frame)
    shown = steepest(everything)
    flat = {group: max(top1[0] - min(top1) for _, top1 in lines.values()) for group, lines in everything.items()}
    assert len(shown) == min(60, len(everything))
    assert min(flat[group] for group in shown) >= max((drop for group, drop in flat.items() if group not in shown), default=0)
    assert list(shown) == [group for group in everything if group in shown]
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == len(shown)
    for axes, (group, lines) in zip(panels, shown.items(), strict=True):
        assert group.endswith(axes.get_title().removeprefix("…"))
        assert [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "-"] == [
            np.transpose(points).tolist() for points in lines.values()
        ]
        assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [top1[0] for _, top1 in lines.values()]
    assert ("the 60 steepest of 70" in figure.get_suptitle()) == (len(everything) > 60)
    titles = sorted((axes.title.get_window_extent() for axes in panels), key=lambda box: (-round(box.y0), box.x0))
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(titles) if round(left.y0) == round(right.y0))
    labels = [
        text.get_window_extent()
        for text in [
            figure._suptitle,
            figure._supylabel,
            *figure.legends[0].get_texts(),
            *(a.xaxis.label for a in panels if a.get_xlabel()),
        ]
    ]
    for one, other in itertools.combinations([*labels, *titles], 2):
        assert not one.overlaps(other)
    assert all(figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1 for box in [*labels, *titles])
