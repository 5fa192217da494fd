import copy
import json
import math
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from rlprune.rl.environment import EnvironmentModel, Modelling
from rlprune.rl.episode import Transition
from rlprune.rl.gru import GRU
from rlprune.rl.joint import JointLearner
from rlprune.rl.networks import GaussianActor
from rlprune.rl.optimizer import load_moments, moments
from rlprune.rl.replay import Batch, EpochReplay
from rlprune.rl.sac import Learning, SoftActorCritic

MOST = 0.8


def learning(**settings):
    usual = {
        "hidden": [32, 32], "actor_lr": 0.002, "critic_lr": 0.005, "entropy": 0.1, "discount": 1.0, "tau": 0.05, "replay_size": 2000,
        "batch_size": 32,
    }  # fmt: skip
    return Learning(**(usual | settings))


def modelling(**settings):
    return Modelling(**({"embedding": 16, "gru_hidden": 12, "decoder_hidden": [32, 24], "lr": 0.003} | settings))


def agent(seed=0, features=3, **settings):
    return SoftActorCritic(learning(**settings), num_features=features, most=MOST, generator=np.random.default_rng(seed))


def joint(seed=0, model=True, features=2, epochs=6, sizes=(), **settings):
    return JointLearner(
        learning(**settings),
        modelling(**dict(sizes)) if model else None,
        num_features=features,
        most=MOST,
        epochs=epochs,
        generator=np.random.default_rng(seed),
    )


def random_batch(size=6, features=3, seed=0):
    generator = np.random.default_rng(seed)
    arrays = [generator.random((size, width), dtype=np.float32) for width in (features, 1, 1, features)]
    return Batch(arrays[0], MOST * arrays[1], arrays[2], arrays[3], (np.arange(size) % 3 == 2).astype(np.float32)[:, None])


def fill(learner, count, epochs, seed=0, features=2):
    """Random transitions, a part in each of the first epochs."""
    generator = np.random.default_rng(seed)
    learner.begin(epochs - 1)
    for number in range(count):
        observations = generator.random((2, features))
        learner.store(
            Transition(observations[0], MOST * generator.random(), generator.random(), observations[1], number % 3 == 2), number % epochs
        )
    return learner


def tensors(state):
    """All that a state holds, by the way to it."""
    if isinstance(state, dict):
        return {f"{name}.{way}": value for name, each in state.items() for way, value in tensors(each).items()}
    if isinstance(state, list | tuple):
        return tensors(dict(enumerate(state)))
    return {"": state}


def same(first, second):
    first, second = tensors(first), tensors(second)
    assert first.keys() == second.keys()
    return all(torch.equal(one, second[way]) if isinstance(one, torch.Tensor) else one == second[way] for way, one in first.items())


# -- the policy --------------------------------------------------------------------------------------------------------------------------


def actor_at(mean, log_std):
    """A policy that says the same of every state."""
    actor = GaussianActor(3, [4], MOST, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        actor.body.layers[-1].weight.zero_()
        actor.body.layers[-1].bias.copy_(torch.tensor([mean, 5 * math.atanh(log_std / 5)], dtype=torch.double))
    return actor


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (1.3, -1.0), (-2.0, 0.5), (0.2, -2.5), (0.0, 1.0)])
def test_a_policy_is_the_squashed_gaussian_and_its_density_integrates_to_1(mean, log_std):
    actor = actor_at(mean, log_std)
    actions = MOST * stats.beta(2, 2).ppf(np.linspace(0.001, 0.999, 50))
    before = np.arctanh(2 * actions / MOST - 1)
    noise = (before - mean) / math.exp(log_std)

    def density(action):
        x = np.arctanh(2 * action / MOST - 1)
        return stats.norm(mean, math.exp(log_std)).pdf(x) / (MOST / 2 * (1 - np.tanh(x) ** 2))

    with torch.no_grad():
        drawn, log_probability = actor(torch.zeros(50, 3).double(), torch.from_numpy(noise)[:, None])
    np.testing.assert_allclose(drawn[:, 0], actions, rtol=1e-9)
    np.testing.assert_allclose(log_probability[:, 0].exp(), density(actions), rtol=1e-9)
    # over [0, most], in steps of the noise: ∫ π(a) da = ∫ π(a(ε)) da/dε dε
    grid = np.linspace(-9, 9, 20001)
    with torch.no_grad():
        drawn, log_probability = actor(torch.zeros(len(grid), 3).double(), torch.from_numpy(grid)[:, None])
    assert integrate.trapezoid(log_probability[:, 0].exp().numpy(), drawn[:, 0].numpy()) == pytest.approx(1, abs=1e-4)
    assert drawn[:, 0].diff().min() >= 0


def test_far_outside_the_density_is_finite_and_actions_stay_in_their_range():
    actor = GaussianActor(3, [16], MOST, torch.Generator().manual_seed(0))
    observations = 100 * torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    noise = 5 * torch.randn(200, 1, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        actor.body.layers[-1].weight.mul_(1e3)
    actions, log_probability = actor(observations, noise)
    assert (actions.min().item(), actions.max().item()) == (0, float(np.float32(MOST)))
    assert log_probability.isfinite().all()
    (actions.sum() + log_probability.sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in actor.parameters())


def test_a_draw_is_the_policys_and_greedy_is_its_squashed_mean():
    learner = agent()
    with torch.no_grad():
        learner.actor.body.layers[-1].bias.copy_(torch.tensor([0.7, -0.5]))
    observation, generator = np.array([0.1, 0.5, 0.9]), np.random.default_rng(0)
    mean, log_std = (value.item() for value in learner.actor.gaussian(torch.tensor(observation).float()[None]))
    draws = np.array([learner.act(observation, generator) for _ in range(4000)])
    assert draws.min() >= 0
    assert draws.max() <= MOST
    assert stats.kstest(np.arctanh(2 * draws / MOST - 1), "norm", (mean, math.exp(log_std))).pvalue > 0.01
    assert learner.greedy(observation) == pytest.approx(MOST / 2 * (1 + math.tanh(mean)), rel=1e-6)
    assert learner.act(observation, np.random.default_rng(1)) == learner.act(observation, np.random.default_rng(1))


def test_a_policy_begins_wide_around_the_middle():
    learner, generator = agent(features=5, hidden=[300, 300]), np.random.default_rng(0)
    draws = np.array([learner.act(generator.random(5), generator) for _ in range(2000)])
    assert learner.greedy(generator.random(5)) == pytest.approx(MOST / 2, abs=0.05 * MOST)
    assert draws.std() == pytest.approx(0.63 * MOST / 2, rel=0.1)  # the standard deviation of tanh of a standard normal


# -- soft actor-critic -------------------------------------------------------------------------------------------------------------------


def test_an_update_is_its_equations():
    learner = agent(tau=0.1)
    actor, critics, slow = copy.deepcopy((learner.actor, learner.critics, learner.target_critics))
    for_actor, for_critics = torch.optim.Adam(actor.parameters(), lr=0.002), torch.optim.Adam(critics.parameters(), lr=0.005)
    for seed in range(4):  # a gradient left behind by one update would show in the next
        batch = random_batch(seed=seed)
        losses = learner.update(batch, np.random.default_rng(seed))
        noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 6, 1), dtype=np.float32))
        states, following, actions, rewards = (
            torch.from_numpy(array) for array in (batch.observations, batch.next_observations, batch.actions, batch.rewards)
        )
        with torch.no_grad():
            ahead, log_ahead = actor(following, noise[1])
            value = torch.minimum(slow[0](following, ahead), slow[1](following, ahead)) - 0.1 * log_ahead
            targets = rewards + torch.where(torch.from_numpy(batch.done) == 1, 0.0, value)
        error = ((critics[0](states, actions) - targets) ** 2).mean() + ((critics[1](states, actions) - targets) ** 2).mean()
        for parameter, gradient in zip(critics.parameters(), torch.autograd.grad(error, list(critics.parameters())), strict=True):
            parameter.grad = gradient
        for_critics.step()
        drawn, log_probability = actor(states, noise[0])
        loss = (0.1 * log_probability - torch.minimum(critics[0](states, drawn), critics[1](states, drawn))).mean()
        for parameter, gradient in zip(actor.parameters(), torch.autograd.grad(loss, list(actor.parameters())), strict=True):
            parameter.grad = gradient
        for_actor.step()
        for target, source in zip(slow.parameters(), critics.parameters(), strict=True):
            target.data = 0.1 * source.data + 0.9 * target.data
        assert (losses.critic, losses.actor) == pytest.approx((error.item(), loss.item()), rel=1e-4)
        assert batch.done.sum() == 2
        for mine, found in ((actor, learner.actor), (critics, learner.critics), (slow, learner.target_critics)):
            for one, other in zip(mine.parameters(), found.parameters(), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_two_critics_differ_their_targets_begin_as_copies_and_move_by_tau():
    learner = agent(tau=0.25)
    one, other = (critic.body.layers[0].weight for critic in learner.critics)
    assert not torch.equal(one, other)
    before = [parameter.clone() for parameter in learner.target_critics.parameters()]
    assert same(before, list(learner.critics.parameters()))
    assert not {tensor.data_ptr() for tensor in learner.target_critics.parameters()} & {
        tensor.data_ptr() for tensor in learner.critics.parameters()
    }
    learner.update(random_batch(), np.random.default_rng(0))
    for target, source, old in zip(learner.target_critics.parameters(), learner.critics.parameters(), before, strict=True):
        torch.testing.assert_close(target, 0.25 * source + 0.75 * old)
        assert not torch.equal(target, old)


@pytest.mark.parametrize("seed", range(3))
def test_it_solves_a_bandit_whose_answer_depends_on_the_state(seed):
    learner, generator = agent(seed, entropy=0.01), np.random.default_rng(seed)
    for _ in range(600):
        states, actions = generator.random((32, 3)), MOST * generator.random((32, 1))
        rewards = 1 - 4 * ((actions - 0.2 - 0.4 * states[:, :1]) / MOST) ** 2
        learner.update(Batch(*(array.astype(np.float32) for array in (states, actions, rewards, states, np.ones((32, 1))))), generator)
    found = [learner.greedy(np.array([place, 0.5, 0.5])) for place in (0.1, 0.5, 0.9)]
    assert found == pytest.approx([0.24, 0.4, 0.56], abs=0.06)


@pytest.mark.parametrize("seed", range(3))
def test_it_looks_ahead(seed):
    """Two steps; a small first action costs 0.3 and earns 1 at the end."""
    learner, generator = agent(seed, features=2, entropy=0.02, tau=0.1), np.random.default_rng(seed)
    for _ in range(500):
        first = MOST * generator.random((16, 1))
        second, start = MOST * generator.random((16, 1)), np.zeros((16, 2))
        between = np.concatenate([np.ones((16, 1)), first / MOST], axis=1)
        now, later = 0.3 * first / MOST, (1 - first / MOST) * np.ones_like(second)
        arrays = zip((start, between), (first, second), (now, later), (between, start), (np.zeros((16, 1)), np.ones((16, 1))), strict=True)
        learner.update(Batch(*(np.concatenate(pair).astype(np.float32) for pair in zip(*arrays, strict=True))), generator)
    assert learner.greedy(np.zeros(2)) < 0.25 * MOST


def test_entropy_widens_the_policy():
    spreads = []
    for entropy in (0.0, 0.03, 0.3):
        learner, generator = agent(entropy=entropy), np.random.default_rng(0)
        for _ in range(400):
            states, actions = generator.random((32, 3)), MOST * generator.random((32, 1))
            rewards = 1 - 4 * ((actions - 0.4) / MOST) ** 2
            learner.update(Batch(*(array.astype(np.float32) for array in (states, actions, rewards, states, np.ones((32, 1))))), generator)
        spreads.append(np.std([learner.act(np.full(3, 0.5), generator) for _ in range(500)]))
    assert spreads[0] < 0.5 * spreads[1] < 0.4 * spreads[2]
    # π ∝ exp(r / α): its deviation is most · √(α / 8) before the ends cut it off
    assert spreads[1] == pytest.approx(MOST * math.sqrt(0.03 / 8), rel=0.3)


# -- replay ------------------------------------------------------------------------------------------------------------------------------


def numbered(number):
    return Transition(np.full(3, number), number + 0.25, number + 0.5, np.full(3, number + 0.75), number % 2 == 1)


def test_a_replay_keeps_every_transition_with_its_epoch():
    replay = EpochReplay(5, 3)
    for number in range(13):
        replay.store_in(numbered(number), 7 * number)
        batch, epochs = replay.sample_with_epochs(len(replay), np.random.default_rng(number))
        np.testing.assert_array_equal(epochs, 7 * (batch.rewards[:, 0] - 0.5))
        np.testing.assert_array_equal(batch.observations[:, 0] + 0.75, batch.next_observations[:, 0])
        assert sorted(epochs) == [7 * held for held in range(max(0, number - 4), number + 1)]
    with pytest.raises(ValueError, match="larger sample"):
        replay.sample_with_epochs(6, np.random.default_rng(0))


@pytest.mark.parametrize("stored", [0, 3, 5, 13])
def test_a_replay_that_was_saved_forgets_in_the_same_order(stored):
    replay, other = EpochReplay(5, 3), EpochReplay(5, 3)
    for number in range(stored):
        replay.store_in(numbered(number), number)
    state = replay.state_dict()
    assert all(len(tensor) == min(stored, 5) for tensor in state.values() if isinstance(tensor, torch.Tensor))
    other.load_state_dict(state)
    for number in range(20, 24):
        for each in (replay, other):
            each.store_in(numbered(number), number)
            assert len(each) == min(stored + number - 19, 5)
        first, second = (each.sample_with_epochs(len(replay), np.random.default_rng(0)) for each in (replay, other))
        assert all(np.array_equal(one, two) for one, two in zip(asdict(first[0]).values(), asdict(second[0]).values(), strict=True))
        np.testing.assert_array_equal(first[1], second[1])
    with pytest.raises(ValueError, match=r"^replay_size=6: must be 5, as in the run that is resumed$"):
        EpochReplay(6, 3).load_state_dict(state)


# -- the model of the environment --------------------------------------------------------------------------------------------------------


def test_the_recurrent_unit_is_torchs_forwards_and_backwards():
    own, torchs = GRU(7, 5, torch.Generator().manual_seed(0)).double(), torch.nn.GRU(7, 5).double()
    torchs.load_state_dict({f"{name}_l0": tensor for name, tensor in own.state_dict().items()})
    x = torch.randn(9, 7, dtype=torch.double, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = torch.randn(9, 5, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    expected = torchs(x)[0]
    torch.testing.assert_close(own(x), expected)
    found = torch.autograd.grad((own(x) * weights).sum(), [x, *own.parameters()])
    wanted = torch.autograd.grad(
        (expected * weights).sum(), [x, *(torchs.get_parameter(f"{name}_l0") for name, _ in own.named_parameters())]
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert all(0.2 < parameter.abs().max() * 5**0.5 <= 1 for parameter in own.parameters())


def test_z_of_an_epoch_reads_its_embedding_and_those_before_it():
    model = EnvironmentModel(modelling(), num_features=2, epochs=5, generator=np.random.default_rng(0))
    for epoch in range(5):
        (reached,) = torch.autograd.grad(model.states(5)[epoch].square().sum(), [model.embeddings])
        assert (reached.abs().sum(1) > 0).tolist() == [other <= epoch for other in range(5)]
    torch.testing.assert_close(model.states(3), model.states(5)[:3])


def test_the_first_epoch_begins_near_0():
    first = EnvironmentModel(modelling(embedding=2000), num_features=2, epochs=3, generator=np.random.default_rng(0)).embeddings[0].detach()
    assert stats.kstest(first, "norm", (0, 0.1)).pvalue > 0.01


def test_an_epoch_begins_with_what_was_learned_of_the_one_before_it():
    learner = fill(joint(batch_size=8), 40, epochs=2)
    assert torch.equal(learner.model.embeddings[0], learner.model.embeddings[1])
    learner.update(5, np.random.default_rng(0))
    first = learner.model.embeddings.detach().clone()
    assert not torch.equal(first[0], first[1])
    learner.begin(3)
    learner.begin(2)  # has begun
    embeddings = learner.model.embeddings.detach()
    assert torch.equal(embeddings[:2], first[:2])
    assert torch.equal(embeddings[2:4], first[1].expand(2, -1))
    assert torch.equal(embeddings[4:], first[4:])


def test_the_decoder_moves_embeddings_and_recurrent_unit_and_actor_and_critics_do_not():
    learner = fill(joint(batch_size=8), 40, epochs=4)
    before = copy.deepcopy(learner.model)
    learner._optimizer.step = lambda: None  # what is left could only come from actor and critics
    batch, epochs = learner.replay.sample_with_epochs(8, np.random.default_rng(0))
    actor = copy.deepcopy(learner.sac.actor.state_dict())
    learner.update(1, np.random.default_rng(0))
    assert not same(actor, learner.sac.actor.state_dict())
    assert same(before.state_dict(), learner.model.state_dict())
    states = before.states(4)[torch.from_numpy(epochs)]
    predicted = before(torch.from_numpy(batch.observations), torch.from_numpy(batch.actions), states)
    ((predicted - torch.from_numpy(batch.rewards)) ** 2).mean().backward()
    for (name, parameter), mine in zip(learner.model.named_parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, mine.grad, msg=name)
        assert parameter.grad.abs().sum() > 0, name
    assert (learner.model.embeddings.grad.abs().sum(1) > 0).tolist() == [True] * 4 + [False] * 2


def test_actor_and_critics_see_the_z_that_the_decoder_saw():
    learner, seen = fill(joint(batch_size=8), 40, epochs=4), []
    learner.sac.update = lambda batch, generator: seen.append(batch) or type(agent().update(random_batch(), generator))(0.0, 0.0)
    batch, epochs = learner.replay.sample_with_epochs(8, np.random.default_rng(0))
    states = learner.model.states(4).detach().numpy()[epochs]
    learner.update(1, np.random.default_rng(0))
    np.testing.assert_array_equal(seen[0].observations, np.concatenate([batch.observations, states], axis=1))
    np.testing.assert_array_equal(seen[0].next_observations, np.concatenate([batch.next_observations, states], axis=1))
    assert seen[0].observations.dtype == np.float32


def test_z_is_computed_anew_once_the_model_has_learned():
    learner, observation = fill(joint(batch_size=8), 40, epochs=4), np.array([0.2, 0.7])
    for _ in range(2):
        states = learner.model.states(4).detach().numpy()
        for epoch in range(4):
            expected = learner.sac.greedy(np.concatenate([observation, states[epoch]]))
            assert learner.greedy(observation, epoch) == pytest.approx(expected, rel=1e-6)
            draw = learner.sac.act(np.concatenate([observation, states[epoch]]), np.random.default_rng(3))
            assert learner.act(observation, epoch, np.random.default_rng(3)) == pytest.approx(draw, rel=1e-6)
        learner.update(5, np.random.default_rng(0))
        assert not np.array_equal(states, learner.model.states(4).detach().numpy())
    learner.begin(4)
    assert learner.greedy(observation, 4) == pytest.approx(
        learner.sac.greedy(np.concatenate([observation, learner.model.states(5)[4].detach().numpy()])), rel=1e-6
    )


def test_a_prediction_is_the_decoders():
    learner = fill(joint(batch_size=8), 40, epochs=4)
    learner.update(3, np.random.default_rng(0))
    generator = np.random.default_rng(1)
    observations, actions, epochs = generator.random((5, 2)), MOST * generator.random(5), np.array([3, 0, 2, 2, 1])
    found = learner.predict(observations, actions, epochs)
    with torch.no_grad():
        wanted = [
            learner.model(
                torch.tensor(observations[row : row + 1]).float(), torch.tensor([[actions[row]]]).float(),
                learner.model.states(4)[epochs[row]][None],
            ).item()
            for row in range(5)
        ]  # fmt: skip
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert found.shape == (5,)


# -- a reward that changes from epoch to epoch -------------------------------------------------------------------------------------------


class Drift:
    """A bandit whose best action wanders over the range, there and back in 40 epochs, from a place of its own."""

    def __init__(self, seed):
        self.phase = 2 * math.pi * np.random.default_rng(seed).random()

    def reward(self, action, epoch):
        best = MOST * (0.5 + 0.4 * math.sin(2 * math.pi * epoch / 40 + self.phase))
        return math.exp(-(((action - best) / MOST / 0.3) ** 2))


def wander(seed, model, epochs=26, episodes=10, updates=5):
    """Of every epoch: the mean reward, and what the decoder at its end leaves unexplained of it and of the one ten epochs before."""
    bandit, generator = Drift(seed), np.random.default_rng(seed)
    learner = joint(seed, model, features=1, epochs=epochs, sizes={"gru_hidden": 16}, entropy=0.05, batch_size=32)
    observation, means, errors = np.zeros(1), [], []
    for epoch in range(epochs):
        learner.begin(epoch)
        rewards = []
        for _ in range(episodes):
            action = learner.act(observation, epoch, generator)
            rewards.append(bandit.reward(action, epoch))
            learner.store(Transition(observation, action, rewards[-1], observation, True), epoch)
            learner.update(updates, generator)
        means.append(np.mean(rewards))
        if model:
            errors.append([unexplained(learner, bandit, epoch, of) for of in (epoch, epoch - 10)])
    return np.array(means), np.array(errors)


def unexplained(learner, bandit, epoch, of):
    """Squared error of the decoder on episodes that it has not seen, as a share of what predicting the mean of their rewards leaves."""
    actions = MOST * (np.arange(50) + 0.5) / 50
    rewards = np.array([bandit.reward(action, of) for action in actions])
    return np.mean((learner.predict(np.zeros((50, 1)), actions, np.full(50, epoch)) - rewards) ** 2) / rewards.var()


@pytest.mark.no_cover
@pytest.mark.parametrize("seed", range(3))
def test_z_earns_more_where_the_reward_drifts_and_the_decoder_knows_the_rewards_of_an_epoch(seed):
    with_z, errors = wander(seed, model=True)
    without, _ = wander(seed, model=False)
    assert with_z[10:].mean() > without[10:].mean() + 0.15
    now, before = np.median(errors[10:], axis=0)
    assert now < 1
    assert before > 1


# -- all of it together ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 6])
def test_what_is_switched_off_is_gone_from_the_parameters(epochs):
    def layers(*widths):
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))

    without = layers(2, 32, 32, 2) + 2 * layers(3, 32, 32, 1)
    model = epochs * 16 + 3 * 12 * (16 + 12 + 2) + layers(2 + 1 + 12, 32, 24, 1)
    with_model = layers(14, 32, 32, 2) + 2 * layers(15, 32, 32, 1) + model
    assert joint(model=False, epochs=epochs).num_parameters == without
    assert joint(epochs=epochs).num_parameters == with_model
    learner = joint(model=False)
    assert learner.model is None
    assert learner.state_dict()["model"] is None


def test_without_a_model_the_epoch_makes_no_difference():
    learner = fill(joint(model=False, batch_size=8), 40, epochs=4)
    losses, observation = learner.update(4, np.random.default_rng(0)), np.array([0.2, 0.7])
    assert losses["decoder_loss"] is None
    assert losses["critic_loss"] > 0
    assert len({learner.greedy(observation, epoch) for epoch in range(4)}) == 1
    assert learner.greedy(observation, 0) == learner.sac.greedy(observation)
    with pytest.raises(ValueError, match="no decoder"):
        learner.predict(observation[None], np.array([0.1]), np.array([0]))


def test_losses_are_means_and_none_before_there_is_a_batch():
    first, second = (fill(joint(batch_size=8), 7, epochs=4) for _ in range(2))
    assert first.update(3, np.random.default_rng(0)) == {"critic_loss": None, "actor_loss": None, "decoder_loss": None}
    for learner in (first, second):
        fill(learner, 10, epochs=4)
    one, other = np.random.default_rng(0), np.random.default_rng(0)
    found, steps = first.update(3, one), [second.update(1, other) for _ in range(3)]
    assert found == {name: pytest.approx(np.mean([step[name] for step in steps]), rel=1e-6) for name in found}
    assert list(found) == ["critic_loss", "actor_loss", "decoder_loss"]
    assert first.update(0, one) == {"critic_loss": None, "actor_loss": None, "decoder_loss": None}


def test_all_of_it_comes_from_the_generators_alone():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    states = []
    for seed, noise in ((5, 0), (5, 1), (6, 0)):
        torch.manual_seed(noise + 10)  # what others draw does not matter
        before = torch.get_rng_state()
        learner = fill(joint(seed, batch_size=8), 20, epochs=3)
        learner.update(2, np.random.default_rng(0))
        learner.act(np.zeros(2), 1, np.random.default_rng(0))
        assert torch.equal(torch.get_rng_state(), before)
        states.append(learner.state_dict())
    torch.set_rng_state(state)
    assert same(states[0], states[1])
    assert not same(states[0], states[2])
    assert np.random.get_state()[1].tolist() == numpy_state


def through_a_file(state, path):
    """JSON, and tensors without any other object."""
    kept = []

    def told(each):
        if isinstance(each, torch.Tensor):
            kept.append(each)
            return {"tensor": len(kept) - 1}
        if isinstance(each, dict):
            return {name: told(value) for name, value in each.items()}
        return [told(value) for value in each] if isinstance(each, list) else each

    def read(each):
        if isinstance(each, dict) and "tensor" in each:
            return loaded[each["tensor"]]
        if isinstance(each, dict):
            return {name: read(value) for name, value in each.items()}
        return [read(value) for value in each] if isinstance(each, list) else each

    text = json.dumps(told(state))
    torch.save(kept, path)
    loaded = torch.load(path, weights_only=True)
    return read(json.loads(text))


@pytest.mark.parametrize("model", [True, False])
@pytest.mark.parametrize("updates", [0, 5])
def test_a_learner_that_was_saved_continues_bit_for_bit(model, updates, tmp_path):
    learner = fill(joint(model=model, batch_size=8, replay_size=30), 40, epochs=3)
    learner.update(updates, np.random.default_rng(0))
    state = learner.state_dict()
    kept = copy.deepcopy(state)
    other = joint(seed=9, model=model, batch_size=8, replay_size=30)
    other.load_state_dict(through_a_file(state, tmp_path / "state.pt"))
    assert same(other.state_dict(), state)
    for epoch in (2, 3):
        found = []
        for each in (learner, other):
            generator = np.random.default_rng(epoch)
            each.begin(epoch)
            acts = [each.act(np.array([0.1, place]), epoch, generator) for place in (0.2, 0.6)]
            each.store(Transition(np.array([0.1, 0.2]), acts[0], 0.6, np.array([0.3, 0.4]), False), epoch)
            found.append((acts, each.update(4, generator), each.greedy(np.zeros(2), epoch), generator.random()))
        assert found[0] == found[1]
        assert same(learner.state_dict(), other.state_dict())
    assert same(state, kept)  # a copy


def test_the_state_holds_the_epochs_of_the_replay_and_no_z():
    learner = fill(joint(epochs=6), 10, epochs=4)
    learner.update(1, np.random.default_rng(0))
    state = learner.state_dict()["replay"]
    assert state["epochs"].tolist() == [number % 4 for number in range(10)]
    assert {name: tuple(value.shape) for name, value in state.items() if isinstance(value, torch.Tensor)} == {
        "observations": (10, 2), "actions": (10, 1), "rewards": (10, 1), "next_observations": (10, 2), "done": (10, 1), "epochs": (10,),
    }  # fmt: skip


def test_a_state_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"^modelling: must be as in the run that is resumed"):
        joint().load_state_dict(joint(model=False).state_dict())
    with pytest.raises(ValueError, match=r"^modelling: must be as in the run that is resumed"):
        joint(model=False).load_state_dict(joint().state_dict())
    with pytest.raises(ValueError, match=r"^epochs=7: must be 6, as in the run that is resumed$"):
        joint(epochs=7).load_state_dict(joint().state_dict())


def test_what_adam_remembers_is_copied():
    parameter = torch.nn.Parameter(torch.ones(3))
    first, second = (torch.optim.Adam([parameter], fused=True) for _ in range(2))
    assert moments(first) == []
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    first.step()
    saved = copy.deepcopy(moments(first))
    load_moments(second, moments(first))
    assert same(moments(second), saved)
    second.step()
    assert same(moments(first), saved)
    assert not same(moments(second), saved)


def test_epochs_begin_in_order_and_only_those_that_have_begun_are_known():
    learner, observation = joint(epochs=4), np.zeros(2)
    for act in (
        lambda: learner.act(observation, 0, np.random.default_rng(0)),
        lambda: learner.store(numbered(0), 0),
        lambda: learner.predict(observation[None], np.array([0.1]), np.array([0])),
    ):
        with pytest.raises(ValueError, match=r"^epoch=0: has not begun, call begin\(0\) first$"):
            act()
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=rf"^epoch={wrong}: must be in \[0, epochs=4\)$"):
            learner.begin(wrong)
    learner.begin(2)
    learner.begin(0)  # has begun
    assert learner.begun == 3
    with pytest.raises(ValueError, match=r"^epoch=3: has not begun"):
        learner.greedy(observation, 3)
    with pytest.raises(ValueError, match=r"^epochs=0: must be ≥ 1$"):
        joint(epochs=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": []}, r"^hidden=\[\]: must be widths ≥ 1, such as \[300,300\]$"),
        ({"hidden": [4, 0]}, r"^hidden=\[4, 0\]: must be widths ≥ 1"),
        ({"actor_lr": 0.0}, "^actor_lr=0.0: must be > 0$"),
        ({"critic_lr": -1.0}, "^critic_lr=-1.0: must be > 0$"),
        ({"entropy": -0.1}, "^entropy=-0.1: must be ≥ 0$"),
        ({"discount": 1.01}, r"^discount=1.01: must be in \[0, 1\]$"),
        ({"discount": -0.01}, r"^discount=-0.01: must be in \[0, 1\]$"),
        ({"tau": 0.0}, r"^tau=0.0: must be in \(0, 1\]$"),
        ({"tau": 1.1}, r"^tau=1.1: must be in \(0, 1\]$"),
        ({"batch_size": 0}, "^batch_size=0: must be ≥ 1$"),
        ({"replay_size": 31}, "^replay_size=31: must hold a batch, ≥ batch_size=32$"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        learning(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding": 0}, "^embedding=0: must be ≥ 1$"),
        ({"gru_hidden": -3}, "^gru_hidden=-3: must be ≥ 1$"),
        ({"decoder_hidden": []}, r"^decoder_hidden=\[\]: must be widths ≥ 1, such as \[300,300\]$"),
        ({"decoder_hidden": [0]}, r"^decoder_hidden=\[0\]: must be widths ≥ 1"),
        ({"lr": 0.0}, "^lr=0.0: must be > 0$"),
    ],
)
def test_numbers_of_the_model_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        modelling(**settings)


def test_numbers_at_the_ends_of_their_range_are_taken():
    low, high = (
        learning(discount=0.0, tau=1.0, entropy=0.0, replay_size=32),
        learning(discount=1.0, hidden=[1], batch_size=1, replay_size=1),
    )
    assert (low.discount, low.tau, low.entropy, low.replay_size) == (0.0, 1.0, 0.0, 32)
    assert (high.discount, high.hidden, high.batch_size, high.replay_size) == (1.0, [1], 1, 1)
    smallest = modelling(embedding=1, gru_hidden=1, decoder_hidden=[1])
    assert (smallest.embedding, smallest.gru_hidden, smallest.decoder_hidden) == (1, 1, [1])
