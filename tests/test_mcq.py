from dataclasses import dataclass

import numpy as np
import pytest

from rlprune.agents.global_ranking import GlobalRanking
from rlprune.agents.mcq import MCQ, Entry
from rlprune.agents.random_search import RandomSearch
from rlprune.agents.uniform import Uniform
from rlprune.config import build, conf_dir, load_yaml

BEST = np.array([0.05, 0.6, 0.1, 0.25])


@dataclass
class Outcome:
    action: np.ndarray
    reward: float
    accuracy: float


class Toy:
    """Rewards an action for being near BEST, in every step."""

    def __init__(self, step=0, steps=30):
        self.step, self.steps, self.exhausted, self.accuracy = step, steps, False, 0.9
        self.channel_shares = np.full(4, 0.25)
        self.seen = []

    def evaluate(self, action):
        self.seen.append(action)
        reward = 1 - np.abs(action - BEST).sum()
        return Outcome(action, reward, reward)

    def evaluate_many(self, actions):
        return [self.evaluate(action) for action in (actions[:1] if self.exhausted else actions)]

    def after(self, candidate):
        return Toy(self.step + 1, self.steps) if self.step + 1 < self.steps else None


def agent(**settings):
    return build(load_yaml(conf_dir() / "agent" / "mcq.yaml") | settings, "agent")


def search(mcq, steps=30, seed=0):
    return [mcq.decide(Toy(step, steps), np.random.default_rng([seed, step])) for step in range(steps)]


def test_it_finds_the_best_distribution_and_beats_uniform():
    mcq = agent()
    chosen = search(mcq)
    uniform = Uniform().decide(Toy(), np.random.default_rng(0))
    assert np.abs(mcq.distribution - BEST).max() < 0.03
    assert np.mean([outcome.reward for outcome in chosen[-5:]]) > 0.9 > 0.4 > uniform.reward


def test_the_same_seed_gives_the_same_trace_and_another_does_not():
    first, second, other = agent(), agent(), agent()
    traces = [[outcome.reward for outcome in search(mcq, 4, seed)] for mcq, seed in ((first, 7), (second, 7), (other, 8))]
    assert traces[0] == traces[1] != traces[2]


def test_a_saved_agent_goes_on_as_if_it_had_not_stopped():
    whole, part = agent(), agent()
    search(whole, 6)
    search(part, 3)
    rest = agent()
    rest.load_state_dict(part.state_dict())
    for step in range(3, 6):
        rest.decide(Toy(step, 6), np.random.default_rng([0, step]))
    reference = agent()
    for step in range(6):
        reference.decide(Toy(step, 6), np.random.default_rng([0, step]))
    np.testing.assert_array_equal(rest.distribution, reference.distribution)


def test_a_step_measures_stages_times_samples():
    task = Toy()
    mcq = agent(stages=3, sample_num=4)
    mcq.decide(task, np.random.default_rng(0))
    assert len(task.seen) == mcq.candidates_per_step == 12
    for action in task.seen:
        assert action.min() >= 0
        assert action.sum() == pytest.approx(1)


def test_noise_has_the_papers_scale():
    mcq = agent()
    mcq.initial = mcq.distribution = np.full(1000, 1 / 1000) + 0.5  # far from the clamp
    generator = np.random.default_rng(0)
    total = mcq.distribution.sum()
    spread = [np.std(mcq.sample(generator) * total - mcq.distribution) for _ in range(400)]
    assert max(spread) < 0.04 * 1.15
    assert np.mean(spread) == pytest.approx(0.04 / 2, rel=0.1)  # E[u] = 1/2


def test_the_update_is_equations_19_and_20():
    mcq = agent(step_size=0.2, clip=0.2)
    mcq.initial = mcq.distribution = np.array([0.5, 0.5])
    mcq.update(np.array([0.7, 0.3]))  # ratios 1.08 and 0.92: not clipped
    np.testing.assert_allclose(mcq.distribution, [0.54, 0.46])
    mcq.initial = mcq.distribution = np.array([0.1, 0.9])
    mcq.update(np.array([0.9, 0.1]))  # 0.1 → 0.26, clipped to 0.12; 0.9 → 0.74, not clipped (ratio 0.82)
    np.testing.assert_allclose(mcq.distribution, np.array([0.12, 0.74]) / 0.86)


def test_a_share_of_zero_can_return():
    mcq = agent()
    mcq.initial, mcq.distribution = np.array([0.5, 0.5]), np.array([0.0, 1.0])
    for _ in range(60):
        mcq.update(np.array([0.5, 0.5]))
    assert mcq.distribution[0] > 0.3


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("constant", [0.4, 0.4, 0.4, 0.4]), ("linear", [0.4, 0.2, 0.0, 0.0]), ("cosine", [0.4, 0.2, 0.0, 0.0])],
)
def test_exploration_decays_over_the_first_tenth(decay, expected):
    mcq = agent(epsilon_decay=decay)
    np.testing.assert_allclose([mcq.exploration(step, 20) for step in (0, 1, 2, 19)], expected, atol=1e-12)
    cosine = agent(epsilon_decay="cosine")
    assert cosine.exploration(1, 40) == pytest.approx(0.4 * 0.5 * (1 + np.cos(np.pi / 4)))


def test_the_buffer_keeps_the_highest_and_breaks_ties_at_random():
    mcq = agent(sample_num=2)
    generator = np.random.default_rng(0)
    buffer = []
    for q_value in (1.0, 3.0, 2.0, 0.5):
        mcq.store(buffer, Entry(np.zeros(1), q_value, None), generator)
    assert sorted(entry.q_value for entry in buffer) == [2.0, 3.0]
    survivors = set()
    for seed in range(40):
        buffer = [Entry(np.zeros(1), 1.0, name) for name in "ab"]
        mcq.store(buffer, Entry(np.zeros(1), 1.0, "c"), np.random.default_rng(seed))
        survivors.add("".join(entry.candidate for entry in buffer))
    assert survivors == {"ab", "ac", "cb"}
    picks = {mcq.choose(buffer, 1.0, np.random.default_rng(seed)).candidate for seed in range(20)}
    assert len(picks) == 2


def test_lookahead_adds_the_discounted_best_successor():
    mcq = agent(sample_steps=3, sample_num=2, discount=0.5, noise_std=0.0)
    mcq.initial = mcq.distribution = np.full(4, 0.25)
    reward = Toy().evaluate(mcq.distribution).reward
    generator = np.random.default_rng(0)
    first = Toy(0, 30)
    assert mcq.q_value(first, first.evaluate(mcq.distribution), 3, generator) == pytest.approx(reward * (1 + 0.5 + 0.25))
    last = Toy(29, 30)
    assert mcq.q_value(last, last.evaluate(mcq.distribution), 3, generator) == pytest.approx(reward)
    assert mcq.candidates_per_step == 10 * (2 + 4 + 8)


def test_options_of_the_published_code():
    mcq = agent(reset_drop=0.1)
    task = Toy()
    task.accuracy = 5.0  # whatever is chosen is a drop
    mcq.decide(task, np.random.default_rng(0))
    np.testing.assert_array_equal(mcq.distribution, mcq.initial)
    lazy, eager = agent(update_on_improvement=True, stages=30, epsilon=0.0), agent(stages=30, epsilon=0.0)
    moved = []
    for mcq in (lazy, eager):
        updates = []
        mcq.update = lambda action, mcq=mcq, updates=updates: (updates.append(1), MCQ.update(mcq, action))
        mcq.decide(Toy(), np.random.default_rng(0))
        moved.append(len(updates))
    assert moved[0] < moved[1] == 30


def test_an_exhausted_task_ends_sampling_with_one_candidate():
    task = Toy()
    task.exhausted = True
    assert agent().decide(task, np.random.default_rng(0)) is not None
    assert len(task.seen) == 1


def test_uniform_follows_the_channels_and_keeps_nothing():
    task = Toy()
    assert Uniform().decide(task, np.random.default_rng(0)).action is task.channel_shares
    assert Uniform().state_dict() == {}
    with pytest.raises(ValueError, match="uniform keeps no state"):
        Uniform().load_state_dict({"distribution": []})


def test_random_search_carries_out_its_best_draw_and_learns_nothing():
    search, task = RandomSearch(candidates=20, noise_std=0.04, ranking=None), Toy()
    chosen = search.decide(task, np.random.default_rng(0))
    assert len(task.seen) == search.candidates_per_step == 20
    assert chosen.reward == max(1 - np.abs(action - BEST).sum() for action in task.seen)
    later = Toy()
    later.channel_shares = BEST  # a later network's shares do not matter
    search.decide(later, np.random.default_rng(1))
    assert np.abs(np.mean(later.seen, axis=0) - 0.25).max() < 0.02
    again = RandomSearch(candidates=20, noise_std=0.04, ranking=None)
    again.load_state_dict(search.state_dict())
    np.testing.assert_array_equal(again.shares, np.full(4, 0.25))
    hurried = Toy()
    hurried.exhausted = True
    search.decide(hurried, np.random.default_rng(0))
    assert len(hurried.seen) == 1


def test_mcq_beats_random_search_with_as_many_candidates():
    learned = np.mean([outcome.reward for outcome in search(agent())[-5:]])
    drawn = RandomSearch(candidates=100, noise_std=0.04, ranking=None)
    blind = np.mean([drawn.decide(Toy(step), np.random.default_rng([0, step])).reward for step in range(30)][-5:])
    assert learned > blind + 0.3


@pytest.mark.parametrize("kind", ["mcq", "random_search"])
def test_a_search_can_start_each_step_from_the_ranking(kind):
    class Ranked(Toy):
        def __init__(self):
            super().__init__()
            self.scores, self.ranked = [np.ones(2)] * 4, 0

        def evaluate_ranking(self, scores):
            self.ranked += 1
            return self.evaluate(BEST)

    task = Ranked()
    if kind == "mcq":
        searching = agent(ranking="mean", epsilon=0.0, stages=3)
    else:
        searching = RandomSearch(candidates=30, noise_std=0.04, ranking="mean")
    chosen = searching.decide(task, np.random.default_rng(0))
    assert chosen.reward == 1.0
    assert (task.ranked, len(task.seen)) == (1, 30)
    np.testing.assert_array_equal(task.seen[0], BEST)
    if kind == "mcq":
        assert np.abs(searching.distribution - BEST).sum() < np.abs(0.25 - BEST).sum()


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [("mean", [[0.5, 1.5], [1.0]]), ("max", [[1 / 3, 1.0], [1.0]]), ("l2", [[0.1**0.5, 0.9**0.5], [1.0]]), ("none", [[1.0, 3.0], [7.0]])],
)
def test_global_ranks_normalised_scores(normalization, expected):
    class Ranked(Toy):
        def __init__(self):
            super().__init__()
            self.scores = [np.array([1.0, 3.0]), np.array([7.0]), np.zeros(2)]

        def evaluate_ranking(self, scores):
            return scores

    ranked = GlobalRanking(normalization=normalization).decide(Ranked(), None)
    for values, wanted in zip(ranked, [*expected, [0, 0]], strict=True):
        np.testing.assert_allclose(values, wanted)
