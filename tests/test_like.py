import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import last_line
from torch import nn

import rlprune as package
from rlprune.config import build, conf_dir, load_yaml
from rlprune.errors import UserError
from rlprune.search.limits import Goal
from rlprune.search.schedule import Size
from rlprune.search.task import Environment, Task

EXAMPLE = torch.zeros(2, 3, 8, 8)
SIZES = {"0": 8, "2": 6, "4": 10, "6": 5}
OTHER = {"0": [1, 2, 7], "2": [0, 1, 2, 3, 4, 5], "4": [9], "6": [0, 4]}  # units that another run kept
SMOKE = ("prune", "debug=smoke", "model.depth=14", "model.width=0.5", "dataset.image_size=16", "device=cpu")


@pytest.fixture
def run(tmp_path):
    """The folder of another run."""
    return plan(tmp_path / "other", OTHER)


def plan(folder, keep):
    (folder / "pruned").mkdir(parents=True)
    (folder / "pruned/plan.json").write_text(json.dumps({"format": 1, "keep": keep}))
    return folder


def agent(run):
    return build(load_yaml(conf_dir() / "agent" / "like.yaml") | {"run": str(run)}, "agent")


def traced(*widths):
    widths = widths or tuple(SIZES.values())
    layers = []
    for before, after in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * 64, 5)).eval()
    return network, package.trace(network, EXAMPLE)


def environment(graph, steps, score):
    return Environment(
        measure=lambda network: 0.5,
        reward=lambda accuracy, flops_ratio, params_ratio: accuracy,
        score=score,
        dense=Size(graph.num_channels, graph.macs({}), graph.params({})),
        goals=(Goal(math.inf, math.inf, math.inf, True),) * steps,
        kept_counts={group.name: np.arange(group.num_units, 0, -1) for group in graph.groups},
    )


def backwards(network, graph):
    """A criterion that ranks the last unit lowest."""
    return {group.name: -torch.arange(group.num_units, dtype=torch.float64) for group in graph.groups}


@pytest.mark.parametrize("folder", ["", "pruned"])
def test_sizes_are_the_other_runs_and_units_the_criterions(run, folder):
    network, graph = traced()
    assert dict(zip((group.name for group in graph.groups), graph.num_units.tolist(), strict=True)) == SIZES
    candidate = agent(run / folder).decide(Task(environment(graph, 1, backwards), network, graph, 0), None)
    assert candidate.counts.tolist() == [SIZES[name] - len(units) for name, units in OTHER.items()]
    assert {name: units.tolist() for name, units in candidate.keep.items()} == {n: list(range(len(u))) for n, u in OTHER.items()}


@pytest.mark.parametrize(
    ("steps", "bundles"),
    [
        (2, [["0", "2"], ["4", "6"]]),
        (3, [["0", "2"], ["4"], ["6"]]),
        (4, [["0"], ["2"], ["4"], ["6"]]),
        (5, [["0"], ["2"], ["4"], ["6"], []]),
    ],
)
def test_steps_take_consecutive_groups(run, steps, bundles):
    like = agent(run)
    network, graph = traced()
    settings = environment(graph, steps, backwards)
    task = Task(settings, network, graph, 0)
    for bundle in bundles:
        expected = {name: len(OTHER[name]) if name in bundle else units for name, units in zip(SIZES, task.graph.num_units, strict=True)}
        candidate = like.decide(task, None)
        assert {name: len(units) for name, units in candidate.keep.items()} == expected
        last, task = task, task.after(candidate)
    assert (task, last.after(candidate)) == (None, None)
    assert expected == {name: len(units) for name, units in OTHER.items()}


def test_a_group_that_is_smaller_already_loses_nothing(run):
    network, graph = traced(2, 6, 10, 5)
    assert agent(run).decide(Task(environment(graph, 1, backwards), network, graph, 0), None).counts.tolist() == [0, 0, 9, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"8": [0]}, "has the channel group 8, this network has not; name a run of the same model with the same ignore"),
        ({"2": [0, 6]}, "keeps unit 6 of the channel group 2, which has 6 units here; name a run of the same model and width"),
        ({"4": None}, r"has no channel group 4; name a run of the same model, or ignore=\[4\], as it did"),
    ],
)
def test_a_run_of_another_network_is_refused(tmp_path, change, message):
    run = plan(tmp_path / "run", {name: units for name, units in (OTHER | change).items() if units is not None})
    with pytest.raises(UserError, match=f"^agent.run={run}: {message}"):
        agent(run).check(*traced(), EXAMPLE)


@pytest.mark.parametrize("keep", [None, [], {}, {"0": []}, {"0": 3}, {"0": [0, 0]}, {"0": [-1]}, {"0": ["1"]}])
def test_a_damaged_plan_is_refused(tmp_path, keep):
    with pytest.raises(UserError, match=r"run/pruned/plan\.json: lacks or garbles keep; the file is damaged, use another run"):
        agent(plan(tmp_path / "run", keep))


def test_it_follows_a_run_through_the_command(rlprune):
    assert rlprune(*SMOKE, "agent=global", "criterion=l1", "paths.run=first")[0] == 0
    code, out, err = rlprune(*SMOKE, "agent=like", "agent.run=first", "criterion=random", "schedule.steps=9", "paths.run=second")
    assert code == 0, err
    assert "at most 9 candidates (1 a step)" in out
    first, second = (json.loads(Path(name, "pruned/plan.json").read_text()) for name in ("first", "second"))
    assert {name: len(units) for name, units in first["keep"].items()} == {name: len(units) for name, units in second["keep"].items()}
    assert first["keep"] != second["keep"]
    assert (first["macs"], first["params"]) == (second["macs"], second["params"])
    units = pd.read_csv("second/layers.csv").pivot(index="step", columns="group", values="units")[list(first["keep"])]
    for step, shrunk in enumerate((units.diff().iloc[1:] < 0).to_numpy()):  # as many steps as groups
        assert set(np.flatnonzero(shrunk)) <= {step}
    assert (pd.read_csv("second/metrics.csv")["recovery_seconds"] > 0).all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ((), "agent.run: name the run whose sizes are taken, agent.run=outputs/prune/RUN"),
        (("agent.run=gone",), "agent.run=gone: has no pruned/plan.json; name the folder of a finished `rlprune prune`"),
        (("agent.run=other",), "agent.run=other: has the channel group 0, this network has not; name a run of the same model"),
        (("agent.run=damaged",), "damaged/plan.json: is not valid JSON"),
    ],
)
def test_what_it_cannot_follow_is_one_line_before_anything_is_trained(rlprune, run, line, message):
    Path("damaged").mkdir()
    Path("damaged/plan.json").write_text("{")
    code, _, err = rlprune(*SMOKE, "agent=like", *line)
    lines = last_line(err)
    assert (code, len(lines)) == (2, 1), err
    assert message in lines[0]
    assert not list(Path().glob("outputs/dense/*"))
