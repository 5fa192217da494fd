import itertools
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import rlprune
from rlprune.agents.reinforce import kept_units
from rlprune.config import build, conf_dir, load_yaml
from rlprune.errors import UserError
from rlprune.graph.filters import unit_filters
from rlprune.rl.reinforce import SURE, FilterPolicy, Learning, Reinforce, advantages, log_probability, surrogate
from rlprune.search.ledger import Ledger
from rlprune.search.limits import Goal, Limits
from rlprune.search.resume import keep_measured, load_state, save_state
from rlprune.search.runner import run_search, start_state
from rlprune.search.schedule import Size, Targets, make_schedule
from rlprune.search.task import Environment, Task

FREE = Goal(math.inf, math.inf, math.inf, True)
LEARNING = Learning(samples=10, baseline="leave_one_out", hidden=[16], lr=0.03, initial_keep=None)
UNITS = 16
USELESS = list(range(0, UNITS, 2))


def agent(**settings):
    return build(load_yaml(conf_dir() / "agent" / "reinforce.yaml") | settings, "agent")


class Planted(nn.Module):
    """A layer whose even filters are useless, and answers that are right when nothing is pruned."""

    def __init__(self, kind="zeroed", seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Conv2d(3, UNITS, 3, padding=1), nn.Conv2d(UNITS, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            for unit in USELESS:
                if kind == "copied":  # of the next filter, and nothing reads it
                    self.first.weight[unit], self.first.bias[unit] = self.first.weight[unit + 1], self.first.bias[unit + 1]
                    self.second.weight[:, unit] = 0
                else:
                    self.first.weight[unit] = 0 if kind == "zeroed" else 1e-5 * torch.randn(3, 3, 3)
                    self.first.bias[unit] = 0
            self.images = torch.randn(400, 3, 8, 8)
            self.head.bias -= self(self.images).mean(0)  # no class wins everywhere
            self.labels = self(self.images).argmax(1)
        self.eval()

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def environment(network, graph, *, goals=(FREE,), most=None, **settings):
    """Accuracy on the network's own images; `most` units may be kept of a group, by name."""

    def measure(pruned):
        with torch.no_grad():
            return float((pruned(network.images).argmax(1) == network.labels).double().mean())

    kept_counts = {group.name: Limits(1, 1, 1.0).kept_counts(group.name, group.num_units) for group in graph.groups} | (most or {})
    reward = lambda accuracy, flops_ratio, params_ratio: accuracy  # noqa: E731
    size = Size(graph.num_channels, graph.macs({}), graph.params({}))
    return Environment(measure, reward, no_criterion, size, tuple(goals), kept_counts, **settings)


def no_criterion(network, graph):
    raise AssertionError("a criterion was asked")


def planted_task(kind, seed, **ledger):
    """A step that may prune the planted layer alone."""
    network = Planted(kind, seed)
    graph = rlprune.trace(network, network.images[:2])
    reports = []
    settings = environment(network, graph, most={"second": np.array([8])}, ledger=Ledger(on_report=reports.append, **ledger))
    return Task(settings, network, graph, 0), reports


# -- the reward, the policy, the gradient ------------------------------------------------------------


def test_the_reward_is_the_papers_with_the_sign_that_punishes_a_loss():
    reward = agent(drop_bound=2.0).reward
    assert reward(0.0, 12, 3) == 4  # nothing lost: ψ
    assert reward(1.0, 12, 3) == 2
    assert reward(2.0, 12, 3) == 0  # at the bound
    assert reward(4.0, 12, 3) == -4  # and beyond it, ψ makes it worse
    assert reward(-1.0, 12, 3) == 6
    assert agent(drop_bound=2.0, reward_gains=False).reward(-1.0, 12, 3) == 4
    assert reward(1.0, 12, 12) > agent(drop_bound=1.0).reward(1.0, 12, 12)


def exact_gradient(logits, reward):
    """∇E[R] over all decisions on three filters."""
    free = logits.clone().requires_grad_(True)
    expected = sum(torch.exp(log_probability(free, decision[None].double()))[0] * reward(decision) for decision in everything())
    return torch.autograd.grad(expected, free)[0]


def everything():
    return [torch.tensor(bits) for bits in itertools.product((0.0, 1.0), repeat=3)]


@pytest.mark.parametrize(("baseline", "samples"), [("leave_one_out", 2), ("leave_one_out", 3), ("none", 1), ("none", 2)])
def test_the_gradient_estimate_is_the_exact_one_on_average(baseline, samples):
    logits = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64)
    values = dict(zip(itertools.product((0.0, 1.0), repeat=3), [3.0, -7.0, 0.5, 2.0, 11.0, -1.0, 4.0, 1.0], strict=True))
    reward = lambda decision: values[tuple(decision.tolist())]  # noqa: E731
    mean = torch.zeros(3, dtype=torch.float64)
    for drawn in itertools.product(everything(), repeat=samples):
        decisions = torch.stack(drawn).double()
        free = logits.clone().requires_grad_(True)
        rewards = torch.tensor([reward(decision) for decision in drawn], dtype=torch.float64)
        gradient = -torch.autograd.grad(surrogate(free, decisions, rewards, baseline), free)[0]
        mean += torch.exp(log_probability(logits, decisions).sum()) * gradient
    torch.testing.assert_close(mean, exact_gradient(logits, reward), rtol=1e-9, atol=1e-9)


def test_the_baseline_is_the_mean_of_the_others():
    rewards = torch.tensor([1.0, 2.0, 6.0])
    assert advantages(rewards, "leave_one_out").tolist() == [1 - 4, 2 - 3.5, 6 - 1.5]
    assert advantages(rewards, "none") is rewards


def test_the_policy_reads_filters_and_nothing_else():
    policy = FilterPolicy(27, [16], 1.0, torch.Generator().manual_seed(0))
    filters = torch.randn(10, 27)
    filters[7] = filters[2]
    with torch.no_grad():
        logits = policy(filters)
        assert logits[7] == logits[2]
        assert logits.unique().numel() == 9
        order = torch.randperm(10)
        torch.testing.assert_close(policy(filters[order]), logits[order])
        shifted = policy(filters + 0)
    assert torch.equal(shifted, logits)
    assert sum(parameter.numel() for parameter in policy.parameters()) == 27 * 16 + 16 + 16 + 1 + 1  # whatever the number of filters


@pytest.mark.parametrize("units", [2, 16, 512])
def test_a_policy_never_gets_so_sure_that_it_tries_nothing(units):
    policy = FilterPolicy(4, [8], 1e4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        keep = torch.sigmoid(policy(torch.randn(units, 4)).double())
    assert float(keep.max()) == pytest.approx(1 - 1 / (1 + SURE * units), abs=1e-6)


def test_samples_are_drawn_with_the_policys_probabilities():
    learner = Reinforce(Learning(20_000, "leave_one_out", [8], 0.01, 0.7), torch.randn(5, 9), np.random.default_rng(0))
    keep = 1 / (1 + np.exp(-learner.logits()))
    assert (learner.sample() > 0).mean(0) == pytest.approx(keep, abs=0.015)
    assert keep == pytest.approx(np.full(5, 0.7), abs=0.02)


def test_the_start_is_the_probability_that_is_worth_most():
    removed = []

    def mean_reward(draws):
        removed.append(float((draws < 0).mean()))
        return [1.0, 1.1, 1.5, 1.2, -0.5][len(removed) - 1]

    learner = Reinforce(Learning(4000, "leave_one_out", [8], 0.01, None), torch.randn(16, 9), np.random.default_rng(0))
    learner.start(mean_reward)
    assert removed == pytest.approx([1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2], abs=0.01)
    assert 1 / (1 + np.exp(-float(learner.policy.level.detach()))) == pytest.approx(1 - 1 / 8)
    removed.clear()
    learner.start(lambda draws: removed.append(0.0) or -1.0)  # beyond the bound at once
    assert len(removed) == 1


def test_rewards_of_any_size_move_the_policy_alike():
    filters, decisions = torch.randn(6, 9), np.random.default_rng(1).random((10, 6)) < 0.5
    rewards = np.random.default_rng(2).standard_normal(10)
    moved = []
    for scale in (1.0, 1000.0):
        learner = Reinforce(LEARNING, filters, np.random.default_rng(0))
        learner.update(decisions, (scale * rewards).tolist())
        moved.append(learner.logits())
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-4)
    learner.update(decisions, [3.0] * 10)  # nothing to learn
    learner.update(decisions[:1], [3.0]) if LEARNING.baseline == "none" else None
    assert np.isfinite(learner.logits()).all()


def test_the_number_of_kept_units_is_one_that_is_allowed():
    draw = np.array([-1.0, 3.0, 0.5, -0.2, -4.0, 2.0])
    assert kept_units(draw, np.array([6, 5, 4, 3, 2, 1])).tolist() == [1, 2, 5]
    assert kept_units(draw, np.array([6, 4])).tolist() == [1, 2, 3, 5]  # the next highest comes back
    assert kept_units(draw - 9, np.array([6, 5, 4, 3, 2, 1])).tolist() == [1]  # one stays
    assert kept_units(draw - 9, np.array([6, 2])).tolist() == [1, 5]
    assert kept_units(draw + 9, np.array([6, 4])).tolist() == [0, 1, 2, 3, 4, 5]


def test_filters_of_all_producers_are_read_and_weigh_alike():
    import nets

    network = nets.Residual().eval()
    graph = rlprune.trace(network, torch.zeros(2, *nets.Residual.shape) if hasattr(nets.Residual, "shape") else torch.zeros(2, 3, 16, 16))
    group = next(group for group in graph.groups if len(group.producers) > 1)
    filters = unit_filters(network, group)
    tensors = dict(network.named_parameters())
    elements = [tensors[member.tensor][0].numel() * member.units.shape[1] for member in group.producers]
    assert filters.shape == (group.num_units, sum(elements))
    for part in filters.split(elements, dim=1):
        assert float(part.square().mean()) == pytest.approx(1, abs=1e-4)
    last = group.producers[-1]
    with torch.no_grad():
        tensors[last.tensor][last.units[0, 0]] = 0
    changed = unit_filters(network, group)
    assert (changed[0, -elements[-1] :] == 0).all()
    assert (changed[0, : -elements[-1]] == filters[0, : -elements[-1]]).all()


# -- one layer ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zeroed", "noise"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_policy_finds_the_useless_filters(kind, seed):
    task, reports = planted_task(kind, seed)
    rlp = agent(mode="individual", layer="first", drop_bound=3.0, policy="final")
    candidate = rlp.decide(task, np.random.default_rng(seed))
    assert candidate.keep["first"].tolist() == [unit for unit in range(UNITS) if unit not in USELESS]
    assert candidate.keep["second"].tolist() == list(range(8))
    assert candidate.accuracy >= 0.99
    generator = np.random.default_rng(9)
    others = [task.evaluate_keep({"first": np.sort(generator.permutation(UNITS)[:8])}).accuracy for _ in range(100)]
    assert candidate.accuracy > max(others) + 0.2
    assert task.environment.ledger.distinct <= rlp.candidates_per_step + 100
    assert max(report["best"] for report in reports) == pytest.approx(2.0, abs=0.2)  # half of the filters, nothing lost


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_decision_removes_copies_and_never_what_they_are_copies_of(seed):
    task, _ = planted_task("copied", seed)
    candidate = agent(mode="individual", layer="first", drop_bound=3.0).decide(task, np.random.default_rng(seed))
    gone = set(range(UNITS)) - set(candidate.keep["first"].tolist())
    assert gone
    assert gone <= set(USELESS)  # a policy reads the same in both: only what was measured tells them apart


def test_larger_bounds_keep_fewer_filters():
    network = Planted()
    graph = rlprune.trace(network, network.images[:2])
    settings = environment(network, graph, most={"second": np.array([8])})
    settings = replace(settings, measure=lambda pruned: 1 - 0.0004 * (UNITS - pruned.first.out_channels) ** 2)
    bounds, kept, best = (0.5, 1.0, 2.0, 3.0), [], []
    for bound in bounds:
        worth = [(1 - 0.04 * gone**2 / bound) * UNITS / (UNITS - gone) for gone in range(UNITS)]
        best.append(UNITS - int(np.argmax(worth)))
        numbers = []
        for seed in range(4):
            rlp = agent(mode="individual", layer="first", drop_bound=bound, updates=20)
            numbers.append(len(rlp.decide(Task(settings, network, graph, 0), np.random.default_rng(seed)).keep["first"]))
        kept.append(np.mean(numbers))
    assert best == [16, 15, 14, 13]
    assert kept == best


def test_what_may_be_measured_ends_a_layer_with_the_best_so_far():
    task, reports = planted_task("zeroed", 0, max_candidates=25)
    candidate = agent(mode="individual", layer="first", drop_bound=3.0).decide(task, np.random.default_rng(0))
    assert task.environment.ledger.distinct == 25
    rewards = [report["best"] for report in reports]
    assert rewards == sorted(rewards)
    kept = len(candidate.keep["first"])
    assert rewards[-1] == pytest.approx((1 - 100 * (1 - candidate.accuracy) / 3) * UNITS / kept)
    task, reports = planted_task("zeroed", 0, deadline=0.0)
    candidate = agent(mode="individual", layer="first").decide(task, np.random.default_rng(0))
    assert (len(candidate.keep["first"]), reports, task.environment.ledger.distinct) == (UNITS, [], 1)


@pytest.mark.parametrize("most", [None, 30])
def test_groups_of_one_step_share_its_candidates(most):
    network, reports = Planted(), []
    graph = rlprune.trace(network, network.images[:2])
    ledger = Ledger(on_report=reports.append, max_candidates=most)
    rlp = agent(updates=3, samples=4)
    rlp.decide(Task(environment(network, graph, ledger=ledger), network, graph, 0), np.random.default_rng(0))
    distinct, looks = ledger.distinct, {name: sum(report["group"] == name for report in reports) for name in ("first", "second")}
    assert distinct <= sum(rlp.candidates_of_layer(units) for units in (UNITS, 8))
    assert min(looks.values()) >= 4
    if most is not None:
        assert distinct <= most


@pytest.mark.parametrize("units", [1, 2, 3, 16, 100])
def test_no_layer_measures_more_than_is_announced(units):
    rlp, looks = agent(), []
    learner = Reinforce(rlp.learning, torch.randn(units, 9), np.random.default_rng(0))
    learner.start(lambda draws: looks.append(len(draws)) or 1.0)
    assert rlp.candidates_of_layer(units) == 100 * 10 + 2 + sum(looks)
    assert agent(initial_keep=0.9).candidates_of_layer(units) == 1002


@pytest.mark.parametrize("policy", ["best", "final"])
def test_a_layer_of_one_filter_stays(policy):
    network = nn.Sequential(
        nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    network.images, network.labels = torch.randn(20, 3, 8, 8), torch.zeros(20, dtype=torch.long)
    graph = rlprune.trace(network, network.images[:2])
    task = Task(environment(network, graph), network, graph, 0)
    assert task.turn.tolist() == [1]  # the first has nothing to lose
    with pytest.raises(UserError) as error:
        agent(mode="individual", layer="0").groups(graph)
    assert str(error.value) == "agent.layer=0: has one unit, which stays; choose another layer"
    assert len(agent(policy=policy, updates=3).decide(task, np.random.default_rng(0)).keep["0"]) == 1


# -- the whole network ------------------------------------------------------------


def search(folder, *, at=None, steps=2, rlp=None):
    """Two layers, kept in a folder; the interrupt comes with the measurement number `at`."""
    network = Planted("zeroed")
    graph = rlprune.trace(network, network.images[:2])
    size = Size(graph.num_channels, graph.macs({}), graph.params({}))
    none = Targets(None, None, None, None)
    schedule = make_schedule(targets=none, steps=steps, period=1, save_at=[], dense=size, smallest=Size(2, 1, 1), free=True, by_layer=True)
    settings = environment(network, graph, goals=schedule.goals)
    measured, trained, measure = [], [], settings.measure

    def counted(pruned):
        measured.append(1)
        if len(measured) == at:
            raise KeyboardInterrupt
        return measure(pruned)

    def recover(pruned, teacher, epochs, phase):
        trained.append((phase, epochs, [module.out_channels for module in (pruned.first, pruned.second)]))
        with torch.no_grad():
            pruned.head.bias += 0.01  # so that the next layer starts from another network

    settings = replace(settings, measure=counted)
    rlp = rlp or agent(updates=8, drop_bound=3.0)
    state = load_state(folder, network, graph, rlp, settings.ledger) or start_state(network, graph, 1.0)
    run_search(
        state, agent=rlp, environment=settings, schedule=schedule, recover=recover, epochs=1, final_epochs=2, seed=0,
        on_step=lambda state: save_state(folder, state, rlp), on_level=lambda *_: None,
        deciding=partial(keep_measured, folder / "measured.json", settings.ledger),
    )  # fmt: skip
    return state, len(measured), trained


def facts(state):
    steps = [(row.accuracy_pruned, row.accuracy_recovered, row.macs, row.candidates, row.repeated) for row in state.history.steps]
    return steps, state.history.layers, state.history.episodes, {name: units.tolist() for name, units in state.kept.items()}


def test_layers_are_pruned_from_low_to_high_with_a_recovery_behind_each(tmp_path):
    rlp = agent(updates=40, drop_bound=3.0)
    state, _, trained = search(tmp_path, rlp=rlp)
    first, second = (len(state.kept[name]) for name in ("first", "second"))
    assert first < UNITS
    assert trained == [("recover step 1", 1, [first, 8]), ("recover step 2", 2, [first, second])]
    assert [row["group"] for row in state.history.episodes] == sorted(row["group"] for row in state.history.episodes)
    assert {row["step"]: row["group"] for row in state.history.episodes} == {1: "first", 2: "second"}
    kept = rlp.state_dict()["keep_probability"]
    assert {name: len(values) for name, values in kept.items()} == {"first": first, "second": second}
    assert all(0 < value < 1 for values in kept.values() for value in values)


def test_several_layers_may_share_a_step(tmp_path):
    state, _, trained = search(tmp_path, steps=1)
    assert [phase for phase, *_ in trained] == ["recover step 1"]
    assert [row["group"] for row in state.history.episodes if row["episode"] == 1] == ["first", "second"]
    state, _, trained = search(tmp_path / "more", steps=3)
    assert [phase for phase, *_ in trained] == [f"recover step {step}" for step in (1, 2, 3)]  # the third has nothing to do


@pytest.mark.parametrize("at", [9, 30, 45])
def test_a_killed_run_goes_on_to_the_same_end(tmp_path, at):
    whole, all_measured, all_trained = search(tmp_path / "whole")
    assert all_measured > 45
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, at=at)
    rest, measured, trained = search(tmp_path)
    assert facts(rest) == facts(whole)
    assert measured < all_measured - at + 5  # what was measured is not measured again
    assert trained == all_trained[-len(trained) :]


def test_a_state_of_another_agent_is_refused():
    with pytest.raises((ValueError, TypeError, AttributeError)):
        agent().load_state_dict({"keep_probability": [1, 2]})
    assert agent().state_dict() == {}
    rlp = agent()
    rlp.load_state_dict({"keep_probability": {"a": [0.5]}})
    assert rlp.state_dict() == json.loads(json.dumps(rlp.state_dict())) == {"keep_probability": {"a": [0.5]}}
    rlp.load_state_dict({})
    assert rlp.state_dict() == {}


def test_a_step_with_a_goal_removes_what_the_policies_would_rather_lose():
    network = Planted("noise")
    graph = rlprune.trace(network, network.images[:2])
    goal = Goal(graph.num_channels - 5, math.inf, math.inf, True)
    task = Task(environment(network, graph, goals=(FREE, goal)), network, graph, 1)
    rlp = agent()
    keep = {"first": [0.9] * UNITS, "second": [0.9] * 8}
    for name, unit in (("first", 3), ("first", 15), ("second", 0), ("second", 7), ("first", 1)):
        keep[name][unit] = 0.1
    rlp.load_state_dict({"keep_probability": keep})
    candidate = rlp.decide(task, np.random.default_rng(0))
    assert set(range(UNITS)) - set(candidate.keep["first"].tolist()) == {1, 3, 15}
    assert set(range(8)) - set(candidate.keep["second"].tolist()) == {0, 7}


# -- settings ------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"drop_bound": 0}, "agent.drop_bound=0.0: must be > 0 points"),
        ({"drop_bound": -1.5}, "agent.drop_bound=-1.5: must be > 0 points"),
        ({"drop_bound": math.nan}, "agent.drop_bound=nan: must be a finite number"),
        ({"samples": 1}, "agent.samples=1: baseline=leave_one_out compares with the others, so it needs 2 or more; or baseline=none"),
        ({"samples": 0, "baseline": "none"}, "agent.samples=0: must be ≥ 1"),
        ({"mode": "individual"}, "agent.layer=null: mode=individual prunes one layer; name it"),
        ({"layer": "first"}, "agent.layer=first: goes with mode=individual"),
        ({"updates": 0}, "agent.updates=0: must be ≥ 1"),
        ({"passes": 0}, "agent.passes=0: must be ≥ 1"),
        ({"hidden": []}, "agent.hidden=[]: must be widths ≥ 1"),
        ({"lr": 0.0}, "agent.lr=0.0: must be > 0"),
        ({"initial_keep": 1.0}, "agent.initial_keep=1.0: must be in (0, 1), or null"),
        ({"mode": "both"}, "agent.mode=both"),
        ({"baseline": "mean"}, "agent.baseline=mean"),
        ({"policy": "worst"}, "agent.policy=worst"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(UserError) as error:
        agent(**settings)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_without_a_baseline_one_sample_will_do():
    task, _ = planted_task("zeroed", 0)
    rlp = agent(mode="individual", layer="first", samples=1, baseline="none", updates=5)
    assert rlp.candidates_of_layer(UNITS) == 12
    rlp.decide(task, np.random.default_rng(0))
    assert task.environment.ledger.distinct + task.environment.ledger.repeated <= 12


def test_a_layer_is_found_by_its_name_or_that_of_its_group():
    import nets

    network = nets.Residual().eval()
    graph = rlprune.trace(network, torch.zeros(2, 3, 16, 16))
    group = next(group for group in graph.groups if len(group.producers) > 1)
    for name in (group.name, *group.layers):
        assert agent(mode="individual", layer=name).groups(graph) == [group.name]
    assert agent().groups(graph) == [group.name for group in graph.groups]
    frozen = graph.frozen[0]
    with pytest.raises(UserError) as error:
        agent(mode="individual", layer=frozen.layer).groups(graph)
    assert f"agent.layer={frozen.layer}: its channels are kept ({frozen.reason})" in str(error.value)
    with pytest.raises(UserError) as error:
        agent(mode="individual", layer=group.layers[-1] + "x").groups(graph)
    assert "there is no such layer; did you mean" in str(error.value)
    assert group.layers[-1] in str(error.value)
