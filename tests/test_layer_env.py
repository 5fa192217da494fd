"""A pruning step as episodes, without any library of agents."""

import math

import nets
import numpy as np
import pytest
import torch
from torch import nn

import rlprune
from rlprune.search.layers import layer_facts
from rlprune.search.ledger import Ledger
from rlprune.search.limits import Goal, Limits
from rlprune.search.schedule import size_of
from rlprune.search.task import Environment, Task

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def task_of(graph, network, *, goals=((math.inf,) * 3,), round_to=1, most=0.95, **ledger):
    """A search whose accuracy falls with the parameters, and a list that grows with every network that is measured."""
    measured = []

    def measure(network):
        measured.append(network)
        return min(1.0, sum(parameter.numel() for parameter in network.parameters()) / 2000)

    limits = Limits(1, round_to, 1.0, most=most)
    environment = Environment(
        measure,
        lambda accuracy, **ratios: accuracy,
        lambda network, graph: {group.name: torch.arange(group.num_units).double() for group in graph.groups},
        size_of(graph, np.zeros(len(graph.groups), dtype=int)),
        tuple(Goal(*goal, True) for goal in goals),
        {group.name: limits.kept_counts(group.name, group.num_units) for group in graph.groups},
        Ledger(**ledger),
    )
    return Task(environment, network, graph, 0), measured


@pytest.fixture
def traced():
    network = nets.randomised(nets.Concat()).eval()
    return rlprune.trace(network, EXAMPLE), network  # groups of 8, 4 and 6 channels


def play(env, actions, **options):
    env.reset(options=options)
    steps = []
    for action in actions:
        steps.append(env.step(np.array([action], dtype=np.float32)))
        if steps[-1][2] or steps[-1][3]:
            break
    return steps


def layer_reward(before, after):
    return after.accuracy - before.accuracy + after.flops_ratio - before.flops_ratio


# -- observations ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [nets.Plain, nets.Residual, nets.Depthwise, nets.Grouped, nets.PadChannels, nets.Conv1d, nets.Conv3d, nets.Bilinear, nets.Permute,
     nets.Transposed, nets.UNet, nets.DepthwiseTransposed, nets.GroupedTransposed, nets.GroupedTransposedPositions],
)  # fmt: skip
def test_layers_are_described_as_their_modules_and_inputs_are(kind):
    network = nets.randomised(kind()).eval()
    graph = rlprune.trace(network, EXAMPLE)
    places, outputs, hooks = {}, {}, []
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.Bilinear):

            def note(module, inputs, output, name=name):
                shape = inputs[0].shape
                places[name] = math.prod(shape[2:] if isinstance(module, nn.modules.conv._ConvNd) else shape[1:-1])
                outputs[name] = output.numel() / len(output)

            hooks.append(module.register_forward_hook(note))
    network(EXAMPLE)
    rows = []
    for group in graph.groups:
        described = []
        for module, name in ((network.get_submodule(name), name) for name in group.layers):
            if isinstance(module, nn.modules.conv._ConvNd):
                described.append((module.out_channels, module.in_channels, places[name], module.stride[0], max(module.kernel_size)))
            else:
                described.append((module.out_features, getattr(module, "in_features", 6), places[name], 1, 1))
        rows.append(np.max(described, axis=0))
    wanted = np.array(rows, dtype=float)
    wanted[:, 2] **= 0.5
    facts = layer_facts(network, graph)
    for name, column in zip(("out_channels", "in_channels", "height", "stride", "kernel_size"), wanted.T, strict=True):
        np.testing.assert_allclose(facts[name], column / column.max(), err_msg=name)
    np.testing.assert_array_equal(facts["width"], facts["height"])
    np.testing.assert_allclose(facts["layer"], np.arange(1, len(rows) + 1) / len(rows))


def test_layers_without_macs_are_described_by_numbers():
    graph = rlprune.trace(nn.Sequential(nn.Embedding(5, 4), nn.ReLU()), torch.zeros(2, 3, dtype=torch.long))
    assert graph.groups == ()  # its outputs are the model's
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    facts = layer_facts(network, rlprune.trace(network, torch.zeros(2, 3, dtype=torch.long)))
    assert (facts["macs"].tolist(), facts["macs_left"].tolist(), facts["out_channels"].tolist()) == ([0.0], [0.0], [1.0])


def test_an_observation_follows_the_episode(traced):
    graph, network = traced
    task, _ = task_of(graph, network)
    env = task.layers(features=("layer", "accuracy", "flops_ratio", "previous_action", "macs_left"), pr_max=0.95)
    first, info = env.reset()
    assert (first.dtype, info) == (np.float32, {})
    dense = graph.macs({})
    np.testing.assert_allclose(first, [1 / 3, task.accuracy, 0, 0, env._facts["macs_left"][0]], rtol=1e-6)
    steps = play(env, [0.5, 0.0, 0.7])
    left = graph.macs({"stem": [4, 5, 6, 7]})
    np.testing.assert_allclose(steps[0][0], [2 / 3, steps[0][4]["accuracy"], 1 - left / dense, 0.5, env._facts["macs_left"][1]], rtol=1e-6)
    assert [step[4]["group"] for step in steps] == ["stem", "a", "b"]
    assert [step[4]["rate"] for step in steps] == [0.5, 0.0, 4 / 6]
    assert [step[4]["counts"].tolist() for step in steps] == [[4, 0, 0], [4, 0, 0], [4, 0, 4]]
    assert [step[1] for step in steps] == [0.0, 0.0, steps[2][4]["accuracy"]]
    assert [step[2] for step in steps] == [False, False, True]


@pytest.mark.parametrize("action", [[np.nan], [np.inf], [0.1, 0.2], [], ["x"]])
def test_an_action_is_one_finite_number(traced, action):
    graph, network = traced
    env = task_of(graph, network)[0].layers(features=("layer",), pr_max=0.95)
    with pytest.raises(ValueError, match="call reset"):
        env.step(np.array([0.1]))
    env.reset()
    with pytest.raises(ValueError, match=r"action .* must be one number|could not convert"):
        env.step(np.array(action))
    assert env.step(torch.tensor([3.0]))[4]["counts"].tolist() == [7, 0, 0]  # clipped; nothing went wrong before
    env = task_of(graph, network)[0].layers(features=("layer",), pr_max=0.5)
    assert play(env, [0.9, -3.0, 0.5])[-1][4]["counts"].tolist() == [4, 0, 3]


# -- the goal --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_to", [2, 3, 4])
def test_lumps_meet_the_goal_and_none_could_come_back(traced, round_to):
    graph, network = traced
    generator, none = np.random.default_rng(0), np.zeros(3)
    for share in (0.55, 0.7, 0.97):
        goal = (math.inf, math.floor(share * graph.cost.macs(none)), math.floor(0.9 * graph.cost.params(none)))
        task, _ = task_of(graph, network, goals=[goal], round_to=round_to)
        env = task.layers(features=("layer",), pr_max=0.95)
        for actions in (np.zeros(3), np.ones(3), *generator.random((20, 3))):
            counts = play(env, actions)[-1][4]["counts"]
            assert all(gone == 0 or (units - gone) % round_to == 0 for units, gone in zip(graph.num_units, counts, strict=True))
            assert graph.cost.macs(counts) <= goal[1]
            assert graph.cost.params(counts) <= goal[2]
            for group in np.flatnonzero(counts):
                series, fewer = task.room.series(group), counts.copy()
                fewer[group] = series[np.searchsorted(series, counts[group]) - 1]
                assert graph.cost.macs(fewer) > goal[1] or graph.cost.params(fewer) > goal[2]


def test_a_later_step_starts_from_what_the_one_before_left(traced):
    graph, network = traced
    whole = graph.macs({})
    task, _ = task_of(graph, network, goals=[(math.inf, 0.7 * whole, math.inf), (math.inf, 0.4 * whole, math.inf)])
    for bound in (0.7, 0.4):
        env = task.layers(features=("flops_ratio",), pr_max=0.95)
        observation, _ = env.reset()
        assert observation[0] == pytest.approx(1 - task.graph.macs({}) / whole)
        counts = play(env, [0.9, 0.0, 0.0])[-1][4]["counts"]
        assert task.graph.cost.macs(counts) <= bound * whole < task.graph.cost.macs(counts - (counts > 0))
        last, task = task, task.after(task.evaluate_counts(counts))
    assert task is None
    assert last.step == 1


# -- what is measured ------------------------------------------------------------------------------------------------------------------


def test_equal_networks_are_measured_once_and_only_where_somebody_looks(traced):
    graph, network = traced
    task, measured = task_of(graph, network)
    env = task.layers(features=("layer", "flops_ratio"), pr_max=0.95)
    for _ in range(3):
        steps = play(env, [0.5, 0.5, 0.5])
        assert ["accuracy" in step[4] for step in steps] == [False, False, True]
    assert len(measured) == 1
    env = task.layers(features=("layer",), pr_max=0.95, reward=layer_reward)
    steps = play(env, [0.5, 0.5, 0.5])
    assert all("accuracy" in step[4] for step in steps)
    assert len(measured) == 1 + 1 + 2  # the network as it is, and two on the way
    assert sum(step[1] for step in steps) == pytest.approx(steps[-1][4]["accuracy"] - task.accuracy + steps[-1][4]["flops_ratio"])
    play(env, [0.0, 0.0, 0.0])
    assert len(measured) == 4  # nothing went


def test_a_search_that_may_measure_no_more_cuts_episodes_short(traced):
    graph, network = traced
    task, measured = task_of(graph, network, max_candidates=2)
    env = task.layers(features=("layer",), pr_max=0.95)
    while not task.exhausted:
        play(env, np.random.default_rng(len(measured)).random(3))
    before = len(measured)
    cut = play(env, [0.6, 0.5, 0.5])
    assert [(step[2], step[3]) for step in cut] == [(False, False), (False, False), (False, True)]
    assert "accuracy" not in cut[-1][4]
    assert cut[-1][4]["flops_ratio"] == pytest.approx(1 - graph.cost.macs(cut[-1][4]["counts"]) / graph.macs({}))
    with pytest.raises(ValueError, match="the episode is over"):
        env.step(np.array([0.5]))
    by_layer = task.layers(features=("layer",), pr_max=0.95, reward=layer_reward)
    blind = play(by_layer, [0.6, 0.5, 0.5])  # none has come to an end here, so all groups are decided
    assert [step[3] for step in blind] == [False, False, True]
    assert not any("accuracy" in step[4] for step in blind)
    assert len(measured) == before + 1  # the network as it is
