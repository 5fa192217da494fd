"""Budgets, limits and candidates' treatment through the whole of `rlprune prune`."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import last_line

import rlprune as package
from rlprune.graph import trace
from rlprune.results.artefact import load_artefact
from rlprune.results.origin import Origin

SMOKE = ("prune", "debug=smoke", "model.depth=14", "model.width=0.5", "dataset.image_size=16")
SMOKE += ("device=cpu", "agent=uniform", "recovery=none")


def finished():
    (folder,) = Path("outputs/prune").iterdir()
    return folder, json.loads((folder / "result.json").read_text())


def dense_graph(folder):
    origin = load_artefact(folder / "pruned").origin
    assert isinstance(origin, Origin)
    return trace(origin.build(), torch.zeros(2, *origin.shape))


def removed(folder, graph):
    keep = json.loads((folder / "pruned/plan.json").read_text())["keep"]
    return graph.counts(keep)


@pytest.mark.parametrize(
    ("line", "bounds"),
    [
        (("budget.macs=0.4",), {"macs": 0.4}),
        (("budget.params=0.3",), {"params": 0.3}),
        (("budget.macs=0.6", "budget.params=0.2", "schedule.sparsity=0.3"), {"macs": 0.6, "params": 0.2}),
    ],
)
def test_budgets_are_met_within_one_unit_of_the_cheapest_group(rlprune, line, bounds):
    code, _, err = rlprune(*SMOKE, *line)
    assert code == 0, err
    folder, done = finished()
    graph = dense_graph(folder)
    counts, none = removed(folder, graph), np.zeros(len(graph.groups), dtype=int)
    assert done["rows"][-1]["macs"] == graph.cost.macs(counts)
    slack = {}
    for name, bound in bounds.items():
        cost = getattr(graph.cost, name)
        assert cost(counts) <= bound * cost(none)
        units = [cost(counts - unit) - cost(counts) for unit in np.eye(len(none), dtype=int)]
        slack[name] = (bound * cost(none) - cost(counts)) / min(units)
        assert done["targets"][f"budget.{name}"] == {"asked": bound, "reached": cost(counts) / cost(none)}
    assert min(slack.values()) < 1
    assert ("schedule.sparsity" in done["targets"]) == ("schedule.sparsity=0.3" in line)


def test_max_drop_ends_a_search_and_leaves_the_smallest_network_within(rlprune):
    line = ("prune", "debug=smoke", "model.width=0.5", "device=cpu", "agent=uniform", "dataset.limit=480", "training.epochs=6")
    line += ("schedule.steps=8", "recovery.control=false", "recovery.final_epochs=2")
    code, out, err = rlprune(*line, "budget.max_drop=15")
    assert code == 0, err
    folder, done = finished()
    steps = pd.read_csv(folder / "metrics.csv")
    dense = done["rows"][0]["search_top1"]
    assert done["search"]["stopped"] == "max_drop"
    assert 2 <= len(steps) < 8
    within = dense - steps["accuracy_recovered"] <= 0.15 + 1e-9
    assert within.tolist() == [True] * (len(steps) - 1) + [False]
    assert done["rows"][-1]["search_top1"] == steps["accuracy_recovered"].iloc[-2]
    assert done["rows"][-1]["sparsity"] == steps["sparsity"].iloc[-2]
    assert "as it loses more than budget.max_drop" in out
    assert sum(p.numel() for p in package.load(folder).parameters()) == done["rows"][-1]["params"]
    code, _, err = rlprune(*line, "budget.max_drop=0", "recovery.optimizer.lr=1e-9", "schedule.steps=1", "schedule.sparsity=0.9")
    assert code == 2
    assert "budget.max_drop=0.0: 90.1 % of the channels cost" in last_line(err)[-1]


def test_round_to_and_max_sparsity_hold_in_every_group(rlprune):
    code, _, err = rlprune(*SMOKE, "schedule.round_to=4", "schedule.max_sparsity={layer3.*:0.5,layer1.1.conv1:0}")
    assert code == 0, err
    folder, done = finished()
    graph = dense_graph(folder)
    left = graph.num_units - removed(folder, graph)
    assert all(kept % 4 == 0 or kept == units for kept, units in zip(left, graph.num_units, strict=True))
    by_name = {group.name: (kept, group.num_units) for group, kept in zip(graph.groups, left, strict=True)}
    assert by_name["layer1.1.conv1"][0] == by_name["layer1.1.conv1"][1]
    third = [kept / units for name, (kept, units) in by_name.items() if name.startswith("layer3")]
    assert min(third) == 0.5
    assert 0.5 <= done["rows"][-1]["sparsity"] < 0.5 + 4 * 4 / graph.num_channels


@pytest.mark.parametrize(
    "choice",
    [
        ("agent=global",),
        ("agent=random_search", "agent.candidates=5"),
        ("search.recalibrate_bn=40",),
        ("search.recover_batches=1", "recovery=kd"),
        ("criterion=activation_taylor",),
        ("criterion=fpgm", "dense_seed=3"),
        ("criterion=random", "reward=flops"),
    ],
)
def test_choices_run_whole(rlprune, choice):
    code, _, err = rlprune(*SMOKE, *choice)
    assert code == 0, err
    _, done = finished()
    assert done["rows"][-1]["sparsity"] == pytest.approx(0.5, abs=0.003)


def test_recalibration_changes_what_is_measured_and_what_is_kept(rlprune):
    line = (*SMOKE[:-1], "recovery=none", "schedule.steps=1", "schedule.sparsity=0.2")
    line += ("dataset.limit=480", "training.epochs=6", "precision=fp32")
    assert rlprune(*line, "paths.run=outputs/prune/a")[0] == 0
    assert rlprune(*line, "search.recalibrate_bn=256", "paths.run=outputs/prune/b")[0] == 0
    rows = [json.loads(Path(f"outputs/prune/{name}/result.json").read_text())["rows"][-1] for name in "ab"]
    measured = [pd.read_csv(f"outputs/prune/{name}/metrics.csv")["accuracy_pruned"].iloc[-1] for name in "ab"]
    assert [row["search_top1"] for row in rows] == measured  # the network on disk is the one that was measured
    assert measured[1] > measured[0]


def test_one_dense_network_under_several_seeds(rlprune):
    for seed in (1, 2):
        assert rlprune(*SMOKE, f"seed={seed}", "dense_seed=0", f"paths.run=outputs/prune/{seed}")[0] == 0
    assert len(list(Path("outputs/dense").iterdir())) == 1
    plan = json.loads(Path("outputs/prune/2/pruned/plan.json").read_text())
    assert (plan["seed"], plan["dense_seed"]) == (2, 0)
    code, _, _ = rlprune("evaluate", "run=outputs/prune/2", "device=cpu")
    assert code == 0
    (again,) = Path("outputs/evaluate").glob("*/result.json")
    rows = [json.loads(path.read_text())["rows"][-1] for path in (again, Path("outputs/prune/2/result.json"))]
    assert rows[0]["search_top1"] == rows[1]["search_top1"]  # the same search split


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("budget.macs=2",), "budget.macs=2.0: must be in (0, 1), or null; 0.5 keeps at most half"),
        (("budget.macs=0.001",), "to 1 of the dense network's is within reach"),
        (("budget.params=1e-5", "budget.macs=0.5"), "budget.params=1e-05: 0.00"),
        (("budget.max_drop=-1",), "budget.max_drop=-1.0: must be in [0, 100) points"),
        (("schedule.sparsity=null",), "schedule.sparsity=null: nothing says how much goes"),
        (("budget.macs=0.5", "schedule.save_at=[0.25]"), "schedule.save_at=[0.25]: levels are channel sparsities"),
        (("schedule.round_to=0",), "schedule.round_to=0: must be ≥ 1"),
        (("schedule.round_to=64",), "schedule.round_to=64: the channel group conv1 has 16 units only; choose 16 or less"),
        (("schedule.max_sparsity=1.5",), "schedule.max_sparsity=1.5: must be a share in [0, 1]"),
        (("schedule.max_sparsity={layer9:0.5}",), "schedule.max_sparsity: layer9 matches no channel group"),
        (("schedule.max_sparsity=0.2",), "schedule.sparsity=0.5: at most 0.1"),
        (("schedule.max_sparsity=0",), "nothing may go"),
        (("search.recalibrate_bn=1",), "search.recalibrate_bn=1: one image has no variance"),
        (("search.recover_batches=1", "search.execution=masked"), "search.execution=masked: goes not with search.recover_batches"),
        (("schedule.max_sparsity={1:0.5}",), "schedule.max_sparsity: 1 matches no channel group"),
        (("search.recalibrate_bn=-1",), "search.recalibrate_bn=-1: must be ≥ 0 images"),
        (("search.recover_batches=-1",), "search.recover_batches=-1: must be ≥ 0 batches"),
        (("dense_seed=-1",), "dense_seed=-1: must be ≥ 0"),
        (("reward.alpha=-1",), "reward.alpha=-1.0: must be ≥ 0"),
        (("agent.sample_num=0",), "agent.sample_num=0: must be ≥ 1"),
        (("agent=random_search", "agent.candidates=0"), "agent.candidates=0: must be ≥ 1"),
        (("agent=global", "agent.normalization=l3"), "agent.normalization=l3: must be one of mean, l2, max, none"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_trained(rlprune, line, message):
    code, _, err = rlprune("prune", *line)
    (only,) = last_line(err)
    assert code == 2
    assert message in only
    assert not list(Path().glob("outputs/dense/*"))
