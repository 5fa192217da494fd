"""Training and pruning at once: what the weights are regularised by, what a step of such a search is, and whole runs of agent=rlal."""

import json
import math
import runpy
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import nets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import last_line, metrics
from torch import nn

import rlprune
from rlprune import cli
from rlprune.agents.rlal import RLAL
from rlprune.checkpoint import load_tensors, packed, save_tensors, unpacked
from rlprune.config import conf_dir, load_yaml
from rlprune.data.base import Augmentation, Images, Normalization, Splits
from rlprune.search.ledger import Ledger
from rlprune.search.resume import keep_measured, load_state, save_state
from rlprune.search.runner import run_search, start_state
from rlprune.search.schedule import Size, Targets, make_schedule
from rlprune.search.task import Environment, Task
from rlprune.training.alignment import Alignment
from rlprune.training.dense import Training, dense_batches
from rlprune.training.execution import Execution, Way
from rlprune.training.fit import Recipe, cross_entropy, fit
from rlprune.training.joint import JointTraining

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
KEEP = {"stem": [0, 1, 2, 5], "a": [3], "b": [0, 1, 2, 3, 4, 5]}


@pytest.fixture
def traced():
    network = nets.randomised(nets.Concat()).train()
    return network, rlprune.trace(network.eval(), EXAMPLE)  # groups of 8, 4 and 6 channels


def agent(**changes):
    settings = load_yaml(conf_dir() / "agent/rlal.yaml")
    del settings["_target_"]
    return RLAL(**settings | {"hidden": [16], "decoder_hidden": [16], "embedding": 4, "gru_hidden": 4, "batch_size": 8} | changes)


# -- the regulariser ---------------------------------------------------------------------------------------------------------------------


def own_entries(network, group):
    """What makes each unit of a group, by hand: rows of its producers, their biases, scales and shifts behind them."""
    for member in group.members:
        weight = dict(network.named_parameters()).get(member.tensor)
        if weight is not None and member.role in ("out", "channel", "raw"):
            yield weight, member


def test_the_regulariser_is_the_sum_of_the_norms_of_the_units_that_go(traced):
    network, graph = traced
    by_hand = []
    for group in graph.groups:
        for unit in set(range(group.num_units)) - set(KEEP[group.name]):
            entries = own_entries(network, group)
            squares = [weight.movedim(member.dim, 0)[torch.from_numpy(member.units[unit])].square().sum() for weight, member in entries]
            by_hand.append(torch.stack(squares).sum().sqrt())
    alignment = Alignment(network, graph, KEEP)
    assert alignment.num_units == 4 + 3
    assert alignment().item() == pytest.approx(torch.stack(by_hand).sum().item(), rel=1e-6)
    assert Alignment(network, graph, {}).num_units == 0
    assert Alignment(network, graph, {})().item() == 0


def test_its_gradient_pulls_the_units_that_go_and_no_others(traced):
    network, graph = traced
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    alignment = Alignment(network, graph, KEEP)
    optimizer, norms = torch.optim.SGD(network.parameters(), lr=0.01), alignment.norms().detach()
    for _ in range(3):
        optimizer.zero_grad()
        alignment().backward()
        optimizer.step()
    torch.testing.assert_close(alignment.norms().detach(), norms - 0.03, rtol=0, atol=1e-5)  # the length of each gradient is one
    kept = rlprune.prune(network, graph, KEEP).state_dict()
    network.load_state_dict(before, strict=False)
    same = {name: torch.equal(kept[name], tensor) for name, tensor in rlprune.prune(network, graph, KEEP).state_dict().items()}
    assert {name for name, equal in same.items() if not equal} == set()  # what stays has not moved


@pytest.mark.parametrize("name", ["Plain", "FlattenHead", "Residual", "Concat", "Depthwise", "Transposed", "Shared", "LayerScale"])
def test_units_that_it_has_brought_to_zero_can_go_without_a_trace(name):
    network = nets.randomised(getattr(nets, name)()).eval()
    graph = rlprune.trace(network, EXAMPLE)
    keep = {group.name: list(range(0, group.num_units, 2)) for group in graph.groups}
    alignment, outputs = Alignment(network, graph, keep), network(EXAMPLE)
    for weight, member in ((weight, member) for group in graph.groups for weight, member in own_entries(network, group)):
        gone = [unit for group in graph.groups if member in group.members for unit in range(1, group.num_units, 2)]
        with torch.no_grad():
            weight.index_fill_(member.dim, torch.from_numpy(member.units[gone].ravel()), 0.0)
    assert alignment().item() <= 1e-5 * alignment.num_units
    alignment().backward()
    assert all(weight.grad is None or bool(torch.isfinite(weight.grad).all()) for weight in network.parameters())
    small = rlprune.prune(network, graph, keep)
    torch.testing.assert_close(small(EXAMPLE), network(EXAMPLE))
    assert not torch.allclose(outputs, network(EXAMPLE))


def test_scales_and_shifts_outside_norms_belong_to_a_unit():
    network = nets.randomised(nets.LayerScale())
    graph = rlprune.trace(network, EXAMPLE)
    Alignment(network, graph, {"a": [0, 2]})().backward()
    gone = [unit for unit in range(len(network.a.bias)) if unit not in (0, 2)]
    for weight in (network.a.bias, network.scale, network.shift):
        assert weight.grad.reshape(-1).nonzero()[:, 0].tolist() == gone


# -- the weights' side -------------------------------------------------------------------------------------------------------------------


def training(**changes):
    recipe = Recipe(partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4), "one_cycle", (), 0.5, 0, None, None)
    settings = {"epochs": 3, "batch_size": 16, "label_smoothing": 0.1, "randaugment": None, "mixup": 0.0, "cutmix": 0.0}
    return Training(**settings, save_minutes=60.0, recipe=replace(recipe, **changes))


def images():
    """Bright images are class 1."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(96) % 2
    pixels = (labels.view(-1, 1, 1, 1) * 100 + torch.randint(0, 120, (96, 3, 8, 8), generator=generator)).byte()
    return Splits(
        Images(pixels, labels), Images(pixels, labels), Normalization((0.5,) * 3, (0.25,) * 3), ("dark", "bright"), Augmentation(crop=1)
    )


CPU = Execution(torch.device("cpu"), None, (Way(None, torch.channels_last),), "auto", False)


def small():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip


def joint(network, folder, epochs=3, resume=False, **changes):
    return JointTraining(
        network, images(), training=training(**changes), epochs=epochs, execution=CPU, seed=0,
        state=folder / "joint.safetensors", identity="x", resume=resume,
    )  # fmt: skip


@pytest.mark.parametrize("ema", [None, 0.8])
def test_an_epoch_at_a_time_comes_to_the_same_weights_as_all_at_once(tmp_path, ema):
    at_once, by_epoch = small(), small()
    at_once[3].p = by_epoch[3].p = 0.0  # whose random numbers begin anew with every epoch of joint training
    how = training(ema=ema)
    losses = fit(
        at_once, dense_batches(images(), how, CPU, 0, "joint training"), epochs=3, loss=cross_entropy(0.1), recipe=how.recipe,
        execution=CPU, description="x",
    )  # fmt: skip
    job = joint(by_epoch, tmp_path, ema=ema)
    for epoch in (1, 2, 3):
        assert job.train(epoch, None, 0.0) == losses[epoch - 1]
        assert not by_epoch.training
        torch.rand(7)  # as a search may
        by_epoch(EXAMPLE)
    assert all(torch.equal(tensor, by_epoch.state_dict()[name]) for name, tensor in at_once.state_dict().items())


def test_units_that_go_shrink_while_the_network_is_trained_and_the_others_do_not(tmp_path):
    norms = {}
    for beta in (0.0, 0.05):
        network = small()
        graph = rlprune.trace(network.eval(), EXAMPLE)
        gone, stay = (Alignment(network, graph, keep) for keep in (KEEP_SMALL, {"0": [4, 5, 6, 7], "4": [2, 3, 4, 5]}))
        job = joint(network, tmp_path / str(beta), epochs=12)
        for epoch in range(1, 13):
            job.train(epoch, gone, beta)
        norms[beta] = gone.norms().detach(), stay.norms().detach()
    assert (gone.num_units, stay.num_units) == (8, 6)
    shrunk, as_without = (now / before for now, before in zip(norms[0.05], norms[0.0], strict=True))
    assert shrunk.max() < 0.7
    assert as_without.min() > 0.9


def test_an_epoch_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("rlprune.training.progress.SHARE", 1e9)

    def run(folder, after=None):
        network = small()
        graph = rlprune.trace(network.eval(), EXAMPLE)
        job, calls = joint(network, folder, resume=True), []
        job._saver.minutes = 0.0
        step = type(job._trainer)._step

        def counted(*arguments):
            calls.append(1)
            if len(calls) == after:
                raise KeyboardInterrupt
            return step(*arguments)

        monkeypatch.setattr(type(job._trainer), "_step", counted)
        try:
            for epoch in (1, 2, 3):
                job.train(epoch, Alignment(network, graph, KEEP_SMALL) if epoch == 1 else None, 0.05)  # no state but the file's
        finally:
            monkeypatch.setattr(type(job._trainer), "_step", step)
        return network, len(calls)

    whole, count = run(tmp_path / "whole")
    assert count == 18
    for after in (1, 3, 6):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(after), after)
        again, rest = run(tmp_path / str(after))
        assert rest == 18 - after + 1
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_a_damaged_state_of_an_epoch_costs_that_epoch_and_says_so(tmp_path, caplog):
    (tmp_path / "joint.safetensors").write_bytes(b"")
    job = joint(small(), tmp_path, resume=True)
    job._trainer.progress.epoch, job._trainer.progress.losses = 1, [0.5]
    job.train(2, None, 0.0)
    assert "training epoch 2 from its start" in caplog.text


KEEP_SMALL = {"0": [0, 1, 2, 3], "4": [0, 1]}


# -- a step is an epoch ------------------------------------------------------------------------------------------------------------------


class Flat:
    """As nets.Concat and its graph are, but an epoch adds to every weight, and what a network is worth follows from its weights."""

    def __init__(self, folder, *, epochs=4, at=None, rlal=None, **limits):
        torch.manual_seed(0)
        self.network = nets.randomised(nets.Concat()).eval()
        self.graph = rlprune.trace(self.network, EXAMPLE)
        self.dense = Size(self.graph.num_channels, self.graph.macs({}), self.graph.params({}))
        none = Size(3, 0, 0)
        targets = Targets(None, 0.5, None, None)
        self.schedule = make_schedule(targets=targets, steps=epochs, period=1, save_at=[], dense=self.dense, smallest=none, joint=True)
        self.folder, self.at, self.rlal = folder, at, rlal or agent(episodes=3, updates=2)
        self.trained, self.recovered, self.measured, self.levels = [], [], [], []
        self.environment = Environment(
            measure=self.measure,
            reward=lambda accuracy, flops_ratio, params_ratio: accuracy,
            score=lambda network, graph: rlprune_l1(network, graph),
            dense=self.dense,
            goals=self.schedule.goals,
            kept_counts={group.name: np.arange(group.num_units, 0, -1) for group in self.graph.groups},
            ledger=Ledger(**limits),
        )

    def measure(self, network):
        self.measured.append(sum(parameter.numel() for parameter in network.parameters()))
        if len(self.measured) == self.at:
            raise KeyboardInterrupt
        with torch.no_grad():
            return float(network(EXAMPLE).abs().mean().tanh())

    def train(self, state):
        self.trained.append((state.step + 1, None if state.aim is None else state.aim.tolist()))
        with torch.no_grad():
            for number, weight in enumerate(state.network.parameters()):
                weight.add_(0.01 * math.cos(number + state.step))
        return 1.0 / len(self.trained)

    def run(self):
        state = load_state(self.folder, self.network, self.graph, self.rlal, self.environment.ledger)
        state = state or start_state(self.network, self.graph, 0.5)
        return run_search(
            state, agent=self.rlal, environment=self.environment, schedule=self.schedule, epochs=7, final_epochs=2, seed=0,
            recover=lambda network, teacher, epochs, phase: self.recovered.append((epochs, phase, teacher)),
            on_step=lambda state: save_state(self.folder, state, self.rlal), on_level=lambda *level: self.levels.append(level[1:]),
            deciding=partial(keep_measured, self.folder / "measured.json", self.environment.ledger), train=self.train,
        )  # fmt: skip


def rlprune_l1(network, graph):
    weights = dict(network.named_parameters())
    return {group.name: weights[group.producers[0].tensor].detach().abs().flatten(1).sum(1).double() for group in graph.groups}


def test_nothing_goes_before_the_last_epoch(tmp_path):
    job = Flat(tmp_path)
    whole = job.graph.num_units.tolist()
    state = job.run()
    assert [step for step, _ in job.trained] == [1, 2, 3, 4]
    assert job.trained[0][1] is None
    layers = pd.DataFrame(state.history.layers).pivot(index="step", columns="group", values="units")[[g.name for g in job.graph.groups]]
    assert layers.loc[0].tolist() == whole
    for (_, aim), kept in zip(job.trained[1:], layers.loc[1:3].to_numpy(), strict=True):  # what is aligned with is what was decided
        assert (np.array(whole) - aim == kept).all()
        assert sum(aim) > 0
    assert layers.loc[4].tolist() == [len(units) for units in state.kept.values()]
    assert state.aim is None
    assert job.recovered == [(2, "recover step 4", job.network)]  # the network as it was trained is the teacher
    assert [level for level, _ in job.levels] == [None]
    ((_, before),) = job.levels
    assert sum(p.numel() for p in before.parameters()) == state.history.steps[-1].params == job.graph.params(state.kept)
    assert sum(p.numel() for p in job.network.parameters()) == job.dense.params
    for row in state.history.steps:
        assert row.macs <= 0.5 * job.dense.macs
        assert None not in (row.accuracy_unpruned, row.train_loss, row.training_seconds)
    assert state.dense_accuracy == state.history.steps[-1].accuracy_unpruned != 0.5


def facts(state):
    names = ("accuracy_pruned", "accuracy_recovered", "macs", "candidates", "repeated", "accuracy_unpruned")
    rows = [[getattr(row, name) for name in names] for row in state.history.steps]
    return rows, state.history.layers, state.history.episodes, {name: units.tolist() for name, units in state.kept.items()}


@pytest.mark.parametrize("embeddings", [True, False])
def test_an_agent_that_was_killed_goes_on_to_the_same_end(tmp_path, embeddings):
    whole = Flat(tmp_path / "whole", rlal=agent(episodes=3, updates=2, epoch_embeddings=embeddings))
    wanted, count = facts(whole.run()), len(whole.measured)
    assert count > 12
    for at in range(2, count, 3):
        folder = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            Flat(folder, at=at, rlal=agent(episodes=3, updates=2, epoch_embeddings=embeddings)).run()
        assert facts(Flat(folder, rlal=agent(episodes=3, updates=2, epoch_embeddings=embeddings)).run()) == wanted


def test_every_episode_meets_the_budget_within_one_unit(tmp_path):
    job = Flat(tmp_path, epochs=3, rlal=agent(episodes=8, updates=1))
    plans, evaluate = [], Task.evaluate_counts

    def watched(task, counts):
        plans.append(counts)
        return evaluate(task, counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "evaluate_counts", watched)
        job.run()
    assert len({tuple(plan.tolist()) for plan in plans}) > 8
    cost, budget = job.graph.cost, 0.5 * job.dense.macs
    for plan in plans:
        assert cost.macs(plan) <= budget
        for group in np.flatnonzero(plan):
            assert cost.macs(plan - np.eye(len(plan), dtype=int)[group]) > budget  # no unit could have stayed
    episodes = pd.DataFrame(load_history(tmp_path))
    assert (episodes["flops_ratio"] >= 0.5).all()
    assert len(episodes) == 24


def test_random_episodes_then_draws_of_the_policy_and_its_means_last(tmp_path):
    job = Flat(tmp_path, epochs=3, rlal=agent(episodes=3, updates=1, warmup_epochs=1))
    job.run()
    episodes = pd.DataFrame(load_history(tmp_path))
    assert episodes.groupby("step")["policy"].agg(list).tolist() == [["random"] * 3, *[["sampled", "sampled", "greedy"]] * 2]
    assert episodes["decoder_loss"].notna().tolist() == [False] * 2 + [True] * 7
    job = Flat(tmp_path / "one", epochs=2, rlal=agent(episodes=1, updates=1, warmup_epochs=0))
    job.run()
    assert pd.DataFrame(load_history(tmp_path / "one"))["policy"].tolist() == ["sampled"] * 2


def load_history(folder):
    return load_tensors(max(folder.glob("step-*")))[1]["history"]["episodes"]


def test_the_best_policy_so_far_is_measured_again_on_new_weights(tmp_path):
    job = Flat(tmp_path, epochs=2, rlal=agent(episodes=2, updates=1))
    state = start_state(job.network, job.graph, 0.5)
    rewards = iter([0.2, 0.9, 0.3, 0.1, 0.25])  # two episodes; the better one on other weights, two more episodes

    def measure(network):
        return next(rewards)

    job.environment = replace(job.environment, measure=measure)
    task = Task(job.environment, job.network, job.graph, 0)
    first = job.rlal.decide(task, np.random.default_rng(0))
    assert first.accuracy == 0.9
    second = job.rlal.decide(Task(job.environment, job.network, job.graph, 1), np.random.default_rng(1))
    assert (second.accuracy, second.counts.tolist()) == (0.3, first.counts.tolist())  # it beats 0.1 and 0.25, though 0.3 < 0.9
    assert state.step == 0


def test_the_time_is_over_in_the_middle(tmp_path):
    job = Flat(tmp_path, epochs=5)
    train = job.train

    def slow(state):
        if state.step == 2:
            job.environment.ledger.deadline = 0.0
        return train(state)

    job.train = slow
    state = job.run()
    assert (state.step, state.history.stopped) == (3, "max_minutes")
    assert state.history.steps[-1].candidates == 1  # the best so far, as it is now
    assert job.graph.macs(state.kept) <= 0.5 * job.dense.macs
    assert len(job.recovered) == len(job.levels) == 1


# -- what is kept of the agent -----------------------------------------------------------------------------------------------------------


def test_a_memory_of_nothing_is_kept(tmp_path):
    learner = agent()._learner_of(9, 2, np.random.default_rng(0))
    tensors = {}
    packed(learner.state_dict(), tensors, "agent")
    assert not len(tensors["agent.replay.epochs"])
    save_tensors(tmp_path / "s.safetensors", tensors)
    back, _ = load_tensors(tmp_path / "s.safetensors")
    assert all(torch.equal(tensor, back[name]) for name, tensor in tensors.items())


def test_values_with_tensors_in_them_come_back():
    value = {"a": [1, {"b": torch.arange(3), "c": None}], "d": torch.ones(2, 2, dtype=torch.bfloat16), "e": "x", "f": 0.5}
    tensors = {}
    plain = packed(value, tensors, "agent")
    assert json.loads(json.dumps(plain)) == plain
    assert sorted(tensors) == ["agent.a.1.b", "agent.d"]
    back = unpacked(json.loads(json.dumps(plain)), tensors)
    assert torch.equal(back["a"][1]["b"], torch.arange(3))
    assert torch.equal(back["d"], value["d"])
    assert (back["a"][0], back["a"][1]["c"], back["e"], back["f"]) == (1, None, "x", 0.5)
    with pytest.raises(KeyError):
        unpacked(plain, {})


def test_where_no_state_fits_the_agent_is_as_it_was(tmp_path):
    def refuse(tensors, facts):
        raise ValueError("it is the state of another training")  # as on another device

    job = Flat(tmp_path)
    job.run()
    new, ledger = agent(), Ledger()
    assert load_state(tmp_path, job.network, job.graph, new, ledger, refuse) is None
    assert (new.state_dict(), ledger.distinct) == (agent().state_dict(), 0)


def test_parts_that_are_off_are_not_there(tmp_path):
    sizes = {}
    for name, changes in {"all": {}, "no embeddings": {"epoch_embeddings": False}, "no lasso": {"soft_regularization": False}}.items():
        job = Flat(tmp_path / name, epochs=3, rlal=agent(**changes))
        job.run()
        tensors = load_tensors(max((tmp_path / name).glob("step-*")))[0]
        model = "agent.learner.model.weights."
        sizes[name] = sum(tensor.numel() for key, tensor in tensors.items() if key.startswith(model))
        assert job.rlal.beta == (0.0 if name == "no lasso" else 1e-4)
    e, h, s = 4, 4, 9  # embedding, z, features of a state
    embeddings, gru, decoder = 3 * e, 3 * h * (e + h + 2), (s + 1 + h) * 16 + 16 + 16 * 16 + 16 + 17
    assert sizes["no embeddings"] == 0
    assert sizes["no lasso"] == sizes["all"]
    assert sizes["all"] == embeddings + gru + decoder - 16 * 17


def test_one_that_has_learned_before_its_last_epoch_does_not_say_that_it_has_not(tmp_path, caplog):
    Flat(tmp_path, epochs=3, rlal=agent(batch_size=3), max_candidates=1).run()  # behind the first epoch it measures m* alone
    assert "has learned nothing" not in caplog.text
    Flat(tmp_path / "b", epochs=3, rlal=agent(batch_size=4), max_candidates=1).run()
    assert "has learned nothing, as agent.batch_size=4 is more than all its actions" in caplog.text


# -- settings ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"episodes": 0}, "episodes=0: must be ≥ 1"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1"),
        ({"pr_max": 1.0}, "pr_max=1.0"),
        ({"beta": -1e-4}, "beta=-0.0001"),
        ({"updates": 0}, "updates=0"),
        ({"hidden": []}, r"hidden=\[\]"),
        ({"entropy": -0.1}, "entropy=-0.1"),
        ({"gru_hidden": 0}, "gru_hidden=0"),
        ({"replay_size": 4}, "replay_size=4"),
    ],
)
def test_settings_out_of_range_name_themselves(changes, words):
    with pytest.raises(ValueError, match=words):
        agent(**changes)


# -- whole runs --------------------------------------------------------------------------------------------------------------------------

SMALL = ("debug=smoke", "device=cpu", "precision=fp32", "model.depth=8", "model.width=0.5", "dataset.image_size=16")
SMOKE = ("prune", *SMALL, "agent=rlal", "budget.macs=0.5", "agent.episodes=3")


def result(folder):
    return json.loads((Path(folder) / "result.json").read_text())


def test_a_run_needs_no_dense_network(rlprune):
    assert rlprune(*SMOKE, "recovery.control=false", "schedule.steps=3", "paths.run=outputs/a")[0] == 0
    assert not Path("outputs/dense").exists()
    rows, steps = result("outputs/a")["rows"], pd.read_csv("outputs/a/metrics.csv")
    names = [row["name"] for row in rows]
    assert [names[0], names[1][:6], names[2][:9], len(names)] == ["jointly trained", "pruned", "recovered", 3]
    assert result("outputs/a")["search_split_seen"] == "no"
    assert [row["macs"] <= 0.5 * rows[0]["macs"] for row in rows] == [False, True, True]
    assert len(steps) == 3
    assert (steps["candidates"] <= 4).all()
    assert {"train_loss", "accuracy_unpruned", "training_seconds"} <= set(steps)
    assert len(pd.read_csv("outputs/a/episodes.csv")) == 9
    assert Path("outputs/a/accuracy.png").stat().st_size > 0
    network, before = (rlprune_load(name) for name in ("outputs/a", "outputs/a"))
    assert sum(p.numel() for p in network.parameters()) == rows[2]["params"] == sum(p.numel() for p in before.parameters())
    assert rlprune("evaluate", "run=outputs/a", "device=cpu", "precision=fp32", "paths.run=outputs/e")[0] == 0
    assert result("outputs/e")["rows"][0]["top1"] == rows[2]["top1"]
    assert not Path("outputs/a/checkpoint").exists()


def test_a_time_that_is_over_before_the_first_episode_ends_with_a_network(rlprune):
    assert rlprune(*SMOKE, "recovery.control=false", "schedule.max_minutes=0.0001", "paths.run=outputs/a")[0] == 0
    rows = result("outputs/a")["rows"]
    assert rows[-1]["macs"] <= 0.5 * rows[0]["macs"]


def rlprune_load(folder):
    return rlprune.load(Path(folder))


def test_beside_it_stands_the_same_network_trained_alone(rlprune):
    code, out, _ = rlprune(*SMOKE, "paths.run=outputs/a")
    assert (code, "schedule.steps=2: joint training goes on for so many epochs, but the dense network" in out) == (0, True)
    (dense,) = Path("outputs/dense").iterdir()
    names = [row["name"] for row in result("outputs/a")["rows"]]
    assert names[:3] == ["dense", "dense + same recovery epochs", "jointly trained"]
    assert result("outputs/a")["dense"] == str(dense)
    line = [word for word in SMOKE if word.split("=")[0] not in ("agent", "agent.episodes")]
    assert rlprune(*line, "agent=uniform", "recovery=finetune", "paths.run=outputs/b")[0] == 0
    assert [row | {"level": 0} for row in metrics(result("outputs/b")["rows"][:1])] == metrics(result("outputs/a")["rows"][:1])


def script(monkeypatch, name, *arguments):
    path = Path(__file__).parent.parent / "scripts" / name
    monkeypatch.setattr("sys.argv", [str(path), *map(str, arguments)])
    return runpy.run_path(str(path), run_name="__main__")


def test_scripts_draw_and_tabulate_finished_runs(rlprune, monkeypatch, capsys):
    assert rlprune(*SMOKE, "paths.run=outputs/all/rlal")[0] == 0
    assert rlprune(*SMOKE, "agent.episodes=2", "recovery.control=false", "paths.run=outputs/all/two")[0] == 0
    script(monkeypatch, "rewards_figure.py", "rewards.png", "agent.episodes", "outputs/all/rlal", "outputs/all/two")
    assert Path("rewards.png").read_bytes().startswith(b"\x89PNG")
    for words in (("agent.nothing", "outputs/all/rlal"), ("agent.episodes", "outputs/none")):
        with pytest.raises(SystemExit) as error:
            script(monkeypatch, "rewards_figure.py", "no.png", *words)
        assert words[1] in str(error.value)
    assert not Path("no.png").exists()
    capsys.readouterr()
    script(monkeypatch, "rlal_table.py", "outputs/all")
    table = [[cell.strip() for cell in row.split("|")[1:-1]] for row in capsys.readouterr().out.strip().splitlines()]
    rows = {row[0]: dict(zip(table[0], row, strict=True)) for row in table[2:]}
    assert list(rows) == ["dense", "dense + same recovery epochs", "rlal", "two"]
    control, last = result("outputs/all/rlal")["rows"][1], result("outputs/all/rlal")["rows"][-1]
    assert rows["rlal"]["Δ"] == f"{100 * (last['top1'] - control['top1']):+.2f}"
    assert rows["rlal"]["candidates"] == str(result("outputs/all/rlal")["search"]["candidates"])
    assert rows["dense + same recovery epochs"]["Δ"] == "+0.00"


class StopError(BaseException):
    """Ends a run as a kill would: nothing that handles failures sees it."""


UNBROKEN = (*SMOKE, "schedule.steps=3", "training.save_minutes=0", "agent.beta=0.01", "agent.warmup_epochs=0", "agent.batch_size=16")
UNBROKEN += ("training.ema=0.5", "dataset.limit=200")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main([*UNBROKEN, "paths.run=outputs/whole"]) == 0
    return folder / "outputs/whole"


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("where", "at"),
    [("batch", 3), ("batch", 6), ("batch", 11), ("candidate", 2), ("candidate", 6), ("step", 1), ("step", 2), ("test", 1)],
)
def test_a_run_that_was_killed_goes_on_to_the_same_end(rlprune, monkeypatch, unbroken, where, at):
    line = UNBROKEN
    shutil.copytree(unbroken, "outputs/whole")
    place = {
        "batch": "rlprune.training.fit.Trainer._step",
        "candidate": "rlprune.search.ledger.Ledger.accuracy",
        "step": "rlprune.search.job.save_state",
        "test": "rlprune.results.finish.measure_rows",
    }[where]
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr("rlprune.training.progress.SHARE", 1e9)
        owner, _, name = place.rpartition(".")
        owner = pytest.importorskip(owner) if where in ("step", "test") else resolve(owner)
        before = getattr(owner, name)

        def counted(*arguments, **settings):
            calls.append(1)
            if len(calls) == at + (where == "step"):
                raise StopError
            return before(*arguments, **settings)

        patch.setattr(owner, name, counted)
        with pytest.raises(StopError):
            rlprune(*line, "paths.run=outputs/killed")
    code, out, _ = rlprune(*line, "resume=outputs/killed")
    assert code == 0, out
    assert metrics(result("outputs/killed")) == metrics(result("outputs/whole"))
    for name in ("layers.csv", "episodes.csv"):
        assert (Path("outputs/killed") / name).read_text() == (Path("outputs/whole") / name).read_text()
    for name in ("weights", "before_recovery"):
        tensors = [load_tensors(Path(f"outputs/{run}/pruned/{name}.safetensors"))[0] for run in ("whole", "killed")]
        assert all(torch.equal(tensor, tensors[1][key]) for key, tensor in tensors[0].items())


def resolve(path):
    module, _, name = path.rpartition(".")
    return getattr(pytest.importorskip(module), name)


def test_a_damaged_state_falls_back_to_the_one_before(rlprune, monkeypatch):
    line = (*SMOKE, "schedule.steps=4", "recovery.control=false")
    assert rlprune(*line, "paths.run=outputs/whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("rlprune.results.finish.measure_rows", lambda *_: (_ for _ in ()).throw(StopError))
        with pytest.raises(StopError):
            rlprune(*line, "paths.run=outputs/killed")
    last, before = sorted(Path("outputs/killed/checkpoint").glob("step-*"), reverse=True)
    last.write_bytes(last.read_bytes()[:-9])
    code, out, _ = rlprune(*line, "resume=outputs/killed")
    assert (code, "trying the one before" in out) == (0, True)
    assert metrics(result("outputs/killed")) == metrics(result("outputs/whole"))
    assert before.name == "step-0003.safetensors"


def test_weights_that_are_given_are_gone_on_from_and_the_run_says_so(rlprune):
    assert rlprune("train", *SMALL)[0] == 0
    (dense,) = Path("outputs/dense").iterdir()
    code, out, _ = rlprune(*SMOKE, f"checkpoint={dense}", "paths.run=outputs/a")
    assert (code, f"joint training needs no trained network; it goes on from checkpoint={dense}" in out) == (0, True)
    assert result("outputs/a")["search_split_seen"] == "unknown"
    assert result("outputs/a")["rows"][0]["name"] == "dense"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("agent.episodes=0",), "agent.episodes=0: must be ≥ 1"),
        (("agent.decoder_lr=0",), "agent.decoder_lr=0.0: must be > 0"),
        (("budget.macs=0.001",), "budget.macs=0.001: 0."),
        (("agent.warmup_epochs=3",), "schedule.steps=2 (training.epochs): fewer epochs than the agent's warm-up, agent.warmup_epochs=3"),
        (("schedule.save_at=[0.2]",), "schedule.save_at=[0.2]"),
        (("budget.max_drop=1",), "budget.max_drop=1.0: joint training is told how much goes"),
        (("schedule.steps=null",), "schedule.steps=null: must be the epochs of joint training"),
        (("training.epochs=0", "schedule.steps=0"), "training.epochs=0: must be ≥ 1 for joint training"),
        (("agent=amc", "agent.episodes=5", "agent.warmup=1", "schedule=joint"), "schedule.joint=true: agent=amc prunes trained networks"),
        (("agent.epoch_embedings=false",), "agent.epoch_embedings"),
        (("checkpoint=none.pt",), "none.pt"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(rlprune, words, message):
    code, _, err = rlprune(*SMOKE, *words)
    assert code not in (0, None)
    assert len(last_line(err)) == 1
    assert message in last_line(err)[0]


def test_an_agent_of_joint_training_also_prunes_a_trained_network(rlprune):
    assert rlprune(*SMOKE, "schedule=default", "recovery.control=false", "paths.run=outputs/a")[0] == 0
    rows = result("outputs/a")["rows"]
    assert rows[0]["name"] == "dense"
    assert rows[-1]["macs"] <= 0.5 * rows[0]["macs"]


def test_a_candidate_sees_so_many_images_that_an_epochs_episodes_see_half_as_many_as_its_training(rlprune):
    line = ("recovery.control=false", "dataset.limit=null", "schedule.steps=1")
    for number, (more, wanted) in enumerate((((), 256), (("agent.episodes=1",), 287), (("search.samples=40",), 40))):
        assert rlprune(*SMOKE, *line, *more, f"paths.run=outputs/{number}")[0] == 0
        assert result(f"outputs/{number}")["splits"]["search_used"] == wanted
