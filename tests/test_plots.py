import itertools
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from rlprune.results.finish import smallest_saved
from rlprune.results.plots import COLOURS, channels_figure, plot_episodes
from rlprune.results.record import History, StepRecord

ROOT = Path(__file__).parent.parent
BARS = [("stem", 6, 2), ("layer1", 16, 0), ("layer2", 1, 31)]


def drawn(axes):
    """The bars of a panel, as they were given: what stands below is kept, on top of it what was pruned."""
    kept, pruned = axes.containers
    assert {to_hex(bar.get_facecolor()).upper() for bar in kept} == {COLOURS[0]}
    assert {to_hex(bar.get_facecolor()).upper() for bar in pruned} == {COLOURS[1]}
    assert [bar.get_y() for bar in pruned] == [bar.get_height() for bar in kept]
    assert [bar.get_x() for bar in pruned] == [bar.get_x() for bar in kept]
    names = [label.get_text() for label in axes.get_xticklabels()]
    return [(name, *(int(part.get_height()) for part in parts)) for name, *parts in zip(names, kept, pruned, strict=True)]


def many(count):
    return [(f"layer{index}.0.conv1", index + 1, count - index) for index in range(count)]


@pytest.mark.parametrize("counts", [[3], [13], [60], [4, 13], [25, 60]])
def test_bars_are_the_units_kept_and_pruned(counts):
    panels = {f"panel {index}": many(count) for index, count in enumerate(counts)}
    figure = channels_figure(panels)
    assert {axes.get_title(loc="left"): drawn(axes) for axes in figure.axes} == panels
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kept", "pruned"]


@pytest.mark.parametrize("counts", [[1], [13], [60], [1, 13], [7, 60], [60, 60]])
def test_every_name_can_be_read(counts):
    """Labels touch neither each other nor the edge of the figure, and bars of all panels are on one scale."""
    figure = channels_figure({f"panel {index}": many(count) for index, count in enumerate(counts)})
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
        assert all(figure.bbox.y0 <= box.y0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert axes.get_window_extent().height > 150
    widths = [bar.get_window_extent().width for axes in figure.axes for bar in axes.patches]
    assert max(widths) < 1.05 * min(widths)
    assert len({axes.get_ylim() for axes in figure.axes}) == 1


def record(step, sparsity):
    return StepRecord(step, sparsity, 0, 0, 0.0, 0.0, 0.0, 0, 0, 0.0, 0.0)


def test_what_is_drawn_is_the_network_that_was_saved_last():
    sizes = {0: (8, 16), 1: (6, 16), 2: (6, 8), 3: (2, 4)}
    layers = [{"step": step, "group": name, "units": n} for step, kept in sizes.items() for name, n in zip("ba", kept, strict=True)]
    levels = [{"folder": "pruned-0.1", "sparsity": 2 / 24}, {"folder": "pruned", "sparsity": 10 / 24}]  # step 3 lost too much
    steps = [record(1, 2 / 24), record(2, 10 / 24), record(3, 18 / 24)]
    assert smallest_saved(History(steps, layers, levels=levels)) == {"42 % of the channels removed": [("b", 6, 2), ("a", 8, 8)]}


# -- the script --------------------------------------------------------------------------------------------------------------------------


def run_of(folder, bars):
    """What the script reads of a finished run."""
    (folder / "pruned").mkdir(parents=True)
    origin = {"model": "m", "model_settings": {}, "dataset": "d", "dataset_settings": {}, "in_channels": 1, "image_size": [8, 8]}
    origin |= {"class_names": ["0"], "mean": [0.5], "std": [0.5]}
    plan = {"format": 1, "origin": origin, "ignore": [], "weights_sha256": "", "seed": 0, "sparsity": 0.5}
    plan["keep"] = {name: list(range(kept)) for name, kept, _ in bars}
    (folder / "pruned/plan.json").write_text(json.dumps(plan))
    rows = [(step, name, kept + (step == 0) * pruned) for step in (0, 1) for name, kept, pruned in bars]
    pd.DataFrame(rows, columns=["step", "group", "units"]).to_csv(folder / "layers.csv", index=False)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = [(name, kept + pruned, 0) for name, kept, pruned in BARS]
    run_of(Path("entire"), BARS)
    run_of(Path("first"), [("stem", 3, 5), *whole[1:]])
    run_of(Path("third"), [("layer2", 32, 0)])  # all else was ignored, and it lost nothing
    run_of(Path("none"), whole)
    run_of(Path("other"), [("conv9", 1, 1)])


def script(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["channels_figure.py", *arguments])
    return runpy.run_path(str(ROOT / "scripts/channels_figure.py"), run_name="__main__")


@pytest.mark.usefixtures("runs")
def test_the_script_sets_individual_runs_beside_an_entire_one(monkeypatch):
    names = script(monkeypatch, "out.png", "--individual", "third", "first/pruned", "--entire", "entire")
    found = names["panels"](["third", "first/pruned"], "entire")
    assert found == {"individual groups": [("stem", 3, 5), ("layer2", 32, 0)], "entire network": BARS}
    with Image.open("out.png") as image:
        assert np.ptp(np.asarray(image.convert("L"))) > 0


@pytest.mark.usefixtures("runs")
def test_a_run_that_left_its_group_whole_says_in_its_episodes_which_it_was(monkeypatch):
    pd.DataFrame({"episode": [1, 2], "group": ["layer2", "layer2"]}).to_csv("none/episodes.csv", index=False)
    names = script(monkeypatch, "out.png", "--individual", "none", "first", "--entire", "entire")
    found = names["panels"](["none", "first"], "entire")["individual groups"]
    units = {name: kept + pruned for name, kept, pruned in BARS}
    assert found == [("stem", 3, 5), ("layer2", units["layer2"], 0)]


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("individual", "message"),
    [
        (["gone"], "run=gone: has no pruned/plan.json"),
        (["none"], "--individual none: pruned 0 groups; name runs that pruned one each"),
        (["entire"], "--individual entire: pruned 2 groups"),
        (["first", "first"], "--individual first: pruned stem; another individual run pruned it, too"),
        (["other"], "--individual other: pruned conv9; entire has no such group"),
    ],
)
def test_the_script_names_runs_that_it_cannot_draw(monkeypatch, capsys, individual, message):
    with pytest.raises(SystemExit) as ended:
        script(monkeypatch, "out.png", "--individual", *individual, "--entire", "entire")
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path("out.png").exists()


@pytest.mark.parametrize("places", [[(1, "stem"), (2, "head")], [(1, "stem"), (1, "head")], [(1, None), (2, None)]])
def test_what_was_best_in_one_search_is_not_drawn_into_the_next(monkeypatch, places):
    """Another step, or another group of a step, begins anew: no line leads from the best reward of one to that of the other."""
    episodes = [
        {"step": step, **({"group": group} if group else {}), "episode": number, "reward": reward, "best": reward}
        for step, group in places
        for number, reward in enumerate([1.0, 5.0])
    ]
    figures = []
    monkeypatch.setattr("rlprune.results.plots._save", lambda figure, path: figures.append(figure))
    plot_episodes(Path("episodes.png"), episodes)
    (axes,) = figures[0].axes
    lines = [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "-"]
    assert lines == [[[1, 1], [2, 5]], [[3, 1], [4, 5]]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["episode", "best so far"]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [2.5]


@pytest.fixture
def rewards_figure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("# model=vgg11 agent=rlal\nagent: {episodes: 5}\nbudget: {macs: 0.5}\n")
    (folder / "metrics.csv").write_text("step,reward,train_loss\n1,0.5,2.0\n2,0.6,1.0\n")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["rewards_figure.py", *words])
        return runpy.run_path(str(ROOT / "scripts/rewards_figure.py"), run_name="__main__")

    return run


def test_rewards_are_drawn_by_a_setting_that_tells_runs_apart(rewards_figure):
    curve = rewards_figure("out.png", "agent.episodes", "run")["curve"]
    assert Path("out.png").stat().st_size > 0
    panel, label, rewards = curve(Path("run"), "agent.episodes")
    assert (panel, label, rewards.tolist()) == ("vgg11, 50 % of the MACs pruned", "episodes: 5", [0.5, 0.6])


@pytest.mark.parametrize(
    ("key", "run", "message"),
    [
        ("agent", "run", "agent: is a group of settings; name one of them: agent.episodes"),
        ("agent.nope", "run", "run: its config.yaml has no agent.nope"),
        ("agent.episodes", "nowhere", "nowhere: is no run"),
    ],
)
def test_rewards_that_cannot_be_drawn_are_refused_in_one_line(rewards_figure, key, run, message):
    with pytest.raises(SystemExit, match=message):
        rewards_figure("out.png", key, run)
