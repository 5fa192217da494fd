"""Predicted latency: the calls of a network, the tables, budgets and rewards that look them up. Clocks are replaced by closed forms."""

import json
import math
from dataclasses import replace
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from conftest import last_line
from torch import nn

from rlprune import prune, trace, with_latency
from rlprune.config import build, shipped
from rlprune.errors import UserError
from rlprune.files import read_json
from rlprune.latency import build as building
from rlprune.latency import rounding
from rlprune.latency.build import latency_model
from rlprune.latency.calls import Shrinking, _Watch, shrinking_calls
from rlprune.latency.rounding import chosen, multiple_savings
from rlprune.latency.timing import Grid, _monotone, make_grid
from rlprune.latency_model import LatencyModel
from rlprune.rewards.weighted import WeightedReward
from rlprune.search.allocate import allocate, turns_by_share
from rlprune.search.limits import Goal, Limits, Room
from rlprune.search.schedule import Size, Targets, out_of_reach, reach_rows


def zoo(name, **settings):
    return build(shipped("model", name, settings), "model", in_channels=3, num_classes=10)


SUBJECTS = {
    **{name: (getattr(nets, name), (2, 3, 16, 16)) for name in ("Plain", "FlattenHead", "Residual", "Concat", "Grouped", "Depthwise")},
    **{name: (getattr(nets, name), (2, 3, 16, 16)) for name in ("Transposed", "Shuffle", "SplitShape", "DataDependent", "Upsample")},
    "resnet20": (lambda: zoo("resnet20", width=0.5), (1, 3, 32, 32)),
    "densenet121": (lambda: zoo("densenet121", width=0.25), (1, 3, 32, 32)),
    "mobilenetv2": (lambda: zoo("mobilenetv2", width=0.25), (1, 3, 32, 32)),
    "shufflenetv2": (lambda: zoo("shufflenetv2"), (1, 3, 32, 32)),
}


def subject(name):
    make, shape = SUBJECTS[name]
    network, example = make().eval(), torch.randn(shape)
    return network, example, trace(network, example)


def random_keep(graph, seed=0):
    generator = np.random.default_rng(seed)
    return {group.name: np.arange(generator.integers(1, group.num_units + 1)) for group in graph.groups}


def entries(shapes):
    return float(sum(math.prod(shape) for shape in shapes))


@pytest.fixture
def by_entries(monkeypatch):
    """A machine on which a call takes a second for every entry of its tensors, and a network what its calls do; returns what was timed."""
    timed = []

    def time_grids(grids, device, advance, *, monotone=True):
        timed.extend(grids)
        return [
            np.array([entries(_tensors(grid, node)) for node in np.ndindex(*map(len, grid.steps))]).reshape(
                [len(row) for row in grid.steps]
            )
            for grid in grids
        ]

    monkeypatch.setattr(building, "time_grids", time_grids)
    monkeypatch.setattr(rounding, "time_grids", time_grids)
    for module in (building, __import__("rlprune.search.latency", fromlist=["latency"])):
        monkeypatch.setattr(
            module, "measure_networks", lambda networks, example: {n: seconds_of(net, example) for n, net in networks.items()}
        )
    return timed


def _tensors(grid, node):
    holes = grid.call.call.holes
    return [shape for hole, shape in zip(holes, grid.shapes(node), strict=True) if hasattr(hole, "dtype")]


def watched(network, example):
    watch = _Watch(network)
    with torch.no_grad(), watch:
        network(example)
    return watch.calls


def seconds_of(network, example):
    """Entries of all tensors in all calls of a forward pass."""
    return sum(entries([hole.shape for hole in call.holes if hasattr(hole, "dtype")]) for call in watched(network, example))


# -- calls ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBJECTS)
def test_shapes_of_every_call_are_those_of_the_pruned_network(name):
    network, example, graph = subject(name)
    changing = np.flatnonzero(graph.num_units > 1).tolist()
    calls = shrinking_calls(network, graph, example, changing)
    assert calls
    for seed in range(2):
        keep = random_keep(graph, seed)
        counts = graph.counts(keep)
        small = watched(prune(network, graph, keep), example)
        assert [call.call.name for call in calls] == [call.name for call in small]
        for call, wanted in zip(calls, small, strict=True):
            steps = [int(np.dot(axis.taken, counts)) for axis in call.axes]
            assert [tuple(shape) for shape in call.shapes(steps)] == [tuple(hole.shape) for hole in wanted.holes]


def test_a_call_runs_again_at_other_widths_and_a_depthwise_convolution_with_other_groups():
    network, example, graph = subject("Depthwise")
    depthwise = next(call for call in shrinking_calls(network, graph, example, range(len(graph.groups))) if _groups(call) > 1)
    (axis,) = depthwise.axes
    shapes = depthwise.shapes([2])
    ((args, kwargs),) = depthwise.call.arguments(shapes, torch.device("cpu"), 1)
    width = depthwise.call.holes[0].shape[1] - 2 * axis.dims[0][2]
    assert depthwise.call.function(*args, **kwargs).shape[1] == width == args[6]


def _groups(call):
    return call.call.holes[call.call.args[6].number].shape[0] if call.call.name.endswith("conv2d") else 0


def test_copies_share_activations_and_have_weights_of_their_own():
    network, example, graph = subject("Plain")
    call = next(call for call in shrinking_calls(network, graph, example, [0]) if call.call.name.endswith("conv2d"))
    (first, _), (second, _) = call.call.arguments(call.shapes([0] * len(call.axes)), torch.device("cpu"), 2)
    assert first[0] is second[0]
    assert first[1] is not second[1]
    assert torch.equal(first[1], second[1])


class Fickle(nets.Plain):
    """Another call at odd widths."""

    def forward(self, x):
        x = super().forward(x)
        return x.relu() if len(self.features[2].weight) % 2 else x


class Counted(nets.Plain):
    """As many tensors in one call as the width says."""

    def forward(self, x):
        x = super().forward(x)
        return torch.stack([x] * len(self.features[2].weight)).sum(0)


@pytest.mark.parametrize("make", [Fickle, Counted])
def test_a_network_whose_calls_change_with_its_width_is_refused(make):
    network, example = make().eval(), torch.randn(2, 3, 16, 16)
    graph = trace(nets.Plain().eval(), example)
    with pytest.raises(UserError, match="the network makes other calls"):
        shrinking_calls(network, graph, example, range(len(graph.groups)))


# -- the model -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Plain", "FlattenHead", "Concat", "Grouped", "resnet20", "densenet121", "mobilenetv2", "shufflenetv2"])
def test_where_calls_cost_their_entries_the_prediction_is_exact(by_entries, name):
    network, example, graph = subject(name)
    clocked = with_latency(network, graph, example)
    assert clocked.latency({}) == pytest.approx(seconds_of(network, example))
    for seed in range(4):
        keep = random_keep(graph, seed)
        assert clocked.latency(keep) == pytest.approx(seconds_of(prune(network, graph, keep), example), rel=1e-6)
    assert clocked.clock.error == pytest.approx(0.0, abs=1e-6)
    assert [check.name for check in clocked.clock.checks] == ["dense", "random 6", "random 7", "random 8", "random 9"]


def test_the_graph_of_a_pruned_network_predicts_the_same(by_entries):
    network, example, graph = subject("resnet20")
    clocked, keep = with_latency(network, graph, example), random_keep(graph, 3)
    after = clocked.after(keep)
    assert after.latency({}) == clocked.latency(keep)
    more = {after.groups[0].name: [0]}
    assert after.latency(more) == clocked.latency({**keep, after.groups[0].name: keep[after.groups[0].name][:1]})


def test_many_plans_at_once_are_as_one_by_one_and_json_keeps_the_model(by_entries):
    network, example, graph = subject("mobilenetv2")
    clocked = with_latency(network, graph, example)
    plans = np.stack([graph.counts(random_keep(graph, seed)) for seed in range(6)])
    alone = [float(clocked.seconds(plan)) for plan in plans]
    assert clocked.seconds(plans.reshape(2, 3, -1)) == pytest.approx(np.reshape(alone, (2, 3)), rel=1e-12)
    again = LatencyModel.from_dict(json.loads(json.dumps(clocked.clock.as_dict())))
    assert again.seconds(graph.num_units - plans) == pytest.approx(alone, rel=1e-12)
    assert again.checks == clocked.clock.checks


def test_overhead_and_factor_come_from_whole_networks(by_entries, monkeypatch):
    network, example, graph = subject("resnet20")
    monkeypatch.setattr(
        building, "measure_networks", lambda networks, example: {n: 5e4 + 1.5 * seconds_of(net, example) for n, net in networks.items()}
    )
    clock = with_latency(network, graph, example).clock
    assert (clock.overhead, *clock.factors) == (pytest.approx(5e4), pytest.approx(1.5), pytest.approx(1.5))
    assert clock.error == pytest.approx(0.0, abs=1e-6)
    monkeypatch.setattr(building, "measure_networks", lambda networks, example: {n: twofold(net, example) for n, net in networks.items()})
    clock = with_latency(network, graph, example).clock
    assert (clock.overhead, *clock.factors) == (pytest.approx(0, abs=1), pytest.approx(3), pytest.approx(2))
    monkeypatch.setattr(  # as if less than nothing came on top: nothing negative, and an error that is told
        building, "measure_networks", lambda networks, example: {n: seconds_of(net, example) - 1e4 for n, net in networks.items()}
    )
    clock = with_latency(network, graph, example).clock
    assert clock.overhead == 0
    assert min(clock.factors) >= 0
    assert clock.error > 0


def twofold(network, example):
    """Calls with weights of several dimensions take twice as long as their entries say, others three times."""
    calls = watched(network, example)
    heavy = [any(getattr(hole, "is_weight", False) and len(hole.shape) > 1 for hole in call.holes) for call in calls]
    sizes = [entries([hole.shape for hole in call.holes if hasattr(hole, "dtype")]) for call in calls]
    return sum(size * (2 if has_weight else 3) for size, has_weight in zip(sizes, heavy, strict=True))


def test_what_was_measured_is_kept(by_entries, tmp_path):
    network, example, graph = subject("resnet20")
    first = with_latency(network, graph, example, cache=tmp_path)
    timed = len(by_entries)
    assert timed > 10
    assert with_latency(network, graph, example, cache=tmp_path).latency({}) == first.latency({})
    deeper = zoo("resnet32", width=0.5).eval()
    with_latency(deeper, trace(deeper, example), example, cache=tmp_path)
    assert len(by_entries) < 1.2 * timed  # of the same layers: nearly all of its tables are known
    next(tmp_path.glob("latency-tables-*")).write_text("{")
    for path in tmp_path.glob("latency-*"):
        if "tables" not in path.name:
            path.write_text("[]")
    assert with_latency(network, graph, example, cache=tmp_path).latency({}) == first.latency({})


@pytest.mark.parametrize(
    "damage", [{"values": []}, {"nodes": []}, {"groups": ["a"]}, {"units": None}, {"factors": [1]}, {"overhead": None}]
)
def test_a_damaged_model_is_measured_again(by_entries, tmp_path, damage):
    network, example, graph = subject("Plain")
    first = with_latency(network, graph, example, cache=tmp_path)
    (kept,) = (path for path in tmp_path.glob("latency-*") if "tables" not in path.name)
    plain = read_json(kept)
    kept.write_text(json.dumps(plain | {"model": plain["model"] | damage}))
    (tables,) = tmp_path.glob("latency-tables-*")
    tables.write_text(json.dumps(dict.fromkeys(read_json(tables), "x")))
    assert with_latency(network, graph, example, cache=tmp_path).latency({}) == first.latency({})


def test_a_run_goes_on_with_its_own_model_on_another_machine(by_entries, tmp_path, caplog):
    network, example, graph = subject("Plain")
    counts = {group.name: np.arange(group.num_units, 0, -1) for group in graph.groups}
    own = tmp_path / "run/latency.json"
    latency_model(network, graph, counts, example, where="1 thread", cache=tmp_path / "cache", own=own)
    plain = read_json(own)
    own.write_text(json.dumps(plain | {"model": plain["model"] | {"overhead": 7.0}}))
    timed = len(by_entries)
    again = latency_model(network, graph, counts, example, where="2 threads", cache=tmp_path / "cache", own=own)
    assert again.overhead == 7.0
    assert len(by_entries) == timed
    assert "measured where this run began (1 thread)" in caplog.text
    fewer = {name: series[:-1] for name, series in counts.items()}  # another question
    assert latency_model(network, graph, fewer, example, where="2 threads", cache=tmp_path / "cache", own=own).overhead != 7.0


def test_a_model_of_the_same_calls_has_the_names_of_this_network(by_entries, tmp_path):
    network, example, graph = subject("Plain")
    with_latency(network, graph, example, cache=tmp_path)
    outer = nn.Sequential(network)
    clocked = with_latency(outer, trace(outer, example), example, cache=tmp_path)
    assert clocked.clock.groups == tuple(group.name for group in clocked.groups)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"example_inputs": None}, "example_inputs: holds no tensor"),
        ({"example_inputs": {}}, "example_inputs: holds no tensor"),
        ({"graph": "graph"}, "graph: is a str"),
        ({"min_keep": 0}, "min_keep=0: must be a whole number ≥ 1"),
        ({"min_keep": 2.5}, "min_keep=2.5: must be a whole number ≥ 1"),
        ({"cache": __file__}, "is a file; name a folder"),
    ],
)
def test_wrong_arguments_get_one_line(by_entries, settings, message):
    network, example, graph = subject("Plain")
    with pytest.raises(UserError, match=message):
        with_latency(**{"model": network, "graph": graph, "example_inputs": example} | settings)


def test_a_graph_of_which_nothing_can_go_has_no_latency_to_predict(by_entries):
    network, example, graph = subject("Plain")
    with pytest.raises(UserError, match="graph: has no channel group"):
        with_latency(network, graph.freeze({group.name: "kept" for group in graph.groups}), example)


def test_a_graph_without_a_model_says_how_to_get_one():
    _, _, graph = subject("Plain")
    with pytest.raises(UserError, match=r"graph = rlprune.with_latency\(model, graph, example_inputs\)"):
        graph.latency({})


def test_real_clocks_give_a_model_that_rises_with_every_unit():
    network, example, graph = subject("Plain")
    clocked = with_latency(network, graph, example)
    none = np.zeros(len(graph.groups), dtype=int)
    for group, units in enumerate(graph.num_units.tolist()):
        plans = np.outer(np.arange(units), np.eye(len(none), dtype=int)[group])
        assert (np.diff(clocked.seconds(none + plans)) <= 1e-12).all()
    assert clocked.latency({}) > 0
    assert len(clocked.clock.checks) == 5


def test_nodes_reach_from_the_smallest_to_the_dense_width():
    network, example, graph = subject("resnet20")
    most = graph.num_units - 2
    for call in shrinking_calls(network, graph, example, range(len(graph.groups))):
        grid = make_grid(call, most, 10**6)
        for row, widths in zip(grid.steps, grid.widths, strict=True):
            assert row[-1] == (0,)
            assert list(widths) == sorted(set(widths))
        corner = [len(row) - 1 for row in grid.steps]
        assert grid.shapes(corner) == [list(hole.shape) for hole in call.call.holes]
        assert grid.copies in (1, 2, 4, 8, 16)


def test_a_table_is_made_monotone_and_left_alone_where_it_is():
    rising = np.add.outer(np.arange(4.0), np.arange(5.0))
    assert np.array_equal(_monotone(rising), rising)
    rough = rising + np.random.default_rng(0).normal(0, 2, rising.shape)
    for axis in (0, 1):
        assert (np.diff(_monotone(rough), axis=axis) >= -0.2).all()


def test_a_call_that_cannot_be_made_takes_the_dense_time():
    from rlprune.latency.timing import _mended

    assert _mended(np.array([np.inf, 1.0, 2.0])).tolist() == [2.0, 2.0, 2.0]
    assert _mended(np.array([1.0, np.inf])).tolist() == [0.0, 0.0]


# -- multiples -----------------------------------------------------------------------------------------------------------------------------


def test_a_device_that_works_in_sixteens_is_found_out():
    widths = np.array([w - o for w in (64, 96, 128) for o in (0, 1, 2, 4, 8, 16, 24, 28, 30, 31)], dtype=float)
    stairs = multiple_savings([(widths, np.ceil(widths / 16) * 1e-5)])
    assert chosen(stairs).multiple == 16
    assert stairs[1] == 0 < stairs[16]
    smooth = multiple_savings([(widths, widths * 1e-5)])
    assert chosen(smooth).multiple == 1
    assert all(abs(share) < 1e-6 for share in smooth.values())
    assert chosen({}).multiple == 1


def test_small_groups_are_rounded_to_what_fits_them():
    limits = Limits(1, 16, 1.0, lenient=True)
    assert limits.kept_counts("a", 64).tolist() == [64, 48, 32, 16]
    assert limits.kept_counts("a", 16).tolist() == [16, 8]
    assert limits.kept_counts("a", 24).tolist() == [24, 16, 8]
    assert limits.kept_counts("a", 1).tolist() == [1]
    assert Limits(1, 16, 1.0).kept_counts("a", 24).tolist() == [24, 16]


# -- budgets and rewards -------------------------------------------------------------------------------------------------------------------


def test_a_step_meets_its_latency_and_no_unit_could_come_back(by_entries):
    network, example, graph = subject("resnet20")
    graph = with_latency(network, graph, example)
    room = Room(graph, [np.arange(group.num_units, 0, -1) for group in graph.groups])
    goal = Goal(math.inf, math.inf, math.inf, exact=True, latency=0.5 * graph.latency({}))
    for seed in range(5):
        shares = np.random.default_rng(seed).dirichlet(np.ones(len(graph.groups)))
        counts = allocate(turns_by_share(shares, np.zeros(len(shares)), room), room, goal)
        assert float(graph.seconds(counts)) <= goal.latency
        back = [float(graph.seconds(counts - unit)) for unit in np.eye(len(counts), dtype=int) if (counts - unit).min() >= 0]
        assert min(back) > goal.latency
        one = goal.excess_of_one(graph, counts, np.where(counts > 0, -1, 0))
        assert one == pytest.approx(goal.excess(graph, counts - np.diag(counts > 0)))
    assert not goal.free
    assert Goal(math.inf, math.inf, math.inf, exact=True).free
    assert goal.relative_excess(1, 1, 1, 2 * goal.latency) == pytest.approx(1.0)


def test_what_is_within_reach():
    dense, smallest = Size(100, 1000, 500, 0.004), Size(10, 40, 30, 0.001)
    assert out_of_reach(Targets(None, None, None, None, 0.2), dense, smallest) == (
        "latency", "0.250 to 1 of the dense network's is within reach"
    )  # fmt: skip
    assert out_of_reach(Targets(None, None, None, None, 0.25), dense, smallest) is None
    rows = reach_rows(Targets(0.5, 0.5, None, None, 0.6), dense, smallest)
    assert [row[""] for row in rows] == ["channels", "MACs", "parameters", "latency ms, predicted"]
    assert rows[3] == {"": "latency ms, predicted", "floor": "1.000 (0.250)", "target": "≤ 2.400 (0.6)", "dense": "4.000"}
    assert rows[2]["target"] == ""
    (_, _, _, row) = reach_rows(Targets(None, None, None, None, 0.6), dense, replace(smallest, latency=0.0010004))
    assert row["floor"] == "1.000 (0.251)"  # what is shown may be asked
    assert len(reach_rows(Targets(0.5, None, None, None), replace(dense, latency=None), smallest)) == 3


def test_the_reward_counts_latency():
    reward = WeightedReward(alpha=0.1, beta=0.2, gamma=0.5)
    assert reward(accuracy=0.9, flops_ratio=0.5, params_ratio=0.25, latency_ratio=0.4) == pytest.approx(0.9 + 0.05 + 0.05 + 0.2)
    assert reward.reads_latency
    assert not WeightedReward(alpha=0.1, beta=0.2, gamma=0.0).reads_latency
    with pytest.raises(ValueError, match="gamma=-1"):
        WeightedReward(alpha=0.0, beta=0.0, gamma=-1)


SMOKE = ("prune", "debug=smoke", "model.width=0.5", "device=cpu", "agent=uniform", "recovery=none")


def finished():
    (folder,) = Path("outputs/prune").iterdir()
    return folder, json.loads((folder / "result.json").read_text())


def test_all_budgets_hold_at_once_and_are_announced(rlprune, by_entries):
    code, _, err = rlprune(*SMOKE, "budget.macs=0.6", "budget.params=0.5", "budget.latency=0.55", "schedule.sparsity=0.2")
    assert code == 0, err
    folder, done = finished()
    for key, bound in (("macs", 0.6), ("params", 0.5), ("latency", 0.55)):
        assert done["targets"][f"budget.{key}"]["reached"] <= bound
    assert done["targets"]["schedule.sparsity"]["reached"] >= 0.2
    told = (folder / "log.txt").read_text()
    assert all(f"| {name}" in told for name in ("channels", "MACs", "parameters", "latency ms, predicted"))
    assert told.index("within reach") < told.index("step 1/")
    latency = done["latency"]
    assert latency["predicted"]["pruned"] / latency["predicted"]["dense"] == pytest.approx(done["targets"]["budget.latency"]["reached"])
    assert latency["predicted"]["pruned"] == pytest.approx(latency["measured"]["pruned"])  # as this machine's calls cost their entries
    assert latency["error"] == pytest.approx(0.0, abs=1e-6)


def test_latency_is_the_reward(rlprune, by_entries):
    code, _, err = rlprune(*SMOKE, "reward=latency", "reward.gamma=2.0", "schedule=oneshot", "schedule.sparsity=0.4")
    assert code == 0, err
    folder, done = finished()
    last = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    row = dict(zip(last[0], last[-1], strict=True))
    predicted = done["latency"]["predicted"]
    assert float(row["latency_predicted"]) == pytest.approx(predicted["pruned"])
    wanted = float(row["accuracy_pruned"]) + 2 * (1 - predicted["pruned"] / predicted["dense"])
    assert float(row["reward"]) == pytest.approx(wanted)


def test_nothing_is_timed_where_nobody_asks(rlprune, by_entries):
    code, _, err = rlprune(*SMOKE, "budget.macs=0.5")
    assert code == 0, err
    _, done = finished()
    assert by_entries == []
    assert "latency" not in done


def test_the_device_chooses_the_multiple(rlprune, by_entries, monkeypatch):
    monkeypatch.setattr(rounding, "multiple_savings", lambda sweeps: {1: 0.0, 4: 0.3, 8: 0.31})
    code, _, err = rlprune(*SMOKE, "schedule.round_to=auto", "budget.macs=0.5")
    assert code == 0, err
    folder, done = finished()
    assert done["round_to"] == 4
    plan = json.loads((folder / "pruned/plan.json").read_text())
    dense = {row.split(",")[1]: int(row.split(",")[2]) for row in (folder / "layers.csv").read_text().splitlines() if row.startswith("0,")}
    assert all(len(units) % 4 == 0 or len(units) == dense[name] for name, units in plan["keep"].items())
    assert "schedule.round_to=auto: 4" in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("budget.latency=0.001", "budget.latency=0.001: 0."),
        ("budget.latency=1.5", "budget.latency=1.5: must be in (0, 1), or null"),
        ("latency.batch_size=0", "latency.batch_size=0: must be ≥ 1"),
        ("schedule.round_to=fast", "schedule.round_to=fast: must be ≥ 1, where 1 does not round, or auto"),
        ("reward.gamma=-1", "reward.gamma=-1.0: must be ≥ 0"),
    ],
)
def test_bad_input_gets_one_line(rlprune, by_entries, line, message):
    code, _, err = rlprune(*SMOKE, line)
    assert code == 2
    assert message in last_line(err)[-1]
    assert "Traceback" not in err


def test_a_target_faster_than_the_fastest_is_refused_before_training_with_what_can_be_had(rlprune, by_entries):
    code, _, err = rlprune(*SMOKE, "budget.latency=0.05")
    assert code == 2
    assert "to 1 of the dense network's is within reach" in err
    assert not Path("outputs/dense").exists()


def test_sweeps_take_all_axes_together():
    network, example, graph = subject("resnet20")
    call = next(c for c in shrinking_calls(network, graph, example, range(len(graph.groups))) if len(c.axes) == 2)
    grid = rounding._sweep(call)
    assert isinstance(grid, Grid)
    assert isinstance(call, Shrinking)
    for node, steps in enumerate(grid.steps[0]):
        assert len(steps) == 2
        assert min(min(shape) for shape in grid.shapes([node])) >= 1


def test_measuring_leaves_the_network_alone(by_entries):
    network, example, graph = subject("Plain")
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with_latency(network, graph, example)
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert isinstance(network, nn.Module)


def test_damaged_savings_are_measured_again_and_what_cannot_be_timed_says_nothing(by_entries, tmp_path, monkeypatch):
    network, example, graph = subject("resnet20")
    first = rounding.preferred_multiple(network, graph, example, where="here", cache=tmp_path)
    timed = len(by_entries)
    assert rounding.preferred_multiple(network, graph, example, where="here", cache=tmp_path) == first
    assert len(by_entries) == timed
    (path,) = tmp_path.glob("rounding-*")
    path.write_text('{"savings": {"x": "y"}}')
    assert rounding.preferred_multiple(network, graph, example, where="here", cache=tmp_path) == first
    assert len(by_entries) > timed
    monkeypatch.setattr(rounding, "time_grids", lambda grids, *_, **__: [np.zeros([len(row) for row in grid.steps]) for grid in grids])
    assert rounding.preferred_multiple(network, graph, example, where="here", cache=None).multiple == 1
