import copy
import itertools
import json
import math
import signal
import time
import zlib
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import nets
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import rlprune
from rlprune.agents import amc, ddpg, random_rates
from rlprune.agents.base import FEATURES, Finetuning, LayerState
from rlprune.config import build, conf_dir, load_yaml
from rlprune.errors import UserError
from rlprune.files import read_json
from rlprune.graph import graft
from rlprune.rewards.weighted import WeightedReward
from rlprune.rl.ddpg import ActorCritic
from rlprune.rl.episode import play
from rlprune.search.layers import Walk, layer_facts
from rlprune.search.ledger import Ledger
from rlprune.search.limits import Goal, Limits
from rlprune.search.resume import keep_measured, load_state, save_state
from rlprune.search.runner import run_search, start_state
from rlprune.search.schedule import Size, Targets, make_schedule
from rlprune.search.task import Environment, Task

WIDTHS = np.array([8, 16, 10, 16, 8])
BEST = np.array([7 / 8, 4 / 16, 9 / 10, 4 / 16, 6 / 8])  # shares kept: what one layer wants, its neighbours do not
FREE = Goal(math.inf, math.inf, math.inf, True)


class Chain(nn.Module):
    """Five convolutions, one behind another."""

    def __init__(self):
        super().__init__()
        widths, kernels = [3, *WIDTHS.tolist()], (3, 1, 3, 3, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel, padding=kernel // 2)
            for before, after, kernel in zip(widths[:-1], widths[1:], kernels, strict=True)
        )
        self.head = nn.Linear(widths[-1], 5)

    def forward(self, x):
        for conv in self.convs:
            x = torch.relu(conv(x))
        return self.head(x.mean((2, 3)))


def kept_shares(network):
    return np.array([conv.out_channels for conv in network.convs]) / WIDTHS


def nearness(shares):
    """Accuracy of a toy task: highest where every layer keeps its best share, to both sides of which it falls."""
    return 1 - np.abs(shares - BEST).mean(-1)


def cliff(shares):
    """Another: nothing is lost down to the best share, and much below it."""
    return 1 - np.minimum(1, 3 * np.maximum(0, BEST - shares).mean(-1))


def size_of(graph):
    return Size(graph.num_channels, graph.macs({}), graph.params({}))


def filter_norms(network, graph):
    """A criterion that sees weights: the L1 norm of what produces a unit."""
    tensors = dict(network.named_parameters())
    scores = {}
    for group in graph.groups:
        scores[group.name] = torch.zeros(group.num_units, dtype=torch.float64)
        for member in group.producers:
            norms = tensors[member.tensor].detach().double().abs().transpose(0, member.dim).flatten(1).sum(1)
            scores[group.name] += norms[torch.from_numpy(member.units)].sum(1)
    return scores


def settings_of(graph, measure, *, goals=(FREE,), most=0.95, **others):
    limits = Limits(1, 1, 1.0, most=most)
    kept_counts = {group.name: limits.kept_counts(group.name, group.num_units) for group in graph.groups}
    reward = WeightedReward(alpha=0.0, beta=0.0, gamma=0.0)
    example = torch.zeros(2, 3, 8, 8)
    return Environment(measure, reward, filter_norms, size_of(graph), tuple(goals), kept_counts, example=example, **others)


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    network = Chain().eval()
    return network, rlprune.trace(network, torch.zeros(2, 3, 8, 8))


def task_of(traced, accuracy=nearness, *, most=0.95, goal=FREE, finetune=None, **ledger):
    """A pruning step, and what is reported of it; accuracy: shares kept → number."""
    network, graph = traced
    reports = []
    others = {} if finetune is None else {"finetune": finetune}
    ledger = Ledger(on_report=reports.append, **ledger)
    settings = settings_of(graph, lambda pruned: float(accuracy(kept_shares(pruned))), goals=(goal,), most=most, ledger=ledger, **others)
    return Task(settings, network, graph, 0), reports


def agent(name, **settings):
    return build(load_yaml(conf_dir() / "agent" / f"{name}.yaml") | settings, "agent")


QUICK = {"batch_size": 16, "actor_hidden": [16, 16], "critic_hidden": [16, 16]}


def quick(name, **settings):
    """An agent that learns within a few episodes, if not much."""
    few = {"ddpg": {"episodes": 12, **QUICK}, "amc": {"episodes": 12, "warmup": 4, **QUICK}, "random_rates": {"episodes": 12}}
    return agent(name, **(few[name] | settings))


# -- a task whose answer depends on the state ------------------------------------------------------------------------------------------


def the_return(task, candidate, reward):
    """What an episode that ends in this candidate is worth, where accuracy never rises on its way."""
    gone = 1 - candidate.macs / task.environment.dense.macs
    return candidate.accuracy if reward == "end" else candidate.accuracy - 1 + gone


def optimum(task, accuracy, reward):
    """Of all plans."""
    plans = np.array(list(itertools.product(*(task.room.series(group) for group in range(5)))))
    found = accuracy(1 - plans / WIDTHS)
    if reward == "layer":
        found += -1 + 1 - task.graph.cost.many(plans)[0] / task.environment.dense.macs
    return found.max()


def best_constant(task, most, layer_reward):
    """Of 81 policies that do the same everywhere."""
    env = task.layers(features=("layer",), pr_max=most, reward=layer_reward)
    return max(play(env, lambda state, rate=rate: rate).reward for rate in np.linspace(0, most, 81))


def random_best(traced, accuracy, most, episodes, layer_reward):
    """Best of as many random episodes, the mean over five seeds."""
    found = []
    for seed in range(5):
        generator = np.random.default_rng(seed + 100)
        env = task_of(traced, accuracy, most=most)[0].layers(features=("layer",), pr_max=most, reward=layer_reward)
        found.append(max(play(env, lambda state, draw=generator: most * draw.random()).reward for _ in range(episodes)))
    return np.mean(found)


@pytest.mark.parametrize(("reward", "accuracy"), [("end", nearness), ("layer", cliff)])
def test_ddpg_finds_the_rate_of_every_layer(traced, reward, accuracy):
    fprl = agent("ddpg", reward=reward, policy="final", episodes=160)
    layer_reward = fprl.layer_reward if reward == "layer" else None
    task, reports = task_of(traced, accuracy)
    final = the_return(task, fprl.decide(task, np.random.default_rng(0)), reward)
    best, last = reports[-1]["best"], np.mean([row["reward"] for row in reports[-20:]])
    highest, constant = optimum(task, accuracy, reward), best_constant(task, 0.95, layer_reward)
    blind = random_best(traced, accuracy, 0.95, 160, layer_reward)
    assert highest == pytest.approx(1.0 if reward == "end" else 0.7347, abs=1e-3)
    assert constant < highest - 0.2
    assert highest >= best > highest - 0.06
    assert final > highest - 0.08  # the actor alone, without noise
    assert last > highest - 0.08
    assert best > blind + 0.02
    assert final > blind > constant


@pytest.mark.parametrize(("bound", "near"), [("sigmoid", 0.93), ("clip", 0.95)])
def test_amc_finds_the_rate_of_every_layer(traced, bound, near):
    learning = agent("amc", actor_bound=bound)
    task, reports = task_of(traced, most=0.8)
    chosen = learning.decide(task, np.random.default_rng(0))
    random_task, _ = task_of(traced, most=0.8)
    drawn = [agent("random_rates").decide(random_task, np.random.default_rng(seed)).accuracy for seed in range(5)]
    constant = best_constant(task, 0.8, None)
    assert optimum(task, nearness, "end") == 1
    assert constant < 0.77
    assert chosen.accuracy == reports[-1]["best"] > near
    assert np.mean([row["reward"] for row in reports[-20:]]) > near - 0.03
    assert chosen.accuracy > np.mean(drawn) + 0.02 > constant


# -- what agents do with episodes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpg", "amc", "random_rates"])
def test_the_same_seed_gives_the_same_trace_and_another_does_not(traced, name):
    traces, chosen = [], []
    for seed, noise in ((7, 0), (7, 1), (8, 0)):
        torch.manual_seed(noise)
        task, reports = task_of(traced)
        chosen.append(quick(name).decide(task, np.random.default_rng(seed)).counts.tolist())
        traces.append(reports)
    assert traces[0] == traces[1]
    assert chosen[0] == chosen[1]
    assert [row["reward"] for row in traces[0]] != [row["reward"] for row in traces[2]]
    assert [row["episode"] for row in traces[0]] == list(range(1, 13))


@pytest.mark.parametrize("name", ["ddpg", "amc", "random_rates"])
def test_the_candidate_is_that_of_the_best_episode(traced, name):
    task, reports = task_of(traced)
    chosen = quick(name, **({"reward": "end"} if name == "ddpg" else {})).decide(task, np.random.default_rng(1))
    rewards = [row["reward"] for row in reports]
    assert chosen.reward == chosen.accuracy == max(rewards) == reports[-1]["best"]
    assert [row["best"] for row in reports] == np.maximum.accumulate(rewards).tolist()
    best = reports[int(np.argmax(rewards))]
    assert best["flops_ratio"] == pytest.approx(1 - chosen.macs / task.environment.dense.macs)
    assert best["accuracy"] == chosen.accuracy


@pytest.mark.parametrize("name", ["amc", "random_rates"])
def test_the_first_of_equal_episodes_is_carried_out(traced, name):
    task, reports = task_of(traced, lambda shares: 0.5)
    chosen = quick(name).decide(task, np.random.default_rng(1))
    assert {row["reward"] for row in reports} == {0.5}
    assert 1 - chosen.macs / task.environment.dense.macs == pytest.approx(reports[0]["flops_ratio"])
    assert len({row["flops_ratio"] for row in reports}) > 6


def test_the_reward_of_a_layer_is_equation_2():
    fprl = quick("ddpg", omega1=2.0, omega2=0.5)
    before = LayerState(accuracy=0.8, flops_ratio=0.1)
    assert fprl.layer_reward(before, LayerState(0.7, 0.3)) == pytest.approx(2 * -0.1 + 0.5 * 0.2)
    assert fprl.layer_reward(before, LayerState(0.9, 0.3)) == pytest.approx(0.5 * 0.2)  # what is gained does not count
    assert fprl.layer_reward(before, LayerState(0.8, 0.05)) == pytest.approx(0.5 * -0.05)  # units came back


def test_every_action_of_an_episode_is_paid_by_equation_2(traced):
    network, graph = traced
    task, _ = task_of(traced)
    env = task.layers(features=ddpg.STATE, pr_max=0.95, reward=quick("ddpg", omega1=2.0, omega2=0.5).layer_reward)
    rates = iter([1 / 8, 12 / 16, 5 / 10, 0.0, 6 / 8])
    episode = play(env, lambda state: next(rates))
    keep, accuracy, macs = {}, nearness(np.ones(5)), graph.macs({})
    for group, count, step in zip(graph.groups, (1, 12, 5, 0, 6), episode.transitions, strict=True):
        keep[group.name] = np.arange(count, group.num_units)
        pruned = rlprune.prune(network, graph, keep)
        after, macs_after = nearness(kept_shares(pruned)), graph.macs(keep)
        assert step.reward == pytest.approx(2 * min(after - accuracy, 0) + 0.5 * (macs - macs_after) / graph.macs({}))
        np.testing.assert_allclose(step.next_observation[3:], [after, 1 - macs_after / graph.macs({})], rtol=1e-6)
        accuracy, macs = after, macs_after
    assert any(step.reward < 0 for step in episode.transitions)
    assert episode.info["counts"].tolist() == [1, 12, 5, 0, 6]


def test_a_reward_at_the_end_is_the_runs_and_zero_before(traced):
    task, _ = task_of(traced)
    episode = play(task.layers(features=ddpg.STATE, pr_max=0.95), lambda state: 0.5)
    assert [step.reward for step in episode.transitions[:-1]] == [0, 0, 0, 0]
    assert episode.reward == nearness(np.full(5, 0.5))
    assert task.environment.ledger.distinct == 5  # accuracy is part of the state
    task, _ = task_of(traced)
    play(task.layers(features=amc.STATE, pr_max=0.95), lambda state: 0.5)
    assert task.environment.ledger.distinct == 1


def test_ddpgs_noise_decays_from_episode_to_episode(traced, monkeypatch):
    used = []
    plain = ddpg.gaussian
    monkeypatch.setattr(ddpg, "gaussian", lambda action, std, *others: used.append(std) or plain(action, std, *others))
    task, reports = task_of(traced)
    quick("ddpg").decide(task, np.random.default_rng(0))
    expected = 0.5 * 0.96 ** np.arange(12)
    np.testing.assert_allclose([row["noise_std"] for row in reports], expected)
    np.testing.assert_allclose(used, np.repeat(expected, 5))


def test_ddpg_learns_behind_every_action_as_soon_as_there_is_a_batch(traced, monkeypatch):
    batches = []

    class Watched(ActorCritic):
        def update(self, batch, *others):
            batches.append(batch)
            return super().update(batch, *others)

    monkeypatch.setattr(ddpg, "ActorCritic", Watched)
    task, reports = task_of(traced)
    quick("ddpg").decide(task, np.random.default_rng(0))
    assert len(batches) == 12 * 5 - 15  # the sixteenth action fills the first batch
    assert [row["critic_loss"] is None for row in reports] == [True] * 3 + [False] * 9
    assert {len(batch) for batch in batches} == {16}
    assert all(np.isfinite([row["critic_loss"], row["actor_loss"]]).all() for row in reports[3:])


def test_a_last_policy_is_the_actor_without_noise(traced, monkeypatch):
    learners = []

    class Watched(ActorCritic):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            learners.append(self)

    monkeypatch.setattr(ddpg, "ActorCritic", Watched)
    task, reports = task_of(traced)
    chosen = quick("ddpg", policy="final").decide(task, np.random.default_rng(0))
    env = task_of(traced)[0].layers(features=ddpg.STATE, pr_max=0.95)
    np.testing.assert_array_equal(chosen.counts, play(env, learners[0].act).info["counts"])
    assert len(reports) == 12  # it is not an episode of the table


def test_amc_draws_uniformly_until_the_warm_up_is_over_and_learns_nothing(traced, monkeypatch):
    updates, drawn = [], []

    class Watched(ActorCritic):
        def update(self, batch, baseline=0.0):
            updates.append((float(batch.rewards.mean()), baseline, batch))
            return super().update(batch, baseline)

    plain = amc.truncated_normal
    monkeypatch.setattr(amc, "ActorCritic", Watched)
    monkeypatch.setattr(amc, "truncated_normal", lambda action, std, *others: drawn.append(std) or plain(action, std, *others))
    task, reports = task_of(traced, most=0.8)
    quick("amc", baseline_rate=0.3, episodes=10).decide(task, np.random.default_rng(0))
    expected = 0.5 * 0.95 ** np.arange(6)
    assert [row["noise_std"] for row in reports[:4]] == [None] * 4
    assert [row["critic_loss"] for row in reports[:4]] == [None] * 4
    np.testing.assert_allclose([row["noise_std"] for row in reports[4:]], expected)
    np.testing.assert_allclose(drawn, np.repeat(expected, 5))
    assert len(updates) == 6 * 5
    average = updates[0][0]
    for mean, baseline, _ in updates:  # equation 4
        average += 0.3 * (mean - average)
        assert baseline == pytest.approx(average)
    rewards = {round(row["reward"], 5) for row in reports}
    assert {round(float(reward), 5) for _, _, batch in updates for reward in batch.rewards.ravel()} <= rewards  # each episode's last


def test_amcs_warm_up_is_uniform(traced):
    task, _ = task_of(traced, most=0.8)
    learner, generator = SimpleNamespace(act=lambda state: 0.1), np.random.default_rng(0)
    acting = quick("amc")
    draws = np.array([acting.act(learner, np.zeros(1), None, generator) for _ in range(4000)])
    np.testing.assert_allclose(np.histogram(draws, bins=8, range=(0, 0.8))[0], 500, atol=90)
    noisy = np.array([acting.act(learner, np.zeros(1), 0.01, generator) for _ in range(400)])
    assert noisy.mean() == pytest.approx(0.1, abs=0.002)
    assert task.environment.ledger.distinct == 0


def test_random_rates_are_uniform_and_independent(traced, monkeypatch):
    drawn = []

    def watched(env, act):
        drawn.append([])
        return play(env, lambda state: drawn[-1].append(act(state)) or drawn[-1][-1])

    monkeypatch.setattr(random_rates, "play", watched)
    task, _ = task_of(traced, most=0.8)
    agent("random_rates", episodes=400).decide(task, np.random.default_rng(0))
    table = np.array(drawn)
    assert table.shape == (400, 5)
    for layer in range(5):
        assert stats.kstest(table[:, layer], "uniform", (0, 0.8)).pvalue > 0.01
    assert np.abs(np.corrcoef(table.T) - np.eye(5)).max() < 0.2


@pytest.mark.parametrize(("name", "settings"), [("ddpg", {"episodes": 3}), ("amc", {"episodes": 3, "warmup": 2})])
def test_an_agent_that_could_not_learn_says_so(traced, name, settings, caplog):
    task, _ = task_of(traced)
    quick(name, **settings).decide(task, np.random.default_rng(0))
    assert "agent: has learned nothing" in caplog.text
    caplog.clear()
    quick(name).decide(task_of(traced)[0], np.random.default_rng(0))
    assert not caplog.records


@pytest.mark.parametrize("name", ["ddpg", "amc", "random_rates"])
def test_nothing_outlives_a_step(name):
    searching = quick(name)
    assert searching.state_dict() == {}
    searching.load_state_dict({})
    with pytest.raises(ValueError, match=f"{name} keeps no state, got .'distribution'."):
        searching.load_state_dict({"distribution": []})


# -- an end before the last episode ----------------------------------------------------------------------------------------------------


class Trainer:
    """Fine-tuning that changes every weight and statistic by what the phase says."""

    def __init__(self):
        self.phases, self.settings = [], []

    @torch.no_grad()
    def __call__(self, network, finetuning, phase):
        self.phases.append(phase)
        self.settings.append(finetuning)
        generator = torch.Generator().manual_seed(zlib.crc32(phase.encode()))
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.4 * torch.rand(tensor.shape, generator=generator))


GOAL = Goal(40, math.inf, math.inf, True)  # of 58 channels


@pytest.mark.parametrize(
    ("policy", "most", "measured", "episodes"),
    [
        ("best", 2, 2 + 1, 0),  # in the first episode: its plan is made without looking, and measured once
        ("final", 2, 2 + 1, 0),
        ("best", 7, 7, 1),  # in the second: the first is known
        ("final", 7, 7 + 1, 1),
        ("best", 10, 10, 2),  # behind the second
        ("final", 10, 10 + 1, 2),
    ],
)
@pytest.mark.parametrize("goal", [FREE, GOAL])
def test_ddpg_out_of_candidates_measures_one_more_at_most(traced, policy, most, measured, episodes, goal):
    task, reports = task_of(traced, goal=goal, max_candidates=most)
    chosen = quick("ddpg", policy=policy, reward="end").decide(task, np.random.default_rng(3))
    ledger = task.environment.ledger
    assert ledger.distinct == len(ledger.measured) == measured
    assert len(reports) == episodes
    assert chosen.accuracy == nearness(1 - chosen.counts / WIDTHS)
    assert chosen.counts.any()
    assert sum(WIDTHS) - chosen.counts.sum() <= goal.channels
    if policy == "best" and episodes:
        assert chosen.reward == max(row["reward"] for row in reports)


@pytest.mark.parametrize(("policy", "most", "trained"), [("best", 2, 2), ("final", 2, 2), ("best", 7, 7), ("final", 7, 7)])
def test_nothing_is_fine_tuned_when_no_candidate_may_be_measured(traced, policy, most, trained):
    trainer = Trainer()
    task, _ = task_of(traced, finetune=trainer, max_candidates=most)
    chosen = quick("ddpg", policy=policy, finetune_batches=None).decide(task, np.random.default_rng(1))
    assert len(trainer.phases) == trained
    assert task.environment.ledger.distinct == most + 1  # what is carried out is measured as it is, without fine-tuning
    assert chosen.accuracy == nearness(1 - chosen.counts / WIDTHS)


@pytest.mark.parametrize("name", ["amc", "random_rates"])
def test_episodes_of_one_candidate_end_with_the_candidates(traced, name):
    task, reports = task_of(traced, max_candidates=3)
    chosen = quick(name).decide(task, np.random.default_rng(0))
    assert (task.environment.ledger.distinct, len(reports)) == (3, 3)
    assert chosen.reward == max(row["reward"] for row in reports)


@pytest.mark.parametrize("name", ["ddpg", "amc", "random_rates"])
def test_out_of_time_at_once_one_candidate_is_measured_that_meets_the_goal(traced, name):
    task, reports = task_of(traced, goal=GOAL, deadline=time.monotonic() - 1)
    chosen = quick(name).decide(task, np.random.default_rng(0))
    assert (task.environment.ledger.distinct, reports) == (1, [])
    assert chosen.accuracy == nearness(1 - chosen.counts / WIDTHS)
    assert 0 <= 40 - (58 - chosen.counts.sum()) < 1


def test_out_of_time_in_an_episode_it_does_not_count(traced, monkeypatch):
    seconds = []
    monkeypatch.setattr("rlprune.search.ledger.time", SimpleNamespace(monotonic=lambda: len(seconds)))
    task, reports = task_of(traced, deadline=13)
    task.environment.ledger.on_measure = seconds.append
    chosen = quick("ddpg", reward="end").decide(task, np.random.default_rng(1))
    assert (task.environment.ledger.distinct, len(reports)) == (13, 2)
    assert chosen.reward == max(row["reward"] for row in reports)


# -- fine-tuning within an episode -----------------------------------------------------------------------------------------------------

FINETUNING = Finetuning(epochs=3, batches=None, lr=0.001)
A, B = (1, 12, 5, 0, 6), (1, 4, 5, 9, 2)


def walked(network, graph, path):
    """By hand: rank, prune and fine-tune one layer after another; the units that stay, in the numbers of `network`, and those that go."""
    trainer, kept, gone = Trainer(), {}, {}
    for layer, (group, count) in enumerate(zip(graph.groups, path, strict=False)):
        order = np.argsort(filter_norms(network, graph)[group.name].numpy(), kind="stable")
        gone[group.name], kept[group.name] = order[:count], np.sort(order[count:])
        keep = {group.name: kept[group.name]}
        network, graph = rlprune.prune(network, graph, keep), graph.after(keep)
        trainer(network, None, f"fine-tune layer {layer}")
    return network, kept, gone


def copied(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(first, second):
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def digest(network):
    return sum(float(tensor.detach().double().sum()) for tensor in network.parameters()) % 1


def walking(traced, *, goal=FREE):
    """A task whose measurements keep the networks that they saw."""
    network, graph = traced
    trainer, seen = Trainer(), []

    def measure(pruned):
        seen.append(copied(pruned))
        return digest(pruned)

    settings = settings_of(graph, measure, goals=(goal,), finetune=trainer, ledger=Ledger())
    return Task(settings, network, graph, 0), trainer, seen


def rates_of(path):
    rates = iter(np.array(path) / WIDTHS)
    return lambda state: next(rates)


def test_every_action_is_followed_by_fine_tuning_and_ranked_on_what_it_made(traced):
    task, trainer, seen = walking(traced)
    before = copied(task.network)
    env = task.layers(features=("accuracy",), pr_max=0.95, finetuning=FINETUNING)
    episode = play(env, rates_of(A))
    assert trainer.phases == [f"fine-tune layer {layer}" for layer in range(5)]  # behind the action that takes nothing, too
    assert set(trainer.settings) == {FINETUNING}
    assert equal(seen[0], before)  # the network that the step starts from
    for layer in range(5):
        by_hand, _, _ = walked(*traced, A[: layer + 1])
        assert equal(seen[layer + 1], copied(by_hand))
        assert episode.transitions[layer].next_observation[0] == pytest.approx(digest(by_hand))
    ranked_once = {name: units.tolist() for name, units in task.keep(np.array(A)).items()}
    assert ranked_once != {name: units.tolist() for name, units in walked(*traced, A)[1].items()}  # the order has changed on the way
    assert equal(copied(task.network), before)
    assert not task.network.training


def test_a_path_is_fine_tuned_once(traced):
    task, trainer, seen = walking(traced)
    env = task.layers(features=("accuracy",), pr_max=0.95, finetuning=FINETUNING)
    rewards = [play(env, rates_of(path)).reward for path in (A, A, A)]
    assert rewards[0] == rewards[1] == rewards[2]
    assert (len(trainer.phases), len(seen)) == (5, 6)
    assert (task.environment.ledger.distinct, task.environment.ledger.repeated) == (5, 10)
    play(env, rates_of(B))  # it shares its first action
    assert len(seen) == 6 + 4
    assert len(trainer.phases) == 5 + 5  # and comes to the second from the start


def test_what_a_path_leads_to_does_not_depend_on_the_paths_before(traced):
    found = []
    for order in ((A, B, A), (B, A), (A[:2] + B[2:], B, A, B)):
        task, _, _ = walking(traced)
        env = task.layers(features=("accuracy",), pr_max=0.95, finetuning=FINETUNING)
        found.append({path: [step.next_observation[0] for step in play(env, rates_of(path)).transitions] for path in order})
    assert found[0][A] == found[1][A] == found[2][A]
    assert found[0][B] == found[1][B] == found[2][B]
    assert found[0][A] != found[0][B]


def test_where_nothing_looks_at_accuracy_the_last_network_alone_is_measured(traced):
    task, trainer, seen = walking(traced)
    play(task.layers(features=("layer",), pr_max=0.95, finetuning=FINETUNING), rates_of(A))
    assert len(trainer.phases) == 5
    assert len(seen) == 1
    assert equal(seen[0], copied(walked(*traced, A)[0]))


@pytest.mark.parametrize("batches", [0, 4, None])
def test_fine_tuning_is_switched_off_by_no_batches(traced, batches):
    trainer = Trainer()
    task, reports = task_of(traced, finetune=trainer)
    quick("ddpg", episodes=4, finetune_batches=batches, finetune_epochs=2, finetune_lr=0.01).decide(task, np.random.default_rng(0))
    assert len(trainer.phases) == (0 if batches == 0 else 4 * 5)
    assert set(trainer.settings) <= {Finetuning(2, batches, 0.01)}
    assert len(reports) == 4


def test_a_search_without_images_says_what_to_set(traced):
    task, _ = task_of(traced)
    with pytest.raises(UserError, match="finetune_batches: this search has no images to train on; set it to 0"):
        quick("ddpg", finetune_batches=1).decide(task, np.random.default_rng(0))


def test_units_that_come_back_are_as_they_were_and_the_others_stay_fine_tuned(traced):
    network, graph = traced
    task, _, seen = walking(traced, goal=GOAL)
    refreshed = []
    task.environment = replace(task.environment, refresh=refreshed.append)
    path = (6, 12, 8, 15, 6)  # 47 channels, where 18 are enough
    env = task.layers(features=("accuracy",), pr_max=0.95, finetuning=FINETUNING)
    counts = play(env, rates_of(path)).info["counts"]
    assert counts.sum() == 18
    assert (counts <= path).all()
    assert ((counts > 0) & (counts < path)).any()
    fine, kept, gone = walked(network, graph, path)
    stay = [np.sort(np.concatenate([kept[name], gone[name][count:]])) for name, count in zip(kept, counts, strict=True)]
    places = [np.searchsorted(units, kept[name]) for units, name in zip(stay, kept, strict=True)]
    inputs, input_places = [np.arange(3), *stay], [np.arange(3), *places]
    for layer in range(5):
        weight, bias = network.convs[layer].weight.detach().numpy(), network.convs[layer].bias.detach().numpy()
        weight, bias = weight[np.ix_(stay[layer], inputs[layer])].copy(), bias[stay[layer]].copy()
        weight[np.ix_(places[layer], input_places[layer])] = fine.convs[layer].weight.detach().numpy()
        bias[places[layer]] = fine.convs[layer].bias.detach().numpy()
        np.testing.assert_array_equal(seen[-1][f"convs.{layer}.weight"].numpy(), weight)
        np.testing.assert_array_equal(seen[-1][f"convs.{layer}.bias"].numpy(), bias)
    head = network.head.weight.detach().numpy()[:, stay[-1]].copy()
    head[:, places[-1]] = fine.head.weight.detach().numpy()
    np.testing.assert_array_equal(seen[-1]["head.weight"].numpy(), head)
    np.testing.assert_array_equal(seen[-1]["head.bias"].numpy(), fine.head.bias.detach().numpy())
    assert len(refreshed) == 5 + 1  # behind every cut, and when units have come back
    assert equal(copied(refreshed[-1]), seen[-1])


def test_a_walk_goes_on_from_what_it_has(traced):
    task, trainer, _ = walking(traced)
    walk = Walk(task, FINETUNING)
    taken = lambda path: np.array([*path, *[0] * (5 - len(path))])  # noqa: E731
    walk.accuracy(A[:1], taken(A[:1]))
    walk.accuracy(A[:4], taken(A[:4]))
    assert trainer.phases == [f"fine-tune layer {layer}" for layer in range(4)]
    walk.accuracy(A[:2], taken(A[:2]))  # behind it already: from the start
    assert trainer.phases[4:] == ["fine-tune layer 0", "fine-tune layer 1"]


GRAFTED = [
    nets.Plain, nets.FlattenHead, nets.Residual, nets.Concat, nets.ConcatThenNorm, nets.SqueezeExcite, nets.Depthwise,
    nets.DepthwiseMultiplier, nets.Grouped, nets.GroupedWhole, nets.GroupedPositions, nets.GroupedTransposed,
    nets.GroupedTransposedPositions, nets.Transposed, nets.Shared, nets.ParametricRelu, nets.LayerScale, nets.FlattenPermuted,
    nets.GroupNorm, nets.LayerNormPixels, nets.FrozenNorm, nets.WeightNormed, nets.RawMatmul, nets.TiedDecoder, nets.Embedding,
    nets.Attention, nets.Chunk, nets.IndexBuffer, nets.IndexSelect, nets.IndexSome, nets.PixelShuffle, nets.UNet, nets.Dense,
]  # fmt: skip


def state_of(network):
    """Every tensor, shared ones once."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


@pytest.mark.parametrize("kind", GRAFTED)
def test_grafting_is_the_reverse_of_pruning(kind):
    network = nets.randomised(kind()).eval()
    graph = rlprune.trace(network, torch.randn(2, 3, 8, 8))
    generator = np.random.default_rng(0)
    keep = {}
    for group in graph.groups:
        stay = max(1, group.num_units - generator.integers(0, group.num_units))
        keep[group.name] = np.sort(generator.permutation(group.num_units)[:stay])
    assert any(len(keep[group.name]) < group.num_units for group in graph.groups)
    small, large = rlprune.prune(network, graph, keep), copy.deepcopy(network)
    numbers = {buffer.tensor for buffer in graph.indices}
    with torch.no_grad():
        for name, tensor in state_of(small).items():
            if name not in numbers:
                tensor.fill_(7)
        for name, tensor in state_of(large).items():
            if name not in numbers:
                tensor.fill_(3)
    places = {name: tensor.data_ptr() for name, tensor in state_of(large).items()}
    wanted = copied(small)
    graft(small, large, graph, keep)
    for name, tensor in state_of(large).items():
        if name in numbers:
            assert torch.equal(tensor, dict(network.named_buffers())[name])  # the numbers of the large network's channels
        else:
            assert int((tensor == 7).sum()) == wanted[name].numel()
            assert int((tensor == 3).sum()) == tensor.numel() - wanted[name].numel()
        assert tensor.data_ptr() == places[name]
    assert equal(copied(rlprune.prune(large, graph, keep)), wanted)
    assert equal(copied(small), wanted)


def test_grafting_what_was_cut_out_changes_nothing():
    network = nets.randomised(nets.UNet()).eval()
    graph = rlprune.trace(network, torch.randn(2, 3, 8, 8))
    keep = {group.name: np.arange(0, group.num_units, 2) for group in graph.groups}
    large = copy.deepcopy(network)
    graft(rlprune.prune(network, graph, keep), large, graph, keep)
    assert equal(copied(large), copied(network))
    with pytest.raises(UserError, match="no such group"):
        graft(network, large, graph, {"nonsense": [0]})


# -- a step that was interrupted -------------------------------------------------------------------------------------------------------


class Cut:
    """Sends Ctrl-C while the candidate `at` is measured, and counts."""

    def __init__(self, at=None):
        self.at, self.measured = at, 0

    def __call__(self, network):
        self.measured += 1
        if self.measured == self.at:
            signal.raise_signal(signal.SIGINT)
        return digest(network)


def search(traced, folder, *, at=None, settings=None, deadline=None, recover=lambda *_: None, final_epochs=0):
    """Two steps by DDPG, kept in a folder; the networks measured, those of the candidates alone, and the phases trained."""
    network, graph = traced
    targets = Targets(0.5, None, None, None)
    dense = size_of(graph)
    schedule = make_schedule(targets=targets, steps=2, period=1, save_at=[], dense=dense, smallest=replace(dense, channels=5))
    trainer, measure = Trainer(), Cut(at)
    environment = settings_of(graph, measure, goals=schedule.goals, finetune=trainer, ledger=Ledger(deadline=deadline))
    fprl = quick("ddpg", **(settings or {}))
    state = load_state(folder, network, graph, fprl, environment.ledger) or start_state(network, graph, 0.7)
    run_search(
        state, agent=fprl, environment=environment, schedule=schedule, recover=recover, epochs=1, final_epochs=final_epochs, seed=0,
        on_step=lambda state: save_state(folder, state, fprl), on_level=lambda *_: None,
        deciding=partial(keep_measured, folder / "measured.json", environment.ledger),
    )  # fmt: skip
    return state, measure.measured, trainer.phases


def facts(state):
    steps = [(row.accuracy_pruned, row.reward, row.candidates, row.repeated) for row in state.history.steps]
    return steps, state.history.layers, state.history.episodes, {name: units.tolist() for name, units in state.kept.items()}


@pytest.mark.usefixtures("_heard")
@pytest.mark.parametrize("settings", [{}, {"policy": "final"}, {"finetune_batches": None, "episodes": 6}])
def test_an_interrupted_step_goes_on_to_the_same_end(traced, tmp_path, settings):
    whole, all_measured, all_trained = search(traced, tmp_path / "whole", settings=settings)
    assert len(whole.history.episodes) == 2 * settings.get("episodes", 12)
    with pytest.raises(KeyboardInterrupt):
        search(traced, tmp_path, at=9, settings=settings)  # the dense network, five layers, and three of the next episode
    kept = json.loads((tmp_path / "measured.json").read_text())
    assert len(kept["accuracies"]) == len(kept["fingerprints"]) == 8
    with pytest.raises(KeyboardInterrupt):
        search(traced, tmp_path, at=10, settings=settings)  # and again
    rest, measured, trained = search(traced, tmp_path, settings=settings)
    assert facts(rest) == facts(whole)
    assert measured == all_measured - 8 - 9  # but for the network that the step starts from, which is looked at each time
    if "finetune_batches" in settings:
        assert 0 <= len(trained) - (len(all_trained) - 8 - 9) <= 5  # one episode again, at most
    else:
        assert trained == []


@pytest.mark.usefixtures("_heard")
@pytest.mark.parametrize("changed", [0, 4])
def test_measurements_of_other_candidates_are_made_again(traced, tmp_path, changed, caplog):
    whole, all_measured, _ = search(traced, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        search(traced, tmp_path, at=9)
    kept = tmp_path / "measured.json"
    content = read_json(kept)
    content["fingerprints"][changed] += 1
    content["accuracies"][changed:] = [0.0] * (8 - changed)
    kept.write_text(json.dumps(content))
    rest, measured, _ = search(traced, tmp_path)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"the search goes another way than before the interruption; {8 - changed} candidates are measured anew"]
    assert facts(rest) == facts(whole)
    assert measured == all_measured - changed


@pytest.mark.parametrize("settings", [{}, {"policy": "final"}, {"finetune_batches": None}])
@pytest.mark.parametrize("limit", [3, 8])
def test_a_step_that_ran_out_of_time_is_not_measured_again(traced, tmp_path, settings, limit, monkeypatch, caplog):
    ticks = []
    monkeypatch.setattr("rlprune.search.ledger.time", SimpleNamespace(monotonic=lambda: len(ticks)))
    monkeypatch.setattr("rlprune.search.runner._advance", lambda bar, accuracy: ticks.append(accuracy))

    def cut(*arguments):
        raise KeyboardInterrupt

    again = partial(search, traced, settings=settings, deadline=limit, final_epochs=1)
    whole, _, _ = again(tmp_path / "whole")
    assert whole.history.stopped == "max_minutes"
    ticks.clear()
    with pytest.raises(KeyboardInterrupt):
        again(tmp_path, recover=cut)
    rest, measured, trained = again(tmp_path)  # the time is over from the start
    assert facts(rest) == facts(whole)
    assert (measured, trained) == (2, [])  # the network that the step starts from, and what recovery made of the candidate
    assert caplog.messages.count("agent: has learned nothing, as agent.batch_size=16 is more than all its actions") == 3
    assert not [message for message in caplog.messages if "another way" in message]


def test_what_is_known_takes_no_time_unless_it_is_of_other_candidates():
    first = Ledger(deadline=math.inf)
    for number in range(4):
        assert first.accuracy([np.array([number])], lambda number=number: number / 4) == number / 4
    assert first.in_time == 4
    again = Ledger(deadline=time.monotonic() - 1, known=first.measured, in_time=4)
    expired = []
    for number in range(4):
        expired.append(again.expired)
        assert again.accuracy([np.array([number])], lambda: 0.9) == number / 4
    assert [*expired, again.expired] == [False] * 4 + [True]
    other = Ledger(deadline=time.monotonic() - 1, known=first.measured, in_time=4)
    assert [other.accuracy([np.array([number])], lambda: 0.9) for number in (0, 7)] == [0, 0.9]
    assert other.expired


# -- settings --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "setting", "value", "message"),
    [
        *(
            (name, "pr_max", value, f"agent.pr_max={value}: must be in (0, 1); {why} of every layer")
            for value in (1.5, 0.0, 1.0, -0.1)
            for name, why in (
                ("ddpg", "0.95 leaves a twentieth"),
                ("amc", "0.8 leaves a fifth"),
                ("random_rates", "0.8 leaves a fifth"),
            )
        ),
        *((name, "episodes", 0, "agent.episodes=0: must be ≥ 1") for name in ("ddpg", "amc", "random_rates")),
        *((name, "episodes", 1.5, "agent.episodes=1.5: must be an integer") for name in ("ddpg", "amc", "random_rates")),
        *((name, "replay_size", 10, "agent.replay_size=10: must hold a batch, ≥ batch_size=") for name in ("ddpg", "amc")),
        *((name, "actor_hidden", [], "agent.actor_hidden=[]: must be widths ≥ 1, such as [300,300]") for name in ("ddpg", "amc")),
        *((name, "critic_hidden", [0], "agent.critic_hidden=[0]: must be widths ≥ 1, such as [300,300]") for name in ("ddpg", "amc")),
        *((name, "tau", 0.0, "agent.tau=0.0: must be in (0, 1]") for name in ("ddpg", "amc")),
        *((name, "noise_decay", 0.0, "agent.noise_decay=0.0: must be in (0, 1]") for name in ("ddpg", "amc")),
        *((name, "noise_std", -1.0, "agent.noise_std=-1.0: must be ≥ 0") for name in ("ddpg", "amc")),
        ("amc", "warmup", 400, "agent.warmup=400: must be in [0, episodes=400), as nothing is learned before its end"),
        ("amc", "warmup", -1, "agent.warmup=-1: must be in [0, episodes=400), as nothing is learned before its end"),
        ("amc", "baseline_rate", 0.0, "agent.baseline_rate=0.0: must be in (0, 1]"),
        ("amc", "baseline_rate", 1.1, "agent.baseline_rate=1.1: must be in (0, 1]"),
        ("ddpg", "omega1", -1.0, "agent.omega1=-1.0: must be ≥ 0"),
        ("ddpg", "omega2", -1.0, "agent.omega2=-1.0: must be ≥ 0"),
        ("ddpg", "reward", "none", "agent.reward=none: must be one of layer, end"),
        ("ddpg", "policy", "last", "agent.policy=last: must be one of best, final"),
        ("ddpg", "actor_bound", "tanh", "agent.actor_bound=tanh: must be one of sigmoid, clip"),
        ("ddpg", "finetune_epochs", 0, "agent.finetune_epochs=0: must be ≥ 1; finetune_batches=0 switches fine-tuning off"),
        ("ddpg", "finetune_batches", -1, "agent.finetune_batches=-1: must be ≥ 0, or null for all training images"),
        ("ddpg", "finetune_lr", 0.0, "agent.finetune_lr=0.0: must be > 0"),
    ],
)
def test_bad_settings_are_refused_in_one_line(name, setting, value, message):
    with pytest.raises(UserError) as error:
        agent(name, **{setting: value})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("ddpg", {"finetune_batches": None}), ("ddpg", {"noise_std": 0.0, "noise_decay": 1.0}), ("amc", {"warmup": 0, "baseline_rate": 1.0})],
)
def test_settings_at_the_ends_of_their_range_are_taken(traced, name, settings):
    task, reports = task_of(traced, finetune=Trainer())
    quick(name, **settings).decide(task, np.random.default_rng(0))
    assert len(reports) == 12


# -- observations ----------------------------------------------------------------------------------------------------------------------


class Facts(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 3, padding=1)
        self.fc, self.head = nn.Linear(4, 10), nn.Linear(10, 5)

    def forward(self, x):
        x = self.c(torch.relu(self.b(torch.relu(self.a(x))))).relu()
        return self.head(torch.relu(self.fc(x.mean((2, 3)))))


def test_layer_facts_are_their_closed_form():
    example = torch.zeros(2, 3, 8, 12)
    network = Facts().eval()
    found = layer_facts(network, rlprune.trace(network, example))
    macs = np.array([8 * 3 * 25 * 24, 16 * 8 * 24, 4 * 16 * 9 * 24, 10 * 4])
    expected = {
        "layer": [1 / 4, 2 / 4, 3 / 4, 1],
        "out_channels": [8 / 16, 1, 4 / 16, 10 / 16],
        "in_channels": [3 / 16, 8 / 16, 1, 4 / 16],
        "height": [1, 4 / 8, 4 / 8, (8 / 12) ** 0.5 / 8],  # a square of one place, in the shape of the images
        "width": [1, 6 / 12, 6 / 12, (12 / 8) ** 0.5 / 12],
        "stride": [1, 1 / 2, 1 / 2, 1 / 2],
        "kernel_size": [1, 1 / 5, 3 / 5, 1 / 5],
        "macs": macs / macs.max(),
        "macs_left": [macs[1:].sum() / macs.sum(), macs[2:].sum() / macs.sum(), macs[3] / macs.sum(), 0],
    }
    assert set(found) == set(expected) == set(FEATURES) - {"flops_ratio", "accuracy", "previous_action"}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12, err_msg=name)


def test_a_group_of_several_layers_is_the_largest_of_them_and_the_sum_of_their_macs():
    network, example = nets.Residual().eval(), torch.zeros(2, 3, 8, 8)  # stem (3 → 8) and b (4 → 8), then a (8 → 4)
    found = layer_facts(network, rlprune.trace(network, example))
    np.testing.assert_allclose(found["in_channels"], [4 / 8, 1])
    np.testing.assert_allclose(found["macs"], [1, 8 * 4 / (3 * 8 + 4 * 8)])
    np.testing.assert_allclose(found["macs_left"], [8 * 4 / (3 * 8 + 4 * 8 + 8 * 4), 0])


def test_grouped_convolutions_count_all_their_inputs_and_transposed_ones_begin_small():
    example = torch.zeros(2, 3, 8, 8)
    network = nets.Grouped().eval()  # stem and g (8 → 12, four groups), then p (12 → 6)
    found = layer_facts(network, rlprune.trace(network, example))
    np.testing.assert_allclose(found["in_channels"], [8 / 12, 1])
    np.testing.assert_allclose(found["out_channels"], [1, 6 / 12])
    network = nets.Transposed().eval()  # 8×8 images, twice as wide behind t
    found = layer_facts(network, rlprune.trace(network, example))
    np.testing.assert_allclose(found["in_channels"], [3 / 8, 1, 6 / 8])
    np.testing.assert_allclose(found["out_channels"], [1, 6 / 8, 4 / 8])
    np.testing.assert_allclose(found["height"], [8 / 16, 8 / 16, 1])
    np.testing.assert_allclose(found["stride"], [1 / 2, 1, 1 / 2])


@pytest.mark.parametrize("kind", [Facts, nets.Residual, nets.Grouped, nets.Transposed, nets.Attention, nets.IndexSome, nets.UNet])
@pytest.mark.parametrize("goal", [0.5, 1.0])
def test_all_observations_lie_between_0_and_1(kind, goal):
    network, example = nets.randomised(kind()).eval(), torch.zeros(2, 3, 8, 8)
    graph = rlprune.trace(network, example)
    goal = Goal(math.inf, goal * graph.macs({}), math.inf, True)
    settings = settings_of(graph, digest, goals=(goal,))
    env = Task(settings, network, graph, 0).layers(features=tuple(FEATURES), pr_max=0.95)
    assert env.num_features == len(FEATURES) == 12
    generator, seen = np.random.default_rng(0), []
    for _ in range(10):
        episode = play(env, lambda state: seen.append(state) or 0.95 * generator.random())
        seen.append(episode.transitions[-1].next_observation)
    table = np.array(seen)
    assert {(state.shape, state.dtype) for state in seen} == {((12,), np.dtype(np.float32))}
    assert table.min() >= 0
    assert table.max() <= 1
    columns = dict(zip(FEATURES, table.T, strict=True))
    steps = np.minimum(np.arange(1, env.num_steps + 2), env.num_steps) / env.num_steps  # behind the last action, the last group again
    np.testing.assert_allclose(columns["layer"].reshape(10, -1), np.tile(steps, (10, 1)))
    assert columns["flops_ratio"].max() > 0.1
    assert columns["previous_action"].reshape(10, -1)[:, 0].max() == 0


def test_an_unknown_feature_is_refused(traced):
    task, _ = task_of(traced)
    with pytest.raises(UserError, match="features: colour is unknown; choose from layer, out_channels"):
        task.layers(features=("layer", "colour"), pr_max=0.95)
