import copy
import dataclasses
import random
import re
import runpy
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.core.global_hydra import GlobalHydra
from test_conf import composed
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import rlprune
from rlprune.api.data import FixedBatches, Minibatches, examples_of
from rlprune.api.learning import BatchCalibration, BatchLoss, top1
from rlprune.compose import compose
from rlprune.config import build, resolve, shipped
from rlprune.cost import count_params
from rlprune.errors import UserError
from rlprune.training.execution import Execution, Way
from rlprune.training.recover import distillation

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
QUICK = {"epochs": 1, "final_epochs": 1, "batch_size": 32, "lr": 0.05}


class Small(nn.Module):
    """Two coupled branches, a batch norm and a dropout: 8×8 pixels → 3 classes."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 12, 3, stride=2), nn.Conv2d(8, 12, 3, stride=2)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(12, 3)

    def forward(self, images):
        stem = F.relu(self.norm(self.stem(images)))
        return self.head(self.drop(F.relu(self.a(stem) + self.b(stem)).mean((2, 3))))


def task(count=160, seed=0):
    """The class is the row of three that is bright."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (count,), generator=generator)
    inputs = 0.5 * torch.randn(count, 1, 8, 8, generator=generator)
    for index, target in enumerate(targets.tolist()):
        inputs[index, :, 2 + 2 * target] += 1.5
    return inputs, targets


TRAIN, VAL = task(), task(48, seed=1)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model, optimizer = Small(), None
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for chunk in torch.arange(160).repeat(6).split(32):
        optimizer.zero_grad()
        F.cross_entropy(model(TRAIN[0][chunk]), TRAIN[1][chunk]).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model


def compressed(model, train=TRAIN, **arguments):
    given = {"val_data": VAL, "macs": 0.5, "steps": 2, "agent": "uniform", "recovery": QUICK, "progress": False, "device": "cpu"}
    return rlprune.compress(model, train, **{**given, **arguments})


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# -- the result --------------------------------------------------------------------------------------------------------------------------


def test_what_goes_is_what_zeroing_says_and_meets_the_target(trained):
    result = compressed(trained, steps=1, criterion="l1")
    dense, row = result.report.dense, result.report.recovered
    assert row.macs == result.graph.macs(result.keep) <= 0.5 * dense.macs == 0.5 * result.graph.macs({})
    assert row.params == count_params(result.network) == result.graph.params(result.keep)
    before = result.levels["pruned"].before
    assert same(before, rlprune.prune(trained, result.graph, result.keep))
    masked = rlprune.mask(copy.deepcopy(trained).eval(), result.graph, result.keep)
    torch.testing.assert_close(before(VAL[0]), masked(VAL[0]), rtol=1e-5, atol=1e-6)
    assert not same(before, result.network)  # it has recovered
    assert not result.network.training
    assert all(parameter.grad is None for parameter in result.network.parameters())


def test_the_report_says_what_the_networks_measure(trained):
    test = task(30, seed=2)
    result = compressed(trained, test_data=test, control=True)
    names = [row.name for row in result.report.rows]
    percent = f"{100 * result.report.recovered.sparsity:.0f} %"
    assert names == ["dense", "dense + same recovery epochs", f"pruned {percent}", f"recovered {percent}"]
    networks = {"dense": copy.deepcopy(trained).eval(), f"pruned {percent}": result.levels["pruned"].before}
    networks[f"recovered {percent}"] = result.network
    for row in result.report.rows:
        if row.name in networks:
            assert (row.metric, row.test_metric) == (top1(networks[row.name], [VAL]), top1(networks[row.name], [test]))
    assert result.report.examples == {"train_data": 160, "val_data": 48, "test_data": 30}
    assert result.report.targets["macs"]["reached"] == result.report.recovered.macs / result.report.dense.macs
    text = str(result.report).split("\n")
    assert text[0].startswith("| network ")
    assert len(text) == 2 + 4 + 1 + 4
    assert "by which the search has chosen" in text[-3]
    assert text[-2].startswith("Asked: macs 0.5, reached 0.4")
    assert repr(result).endswith(str(result.report))


def test_the_model_and_the_random_numbers_of_the_process_stay_as_they_were(trained):
    model = copy.deepcopy(trained)
    model.norm.eval()
    before, modes = copy.deepcopy(model), [module.training for module in model.modules()]
    loader = DataLoader(TensorDataset(*TRAIN), batch_size=40, shuffle=True, generator=torch.Generator().manual_seed(5))
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), loader.generator.get_state()
    compressed(model, loader, criterion="taylor")
    assert same(model, before)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:3]
    assert torch.equal(loader.generator.get_state(), states[3])


def test_saved_and_loaded_it_is_the_same_network(trained, tmp_path):
    result = compressed(trained, ignore=["a"])
    assert [group.name for group in result.graph.groups] == ["stem"]
    result.save(tmp_path / "small")
    again = rlprune.load(tmp_path / "small", model=Small())
    assert same(again, result.network)
    assert torch.equal(again(VAL[0]), result.network(VAL[0]))


@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        ("uniform", {}),
        ("global", {}),
        ("mcq", {"agent.stages": 2, "agent.sample_num": 2}),
        ("random_search", {"agent.candidates": 3, "search.recover_batches": 1}),
        ("random_rates", {"agent.episodes": 3, "search.recalibrate_bn": 40}),
        ("amc", {"agent.episodes": 4, "agent.warmup": 2, "agent.batch_size": 2, "search.samples": 20}),
        ("ddpg", {"agent.episodes": 3, "agent.batch_size": 2, "agent.finetune_batches": 1}),
        ("reinforce", {"agent.updates": 2, "agent.samples": 2, "agent.passes": 2}),
    ],
)
def test_every_agent_for_trained_networks_meets_the_target_and_two_calls_are_equal(trained, agent, settings):
    one, other = (compressed(trained, agent=agent, settings=settings, steps=None if agent == "reinforce" else 1) for _ in range(2))
    assert one.graph.macs(one.keep) <= 0.5 * one.graph.macs({})
    assert same(one.network, other.network)
    assert one.report.candidates == other.report.candidates > 0


@pytest.mark.parametrize("criterion", ["taylor", "activation_taylor", "l1", "l2", "variance", "bn_scale", "fpgm", "random"])
def test_every_criterion(trained, criterion):
    network = (
        nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))
        if criterion == "bn_scale"
        else trained
    )
    result = compressed(network, criterion=criterion, recovery="none")
    assert len(result.report.rows) == 2
    assert result.graph.macs(result.keep) <= 0.5 * result.graph.macs({})


def test_a_bound_on_the_loss_leaves_the_smallest_network_within_it(trained):
    whole = count_params(trained)
    result = compressed(
        trained, macs=None, max_drop=30.0, steps=20, criterion="l1", recovery="none", settings={"schedule.period": 1},
        metric=lambda network, batches: count_params(network) / whole,
    )  # fmt: skip
    assert result.report.stopped == "max_drop"
    assert 0.7 <= result.report.recovered.metric == count_params(result.network) / whole < 0.8
    with pytest.raises(UserError, match=r"^max_drop=1: .* % of the channels cost .* points already; raise it"):
        compressed(
            trained, macs=None, max_drop=1.0, steps=1, criterion="l1", recovery="none",
            metric=lambda network, batches: count_params(network) / whole,
        )  # fmt: skip


def test_levels_on_the_way(trained):
    result = compressed(trained, macs=None, sparsity=0.5, steps=2, settings={"schedule.save_at": [0.25]})
    assert list(result.levels) == ["pruned-0.25", "pruned"]
    assert [row.sparsity for row in result.report.rows] == [0, 0.25, 0.25, 0.5, 0.5]
    assert result.network is result.levels["pruned"].network


# -- killed and resumed ------------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def dying(function, after):
    calls = iter(range(after))

    def run(*arguments):
        if next(calls, None) is None:
            raise Killed
        return function(*arguments)

    run.__qualname__ = "run"
    return run


def own_step(network, batch, teacher):
    inputs, targets = batch
    noisy = inputs + 0.1 * torch.randn_like(inputs)  # from the process's stream
    return F.cross_entropy(network(noisy), targets)


@pytest.mark.parametrize(("measures", "trains"), [(1, 99), (3, 99), (6, 99), (99, 4), (99, 13), (99, 19)])
def test_a_killed_call_goes_on_and_equals_an_unbroken_one(trained, tmp_path, measures, trains):
    how = {"agent": "mcq", "steps": 4, "settings": {"agent.stages": 1, "agent.sample_num": 3, "schedule.period": 1}}
    call = partial(compressed, trained, **how, criterion="activation_taylor", loss=F.cross_entropy)
    unbroken = call(training_step=dying(own_step, 10**6), metric=dying(top1, 10**6))
    with pytest.raises(Killed):
        call(training_step=dying(own_step, trains), metric=dying(top1, measures), run_dir=tmp_path / "run")
    resumed = call(training_step=dying(own_step, 10**6), metric=dying(top1, 10**6), run_dir=tmp_path / "run")
    assert same(resumed.network, unbroken.network)
    assert same(resumed.levels["pruned"].before, unbroken.levels["pruned"].before)
    assert resumed.report.candidates == unbroken.report.candidates
    assert [row.metric for row in resumed.report.rows] == [row.metric for row in unbroken.report.rows]
    assert same(rlprune.load(tmp_path / "run", model=Small()), unbroken.network)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["call.json", "layers.csv", "metrics.csv", "pruned", "report.json"]


def test_a_level_outlives_a_kill(trained, tmp_path):
    whole, call = count_params(trained), partial(compressed, trained, macs=None, max_drop=40.0, steps=6, criterion="l1", recovery="none")
    unbroken = call(metric=dying(lambda network, batches: count_params(network) / whole, 10**6), settings={"schedule.period": 1})
    for after in (4, 10**6):
        metric = dying(lambda network, batches: count_params(network) / whole, after)
        with pytest.raises(Killed) if after == 4 else nullcontext():
            result = call(metric=metric, settings={"schedule.period": 1}, run_dir=tmp_path)
    assert same(result.network, unbroken.network)


def test_a_folder_belongs_to_one_call(trained, tmp_path):
    with pytest.raises(Killed):
        compressed(trained, run_dir=tmp_path, metric=dying(top1, 2))
    with pytest.raises(UserError, match=rf"^run_dir={tmp_path}: holds another call: macs was 0.5, is 0.6"):
        compressed(trained, run_dir=tmp_path, metric=dying(top1, 10), macs=0.6)
    compressed(trained, run_dir=tmp_path, metric=dying(top1, 100))
    with pytest.raises(UserError, match=rf"^run_dir={tmp_path}: holds a call that is done"):
        compressed(trained, run_dir=tmp_path, metric=dying(top1, 100))


# -- data --------------------------------------------------------------------------------------------------------------------------------


class Listed(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data[0])

    def __getitem__(self, index):
        return self.data[0][index], int(self.data[1][index])


def test_a_pair_of_tensors_and_data_sets_of_the_same_examples_are_the_same(trained):
    by_pair = compressed(trained).network
    for data in (TensorDataset(*TRAIN), Listed(TRAIN), [(image, int(target)) for image, target in zip(*TRAIN, strict=True)]):
        assert same(compressed(trained, data, val_data=Listed(VAL)).network, by_pair)


def test_a_loader_makes_its_own_batches_the_same_in_every_call(trained):
    seen = []

    def step(network, batch, teacher):
        seen.append(len(batch[1]))
        return own_step(network, batch, teacher)

    loader = DataLoader(Listed(TRAIN), batch_size=60, shuffle=True, generator=torch.Generator().manual_seed(3))
    one = compressed(trained, loader, training_step=step, loss=F.cross_entropy)
    assert seen == [60, *[60, 60, 40]]  # one to try it, one epoch of recovery
    assert same(one.network, compressed(trained, loader, training_step=step, loss=F.cross_entropy).network)


def test_a_tenth_is_held_out_and_never_trained_on(trained):
    inputs, targets = TRAIN[0].clone(), TRAIN[1]
    inputs[:, 0, 0, 0] = torch.arange(160)  # the number of the example
    seen, looked = set(), set()

    def step(network, batch, teacher):
        seen.update(batch[0][:, 0, 0, 0].tolist())
        return F.cross_entropy(network(batch[0]), batch[1])

    def metric(network, batches):
        looked.update(number for batch in batches for number in batch[0][:, 0, 0, 0].tolist())
        return top1(network, batches)

    for data in ((inputs, targets), DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True)):
        seen.clear()
        looked.clear()
        result = compressed(trained, data, val_data=None, training_step=step, metric=metric, agent="ddpg",
                            settings={"agent.episodes": 2, "agent.finetune_batches": 1, "search.recalibrate_bn": 200})  # fmt: skip
        assert (len(looked), len(seen), seen & looked) == (16, 144, set())
        assert result.report.examples == {"train_data": 144, "val_data": 16}


def test_batches_of_an_epoch_hold_each_example_once_and_differ_from_epoch_to_epoch():
    examples = examples_of((torch.arange(33), torch.arange(33)), "train_data", batch_size=8, device=CPU)
    epochs = [[batch[0].tolist() for batch in Minibatches(examples, 0).epoch(number)] for number in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    assert [len(batch) for batch in epochs[0]] == [8, 8, 8, 8]  # the last one would be a single example
    assert len({number for batch in epochs[0] for number in batch}) == 32
    assert [batch[0].tolist() for batch in Minibatches(examples, 0).epoch(0, start=2)] == epochs[0][2:]


def test_what_is_measured_on_does_not_vary():
    class Varied(Listed):
        def __getitem__(self, index):
            return torch.randn(2), index

    batches = FixedBatches(examples_of(Varied(VAL), "val_data", batch_size=20, device=CPU), 0)
    first, second = (torch.cat([batch[0] for batch in batches]) for _ in range(2))
    assert torch.equal(first, second)
    assert (len(batches), len(first)) == (3, 48)


# -- loss, training step and metric ------------------------------------------------------------------------------------------------------


def test_gradient_criteria_are_those_of_cross_entropy_where_there_is_no_loss(trained):
    graph, network = rlprune.trace(trained, TRAIN[0][:2]), copy.deepcopy(trained).eval()
    loss = BatchLoss(None, None, 0.0, 1.0)
    calibration = BatchCalibration(TRAIN, 160, partial(loss.plain, network), "loss", CPU)
    for name in ("taylor", "activation_taylor"):
        criterion = build(shipped("criterion", name, {}), "criterion")
        ours, theirs = criterion.scores_on(network, graph, calibration), criterion.scores(network, graph, *TRAIN)
        for group in theirs:
            torch.testing.assert_close(ours[group], theirs[group])


def test_gradient_criteria_take_the_loss_that_is_given(trained):
    """By a loss that looks at one class alone, |w · ∂L/∂w| by hand."""
    graph, network = rlprune.trace(trained, TRAIN[0][:2]), copy.deepcopy(trained).eval()
    loss = BatchLoss(lambda outputs, targets: outputs[:, 0].mean(), None, 0.0, 1.0)
    calibration = BatchCalibration(TRAIN, 160, partial(loss.plain, network), "loss", CPU)
    scores = build(shipped("criterion", "taylor", {}), "criterion").scores_on(network, graph, calibration)
    network(TRAIN[0])[:, 0].mean().backward()
    weight = network.stem.weight
    torch.testing.assert_close(scores["stem"], (weight * weight.grad).abs().sum((1, 2, 3)).detach().double())


def test_recovery_without_a_step_of_ones_own_is_that_of_the_command_line(trained):
    student, teacher = Small().eval(), copy.deepcopy(trained).eval()
    execution = Execution(CPU, None, (Way(None, torch.contiguous_format),), "false", compile=False)
    theirs = distillation(teacher, rho=0.75, temperature=2.0, execution=execution)(student(TRAIN[0]), *TRAIN)
    assert BatchLoss(None, None, 0.75, 2.0).step(teacher, student, TRAIN) == theirs
    assert BatchLoss(F.cross_entropy, None, 0.75, 2.0).step(teacher, student, list(TRAIN)) == theirs
    squared = BatchLoss(lambda outputs, targets: F.mse_loss(outputs, targets), None, 0.75, 2.0)  # no classes, no teacher
    wanted = F.one_hot(TRAIN[1], 3).float()
    assert squared.step(teacher, student, (TRAIN[0], wanted)) == F.mse_loss(student(TRAIN[0]), wanted)


class Named(nn.Module):
    """Takes two tensors by name and returns a dict."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 16), nn.Linear(5, 16), nn.Linear(16, 1)

    def forward(self, *, left, right):
        return {"value": self.out(torch.relu(self.a(left) + self.b(right)))}


class Records(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        left, right = torch.randn(2, 5, generator=torch.Generator().manual_seed(index))
        return {"left": left, "right": right, "sum": (left + right).sum(0, keepdim=True)}


def squared(network, batch, teacher):
    return F.mse_loss(network(left=batch["left"], right=batch["right"])["value"], batch["sum"])


def closeness(network, batches):
    return -sum(float(squared(network, batch, network)) for batch in batches) / len(batches)


@pytest.mark.parametrize("criterion", ["taylor", "activation_taylor"])
def test_batches_of_any_kind_with_a_step_and_a_metric(criterion, tmp_path):
    torch.manual_seed(0)
    example = {"left": torch.zeros(2, 5), "right": torch.zeros(2, 5)}
    call = partial(
        compressed, Named(), Records(), val_data=None, example_inputs=example, training_step=squared, metric=closeness, criterion=criterion,
        settings={"search.recalibrate_bn": 20},
    )  # fmt: skip
    result = call(recovery={"epochs": 3, "final_epochs": 8, "lr": 0.03, "batch_size": 8})
    assert result.network.a.out_features == result.network.b.out_features == len(result.keep["a"]) == 8
    assert result.report.recovered.metric > result.report.pruned.metric
    with pytest.raises(UserError, match=r"^save: a plan describes networks of one tensor \(N, C, H, W\)"):
        result.save(tmp_path / "small")
    with pytest.raises(UserError, match=r"^train_data: its batches are no pairs .* dict; pass example_inputs=, training_step= and metric="):
        call(example_inputs=None)
    with pytest.raises(UserError, match=r"^train_data: its batches are no pairs .* dict; pass training_step="):
        call(training_step=None)


def untouched(*arguments):
    raise AssertionError("a search has begun")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": lambda outputs, targets: outputs.sum() * float("nan")}, r"^loss: returned nan on a batch of train_data; it must"),
        ({"loss": lambda outputs, targets: outputs}, r"^loss: returned a Tensor of shape \(32, 3\); return the"),
        ({"loss": lambda outputs, targets: 1.0}, r"^loss: returned 1.0; return the loss as a tensor"),
        ({"training_step": lambda network, batch, teacher: torch.zeros(())}, r"^training_step: its value does not depend on a weight"),
        ({"macs": None}, r"^sparsity=None: nothing says how much goes; set it, or macs, params, latency or max_drop"),
        ({"macs": 0.001}, r"^macs=0.001: 0\.\d+ to 1 of the dense network's is within reach, as min_keep, round_to, max_sparsity"),
        ({"macs": 1.5}, r"^macs=1.5: must be in \(0, 1\), or None"),
        ({"min_keep": 100}, r"nothing may go; lower min_keep"),
        ({"ignore": [".*"]}, r"^model: no channel can be removed \(.*as asked"),
        ({"ignore": "stem"}, r"^ignore='stem': must be a list of names or regular expressions, \['stem'\]"),
        ({"agent": "rlal"}, r"^agent=rlal: networks come trained; "),
        ({"agent": "mqc"}, r"^agent=mqc: unknown \(did you mean mcq\?\); choose one of amc, "),
        ({"settings": {"agent.stages": 3}}, r"^agent.stages: no such key"),
        ({"agent": "mcq", "settings": {"agent.stages": "x"}}, r"^agent.stages=x: must be an integer"),
        ({"settings": {"schedule.steps": 3}}, r"^steps: is an argument of its own; leave it out of settings"),
        ({"settings": {"training.epochs": 3}}, r"^settings: training.epochs is no key of agent, criterion"),
        ({"settings": {"search.execution": "masked"}}, r"^search.execution: is not for compress: candidates are cut to their widths"),
        ({"recovery": {"learning_rate": 3}}, r"^recovery.learning_rate: no such key; there are batch_size"),
        ({"recovery": {"batch_size": 1}}, r"^recovery.batch_size=1: must be ≥ 2"),
        ({"device": "tpu"}, r"^device=tpu: unknown"),
        ({"train": (TRAIN[0], TRAIN[1][:5])}, r"^train_data: has 160 inputs and 5 targets"),
        ({"train": 3}, r"^train_data: must be a torch Dataset, a DataLoader, or a pair of tensors \(inputs, targets\); got 3"),
        ({"train": (TRAIN[0].numpy(), TRAIN[1].numpy())}, r"^train_data: must be a torch Dataset, .* got a tuple"),
        ({"train": Subset(TensorDataset(*TRAIN), [])}, r"^train_data: is empty"),
        ({"train": (TRAIN[0][:4], TRAIN[1][:4]), "val_data": None}, r"^train_data: has 4 examples, of which no tenth can be held out"),
        ({"train": (TRAIN[0][:, 0], TRAIN[1])}, r"^Small: cannot run on the example inputs, in "),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_before_any_search(trained, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        compressed(trained, **{"metric": untouched, "run_dir": tmp_path / "run", **arguments})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [None, "high", float("nan"), torch.ones(2)])
def test_a_metric_is_one_finite_number(trained, value):
    with pytest.raises(UserError, match=r"^metric: returned .*; return one finite number, higher is better"):
        compressed(trained, metric=lambda network, batches: value)


def test_networks_that_do_not_classify_are_told_what_to_pass():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with pytest.raises(UserError, match=r"^metric: the network returns a Tensor of shape \(32, 2, 4, 4\) for targets .*; pass metric="):
        compressed(network, (TRAIN[0], torch.zeros(160, 4, 4).long()), val_data=(VAL[0], torch.zeros(48, 4, 4).long()))
    with pytest.raises(UserError, match=r"^loss: cross-entropy refuses outputs .* with targets .*; pass loss= or training_step="):
        compressed(network, metric=untouched)


# -- the configuration -------------------------------------------------------------------------------------------------------------------


def test_a_call_has_the_configuration_of_the_line():
    words = ["agent=ddpg", "optimizer@recovery.optimizer=adamw", "agent.episodes=7", "budget.macs=0.5", "seed=3", "paths.run=unused"]
    line = resolve(composed("prune", *words))
    settings = {"agent.episodes": 7, "budget.macs": 0.5, "seed": 3}
    call = compose("prune", choices={"agent": "ddpg", "optimizer@recovery.optimizer": "adamw"}, settings=settings)
    assert dataclasses.asdict(call) == dataclasses.asdict(line)


def test_an_application_of_hydra_keeps_its_own():
    composed("prune")
    before = GlobalHydra.instance().hydra = object()
    try:
        compose("prune", choices={}, settings={})
        assert GlobalHydra.instance().hydra is before
    finally:
        GlobalHydra.instance().clear()


# -- examples ----------------------------------------------------------------------------------------------------------------------------


def test_the_readme_shows_what_runs_here():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "scripts/examples").glob("*.py")]
    for block in blocks:
        if "load_digits" in block or "mean_iou" in block:
            assert any(block in source for source in sources)


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(ROOT / "scripts/examples/digits.py"))
    model, result, (inputs, targets) = names["model"], names["result"], names["test"]
    assert result.graph.macs(result.keep) <= 0.5 * result.graph.macs({})
    assert result.report.recovered.test_metric == (result.network(inputs).argmax(1) == targets).double().mean() > 0.8
    assert torch.equal(rlprune.load(tmp_path / "small", model=model)(inputs), result.network(inputs))
    assert capsys.readouterr().out.startswith("| network ")


def test_segmentation_needs_nothing_of_classification(tmp_path, monkeypatch):
    example = runpy.run_path(str(ROOT / "scripts/examples/segmentation.py"))
    calls = []

    def metric(network, batches):
        calls.append(network)
        return example["mean_iou"](network, batches)

    network, result = example["main"](
        count=24, epochs=1, agent="uniform", settings={}, steps=1, metric=metric, progress=False, device="cpu", run_dir=tmp_path
    )
    assert result.graph.macs(result.keep) <= 0.5 * result.graph.macs({})
    assert len(calls) == 3 + 3  # dense, candidate, recovered; then the report's rows
    images, masks = example["pictures"](6, seed=1)
    dense = copy.deepcopy(network).double().eval()
    before = rlprune.prune(dense, result.graph, result.keep)
    zeroed = rlprune.mask(dense, result.graph, result.keep)
    torch.testing.assert_close(before(images.double())["out"], zeroed(images.double())["out"], rtol=1e-9, atol=1e-9)
    assert same(result.levels["pruned"].before.double(), before)
    assert result.report.recovered.metric == example["mean_iou"](result.network, [(images, masks)])
    again = rlprune.load(tmp_path, model=example["make_network"]())
    assert torch.equal(again(images)["out"], result.network(images)["out"])


@pytest.fixture
def slower_every_time(monkeypatch):
    """A machine that takes longer whenever it is asked: a call takes as many seconds as its tensors have entries, then twice that, …"""
    asked = []

    def time_grids(grids, device, advance, *, monotone=True):
        asked.append(len(grids))
        sizes = [
            [float(sum(np.prod(shape) for shape in grid.shapes(node))) for node in np.ndindex(*map(len, grid.steps))] for grid in grids
        ]
        return [len(asked) * np.array(size).reshape([len(row) for row in grid.steps]) for size, grid in zip(sizes, grids, strict=True)]

    monkeypatch.setattr("rlprune.latency.build.time_grids", time_grids)
    whole = lambda networks, example: {name: len(asked) * float(count_params(network)) for name, network in networks.items()}  # noqa: E731
    monkeypatch.setattr("rlprune.latency.build.measure_networks", whole)
    return asked


def test_latency_is_a_bound_beside_others(trained, slower_every_time):
    result = compressed(trained, latency=0.7, macs=0.9, params=0.95)
    targets = result.report.targets
    assert 0 < targets["latency"]["reached"] <= 0.7
    assert targets["macs"]["reached"] <= 0.9
    assert targets["params"]["reached"] <= 0.95
    assert result.graph.latency(result.keep) / result.graph.latency({}) == pytest.approx(targets["latency"]["reached"])
    assert "latency 0.7, reached 0." in str(result.report)
    with pytest.raises(UserError, match=r"^latency=0.0001: 0\.\d+ to 1 of the dense network's is within reach"):
        compressed(trained, latency=0.0001)


def test_a_killed_call_goes_on_with_the_predictions_it_began_with(trained, slower_every_time, tmp_path):
    call = partial(compressed, trained, latency=0.6, reward="latency", agent="mcq", steps=3, settings={"agent.stages": 1}, run_dir=tmp_path)
    with pytest.raises(Killed):
        call(metric=dying(top1, 4))
    resumed = call(metric=dying(top1, 10**6))
    assert len(slower_every_time) == 1  # nothing is measured again: what is within reach stays what it was
    assert resumed.graph.latency({}) == pytest.approx(compressed(trained, latency=0.6).graph.latency({}) / 2)


def test_the_multiple_that_the_device_likes(trained, monkeypatch):
    monkeypatch.setattr("rlprune.latency.rounding.multiple_savings", lambda sweeps: {1: 0.0, 2: 0.1, 4: 0.3})
    result = compressed(trained, round_to="auto")
    dense = dict(zip((group.name for group in result.graph.groups), result.graph.num_units.tolist(), strict=True))
    assert all(len(units) in (dense[name], *range(0, dense[name], 4)) for name, units in result.keep.items())
    with pytest.raises(UserError, match=r"^round_to=often: must be ≥ 1, where 1 does not round, or auto"):
        compressed(trained, round_to="often")
