import math
from types import SimpleNamespace

import nets
import numpy as np
import pytest
import torch

import rlprune
from rlprune.errors import UserError
from rlprune.search.allocate import allocate, carried, give_back, turns_by_share
from rlprune.search.limits import Goal, Limits, Room
from rlprune.search.schedule import Size, Targets, level_steps, make_schedule


def room_of(units, weights, capacity=None, round_to=1, min_keep=None):
    """Room of groups that are nothing but numbers."""
    units, weights = np.array(units), np.array(weights)
    graph = SimpleNamespace(num_units=units, channels_per_unit=weights, num_channels=int(units @ weights), groups=units)
    floors = [1] * len(units) if capacity is None else units - np.array(capacity)
    return Room(graph, [Limits(max(1, floor), round_to, 1.0).kept_counts("", n) for n, floor in zip(units.tolist(), floors, strict=True)])


def remove(room, shares, budget, carry=None, exact=True):
    goal = Goal(room.graph.num_channels - budget, math.inf, math.inf, exact)
    carry = np.zeros(len(shares)) if carry is None else carry
    counts = allocate(turns_by_share(np.array(shares, dtype=float), carry, room), room, goal)
    return counts, carried(np.array(shares, dtype=float), carry, counts, room)


def test_unit_weights_meet_the_budget_exactly_and_keep_floors():
    generator = np.random.default_rng(0)
    for _ in range(300):
        size = generator.integers(1, 12)
        capacity = generator.integers(0, 20, size)
        room = room_of(capacity + 1, np.ones(size, dtype=int))
        budget = int(generator.integers(0, capacity.sum() + 1))
        shares = generator.random(size) * (generator.random(size) < 0.6)
        counts, carry = remove(room, shares, budget)
        assert counts.sum() == budget
        assert (counts >= 0).all()
        assert (counts <= capacity).all()
        assert carry.sum() == pytest.approx(0, abs=1e-9)


def test_an_exact_goal_is_met_within_one_unit_of_the_cheapest_group():
    generator = np.random.default_rng(1)
    missed = 0
    for _ in range(300):
        size = generator.integers(1, 8)
        capacity, weights = generator.integers(1, 12, size), generator.integers(1, 8, size)
        room = room_of(capacity + 1, weights)
        budget = int(generator.integers(0, weights @ capacity + 1))
        counts, _ = remove(room, generator.random(size), budget)
        over = int(weights @ counts) - budget
        assert over >= 0
        assert (counts <= capacity).all()
        sums = {0}
        for weight, most in zip(weights.tolist(), capacity.tolist(), strict=True):
            sums = {total + weight * number for total in sums for number in range(most + 1)}
        least = min(total for total in sums if total >= budget) - budget
        assert over < weights.min() or over == least
        missed += over > least
    assert missed < 30  # exchanging one unit for units of another group finds most


def test_shares_are_followed():
    room = room_of([101] * 3, [1] * 3)
    np.testing.assert_array_equal(remove(room, [0.5, 0.3, 0.2], 10)[0], [5, 3, 2])
    np.testing.assert_array_equal(remove(room, [0.46, 0.34, 0.2], 10)[0], [5, 3, 2])
    np.testing.assert_array_equal(remove(room_of([101] * 3, [2, 3, 1]), [0.5, 0.5, 0.0], 12)[0], [3, 2, 0])
    # a gap of one channel is filled by exchanging a unit of two for one of three
    np.testing.assert_array_equal(remove(room_of([4, 4], [2, 3]), [1.0, 0.0], 5)[0], [1, 1])
    np.testing.assert_array_equal(remove(room, [0.0, 0.0, 0.0], 9)[0], [3, 3, 3])


def test_a_full_group_hands_its_budget_on_in_proportion():
    room = room_of([3, 101, 101], [1, 1, 1])
    counts, carry = remove(room, [0.8, 0.15, 0.05], 22)
    np.testing.assert_array_equal(counts, [2, 15, 5])
    np.testing.assert_allclose(carry, 0, atol=1e-9)


def test_small_shares_never_vanish_over_the_steps():
    shares = np.array([0.02, 0.03, 0.05, 0.4, 0.5])
    room, removed, carry = room_of([1001] * 5, [1] * 5), np.zeros(5, dtype=int), np.zeros(5)
    for step in range(1, 101):
        counts, carry = remove(room, shares, 4, carry)  # alone, a step would always round to [0, 0, 0, 2, 2]
        removed += counts
        assert np.abs(removed - 4 * step * shares).max() <= 1.0
    np.testing.assert_array_equal(removed, [8, 12, 20, 160, 200])


def test_a_share_that_is_zero_now_and_then_loses_no_credit():
    room, removed, carry = room_of([401, 401], [1, 1]), np.zeros(2, dtype=int), np.zeros(2)
    for step in range(100):  # what MCQ's clamp at 0 makes of a small share
        counts, carry = remove(room, [0.4, 0.6] if step % 2 else [0.0, 1.0], 1, carry)
        removed += counts
    np.testing.assert_array_equal(removed, [20, 80])


def test_hundreds_of_heavy_groups_and_a_gap_that_no_exchange_closes():
    room = room_of([41] * 300, [2, 4] * 150)
    counts, _ = remove(room, np.random.default_rng(0).random(300), 1001)
    assert counts @ room.weights == 1002


def test_units_heavier_than_a_step_take_their_turn():
    room, removed, carry = room_of([40, 400], [10, 1]), np.zeros(2, dtype=int), np.zeros(2)
    for step in range(1, 31):
        counts, carry = remove(room, [0.5, 0.5], max(0, 4 * step - int(removed @ room.weights)), carry, exact=False)
        removed += counts
    np.testing.assert_array_equal(removed * room.weights, [60, 60])


def test_kept_counts_are_multiples():
    room = room_of([16, 20, 9], [1, 1, 1], round_to=8)
    assert [room.capacity.tolist(), room.num_chunks.tolist()] == [[8, 12, 1], [1, 2, 1]]
    counts, _ = remove(room, [1, 1, 1], 13, exact=False)
    assert all(kept % 8 == 0 or gone == 0 for kept, gone in zip(np.array([16, 20, 9]) - counts, counts, strict=True))
    assert counts.sum() == 13
    np.testing.assert_array_equal(remove(room, [1, 0, 0], 9)[0], [8, 0, 1])
    np.testing.assert_array_equal(Limits(1, 8, 0.5).kept_counts("x", 40), [40, 32, 24])
    np.testing.assert_array_equal(Limits(5, 1, {"a.*": 0.0, ".*": 0.25}).kept_counts("b", 8), [8, 7, 6])
    np.testing.assert_array_equal(Limits(5, 1, {"a.*": 0.0, ".*": 0.25}).kept_counts("abc", 8), [8])


@pytest.mark.parametrize("name", ["macs", "params"])
def test_a_cost_budget_is_met_within_one_unit(name):
    graph = rlprune.trace(nets.randomised(nets.Residual()), torch.zeros(2, 3, 8, 8))
    cost, none = getattr(graph.cost, name), np.zeros(len(graph.groups), dtype=int)
    room = Room(graph, [np.arange(units, 0, -1) for units in graph.num_units])
    generator = np.random.default_rng(0)
    for share in np.linspace(0.3, 0.95, 14):
        bound = {"macs": math.inf, "params": math.inf} | {name: math.floor(share * cost(none))}
        goal = Goal(math.inf, bound["macs"], bound["params"], True)
        counts = allocate(turns_by_share(generator.random(len(none)), none * 1.0, room), room, goal)
        assert cost(counts) <= bound[name]
        back = [cost(counts - unit) for unit in np.eye(len(none), dtype=int) if (counts >= unit).all()]
        cheapest = min(cost(counts - unit) - cost(counts) for unit in np.eye(len(none), dtype=int))
        assert min(back) > bound[name] or bound[name] - cost(counts) < cheapest


@pytest.mark.parametrize("kind", [nets.Concat, nets.TiedDecoder, nets.GroupedPositions, nets.BilinearPooling, nets.AttentionWidth])
def test_one_group_changed_costs_what_the_whole_plan_does(kind):
    graph = rlprune.trace(nets.randomised(kind()), torch.zeros(2, 3, 8, 8))
    generator = np.random.default_rng(0)
    assert graph.cost.whole == (graph.macs({}), graph.params({}))
    for _ in range(20):
        counts = generator.integers(0, graph.num_units)
        more = generator.integers(-counts, graph.num_units - counts)
        for fast, slow in zip(graph.cost.one_changed(counts, more), graph.cost.many(counts + np.diag(more)), strict=True):
            np.testing.assert_array_equal(fast, slow)
        goal = Goal(graph.num_channels / 2, graph.macs({}) / 3, math.inf, True)
        np.testing.assert_array_equal(goal.excess_of_one(graph, counts, more), goal.excess(graph, counts + np.diag(more)))


def test_what_comes_back_is_the_heaviest_that_can():
    room = room_of([9, 9, 9], [1, 2, 5])
    goal = Goal(room.graph.num_channels - 20, math.inf, math.inf, True)
    taken = np.array([5, 5, 5])  # 40 channels
    np.testing.assert_array_equal(give_back(taken, room, goal), [5, 5, 1])
    np.testing.assert_array_equal(give_back(np.array([0, 8, 1]), room, goal), [0, 8, 1])
    np.testing.assert_array_equal(give_back(np.array([8, 5, 1]), room, goal), [7, 4, 1])
    np.testing.assert_array_equal(taken, 5)


def schedule_of(*, sparsity=None, macs=None, params=None, max_drop=None, steps=4, period=1, save_at=(), channels=100, removable=90):
    return make_schedule(
        targets=Targets(sparsity, macs, params, max_drop), steps=steps, period=period, save_at=save_at,
        dense=Size(channels, 1000, 500), smallest=Size(channels - removable, 40, 30),
    )  # fmt: skip


def test_goals_reach_every_level_exactly():
    schedule = schedule_of(sparsity=0.75, steps=75, period=5, save_at=[0.25, 0.5], channels=2128, removable=2000)
    assert [2128 - schedule.goals[step - 1].channels for step in (25, 50, 75)] == [532, 1064, 1596]
    assert [step for step in range(1, 76) if schedule.goals[step - 1].exact] == [25, 50, 75]
    assert schedule.levels == {25: 0.25, 50: 0.5, 75: 0.75}
    assert all(np.diff([goal.channels for goal in schedule.goals]) <= 0)
    assert [step for step in range(1, 76) if schedule.recovers(step)] == list(range(5, 76, 5))
    off = schedule_of(sparsity=0.5, period=3, save_at=[0.3])
    assert [100 - goal.channels for goal in off.goals] == [13, 30, 38, 50]
    assert [step for step in range(1, 5) if off.recovers(step)] == [2, 3, 4]
    assert [step for step in range(1, 5) if off.saves(step)] == [2, 4]


def test_several_targets_hold_together():
    schedule = schedule_of(sparsity=0.5, macs=0.2, params=0.6, steps=2)
    first, last = schedule.goals
    assert (first.channels, first.macs, first.params) == (75, 600, 400)
    assert (last.channels, last.macs, last.params) == (50, 200, 300)
    cost = schedule_of(macs=0.5, steps=2)
    assert (cost.goals[1].channels, cost.goals[1].macs, cost.levels) == (math.inf, 500, {2: None})
    drop = schedule_of(max_drop=1.5, steps=3, period=2)
    assert [goal.channels for goal in drop.goals] == [70, 40, 10]
    assert (drop.max_drop, [drop.saves(step) for step in (1, 2, 3)]) == (0.015, [False, True, True])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 0.95}, r"schedule\.sparsity=0\.95: at most 0\.900 is within reach"),
        ({"macs": 0.01}, r"budget\.macs=0\.01: 0\.040 to 1 of the dense network's is within reach"),
        ({"params": 0.05, "sparsity": 0.5}, r"budget\.params=0\.05: 0\.060 to 1"),
        ({}, "nothing says how much goes"),
        ({"macs": 0.5, "save_at": [0.25]}, "levels are channel sparsities"),
        ({"sparsity": 0.5, "removable": 0}, "nothing may go"),
    ],
)
def test_what_cannot_be_reached_is_refused_with_what_can(settings, message):
    with pytest.raises(UserError, match=message):
        schedule_of(**settings)


def test_colliding_levels_and_limits_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="fall on one step"):
        level_steps(sparsity=0.5, steps=4, save_at=[0.25, 0.26])
    graph = rlprune.trace(nets.randomised(nets.Concat()), torch.zeros(2, 3, 8, 8))  # groups of 8, 4 and 6 units
    with pytest.raises(UserError, match=r"schedule\.round_to=5: the channel group a has 4 units only; choose 4 or less, or ignore=\[a\]"):
        Limits(1, 5, 1.0).check(graph)
    with pytest.raises(UserError, match=r"schedule\.max_sparsity: nope matches no channel group; there are stem, a, b"):
        Limits(1, 1, {"nope": 0.5}).check(graph)
