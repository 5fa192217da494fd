import dataclasses
import logging

import nets
import numpy as np
import pytest
import torch

import rlprune
from rlprune.data.base import Images, Normalization
from rlprune.errors import UserError
from rlprune.search.execution import choose_execution, exact_executions, measure_executions
from rlprune.search.schedule import Size, Targets, make_schedule
from rlprune.training.evaluate import Evaluator
from rlprune.training.execution import Execution, Way

CPU = Execution(torch.device("cpu"), None, (Way(None, torch.channels_last),), "auto", False)


@pytest.fixture
def search():
    """Network, graph and evaluator of a search."""
    images = Images(torch.randint(0, 255, (8, 3, 8, 8), dtype=torch.uint8), torch.zeros(8, dtype=torch.long))
    network = nets.randomised(nets.Concat()).eval()
    graph = rlprune.trace(network, torch.randn(2, 3, 8, 8))
    return network, graph, Evaluator(images, Normalization((0.5,) * 3, (0.25,) * 3), CPU)


def schedule(graph, steps=4):
    targets, dense = Targets(0.5, None, None, None), Size(graph.num_channels, graph.macs({}), graph.params({}))
    return make_schedule(targets=targets, steps=steps, period=1, save_at=[], dense=dense, smallest=Size(3, 0, 0))


def wrong(graph):
    """Units of one member stand in another order, so that zeroed and removed differ."""
    group = graph.groups[0]
    inputs = next(index for index, member in enumerate(group.members) if member.role == "in")
    members = list(group.members)
    members[inputs] = dataclasses.replace(members[inputs], units=np.roll(members[inputs].units, 1, 0))
    return dataclasses.replace(graph, groups=(dataclasses.replace(group, members=tuple(members)), *graph.groups[1:]))


@pytest.mark.parametrize("steps", [1, 4])
def test_every_exact_execution_is_measured_and_the_network_stays(search, steps):
    network, graph, evaluator = search
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    seconds = measure_executions(network, graph, evaluator.first(5), schedule(graph, steps))
    assert set(seconds) == {"sliced", "padded", "masked"}
    assert all(np.isfinite(list(seconds.values())))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_an_execution_that_changes_outputs_is_out(search):
    network, graph, evaluator = search
    assert exact_executions(network, wrong(graph), evaluator) == ["sliced"]
    with pytest.raises(UserError, match=r"search\.execution=masked: changes this network's outputs"):
        choose(network, wrong(graph), evaluator, None, name="masked")
    float32 = nets.randomised(nets.OnlyFloat32()).eval()
    assert exact_executions(float32, rlprune.trace(float32, torch.randn(2, 3, 8, 8)), evaluator) == ["sliced"]


def choose(network, graph, evaluator, folder, *, name="auto", candidates=10**6, run="run"):
    paths = {} if folder is None else {"cache": folder / "cache", "chosen": folder / run / "execution.json"}
    return choose_execution(
        name, network, graph, evaluator, schedule=schedule(graph), candidates=candidates, **({"cache": None, "chosen": None} | paths)
    )


def test_what_was_asked_for_needs_no_clock(search, monkeypatch):
    monkeypatch.setattr("rlprune.search.execution.measure_executions", None)
    for name in ("sliced", "padded", "masked"):
        assert choose(*search, None, name=name) == name


@pytest.mark.parametrize(("masked", "expected"), [(0.5, "masked"), (0.95, "sliced"), (2.0, "sliced")])
def test_the_fastest_is_measured_once_and_kept(search, tmp_path, monkeypatch, caplog, masked, expected):
    asked = []

    def fake(network, graph, evaluator, schedule):
        asked.append(len(evaluator))
        return {"sliced": 1.0, "padded": 1.5, "masked": masked}

    monkeypatch.setattr("rlprune.search.execution.measure_executions", fake)
    with caplog.at_level(logging.INFO):
        assert [choose(*search, tmp_path, run=run) for run in ("a", "b")] == [expected] * 2
    assert asked == [8]
    assert f"candidates run {expected}" in caplog.text
    (tmp_path / "a" / "execution.json").write_text('{"execution": "padded"}')
    assert choose(*search, tmp_path, run="a") == "padded"  # a run goes on as it began
    (known,) = (tmp_path / "cache").iterdir()
    known.write_text("{")
    assert choose(*search, tmp_path, run="c") == expected
    assert asked == [8, 8]


def test_a_short_search_measures_nothing(search, tmp_path, monkeypatch):
    monkeypatch.setattr("rlprune.search.execution.measure_executions", None)
    assert choose(*search, tmp_path, candidates=100) == "sliced"
    assert not list(tmp_path.iterdir())
