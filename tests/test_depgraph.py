import json
import math
import sys
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from conftest import last_line

import rlprune as package
from rlprune.agents import depgraph
from rlprune.agents.uniform import Uniform
from rlprune.config import build, conf_dir, load_yaml
from rlprune.errors import UserError
from rlprune.models.resnet import CifarResNet
from rlprune.search.limits import Goal
from rlprune.search.schedule import Size
from rlprune.search.task import Environment, Task

tp = pytest.importorskip("torch_pruning")
EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def agent(**settings):
    return build(load_yaml(conf_dir() / "agent" / "depgraph.yaml") | settings, "agent")


def traced(kind, **settings):
    network = nets.randomised(kind()).eval()
    return network, package.trace(network, EXAMPLE, **settings)


def by_name(network, graph, **settings):
    return dict(zip((group.name for group in graph.groups), agent(**settings).scores(network, graph, EXAMPLE), strict=True))


def norms(layer, dim, p=2):
    """Σ |w|^p over all but one dimension, without torch-pruning."""
    weight = layer.weight.detach().double().numpy()
    return (np.abs(weight) ** p).sum(axis=tuple(axis for axis in range(weight.ndim) if axis != dim))


def plain_by_hand(net, p=2):
    """Group → the norms of what is tied to each channel, shape (weight, channel); the root layer first."""
    norm, conv, last = net.features[0], net.features[2], net.features[3]
    return {
        "stem": [norms(net.stem, 0, p), norms(norm, 0, p), norms(conv, 1, p)],
        "features.2": [norms(conv, 0, p), norms(last, 0, p), norms(net.head, 1, p)],
    }


def residual_by_hand(net, p=2):
    """A skip couples the outputs of `stem` and `b`, which `a` and the head read."""
    return {
        "stem": [norms(net.stem, 0, p), norms(net.b, 0, p), norms(net.bn, 0, p), norms(net.a, 1, p), norms(net.head, 1, p)],
        "a": [norms(net.a, 0, p), norms(net.b, 1, p)],
    }


BY_HAND = [(nets.Plain, plain_by_hand), (nets.Residual, residual_by_hand)]


def task_of(network, graph, channels, carry=None):
    """One step that removes so many channels."""
    dense = Size(graph.num_channels, graph.macs({}), graph.params({}))
    return Task(
        Environment(
            measure=lambda network: 0.5,
            reward=lambda accuracy, flops_ratio, params_ratio: accuracy,
            score=lambda network, graph: pytest.fail("the criterion has no say"),
            dense=dense,
            goals=(Goal(graph.num_channels - channels, math.inf, math.inf, True),) * 2,
            kept_counts={group.name: np.arange(group.num_units, 0, -1) for group in graph.groups},
            example=EXAMPLE,
        ),
        network, graph, 0, carry,
    )  # fmt: skip


# -- scores ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "by_hand"), BY_HAND)
def test_scores_are_group_norms_over_everything_coupled(kind, by_hand):
    network, graph = traced(kind)
    found = by_name(network, graph)
    assert found.keys() == by_hand(network).keys()
    for name, weights in by_hand(network).items():
        total = np.sum(weights, axis=0)
        np.testing.assert_allclose(found[name], total / total.mean(), rtol=1e-5)


@pytest.mark.parametrize(("kind", "by_hand"), BY_HAND)
def test_settings_are_those_of_the_norm(kind, by_hand):
    network, graph = traced(kind)
    for name, weights in by_hand(network, p=1).items():
        np.testing.assert_allclose(by_name(network, graph, p=1, normalizer=None)[name], np.mean(weights, axis=0), rtol=1e-5)
        summed = by_name(network, graph, p=1, normalizer="max", group_reduction="sum")[name]
        np.testing.assert_allclose(summed, np.sum(weights, axis=0) / np.sum(weights, axis=0).max(), rtol=1e-5)
        assert any(  # the root may be any producer
            np.allclose(by_name(network, graph, p=1, normalizer=None, group_reduction="first")[name], weight, rtol=1e-5)
            for weight in weights[:2]
        )


@pytest.mark.parametrize("kind", [nets.Plain, nets.Residual, nets.Dense, nets.Depthwise, nets.SqueezeExciteConv])
def test_scores_are_torch_prunings_own(kind):
    network, graph = traced(kind)
    found = by_name(network, graph)
    dependencies = tp.DependencyGraph().build_dependency(network, EXAMPLE)
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    compared = set()
    for group in dependencies.get_all_groups(ignored_layers=[network.head]):
        weight = f"{dependencies._module2name[group[0].dep.target.module]}.weight"
        for ours in graph.groups:
            for member in ours.producers:
                if member.tensor == weight:
                    compared.add(ours.name)
                    np.testing.assert_allclose(found[ours.name], importance(group).numpy()[member.units[:, 0]], rtol=1e-6)
    assert compared == set(found)


def test_a_flattened_channel_counts_all_its_columns():
    network, graph = traced(nets.FlattenHead)
    total = norms(network.stem, 0) + norms(network.head[1], 1).reshape(8, 4).sum(axis=1)
    np.testing.assert_allclose(by_name(network, graph)["stem"], total / total.mean(), rtol=1e-5)


def test_a_unit_scores_the_mean_over_its_root_channels():
    network, graph = traced(nets.GroupedWhole)  # a unit is a group of g: 2 channels of a, 3 of g, each layer a root of its own
    (group,) = (group for group in graph.groups if group.channels_per_unit == 5)
    columns = np.tile(norms(network.g, 1), (4, 1))  # torch-pruning adds up those of all groups
    layers = [norms(network.a, 0).reshape(4, 2) + columns, (norms(network.g, 0) + norms(network.b, 1)).reshape(4, 3)]
    expected = np.concatenate([layer / layer.mean() for layer in layers], axis=1).mean(axis=1)
    np.testing.assert_allclose(by_name(network, graph)[group.name], expected, rtol=1e-5)


def test_a_group_of_zeros_scores_zero_and_goes_first():
    network, graph = traced(nets.Plain)
    with torch.no_grad():
        for layer in (network.features[2], network.features[3], network.head):
            layer.weight.zero_()
    assert by_name(network, graph)["features.2"].tolist() == [0.0] * 6
    assert agent().decide(task_of(network, graph, 5), None).counts.tolist() == [0, 5]


def test_the_last_unit_of_a_depthwise_group_needs_no_score():
    network, graph = traced(nets.Depthwise)
    keep = {graph.groups[0].name: [3]}
    found = agent().scores(package.prune(network, graph, keep), graph.after(keep), EXAMPLE)
    assert [len(scores) for scores in found] == [1, 6]
    assert len(np.unique(found[1])) == 6


# -- what goes ---------------------------------------------------------------------------------------------------------------------------


def test_the_lowest_of_the_whole_network_go():
    network, graph = traced(nets.Plain)
    candidate = agent().decide(task_of(network, graph, 6), None)
    assert candidate.counts @ graph.channels_per_unit == 6
    ranked = sorted(
        (score, name, unit)
        for name, weights in plain_by_hand(network).items()
        for unit, score in enumerate(np.sum(weights, axis=0) / np.sum(weights))
        for score in [score * len(weights[0])]
    )
    gone = {(name, unit) for _, name, unit in ranked[:6]}
    assert {name for name, _ in gone} == {"stem", "features.2"}
    for group in graph.groups:
        assert candidate.keep[group.name].tolist() == [unit for unit in range(group.num_units) if (group.name, unit) not in gone]


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("channels", [3, 7, 11])
def test_goals_are_met_exactly_and_the_lowest_of_each_group_go(scope, channels):
    network, graph = traced(nets.Residual)
    candidate = agent(scope=scope).decide(task_of(network, graph, channels), None)
    assert candidate.counts @ graph.channels_per_unit == channels
    for group, count in zip(graph.groups, candidate.counts, strict=True):
        lowest = np.argsort(np.sum(residual_by_hand(network)[group.name], axis=0))[:count]
        assert set(candidate.keep[group.name]) == set(range(group.num_units)) - set(lowest)


def test_uniform_takes_the_counts_of_the_uniform_baseline_and_what_rounding_owes():
    network, graph = traced(nets.Residual)
    task = task_of(network, graph, 6, carry=np.array([-1.0, 1.0]))
    task.scores = [np.arange(group.num_units, dtype=float) for group in graph.groups]  # the baseline needs some
    ours, baseline = agent(scope="uniform").decide(task, None), Uniform().decide(task, None)
    np.testing.assert_array_equal(ours.counts, baseline.counts)
    np.testing.assert_array_equal(ours.carry, baseline.carry)
    assert any(ours.keep[name].tolist() != baseline.keep[name].tolist() for name in ours.keep)


# -- what stays --------------------------------------------------------------------------------------------------------------------------


def test_a_frozen_network_in_training_is_scored_alike_and_stays_as_it_was(capsys):
    network, graph = traced(nets.Residual)
    expected = agent().scores(network, graph, EXAMPLE)
    seen = []
    network.a.register_forward_hook(lambda *_: seen.append(1))
    network.train().requires_grad_(False)
    network.bn.eval()
    network.b.weight.grad = torch.ones_like(network.b.weight)
    hooks = {name: dict(module._forward_hooks) for name, module in network.named_modules()}
    modes = {name: module.training for name, module in network.named_modules()}
    values = {name: (id(tensor), tensor.clone()) for name, tensor in network.state_dict(keep_vars=True).items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        found = agent().scores(network, graph, EXAMPLE)
        again = agent().scores(network, graph, EXAMPLE)
        assert not torch.is_grad_enabled()
    for scores in zip(expected, found, again, strict=True):
        np.testing.assert_array_equal(scores[0], scores[1])
        np.testing.assert_array_equal(scores[0], scores[2])
    assert {name: dict(module._forward_hooks) for name, module in network.named_modules()} == hooks
    assert {name: module.training for name, module in network.named_modules()} == modes
    now = network.state_dict(keep_vars=True)
    assert all(id(now[name]) == kept and torch.equal(now[name], value) for name, (kept, value) in values.items())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(network.b.weight.grad, torch.ones_like(network.b.weight))
    assert torch.equal(torch.get_rng_state(), random)
    assert not seen  # what hooks keep is the copy's
    assert capsys.readouterr() == ("", "")


def test_it_keeps_no_state():
    assert agent().state_dict() == {}
    agent().load_state_dict({})
    with pytest.raises(ValueError, match="depgraph keeps no state"):
        agent().load_state_dict({"distribution": []})


# -- what torch-pruning cannot do --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (nets.SplitLiteral, r"torch-pruning fails on SplitLiteral \(TypeError: .*\); take agent=global criterion=l1"),
        (nets.DepthwiseMultiplier, r"torch-pruning fails on DepthwiseMultiplier, at dw \(IndexError: .*\); take agent=global criterion=l1"),
        (
            nets.Chunk,
            r"torch-pruning ties channels of a to others of a .* ignore=\[a\] leaves them whole, or take agent=global criterion=l1",
        ),
        (nets.Shuffle, r"torch-pruning ties channels of b to others of a than the network does; ignore=\[a\]"),
        (nets.Flip, r"ignore=\[a\]"),
        (nets.IndexSome, r"ignore=\[a\]"),
        (nets.ScalarGate, r"the channel group stem no score; ignore=\[stem\] leaves it whole, or take agent=global criterion=l1"),
    ],
)
def test_a_network_that_torch_pruning_cannot_do_is_refused(kind, message):
    network, graph = traced(kind)
    with pytest.raises(UserError, match=f"^agent=depgraph: .*{message}") as raised:
        agent().check(network, graph, EXAMPLE)
    assert "\n" not in str(raised.value)


def test_a_walk_without_end_is_ended(monkeypatch):
    monkeypatch.setattr(depgraph, "MOST_WALKS", 100)
    with pytest.raises(UserError, match=r"fails on OneChannel, at a .* it comes by one layer more than 100 times"):
        agent().scores(*traced(nets.OneChannel), EXAMPLE)


def test_zero_padded_shortcuts_are_seen_and_the_advice_helps():
    network = CifarResNet(depth=20, width=0.5, shortcut="A", in_channels=3, num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(UserError, match=r"ties channels of layer2\.0\.bn2 to others of conv1 .* ignore=\[conv1\]"):
        agent().scores(network, package.trace(network, images), images)
    graph = package.trace(network, images, ignore=["conv1"])
    assert len(agent().scores(network, graph, images)) == len(graph.groups) == 9


# -- the command -------------------------------------------------------------------------------------------------------------------------


def test_it_prunes_through_the_command(rlprune):
    code, out, err = rlprune(
        "prune", "agent=depgraph", "debug=smoke", "model.depth=8", "model.width=0.5", "dataset.image_size=16", "device=cpu"
    )
    assert code == 0, err
    assert "at most 2 candidates (1 a step)" in out
    (folder,) = Path("outputs/prune").iterdir()
    done = json.loads((folder / "result.json").read_text())
    assert done["choices"]["agent"] == "depgraph"
    assert done["rows"][-1]["sparsity"] == pytest.approx(0.5, abs=0.003)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("model=shufflenetv2", "model.width=0.5"), "agent=depgraph: torch-pruning ties channels of features.19 to others of"),
        (("model.shortcut=A",), "agent=depgraph: torch-pruning ties channels of layer2.0.bn2 to others of conv1 than the network does"),
        (("agent.p=0",), "agent.p=0: must be ≥ 1"),
        (("agent.normalizer=median",), "agent.normalizer=median: must be one of mean, sum, max, standarization, gaussian, lamp"),
        (("agent.scope=layer",), "agent.scope=layer: must be one of global, uniform"),
    ],
)
def test_what_it_cannot_do_is_one_line_before_anything_is_trained(rlprune, line, message):
    refused(rlprune, line, message)


def test_a_missing_package_is_one_line_before_anything_is_trained(rlprune, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    refused(rlprune, (), "agent=depgraph: needs the package torch-pruning; pip install 'rlprune[depgraph]'")


def refused(rlprune, line, message):
    code, _, err = rlprune("prune", "agent=depgraph", "debug=smoke", *line)
    lines = last_line(err)
    assert (code, len(lines)) == (2, 1), err
    assert message in lines[0]
    assert "Traceback" not in err
    assert not list(Path().glob("outputs/dense/*"))
