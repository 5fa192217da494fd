import itertools
import json
import re
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from conftest import last_line
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import nn

import rlprune as package
from rlprune.config import build, shipped
from rlprune.data.digits import Digits
from rlprune.errors import UserError
from rlprune.graph import trace
from rlprune.results.diagram import OTHER, TIED_COLOURS, Units, diagram
from rlprune.results.drawing import BAR, TIED, graph_figure
from rlprune.results.tables import group_table

SHIPPED = ["resnet20", "vgg11", "densenet121", "mobilenetv2", "mobilenetv3_small", "shufflenetv2", "googlenet"]
ODD = [
    nets.Concat,
    nets.SqueezeExcite,
    nets.DepthwiseMultiplier,
    nets.Shared,
    nets.Grouped,
    nets.LayerNormed,
    nets.PadChannels,
    nets.Einsum,
]
SMOKE = ("debug=smoke", "device=cpu", "precision=fp32")


class Attention(nn.Module):
    """Products of activations beside layers."""

    def __init__(self):
        super().__init__()
        self.embed, self.attend, self.head = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x.flatten(2).transpose(1, 2)[..., :6])
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))


class Backwards(nets.Residual):
    """Its layers are defined in another order than that of their calls."""

    def __init__(self):
        super().__init__()
        for name in ("b", "a", "stem", "head"):  # a module that is taken out and put back stands last
            module = getattr(self, name)
            delattr(self, name)
            setattr(self, name, module)


def graph_of(kind):
    """The graph of a shipped network by name, or of a toy network by class."""
    if isinstance(kind, str):
        return trace(build(shipped("model", kind, {}), "model", in_channels=3, num_classes=10), torch.zeros(1, 3, 32, 32), prove=False)
    if kind is Attention:
        return trace(kind(), torch.zeros(2, 6, 3, 2), prove=False)
    return trace(kind(), torch.zeros(2, 3, 8, 8), prove=False)


def some_of(graph):
    """A plan that takes from nearly every group, a different share of each."""
    generator = np.random.default_rng(0)
    return {group.name: np.arange(max(1, int(group.num_units * generator.uniform(0.2, 1)))) for group in graph.groups}


def readers(group):
    return {member.layer for member in group.members if member.role == "in"}


# -- what is drawn, as data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nets.Residual, Backwards])
def test_the_lane_of_a_residual_group_touches_its_producers_and_readers(kind):
    shown = diagram(graph_of(kind), {"stem": [0, 1, 2, 3, 4, 5], "a": [1]})
    stem, a, b, head = shown.rows
    assert [row.layer for row in shown.rows] == ["stem", "a", "b", "head"]  # in the order of the calls
    (lane,) = shown.lanes  # `a` is read in the next row
    assert (lane.group, lane.tied, lane.produced, lane.read, lane.first, lane.last) == ("stem", True, (0, 2), (1, 3), 0, 3)
    assert (stem.begins, a.begins, b.begins, head.begins) == ((Units("stem", 8, 6, 2),), (Units("a", 4, 1, 1),), (), ())
    assert (stem.note, a.note, b.note, head.note) == ("6/8 units × 2 channels", "1/4 units", "", "kept: model output")
    assert [(row.channels_kept, row.channels) for row in shown.rows] == [(6, 8), (1, 4), (6, 8), (5, 5)]
    assert [(row.macs_kept, row.macs) for row in shown.rows] == [
        (64 * 9 * 3 * 6, 64 * 9 * 3 * 8), (64 * 9 * 6 * 1, 64 * 9 * 8 * 4), (64 * 9 * 1 * 6, 64 * 9 * 4 * 8), (6 * 5, 8 * 5),
    ]  # fmt: skip
    assert (shown.num_groups, shown.channels, shown.left_out) == (2, (20, 13), 0)


@pytest.mark.parametrize("kind", [*SHIPPED, *ODD, Attention], ids=str)
def test_every_group_and_layer_is_shown_once_and_lanes_do_not_meet(kind):
    graph = graph_of(kind)
    keep = some_of(graph)
    shown = diagram(graph, keep)
    place = {row.layer: number for number, row in enumerate(shown.rows)}
    assert len(place) == len(shown.rows)
    begun = [units for row in shown.rows for units in row.begins]
    expected = {(group.name, group.num_units, len(keep[group.name]), group.channels_per_unit) for group in graph.groups}
    assert (len(begun), set(begun)) == (len(graph.groups), expected)
    assert {row.layer: set(row.reasons) for row in shown.rows if row.reasons} == {
        layer: {frozen.reason for frozen in graph.frozen if frozen.layer == layer} for layer in {frozen.layer for frozen in graph.frozen}
    }
    assert round(sum(row.macs for row in shown.rows)) == graph.macs({}) == shown.macs[0]
    assert round(sum(row.macs_kept for row in shown.rows)) == graph.macs(keep) == shown.macs[1]
    fixed = sum(frozen.channels for frozen in graph.frozen)
    assert sum(row.channels for row in shown.rows) - fixed == graph.num_channels == shown.channels[0]
    left = sum(row.channels_kept for row in shown.rows) - fixed
    assert left == sum(len(keep[group.name]) * group.channels_per_unit for group in graph.groups) == shown.channels[1]
    lanes = {lane.group: lane for lane in shown.lanes}
    for group in graph.groups:
        produced, read = (sorted(place[layer] for layer in set(layers)) for layers in (group.layers, readers(group)))
        assert (group.name in lanes) == (len(produced) > 1 or read not in ([], [produced[0] + 1]))
        if group.name in lanes:
            lane = lanes[group.name]
            assert (lane.tied, list(lane.produced), list(lane.read)) == (len(produced) > 1, produced, read)
    for one, other in itertools.combinations(shown.lanes, 2):
        if one.tied == other.tied and one.first <= other.last and other.first <= one.last:
            assert one.column != other.column
            assert one.colour != other.colour or not one.tied or len(shown.lanes) > TIED_COLOURS


def test_columns_are_used_again():
    shown = diagram(graph_of("mobilenetv2"), {})
    tied = [lane for lane in shown.lanes if lane.tied]
    assert (len(tied), {lane.column for lane in tied}) == (22, {0, 1})
    dense = [lane for lane in diagram(graph_of("densenet121"), {}).lanes if not lane.tied]
    at_once = max(sum(lane.first <= row <= lane.last for lane in dense) for row in range(121))
    assert {lane.column for lane in dense} == set(range(at_once))  # no more than there must be


def test_products_of_activations_have_a_row_of_their_own():
    graph = graph_of(Attention)
    row = diagram(graph, {}).rows[-1]
    assert (row.layer, row.summed) == (OTHER, True)
    layers = sum(row.macs for row in diagram(graph, {}).rows[:-1])
    assert row.macs == graph.macs({}) - layers > 0


def test_of_many_layers_the_largest_have_rows():
    graph = graph_of("resnet20")
    keep = some_of(graph)
    whole, shown = diagram(graph, keep), diagram(graph, keep, max_rows=8)
    *rows, rest = shown.rows
    assert (len(rows), shown.left_out, rest.layer, rest.summed) == (8, len(whole.rows) - 8, f"{len(whole.rows) - 8} smaller layers", True)
    assert min(row.macs for row in rows) >= max(row.macs for row in whole.rows if row.layer not in {row.layer for row in rows})
    assert [row.layer for row in rows] == [row.layer for row in whole.rows if row.layer in {row.layer for row in rows}]
    assert (round(sum(row.macs_kept for row in shown.rows)), shown.macs) == (graph.macs(keep), whole.macs)
    by_name = {group.name: group for group in graph.groups}
    for lane in shown.lanes:
        assert {rows[place].layer for place in lane.produced} <= set(by_name[lane.group].layers)
    begun = [units.group for row in rows for units in row.begins]
    assert len(begun) == len(set(begun)) == len({name for row in rows for name in row.groups})
    text = " ".join(text.get_text() for text in graph_figure(shown, "").axes[0].texts)
    assert f"the {shown.left_out} layers with the fewest MACs are drawn as one" in text


# -- the figure --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("kind", ["resnet20", "densenet121", "mobilenetv3_small", "shufflenetv2", nets.LayerNormed, Attention], ids=str)
def test_texts_overlap_neither_each_other_nor_bars(kind, pruned):
    graph = graph_of(kind)
    shown = diagram(graph, some_of(graph) if pruned else {})
    figure = graph_figure(shown, "a network")
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    legends = [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [text.get_window_extent() for text in [*axes.texts, *legends] if text.get_text()]
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
    bars = [bar.get_window_extent() for container in axes.containers[1:] for bar in container if bar.get_width() > 0.02]
    ends = np.array([box.extents for box in [*boxes, *bars]])
    x0, y0, x1, y1 = ends.T + np.array([0.5, 1, -0.5, -1])[:, None]  # pixels that anti-aliasing may share
    meet = (x0 < x1[:, None]) & (x0[:, None] < x1) & (y0 < y1[:, None]) & (y0[:, None] < y1)
    assert not np.triu(meet, 1).any()
    rows = {text.get_text() for text in axes.texts}
    assert {row.layer for row in shown.rows} | {row.note for row in shown.rows if len(row.note) <= 64} <= rows | {""}


def test_bars_are_macs_and_lanes_have_their_colours():
    graph = graph_of("resnet20")
    shown = diagram(graph, {"conv1": range(4)})
    (axes,) = graph_figure(shown, "").axes
    _, stays, goes = axes.containers
    most = max(row.macs for row in shown.rows)
    assert [bar.get_width() for bar in stays] == pytest.approx([BAR * row.macs_kept / most for row in shown.rows])
    lost = [row for row in shown.rows if row.macs > row.macs_kept]
    assert [bar.get_width() for bar in goes] == pytest.approx([BAR * (row.macs - row.macs_kept) / most for row in lost])
    (touched,) = ({*lane.produced, *lane.read} for lane in shown.lanes if lane.group == "conv1")
    assert {row.layer for row in lost} == {shown.rows[place].layer for place in touched}  # nothing else shrank
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [line.get_color() for line in lines] == [TIED[lane.colour] for lane in shown.lanes]
    assert len(TIED) == TIED_COLOURS


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_files_are_whole_and_the_same_each_time(tmp_path, suffix):
    graph = graph_of("resnet20")
    for name in ("one", "other"):
        package.draw(graph, tmp_path / f"{name}.{suffix}", some_of(graph), title="$x_1$ & more")
    assert {path.name for path in tmp_path.iterdir()} == {f"one.{suffix}", f"other.{suffix}"}
    data = (tmp_path / f"one.{suffix}").read_bytes()
    assert data == (tmp_path / f"other.{suffix}").read_bytes()
    if suffix == "png":
        with Image.open(tmp_path / "one.png") as image:
            image.load()
            assert np.ptp(np.asarray(image.convert("L"))) > 200
    elif suffix == "svg":
        text = data.decode()
        assert all(f">{row.layer}<" in text for row in diagram(graph, {}).rows)
        assert text.rstrip().endswith("</svg>")
    else:
        assert (data[:4], data.rstrip()[-5:]) == (b"%PDF", b"%%EOF")


def test_a_network_without_groups_is_drawn(tmp_path):
    graph = trace(nn.Flatten(), torch.zeros(1, 3, 4, 4))
    assert diagram(graph, {}).rows == ()
    package.draw(graph, tmp_path / "none.svg")
    assert "0 groups" in (tmp_path / "none.svg").read_text()


def test_what_cannot_be_drawn_is_one_line(tmp_path):
    graph = graph_of(nets.Residual)
    (tmp_path / "file").touch()
    for path, keep, message in (
        (tmp_path / "a.gif", None, "a.gif: must end in .png, .svg, .pdf"),
        (tmp_path / "a", None, "must end in"),
        (tmp_path / "file/a.png", None, "file/a.png: cannot be written ("),
        (tmp_path / "a.png", {"nope": [0]}, "group 'nope': the graph has no such group"),
        (tmp_path / "a.png", {"stem": []}, "keep must list at least one unit"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            package.draw(graph, path, keep)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -- the command -------------------------------------------------------------------------------------------------------------------------


def test_the_table_says_what_one_more_unit_takes_along():
    graph = graph_of("resnet20")
    keep = some_of(graph)
    table = group_table(graph, {}, keep).set_index("group")
    for group in graph.groups:
        kept = keep[group.name]
        assert (table.loc[group.name, "kept"], table.loc[group.name, "removed"]) == (len(kept), group.num_units - len(kept))
        if 2 <= len(kept) <= 30:
            saved = graph.macs(keep) - graph.macs({**keep, group.name: kept[1:]})
            assert float(table.loc[group.name, "MACs a unit"].removesuffix(" k")) == pytest.approx(saved / 1e3, abs=0.006)
    assert list(group_table(graph, {})) == [name for name in group_table(graph, {}, keep) if name not in ("kept", "removed")]


def inspected(text):
    """The lines of the first table, by group."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:] if len(row) == len(rows[0])}


@pytest.mark.drawn
def test_inspect_shows_what_a_run_removed_without_its_images_and_weights(rlprune, monkeypatch):
    line = ("prune", *SMOKE, "model=resnet20", "model.width=0.5", "agent=uniform", "paths.run=outputs/run", "ignore=[layer2.1.conv1]")
    assert rlprune(*line)[0] == 0
    dense, *_, pruned = json.loads(Path("outputs/run/result.json").read_text())["rows"]
    plan = json.loads(Path("outputs/run/pruned/plan.json").read_text())
    code, out, _ = rlprune("inspect", "run=outputs/run", "verify=true", "paths.run=outputs/proved")
    assert (code, "every group, and all at once: zeroed equals removed" in out) == (0, True)
    monkeypatch.setattr(Digits, "read_train", lambda self: pytest.fail("the images are not needed"))
    Path("outputs/run/pruned/weights.safetensors").write_text("damaged")
    code, out, _ = rlprune("inspect", "run=outputs/run", "paths.run=outputs/i", "draw=svg")
    assert code == 0
    table = inspected(out)
    assert {name: int(row["kept"]) for name, row in table.items()} == {name: len(units) for name, units in plan["keep"].items()}
    assert all(int(row["kept"]) + int(row["removed"]) == int(row["units"]) for row in table.values())
    assert "layer2.1.conv1 | 16       | left alone as asked" in out
    shown = diagram(package.trace(build(shipped("model", "resnet20", {"width": 0.5}), "model", in_channels=3, num_classes=10),
                                  torch.zeros(1, 3, 32, 32), ignore=["layer2.1.conv1"]), plan["keep"])  # fmt: skip
    assert (shown.macs, shown.params) == ((dense["macs"], pruned["macs"]), (dense["params"], pruned["params"]))
    for before, after, name in ((*shown.macs, "MACs"), (*shown.params, "parameters")):
        assert f"{name} (−{100 * (1 - after / before):.1f} %)" in out
    assert out.splitlines()[-1] == "wrote outputs/i/groups.md and groups.svg"
    assert "rlprune sensitivity run=outputs/run" in out
    assert {path.name for path in Path("outputs/i").iterdir()} == {"config.yaml", "groups.md", "groups.svg"}
    assert Path("outputs/i/groups.md").read_text().strip() in out
    assert ">outputs/run/pruned: resnet20<" in Path("outputs/i/groups.svg").read_text()
    assert rlprune("inspect", "run=outputs/run/pruned", "draw=none", "paths.run=outputs/j")[0] == 0
    assert {path.name for path in Path("outputs/j").iterdir()} == {"config.yaml", "groups.md"}
    for words, message in (
        (("verify=true",), "outputs/run/pruned/weights.safetensors: is truncated or was changed"),
        (("ignore=[conv1]",), "ignore: goes not with run"),
        (("checkpoint=w.pth",), "checkpoint: goes not with run"),
        (("image_size=64",), "image_size: goes not with run"),
        (("sheet=true",), "sheet: goes not with run"),
        (("dataset=cifar10",), "dataset: goes not with run"),
        (("model.width=2",), "model.width: goes not with run"),
        (("model=vgg16",), "plan.json: ignore=layer2.1.conv1: matches no layer"),
        (("draw=gif",), "draw=gif: must be one of png, svg, pdf, none"),
    ):
        code, _, err = rlprune("inspect", "run=outputs/run", *words)
        assert (code, len(last_line(err)), "Traceback" in err) == (2, 1, False)
        assert message in last_line(err)[0]


def test_inspect_of_ones_own_network_names_it_again_and_a_dense_network_is_drawn(rlprune, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    Path("drawn_nets.py").write_text(
        "from rlprune.models.resnet import CifarResNet\n\n\ndef net(num_classes):\n"
        "    return CifarResNet(depth=8, width=0.5, shortcut='B', in_channels=3, num_classes=num_classes)\n"
    )
    own = ("model=custom", "model.target=drawn_nets.net")
    assert rlprune("prune", *SMOKE, "agent=uniform", *own, "paths.run=outputs/run")[0] == 0
    code, _, err = rlprune("inspect", "run=outputs/run")
    assert (code, "model=custom model.target=drawn_nets.net" in err) == (2, True)
    code, out, _ = rlprune("inspect", "run=outputs/run", *own, "draw=none")
    assert (code, inspected(out)["conv1"]["kept"]) == (0, "4")
    code, out, _ = rlprune("inspect", *own, "paths.run=outputs/dense")
    assert (code, out.splitlines()[-1]) == (0, "wrote outputs/dense/groups.md and groups.png")
    assert "kept" not in inspected(out)["conv1"]
    with Image.open("outputs/dense/groups.png") as image:
        image.load()
