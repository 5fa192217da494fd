import numpy as np
import pytest

from rlprune.errors import UserError
from rlprune.search.allocate import allocate
from rlprune.search.schedule import level_steps, make_schedule


def test_unit_weights_meet_the_budget_exactly_and_keep_floors():
    generator = np.random.default_rng(0)
    for _ in range(300):
        size = generator.integers(1, 12)
        capacity = generator.integers(0, 20, size)
        weights = np.ones(size, dtype=int)
        budget = int(generator.integers(0, capacity.sum() + 5))
        shares = generator.random(size) * (generator.random(size) < 0.6)
        counts = allocate(shares, budget, weights, capacity)
        assert counts.sum() == min(budget, capacity.sum())
        assert (counts >= 0).all()
        assert (counts <= capacity).all()


def test_mixed_weights_come_within_one_unit_of_the_cheapest_group():
    generator = np.random.default_rng(1)
    for _ in range(300):
        size = generator.integers(1, 8)
        capacity = generator.integers(1, 12, size)
        weights = generator.integers(1, 8, size)
        budget = int(generator.integers(0, weights @ capacity + 1))
        counts = allocate(generator.random(size), budget, weights, capacity)
        gap = budget - int(weights @ counts)
        assert (counts <= capacity).all()
        with_room = weights[counts < capacity]
        assert gap == 0 or gap < with_room.min()


def test_shares_are_followed_and_remainders_go_by_size():
    ones, room = np.ones(3, dtype=int), np.full(3, 100)
    np.testing.assert_array_equal(allocate(np.array([0.5, 0.3, 0.2]), 10, ones, room), [5, 3, 2])
    np.testing.assert_array_equal(allocate(np.array([0.46, 0.34, 0.2]), 10, ones, room), [5, 3, 2])
    np.testing.assert_array_equal(allocate(np.array([0.5, 0.5, 0.0]), 12, np.array([2, 3, 1]), room), [3, 2, 0])
    # a gap of one channel is filled by exchanging a unit of two for one of three
    np.testing.assert_array_equal(allocate(np.array([1.0, 0.0]), 5, np.array([2, 3]), np.array([3, 3])), [1, 1])


def test_targets_reach_every_level_exactly():
    schedule = make_schedule(sparsity=0.75, steps=75, period=5, save_at=[0.25, 0.5], channels=2128, removable=2000)
    assert [schedule.targets[step - 1] for step in (25, 50, 75)] == [532, 1064, 1596]
    assert schedule.levels == {25: 0.25, 50: 0.5, 75: 0.75}
    assert all(np.diff(schedule.targets) >= 0)
    assert [step for step in range(1, 76) if schedule.recovers(step)] == list(range(5, 76, 5))
    off = make_schedule(sparsity=0.5, steps=4, period=3, save_at=[0.3], channels=100, removable=90)
    assert off.targets == (12, 30, 38, 50)
    assert [step for step in range(1, 5) if off.recovers(step)] == [2, 3, 4]


def test_unreachable_and_colliding_levels_are_refused():
    with pytest.raises(UserError, match=r"at most 0\.900 is within reach"):
        make_schedule(sparsity=0.95, steps=2, period=1, save_at=[], channels=100, removable=90)
    with pytest.raises(UserError, match="fall on one step"):
        level_steps(sparsity=0.5, steps=4, save_at=[0.25, 0.26])
