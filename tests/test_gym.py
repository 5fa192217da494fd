"""The environment that other libraries' agents act in."""

import copy
import inspect
import itertools
import math
import sys
from functools import cache

import gymnasium
import nets
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import nn

import rlprune
from rlprune.agents.base import FEATURES
from rlprune.errors import UserError

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
KINDS = [kind for kind in vars(nets).values() if inspect.isclass(kind) and issubclass(kind, nets.Net) and kind is not nets.Net]


class Chain1d(nn.Sequential):
    """Sequences of four channels."""

    def __init__(self):
        super().__init__(nn.Conv1d(4, 6, 3, stride=2), nn.ReLU(), nn.ConvTranspose1d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 3))


class Perceptron(nn.Sequential):
    """Linear layers alone, one of them a single unit."""

    def __init__(self):
        super().__init__(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1), nn.ReLU(), nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 3))


NAMES = [names for number in (1, 2, 3) for names in itertools.combinations(("macs", "params", "sparsity"), number)]
SHAPES = {Chain1d: (2, 4, 16), Perceptron: (2, 10)}


@cache
def traced(kind):
    torch.manual_seed(0)
    network = nets.randomised(kind()).eval()
    return network, rlprune.trace(network, torch.zeros(SHAPES[kind]) if kind in SHAPES else EXAMPLE)


def size(network):
    """What stands in for an accuracy: it knows every width."""
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def make(kind=nets.Concat, accuracy=size, **settings):
    return rlprune.pruning_env(*traced(kind), accuracy=accuracy, **settings)


def layer_reward(before, after):
    return after.accuracy - before.accuracy + 0.5 * (after.flops_ratio - before.flops_ratio)


def play(env, actions=0.5):
    """One episode; its last info, and the sum of its rewards."""
    rates = itertools.cycle(np.atleast_1d(actions).astype(np.float32))
    env.reset()
    total, terminated = 0.0, False
    while not terminated:
        observation, reward, terminated, truncated, info = env.step(np.array([next(rates)]))
        assert observation in env.observation_space
        assert not truncated
        total += reward
    return info, total


# -- Gymnasium -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nets.Concat, nets.UNet, nets.Shared, nets.GroupedPositions, nets.AttentionWidth, Chain1d, Perceptron])
@pytest.mark.parametrize(
    "settings",
    [{}, {"macs": 0.6, "features": list(FEATURES)}, {"params": 0.7, "sparsity": 0.3, "reward": layer_reward, "features": ["layer"]}],
    ids=["free", "macs", "layers"],
)
def test_gymnasium_finds_nothing_to_complain_about(kind, settings):
    env = make(kind, **settings)
    assert isinstance(env, gymnasium.Env)
    check_env(env)
    assert env.observation_space == gymnasium.spaces.Box(0, 1, (len(settings.get("features", range(5))),), np.float32)
    assert env.action_space == gymnasium.spaces.Box(0, 0.95, (1,), np.float32)
    assert (env.metadata, env.render_mode) == ({"render_modes": []}, None)
    _, info = env.reset(seed=3)
    assert info == {}
    *_, info = env.step(env.action_space.sample())
    assert {name: type(value) for name, value in info.items() if name != "accuracy"} == {
        "group": str, "rate": float, "flops_ratio": float, "counts": np.ndarray
    }  # fmt: skip
    assert isinstance(info.get("accuracy", 0.0), float)


def test_vectors_and_wrappers_of_gymnasium_take_it():
    env = gymnasium.wrappers.RescaleAction(gymnasium.wrappers.RecordEpisodeStatistics(make(macs=0.5)), np.float32(-1), np.float32(1))
    env.reset(seed=0)
    for _ in range(3):
        *_, info = env.step(np.zeros(1, dtype=np.float32))
    assert info["episode"]["l"] == 3
    assert env.unwrapped.best_return == pytest.approx(info["episode"]["r"])
    vector = gymnasium.vector.SyncVectorEnv([lambda: make(macs=0.5), lambda: make(params=0.5)])
    vector.reset(seed=0)
    for _ in range(7):  # over the end of an episode
        observation, reward, *_ = vector.step(vector.action_space.sample())
        assert (observation.shape, reward.shape) == ((2, 5), (2,))
    vector.close()


# -- the goal --------------------------------------------------------------------------------------------------------------------------


def met(graph, counts, targets):
    """By the targets' own words."""
    none = np.zeros(len(counts))
    removed = counts @ graph.channels_per_unit
    return (
        graph.cost.macs(counts) <= targets.get("macs", 1) * graph.cost.macs(none) + 1e-6
        and graph.cost.params(counts) <= targets.get("params", 1) * graph.cost.params(none) + 1e-6
        and removed >= targets.get("sparsity", 0) * graph.num_channels - 1e-6
    )


def reachable(graph, names, pr_max, share):
    """Targets of these names, this share of the way to the hardest."""
    most = np.array([units - max(1, math.ceil(units * (1 - pr_max) - 1e-9)) for units in graph.num_units])
    none = np.zeros(len(most))
    hardest = {
        "macs": 1 - graph.cost.macs(most) / graph.cost.macs(none),
        "params": 1 - graph.cost.params(most) / graph.cost.params(none),
        "sparsity": most @ graph.channels_per_unit / graph.num_channels,
    }
    gone = {name: share * hardest[name] - 1e-9 for name in names}
    return {name: value if name == "sparsity" else 1 - value for name, value in gone.items()}


@pytest.mark.parametrize("kind", [*KINDS, Chain1d, Perceptron])
def test_every_episode_meets_its_goal_and_no_unit_could_come_back(kind):
    network, graph = traced(kind)
    if not graph.groups:
        return
    generator, pr_max = np.random.default_rng([*KINDS, Chain1d, Perceptron].index(kind)), 0.8
    names = NAMES[generator.integers(len(NAMES))]
    for share in (generator.uniform(0.1, 1), 1.0):
        targets = reachable(graph, names, pr_max, share)
        env = rlprune.pruning_env(network, graph, accuracy=size, features=["macs_left"], pr_max=pr_max, **targets)
        for actions in (0.0, pr_max, *generator.uniform(0, pr_max, (3, len(graph.groups)))):
            info, total = play(env, actions)
            counts = info["counts"]
            assert met(graph, counts, targets)
            for group in np.flatnonzero(counts):
                fewer = counts.copy()
                fewer[group] -= 1
                assert not met(graph, fewer, targets), (targets, counts)
            pruned = rlprune.prune(network, graph, env.keep(best=False))
            assert total == pytest.approx(size(pruned)) == info["accuracy"]
            assert info["flops_ratio"] == pytest.approx(1 - graph.macs(env.keep(best=False)) / graph.macs({}))


@pytest.mark.parametrize("kind", [nets.Concat, nets.Residual, nets.GroupNorm, nets.Maxout, nets.UNet, nets.ScalarGate, Chain1d, Perceptron])
def test_without_a_target_actions_are_carried_out_as_they_are(kind):
    _, graph = traced(kind)
    env = make(kind, features=["layer"], min_keep=2)
    generator = np.random.default_rng(0)
    for actions in (0.0, 0.95, *generator.uniform(0, 0.95, (10, len(graph.groups)))):
        info, _ = play(env, actions)
        for units, gone, rate in zip(graph.num_units, info["counts"], np.broadcast_to(actions, len(graph.groups)), strict=True):
            possible = np.arange(max(0, min(units - 2, math.floor(0.95 * units))) + 1)
            assert abs(gone - rate * units) <= np.abs(possible - rate * units).min() + 1e-5
            assert gone in possible


# -- what is measured, and what comes of it --------------------------------------------------------------------------------------------


def test_equal_networks_are_measured_once_over_all_episodes():
    network, graph = traced(nets.Concat)
    calls = []

    def accuracy(network):
        assert not network.training
        calls.append(tuple(parameter.shape for parameter in network.parameters()))
        return size(network)

    env = rlprune.pruning_env(network, graph, accuracy=accuracy, macs=0.6)
    generator, ways = np.random.default_rng(0), set()
    for _ in range(40):
        env.reset()
        for _ in graph.groups:
            *_, info = env.step(generator.uniform(0, 0.95, 1))
            ways.add(tuple(info["counts"]))
    assert len(calls) == len(set(calls)) == len(ways | {(0, 0, 0)})
    again = env.unwrapped.spec.make()
    before = len(calls)
    again.reset()
    again.step(np.zeros(1, dtype=np.float32))
    assert len(calls) == before


def test_the_best_episode_is_kept_and_the_current_one_can_be_looked_at():
    network, graph = traced(nets.Concat)
    accuracies = iter([0.9, 0.3, 0.7, 0.5])  # of the network as it is, and of three episodes
    env = rlprune.pruning_env(network, graph, accuracy=lambda network: next(accuracies), features=["layer"], macs=0.5)
    with pytest.raises(UserError, match="keep: no episode has come to its end; one takes 3 steps"):
        env.keep()
    found = []
    for actions, wanted in (([0.9, 0, 0], 0.3), ([0, 0.9, 0], 0.7), ([0, 0, 0.9], 0.5)):
        _, total = play(env, actions)
        assert total == wanted
        found.append(env.keep(best=False))
    assert env.best_return == 0.7
    assert all(np.array_equal(env.keep()[name], units) for name, units in found[1].items())
    assert not np.array_equal(found[1]["stem"], found[0]["stem"])
    env.reset()
    env.step(np.array([0.5]))
    assert {name: len(units) for name, units in env.keep(best=False).items()} == {"stem": 4, "a": 4, "b": 6}
    assert env.best_return == 0.7


def test_scores_say_which_units_go():
    network, graph = traced(nets.Concat)
    order = {"stem": torch.tensor([5.0, 1, 7, 3, 2, 8, 6, 4], requires_grad=True), "a": [4, 3, 2, 1], "b": np.arange(6) - 3.0}
    wanted = {"stem": [0, 2, 5, 6], "a": [0, 1], "b": [3, 4, 5]}
    seen = []

    def score(network, graph):
        seen.append(network)
        return order

    for given in (order, score):
        env = rlprune.pruning_env(network, graph, accuracy=size, score=given)
        play(env)
        play(env, 0.2)
        assert {name: units.tolist() for name, units in env.keep(best=False).items()} != wanted
        play(env)
        assert {name: units.tolist() for name, units in env.keep(best=False).items()} == wanted
    assert len(seen) == 1
    env = rlprune.pruning_env(network, graph, accuracy=size)  # by the mean L1 norm of the filters
    play(env)
    norms = network.stem.weight.detach().abs().sum((1, 2, 3)).numpy()
    assert env.keep()["stem"].tolist() == sorted(np.argsort(norms)[4:].tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_model_is_neither_changed_nor_followed(dtype):
    network = copy.deepcopy(traced(nets.Plain)[0]).to(dtype).train()
    graph = traced(nets.Plain)[1]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def accuracy(network):
        with torch.no_grad():
            return network(EXAMPLE.to(dtype)).float().sigmoid().mean()  # a tensor is a number too

    env = rlprune.pruning_env(network, graph, accuracy=accuracy, macs=0.5)
    first = play(env)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        network.head.bias.add_(5)
    assert play(env)[1] == first[1]
    assert play(rlprune.pruning_env(network, graph, accuracy=accuracy, macs=0.5))[1] != first[1]
    smaller = rlprune.prune(network, graph, env.keep())
    assert next(smaller.parameters()).dtype == dtype


# -- errors ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pr_max": 1.0}, r"pr_max=1\.0: must be in \(0, 1\)"),
        ({"pr_max": 0}, "pr_max=0: must be in"),
        ({"macs": 0}, r"macs=0: must be a number in \(0, 1\), or None"),
        ({"params": 1.5}, r"params=1\.5: must be a number in"),
        ({"sparsity": math.nan}, "sparsity=nan: must be a number in"),
        ({"macs": "0.5"}, "macs='0.5': must be a number in"),
        ({"macs": 0.001}, r"macs=0\.001: 0\.\d+ to 1 of the dense network's is within reach, as min_keep=1, round_to=1 and pr_max=0\.95"),
        ({"params": 0.3, "min_keep": 4}, r"params=0\.3: 0\.\d+ to 1 of the dense network's is within reach, as min_keep=4"),
        ({"sparsity": 0.9, "pr_max": 0.5}, r"sparsity=0\.9: at most 0\.500 is within reach, as .* pr_max=0\.5 keep the rest"),
        ({"pr_max": 0.05}, "graph: no group may lose a unit, as min_keep=1, round_to=1 and pr_max=0.05 keep all"),
        ({"min_keep": 0}, "min_keep=0: must be an integer ≥ 1"),
        ({"min_keep": 1.5}, r"min_keep=1\.5: must be an integer"),
        ({"round_to": 0}, "round_to=0: must be an integer ≥ 1"),
        ({"round_to": 8}, "^round_to=8: the channel group a has 4 units only"),
        ({"features": ["layer", "depth"]}, "features: depth is unknown; choose from layer, out_channels"),
        ({"features": "layer"}, "features='layer': must be a list of names"),
        ({"features": ()}, r"features=\(\): must be a list of names, at least one"),
        ({"reward": "accuracy"}, "reward: must be a function, .* got 'accuracy'"),
        ({"accuracy": 0.5}, r"accuracy: must be a function, network → fraction in \[0, 1\]; got 0\.5"),
        ({"accuracy": lambda network: 93.1}, r"accuracy: returned 93\.1; return a fraction in \[0, 1\], 0\.93 for 93 %"),
        ({"accuracy": lambda network: math.nan}, "accuracy: returned nan"),
        ({"accuracy": lambda network: None}, "accuracy: returned None"),
        ({"accuracy": lambda network: "0.9"}, "accuracy: returned '0.9'"),
        ({"accuracy": lambda network: torch.ones(3)}, r"accuracy: returned a Tensor of shape \(3,\)"),
        ({"score": [1, 2]}, r"score: must be a dict, group → scores, or a function, .* got \[1, 2\]"),
        ({"score": {"stem": range(8)}}, "score: must be a dict with the scores of the groups stem, a, b; got stem"),
        ({"score": lambda network, graph: None}, "score: must be a dict with .* got a NoneType"),
        ({"score": {"stem": range(8), "a": range(3), "b": range(6)}}, "score: a needs 4 finite numbers; got"),
        ({"score": {"stem": range(8), "a": [1, 2, 3, math.inf], "b": range(6)}}, "score: a needs 4 finite numbers; got"),
        ({"score": {"stem": range(8), "a": ["x"] * 4, "b": range(6)}}, "score: those of a are no numbers"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        make(**settings)
    assert "\n" not in str(error.value)


def test_networks_and_graphs_that_do_not_fit_are_refused():
    network, graph = traced(nets.Concat)
    for model, other, message in (
        (graph, network, "pruning_env: pass the network and its channel graph, in this order; got a ChannelGraph and a Concat"),
        (network, None, "got a Concat and a NoneType"),
        (network, traced(nets.Plain)[1], "trace this network again"),
        (traced(nets.Plain)[0], graph, "trace this network again"),
        (nn.Linear(3, 2), rlprune.trace(nn.Linear(3, 2), torch.zeros(1, 3)), "graph: it has no channel group"),
    ):
        with pytest.raises(UserError, match=message):
            rlprune.pruning_env(model, other, accuracy=size)


def test_what_goes_wrong_in_an_episode_is_said():
    env = make(reward=lambda before, after: math.nan)
    env.reset()
    with pytest.raises(UserError, match="reward: returned nan; return a finite number"):
        env.step(np.array([0.5]))
    accuracies = iter([0.9, 1.1])
    env = make(accuracy=lambda network: next(accuracies))
    env.reset()
    with pytest.raises(UserError, match=r"accuracy: returned 1\.1"):
        env.step(np.array([0.5]))


def test_a_missing_gymnasium_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "rlprune.search.gymnasium_env")
    with pytest.raises(UserError, match=r"pruning_env: needs the package gymnasium; pip install 'rlprune\[gym\]'"):
        make()
