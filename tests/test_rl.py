import copy

import numpy as np
import pytest
import torch
from scipy import stats

from rlprune.rl.ddpg import ActorCritic, Learning, Losses
from rlprune.rl.episode import Episode, Transition, play
from rlprune.rl.networks import Actor, Bounded, Critic, Perceptron, soft_update
from rlprune.rl.noise import gaussian, truncated_normal
from rlprune.rl.replay import Batch, Replay

MOST = 0.8


def transition(number, features=3):
    """Every field says which one it is."""
    return Transition(np.full(features, number), number + 0.25, number + 0.5, np.full(features, number + 0.75), number % 2 == 1)


def numbers_of(batch):
    """The transitions in a batch; none of their fields has been mixed up with another's."""
    numbers = batch.rewards[:, 0] - 0.5
    np.testing.assert_array_equal(batch.observations, np.repeat(numbers[:, None], 3, axis=1))
    np.testing.assert_array_equal(batch.actions[:, 0], numbers + 0.25)
    np.testing.assert_array_equal(batch.next_observations, np.repeat(numbers[:, None], 3, axis=1) + 0.75)
    np.testing.assert_array_equal(batch.done[:, 0], numbers % 2)
    return numbers.astype(int).tolist()


def random_batch(size=6, features=3, seed=0):
    generator = np.random.default_rng(seed)
    widths = (features, 1, 1, features)
    arrays = [generator.random((size, width), dtype=np.float32) for width in widths]
    return Batch(arrays[0], MOST * arrays[1], arrays[2], arrays[3], (np.arange(size) % 3 == 2).astype(np.float32)[:, None])


def learning(**settings):
    usual = {
        "actor_hidden": [16, 12], "actor_bound": "clip", "critic_hidden": [14, 10], "actor_lr": 0.002, "critic_lr": 0.01,
        "discount": 0.9, "tau": 0.1, "replay_size": 20, "batch_size": 6,
    }  # fmt: skip
    return Learning(**(usual | settings))


def actor_critic(seed=0, **settings):
    return ActorCritic(learning(**settings), num_features=3, most=MOST, generator=np.random.default_rng(seed))


def weights(*networks):
    return [tensor.clone() for network in networks for tensor in network.state_dict().values()]


def same(first, second):
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# -- replay ----------------------------------------------------------------------------------------------------------------------------


def test_the_replay_wraps_and_forgets_the_oldest():
    replay = Replay(5, 3)
    for number in range(13):
        replay.store(transition(number))
        assert len(replay) == min(number + 1, 5)
        held = numbers_of(replay.sample(len(replay), np.random.default_rng(number)))
        assert sorted(held) == list(range(max(0, number - 4), number + 1))


def test_a_replay_that_is_not_full_never_hands_out_its_empty_rows():
    replay = Replay(100, 3)
    for number in (7, 8, 9):
        replay.store(transition(number))
    generator = np.random.default_rng(0)
    assert {row for _ in range(50) for row in numbers_of(replay.sample(2, generator))} == {7, 8, 9}
    with pytest.raises(ValueError, match="larger sample"):
        replay.sample(4, generator)


def test_a_sample_is_distinct_uniform_and_the_generators_alone():
    replay = Replay(20, 3)
    for number in range(25):
        replay.store(transition(number))
    generator, draws = np.random.default_rng(1), 4000
    counts = np.zeros(25)
    for _ in range(draws):
        rows = numbers_of(replay.sample(5, generator))
        assert len(set(rows)) == 5
        counts[rows] += 1
    np.testing.assert_array_equal(counts[:5], 0)
    assert stats.chisquare(counts[5:]).pvalue > 0.01
    before = np.random.get_state()[1].tolist()
    first, second = (numbers_of(replay.sample(5, np.random.default_rng(3))) for _ in range(2))
    assert first == second != numbers_of(replay.sample(5, np.random.default_rng(4)))
    assert np.random.get_state()[1].tolist() == before


def test_a_sample_does_not_change_with_the_replay():
    replay = Replay(3, 3)
    for number in range(3):
        replay.store(transition(number))
    batch = replay.sample(3, np.random.default_rng(0))
    for number in range(10, 13):
        replay.store(transition(number))
    assert sorted(numbers_of(batch)) == [0, 1, 2]
    assert len(batch) == 3


# -- networks --------------------------------------------------------------------------------------------------------------------------


def test_soft_update_is_its_closed_form():
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randn(4, 3, generator=generator), torch.randn(5, generator=generator)]
    sources = [torch.randn(4, 3, generator=generator), torch.randn(5, generator=generator)]
    old, places = [tensor.clone() for tensor in targets], [tensor.data_ptr() for tensor in targets]
    soft_update(iter(targets), iter(sources), 0.3)
    for target, source, before in zip(targets, sources, old, strict=True):
        torch.testing.assert_close(target, 0.3 * source + 0.7 * before)
    assert [tensor.data_ptr() for tensor in targets] == places
    soft_update(targets, sources, 1.0)
    assert same(targets, sources)


def test_a_perceptron_is_linear_layers_with_relu_between_them():
    network = Perceptron(3, [5, 4], torch.Generator().manual_seed(0))
    x, (first, second, last) = torch.randn(7, 3), network.layers
    expected = ((x @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias).relu() @ last.weight.T + last.bias
    torch.testing.assert_close(network(x), expected)
    assert [tuple(layer.weight.shape) for layer in network.layers] == [(5, 3), (4, 5), (1, 4)]
    for layer, bound in zip(network.layers, (3**-0.5, 5**-0.5, 0.003), strict=True):
        sizes = torch.cat([layer.weight.flatten(), layer.bias]).abs()
        assert bound / 2 < sizes.max() <= bound


def test_an_actor_begins_near_the_middle_and_never_leaves_its_bounds():
    actor = Actor(5, [300, 300], MOST, "clip", torch.Generator().manual_seed(0))
    observations = torch.rand(500, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first = actor(observations)
        assert first.shape == (500, 1)
        assert (first - MOST / 2).abs().max() < 0.05 * MOST
        assert first.std() > 0  # it looks at the state
        actor.body.layers[-1].weight.mul_(1e4)
        extreme = actor(observations)
    assert (extreme.min().item(), extreme.max().item()) == (0, float(np.float32(MOST)))


@pytest.mark.parametrize(
    ("x", "gradient", "expected"),
    [
        (0.2, -1.0, -0.75),  # up: three quarters of the way are left
        (0.2, 1.0, 0.25),  # down: a quarter
        (0.0, 1.0, 0.0),
        (0.0, -1.0, -1.0),
        (0.8, -1.0, 0.0),
        (0.8, 1.0, 1.0),
        (1.0, -1.0, 0.25),  # beyond the bound: pulled back, whatever the gradient says
        (1.0, 1.0, 1.25),
        (-0.2, 1.0, -0.25),
    ],
)
def test_a_gradient_shrinks_with_what_is_left_of_its_way(x, gradient, expected):
    leaf = torch.tensor([[x]], requires_grad=True)
    bounded = Bounded.apply(leaf, MOST)
    assert bounded.item() == pytest.approx(min(max(x, 0.0), MOST))
    bounded.backward(torch.tensor([[gradient]]))
    assert leaf.grad.item() == pytest.approx(expected, abs=1e-6)


def test_a_sigmoid_bounds_by_its_closed_form():
    actor = Actor(5, [30], MOST, "sigmoid", torch.Generator().manual_seed(0))
    observations = torch.rand(50, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        actions = actor(observations)
        torch.testing.assert_close(actions, MOST / (1 + torch.exp(-actor.body(observations))))
        assert (actions - MOST / 2).abs().max() < 0.05 * MOST
        assert same(weights(actor), weights(Actor(5, [30], MOST, "clip", torch.Generator().manual_seed(0))))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("bound", "returns"), [("clip", True), ("sigmoid", False)])
def test_a_clipped_policy_that_ran_to_an_end_comes_back_by_a_slope_ten_times_smaller(sign, bound, returns):
    actor = Actor(3, [32, 32], MOST, bound, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(actor.parameters(), lr=0.002)
    observations = torch.rand(16, 3, generator=torch.Generator().manual_seed(1))
    distances = []  # from where it is driven first
    for slope in (-1.0, 0.1):  # Adam remembers the first
        for _ in range(400):
            optimizer.zero_grad()
            (-sign * slope * actor(observations)).mean().backward()
            optimizer.step()
        action = actor(observations).mean().item()
        distances.append(action if sign == 1 else MOST - action)
    assert distances[0] < 0.05 * MOST
    assert (distances[1] > 0.9 * MOST) == returns
    assert returns or distances[1] < 0.1 * MOST


def test_a_critic_reads_state_and_action():
    critic = Critic(3, [8], torch.Generator().manual_seed(0))
    observations, actions = torch.rand(4, 3), torch.rand(4, 1)
    value = critic(observations, actions)
    torch.testing.assert_close(value, critic.body(torch.cat([observations, actions], dim=1)))
    assert value.shape == (4, 1)
    assert not torch.equal(value, critic(observations, actions + 0.3))
    assert not torch.equal(value, critic(observations + 0.3, actions))


# -- DDPG ------------------------------------------------------------------------------------------------------------------------------


def test_weights_and_updates_come_from_the_generator_alone():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    learners = []
    for seed, noise in ((5, 0), (5, 1), (6, 0)):
        before = torch.get_rng_state()
        learner = actor_critic(seed)
        learner.update(random_batch())
        learner.act(np.zeros(3))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(noise + 10)  # what others draw does not matter
        learners.append(weights(learner.actor, learner.critic, learner.target_actor, learner.target_critic))
    assert same(learners[0], learners[1])
    assert not any(torch.equal(one, other) for one, other in zip(learners[0], learners[2], strict=True))
    torch.set_rng_state(state)
    assert np.random.get_state()[1].tolist() == numpy_state


def test_the_targets_begin_as_copies():
    learner = actor_critic()
    assert same(weights(learner.target_actor, learner.target_critic), weights(learner.actor, learner.critic))
    assert learner.target_actor.body.layers[0].weight.data_ptr() != learner.actor.body.layers[0].weight.data_ptr()


def test_the_action_is_the_actors():
    learner = actor_critic()
    observation = np.array([0.1, 0.5, 0.9], dtype=np.float32)
    assert learner.act(observation) == learner.actor(torch.tensor(observation)[None]).item()
    assert learner.act(observation.astype(np.float64)) == learner.act(observation)


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_the_critics_loss_is_equations_7_and_8_and_the_actors_equation_9(baseline):
    learner, batch = actor_critic(), random_batch()
    with torch.no_grad():
        for network in (learner.target_actor, learner.target_critic):  # not the online ones any more
            for parameter in network.parameters():
                parameter.add_(0.05)
    actor, critic, target_actor, target_critic = copy.deepcopy((learner.actor, learner.critic, learner.target_actor, learner.target_critic))
    losses = learner.update(batch, baseline)
    errors = []
    for row in range(len(batch)):
        state, following = torch.from_numpy(batch.observations[row : row + 1]), torch.from_numpy(batch.next_observations[row : row + 1])
        ahead = 0.0 if batch.done[row, 0] else target_critic(following, target_actor(following)).item()
        target = batch.rewards[row, 0] - baseline + 0.9 * ahead
        errors.append((critic(state, torch.from_numpy(batch.actions[row : row + 1])).item() - target) ** 2)
    assert losses.critic == pytest.approx(np.mean(errors), rel=1e-5)
    states = torch.from_numpy(batch.observations)
    assert losses.actor == pytest.approx(-learner.critic(states, actor(states)).mean().item(), rel=1e-5)  # by the critic as it has become
    assert batch.done.sum() == 2


def test_an_update_moves_critic_actor_and_targets_each_by_its_own_rule():
    learner = actor_critic()
    actor, critic, target_actor, target_critic = copy.deepcopy((learner.actor, learner.critic, learner.target_actor, learner.target_critic))
    for_actor, for_critic = torch.optim.Adam(actor.parameters(), lr=0.002), torch.optim.Adam(critic.parameters(), lr=0.01)
    for seed in range(4):  # a gradient left behind by one update would show in the next
        batch = random_batch(seed=seed)
        learner.update(batch, 0.2)
        states, following = torch.from_numpy(batch.observations), torch.from_numpy(batch.next_observations)
        with torch.no_grad():
            ahead = (1 - torch.from_numpy(batch.done)) * target_critic(following, target_actor(following))
            targets = torch.from_numpy(batch.rewards) - 0.2 + 0.9 * ahead
        loss = ((critic(states, torch.from_numpy(batch.actions)) - targets) ** 2).mean()
        for parameter, gradient in zip(critic.parameters(), torch.autograd.grad(loss, list(critic.parameters())), strict=True):
            parameter.grad = gradient
        for_critic.step()  # by its own loss alone
        value = critic(states, actor(states)).mean()
        for parameter, gradient in zip(actor.parameters(), torch.autograd.grad(-value, list(actor.parameters())), strict=True):
            parameter.grad = gradient
        for_actor.step()
        for target, source in ((target_actor, actor), (target_critic, critic)):
            for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
                slow.data = 0.1 * fast.data + 0.9 * slow.data
        expected = weights(critic, actor, target_critic, target_actor)
        for found, wanted in zip(
            weights(learner.critic, learner.actor, learner.target_critic, learner.target_actor), expected, strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_actors_step_raises_the_value():
    learner, batch = actor_critic(actor_lr=1e-4), random_batch()
    for _ in range(30):
        before = copy.deepcopy(learner.actor)
        learner.update(batch)
        states = torch.from_numpy(batch.observations)
        with torch.no_grad():
            assert learner.critic(states, learner.actor(states)).mean() > learner.critic(states, before(states)).mean()


def test_actor_and_critic_solve_a_bandit_whose_answer_depends_on_the_state():
    learner = actor_critic(actor_hidden=[32, 32], critic_hidden=[32, 32], critic_lr=0.005)
    generator = np.random.default_rng(0)
    for _ in range(600):
        states, actions = generator.random((32, 3)), MOST * generator.random((32, 1))
        best = 0.2 + 0.4 * states[:, :1]
        rewards = -(((actions - best) / MOST) ** 2)
        learner.update(Batch(*(array.astype(np.float32) for array in (states, actions, rewards, states, np.ones((32, 1))))))
    found = [learner.act(np.array([place, 0.5, 0.5])) for place in (0.1, 0.25, 0.75, 0.9)]
    np.testing.assert_allclose(found, [0.24, 0.3, 0.5, 0.56], atol=0.08)


def test_the_mean_of_losses_has_the_names_of_the_table():
    assert Losses.mean([Losses(1.0, -4.0), Losses(2.0, -1.0)]) == {"critic_loss": 1.5, "actor_loss": -2.5}
    assert Losses.mean([]) == {"critic_loss": None, "actor_loss": None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actor_hidden": []}, r"^actor_hidden=\[\]: must be widths ≥ 1, such as \[300,300\]$"),
        ({"critic_hidden": [30, 0]}, r"^critic_hidden=\[30, 0\]: must be widths ≥ 1, such as \[300,300\]$"),
        ({"actor_lr": 0.0}, "^actor_lr=0.0: must be > 0$"),
        ({"critic_lr": -0.1}, "^critic_lr=-0.1: must be > 0$"),
        ({"discount": 1.01}, r"^discount=1.01: must be in \[0, 1\]$"),
        ({"discount": -0.01}, r"^discount=-0.01: must be in \[0, 1\]$"),
        ({"tau": 0.0}, r"^tau=0.0: must be in \(0, 1\]$"),
        ({"tau": 1.1}, r"^tau=1.1: must be in \(0, 1\]$"),
        ({"batch_size": 0}, "^batch_size=0: must be ≥ 1$"),
        ({"replay_size": 5}, "^replay_size=5: must hold a batch, ≥ batch_size=6$"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        learning(**settings)


def test_numbers_at_the_ends_of_their_range_are_taken():
    low, high = learning(discount=0.0, tau=1.0, replay_size=6), learning(discount=1.0, actor_hidden=[1], batch_size=1, replay_size=1)
    assert (low.discount, low.tau, low.replay_size) == (0.0, 1.0, 6)
    assert (high.discount, high.actor_hidden, high.batch_size, high.replay_size) == (1.0, [1], 1, 1)


# -- noise -----------------------------------------------------------------------------------------------------------------------------


def test_gaussian_noise_has_its_deviation_and_is_cut_off_at_the_bounds():
    generator = np.random.default_rng(0)
    free = np.array([gaussian(50.0, 0.5, 100.0, generator) for _ in range(20000)])
    assert free.mean() == pytest.approx(50, abs=0.02)
    assert free.std() == pytest.approx(0.5, rel=0.02)
    assert stats.kstest(free, "norm", (50, 0.5)).pvalue > 0.01
    cut = np.array([gaussian(0.2, 0.5, MOST, generator) for _ in range(20000)])
    assert (cut.min(), cut.max()) == (0.0, MOST)
    assert (cut == 0).mean() == pytest.approx(stats.norm.cdf(-0.4), abs=0.01)
    assert (cut == MOST).mean() == pytest.approx(stats.norm.sf(1.2), abs=0.01)
    assert gaussian(0.3, 0.0, MOST, generator) == 0.3


@pytest.mark.parametrize(("action", "std"), [(0.4, 0.5), (0.0, 0.5), (0.8, 0.1), (0.1, 0.05), (0.79, 5.0), (0.3, 1e-4)])
def test_truncated_noise_is_the_truncated_normal_distribution(action, std):
    generator = np.random.default_rng(0)
    draws = np.array([truncated_normal(action, std, MOST, generator) for _ in range(4000)])
    expected = stats.truncnorm(-action / std, (MOST - action) / std, loc=action, scale=std)
    assert draws.min() >= 0
    assert draws.max() <= MOST
    assert draws.mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / 4000**0.5)
    assert draws.std() == pytest.approx(expected.std(), rel=0.05)
    assert stats.kstest(draws, expected.cdf).pvalue > 0.01
    assert np.mean((draws == 0) | (draws == MOST)) == 0  # not cut off: drawn from within


def test_without_deviation_there_is_no_noise():
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    assert truncated_normal(0.3, 0.0, MOST, generator) == 0.3
    assert truncated_normal(0.9, 0.0, MOST, generator) == MOST
    assert generator.bit_generator.state == before


# -- episodes --------------------------------------------------------------------------------------------------------------------------


class Corridor:
    """Three steps; observations say where one is, rewards what was done."""

    def __init__(self, cut_at=None):
        self.cut_at, self.options, self.actions = cut_at, None, []

    def reset(self, *, seed=None, options=None):
        self.place, self.options = 0, options
        return np.array([0.0, 10.0]), {}

    def step(self, action):
        assert action.shape == (1,)
        self.actions.append(action.item())
        self.place += 1
        cut = self.place == self.cut_at
        info = {"place": self.place}
        return np.array([self.place, 10.0]), float(self.place) * action.item(), self.place == 3 and not cut, cut, info


def test_an_episode_is_a_chain_of_transitions():
    corridor, learned = Corridor(), []

    def learn(transition):
        assert len(corridor.actions) == len(learned) + 1  # before the next action
        learned.append(transition)

    episode = play(corridor, lambda observation: 0.5 + observation[0] / 4, learn=learn, options={"complete": True})
    assert [one.action for one in episode.transitions] == corridor.actions == [0.5, 0.75, 1.0]
    assert [one.observation.tolist() for one in episode.transitions] == [[0, 10], [1, 10], [2, 10]]
    for one, following in zip(episode.transitions, episode.transitions[1:], strict=False):
        np.testing.assert_array_equal(one.next_observation, following.observation)
    assert episode.transitions[-1].next_observation.tolist() == [3, 10]
    assert [one.reward for one in episode.transitions] == [0.5, 1.5, 3.0]
    assert [one.done for one in episode.transitions] == [False, False, True]
    assert (episode.complete, episode.info, episode.reward) == (True, {"place": 3}, 5.0)
    assert learned == episode.transitions
    assert corridor.options == {"complete": True}


@pytest.mark.parametrize("cut_at", [1, 2, 3])
def test_what_the_environment_cut_short_is_dropped(cut_at):
    learned = []
    episode = play(Corridor(cut_at), lambda observation: 1.0, learn=learned.append)
    assert not episode.complete
    assert episode.info == {"place": cut_at}
    assert [one.reward for one in episode.transitions] == [1.0, 2.0, 3.0][: cut_at - 1]
    assert len(learned) == cut_at - 1
    assert not any(one.done for one in episode.transitions)


def test_all_transitions_may_get_the_last_ones_reward():
    episode = play(Corridor(), lambda observation: 1.0)
    again = episode.with_last_reward()
    assert [one.reward for one in again] == [3.0, 3.0, 3.0]
    assert [one.reward for one in episode.transitions] == [1.0, 2.0, 3.0]  # a copy
    assert [(one.action, one.done, one.observation.tolist()) for one in again] == [
        (one.action, one.done, one.observation.tolist()) for one in episode.transitions
    ]
    assert Episode().reward == 0
