import argparse
import logging
import math
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn

from rlprune.checkpoint import load_into, load_tensors, load_weights, save_tensors
from rlprune.data.base import Augmentation, Images, Normalization, Splits
from rlprune.data.batches import Batches
from rlprune.errors import UserError
from rlprune.training.evaluate import Accuracy, Evaluator
from rlprune.training.execution import Execution, Way, choose_device, choose_execution, choose_precision
from rlprune.training.fit import Recipe, cross_entropy, fit, make_scheduler, parameter_groups
from rlprune.training.measure import choose_way, measure_ways
from rlprune.training.progress import Saver
from rlprune.training.recover import Recovery, distillation, recover


def on_cpu(dtype=None, memory_format=torch.channels_last, channels_last="auto"):
    return Execution(torch.device("cpu"), dtype, (Way(dtype, memory_format),), channels_last, False)


CPU = on_cpu()
PLAIN = Normalization((0.5,) * 3, (0.25,) * 3)


def task(count=64):
    """Bright images are class 1."""
    labels = torch.arange(count) % 2
    pixels = (labels.view(-1, 1, 1, 1) * 120 + torch.randint(0, 100, (count, 3, 8, 8))).byte()
    return Images(pixels, labels)


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def loader(images, seed=0, crop=0):
    return Batches(
        images,
        batch_size=16,
        normalization=PLAIN,
        augmentation=Augmentation(crop=crop),
        num_classes=2,
        seed=seed,
        device=torch.device("cpu"),
    )


def recipe(lr=0.1, schedule="one_cycle", clip=None, milestones=(2, 4), warmup=0, ema=None, optimizer=None):
    optimizer = optimizer or partial(torch.optim.SGD, lr=lr, momentum=0.9, nesterov=True, weight_decay=0.1)
    return Recipe(optimizer, schedule, tuple(milestones), 0.5, warmup, clip, ema)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "step", "constant"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_training_solves_an_easy_task(schedule, dtype):
    images, net = task(), network()
    execution = on_cpu(dtype)
    history = fit(
        net,
        loader(images),
        epochs=6,
        loss=cross_entropy(0.05),
        recipe=recipe(schedule=schedule, clip=1.0),
        execution=execution,
        description="x",
    )
    assert len(history) == 6
    assert history[-1] < history[0]
    assert Evaluator(images, PLAIN, execution).accuracy(net).top1 > 0.95
    assert not net.training


def test_the_same_seed_trains_the_same_weights():
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        images, net = task(), network()
        fit(net, loader(images, crop=1), epochs=2, loss=cross_entropy(0.0), recipe=recipe(), execution=CPU, description="x")
        weights.append(net[0].weight.clone())
    assert torch.equal(*weights)


def test_a_loss_that_is_not_finite_stops_with_one_line():
    with pytest.raises(UserError, match=r"warm up, epoch 1: the loss or a weight is no longer finite"):
        fit(network(), loader(task()), epochs=3, loss=cross_entropy(0.0), recipe=recipe(lr=1e30), execution=CPU, description="warm up")


def test_only_weights_decay():
    groups = parameter_groups(network())
    assert [parameter.ndim for parameter in groups[0]["params"]] == [4, 2]
    assert [parameter.ndim for parameter in groups[1]["params"]] == [1, 1, 1, 1]
    assert groups[1]["weight_decay"] == 0


def test_schedules_have_their_shapes():
    rates = {}
    for name, warmup in (("one_cycle", 0), ("cosine", 0), ("step", 0), ("constant", 0), ("constant", 2)):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        scheduler = make_scheduler(optimizer, recipe(schedule=name, warmup=warmup), 5, 2)
        name = f"warm {name}" if warmup else name
        rates[name] = []
        for _ in range(10):
            rates[name].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    assert max(rates["one_cycle"]) == pytest.approx(0.5, rel=0.05)
    assert rates["one_cycle"][0] < 0.1
    assert rates["one_cycle"][-1] < 0.05
    assert rates["cosine"] == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])
    assert set(rates["constant"]) == {0.5}
    assert rates["step"] == [0.5] * 4 + [0.25] * 4 + [0.125] * 2  # halved after two and four epochs of two batches
    assert rates["warm constant"] == [0.125, 0.25, 0.375] + [0.5] * 7
    with pytest.raises(UserError, match="lr_schedule=linear"):
        make_scheduler(optimizer, recipe(schedule="linear"), 1, 3)


def test_distillation_is_equations_25_and_26():
    teacher, student = network().eval(), torch.randn(5, 2)
    images, labels = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 1, 0, 1])
    loss = distillation(teacher, rho=0.75, temperature=2.0, execution=CPU)(student, images, labels)
    p, q = (torch.softmax(logits / 2, 1) for logits in (teacher(images), student))
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(loss, 0.25 * F.cross_entropy(student, labels) + 0.75 * 4 * divergence)
    plain = distillation(teacher, rho=0.0, temperature=1.0, execution=CPU)(student, images, labels)
    torch.testing.assert_close(plain, F.cross_entropy(student, labels))


def test_recovery_trains_the_student_and_not_the_teacher():
    images = task()
    splits = Splits(images, images, PLAIN, ("dark", "bright"), Augmentation())
    teacher, student = network().eval(), network()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    recovery = Recovery(recipe(), 16, 1, 1, 0.75, 2.0, True)
    losses = recover(student, teacher, splits, epochs=3, recovery=recovery, execution=CPU, seed=0, phase="x")
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


class Fixed(nn.Module):
    """Ranks the classes 0, 1, 2, ... for every image, and fails on batches larger than `limit`."""

    def __init__(self, limit=10**9):
        super().__init__()
        self.limit = limit
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("no memory")
        return -torch.arange(12.0).expand(len(images), -1)


def test_accuracy_counts_and_its_standard_error():
    images = Images(torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 1, 4, 5, 11]))
    accuracy = Evaluator(images, PLAIN, CPU, batch_size=4).accuracy(Fixed())
    assert (accuracy.top1, accuracy.top5, accuracy.n) == (2 / 6, 4 / 6, 6)
    assert Accuracy(90, 95, 100).standard_error == pytest.approx(0.03)


def test_out_of_memory_halves_the_batch_and_says_so(caplog):
    images = Images(torch.zeros(20, 3, 4, 4, dtype=torch.uint8), torch.zeros(20, dtype=torch.long))
    evaluator = Evaluator(images, PLAIN, CPU, batch_size=16)
    with caplog.at_level(logging.WARNING):
        assert evaluator.accuracy(Fixed(limit=5)).top1 == 1.0
    assert evaluator.batch_size == 4
    assert "batches of 4" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        evaluator.accuracy(Fixed(limit=0))


def test_fewer_images_are_measured_in_the_same_way():
    images, net = task(), network()
    evaluator = Evaluator(images, PLAIN, CPU, batch_size=24)
    few = evaluator.first(40)
    assert (len(few), few.batch_size, Evaluator(images, PLAIN, CPU).batch_size) == (40, 24, 256)
    assert few.accuracy(net) == Evaluator(images.subset(np.arange(40)), PLAIN, CPU).accuracy(net)


def test_large_splits_are_normalised_batch_by_batch(monkeypatch):
    monkeypatch.setattr("rlprune.training.evaluate.RESIDENT_BYTES", 10)
    images, net = task(), network()
    assert Evaluator(images, PLAIN, CPU, batch_size=7).accuracy(net).n == 64


def test_devices_and_precisions():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "mps", "cuda:99"):
        with pytest.raises(UserError, match=f"device={name}"):
            choose_device(name)
    assert choose_precision("fp32", torch.device("cpu")) is None
    assert choose_precision("bf16", torch.device("cpu")) is torch.bfloat16
    with pytest.raises(UserError, match="precision=int8"):
        choose_precision("int8", torch.device("cpu"))
    with pytest.raises(UserError, match="channels_last=maybe"):
        choose_execution(device="cpu", precision="fp32", channels_last="maybe", compile=False)


def ways(**settings):
    return choose_execution(**({"device": "cpu", "precision": "bf16", "channels_last": "auto", "compile": False} | settings))


def test_ways_of_training_are_those_that_the_command_line_leaves_open():
    plain, last, bf16 = torch.contiguous_format, torch.channels_last, torch.bfloat16
    assert ways().ways == (Way(bf16, last), Way(bf16, plain))
    assert ways(channels_last="false").ways == (Way(bf16, plain),)
    assert ways(precision="fp32", channels_last="true").ways == (Way(None, last),)
    assert ways(precision="auto").ways[-1] == Way(None, plain)
    convolution, linear = nn.Conv2d(3, 16, 3), nn.Linear(3, 3)
    assert ways().memory_format(convolution, training=True) == last
    assert ways(channels_last="false").memory_format(convolution, training=False) == plain
    assert ways().memory_format(linear, training=False) == plain


def test_the_fastest_way_is_measured_once_and_kept(tmp_path, monkeypatch):
    execution, net, example = ways(precision="auto"), network(), torch.zeros(2, 3, 8, 8)
    slow, fast = execution.ways[0], execution.ways[-1]
    asked = []

    def fake(execution, network, example, count):
        asked.append(count)
        return {str(way): 1.0 + 2 * (way == fast) for way in execution.ways}

    monkeypatch.setattr("rlprune.training.measure.measure_ways", fake)
    for run in range(2):
        chosen = choose_way(execution, net, example, batch_size=32, images=10**6, cache=tmp_path / "c", chosen=tmp_path / f"{run}.json")
        assert (chosen.training, set(chosen.ways)) == (fast, set(execution.ways))
    assert asked == [32]
    few = choose_way(execution, net, example, batch_size=32, images=100, cache=tmp_path / "c", chosen=tmp_path / "few.json")
    assert (few.training, asked) == (slow, [32])
    (kept,) = (tmp_path / "c").iterdir()
    kept.write_text("{")
    settings = {"batch_size": 32, "images": 10**6, "cache": tmp_path / "c"}
    (tmp_path / "0.json").write_text(f'{{"way": "{slow}"}}')  # a run goes on as it began, whatever is measured now
    assert choose_way(execution, net, example, chosen=tmp_path / "0.json", **settings).training == slow
    assert asked == [32]
    choose_way(execution, net, example, chosen=tmp_path / "new.json", **settings)
    assert asked == [32, 32]


def test_measuring_leaves_the_network_and_the_random_stream_alone():
    execution, net, example = ways(precision="auto"), network(), torch.randn(2, 3, 8, 8)
    before, stream = {name: tensor.clone() for name, tensor in net.state_dict().items()}, torch.get_rng_state()
    rates = measure_ways(execution, net, example, 16)
    assert set(rates) == {str(way) for way in execution.ways}
    assert all(rate > 0 for rate in rates.values())
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())

    class Fussy(nn.Conv2d):
        def forward(self, images):
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("not implemented for BFloat16")
            return super().forward(images).mean((2, 3))

    rates = measure_ways(execution, Fussy(3, 4, 3), example, 16)
    assert [rate > 0 for rate in rates.values()] == [way.dtype is None for way in execution.ways]


class KilledError(Exception):
    pass


class Dying(Saver):
    """Saves behind every batch and dies behind the given one."""

    def __init__(self, path, after):
        super().__init__(path, identity="this", minutes=0, resume=False)
        self.after = after

    def save_if_due(self, progress):
        self._cost = 0.0
        super().save_if_due(progress)
        self.after -= 1
        if self.after == 0:
            raise KilledError


@pytest.mark.parametrize("schedule", ["one_cycle", "step"])
@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("optimizer", [None, partial(torch.optim.AdamW, lr=0.01)])
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, schedule, ema, optimizer):
    def start():
        torch.manual_seed(0)
        return task(), nn.Sequential(nn.Dropout(0.1), *network())

    settings = {"epochs": 3, "loss": cross_entropy(0.1), "execution": CPU, "description": "x"}
    how = recipe(schedule=schedule, ema=ema, optimizer=optimizer, milestones=(1, 2))
    images, unbroken = start()
    losses = fit(unbroken, loader(images, crop=1), recipe=how, **settings)
    for after in (1, 4, 6, 11):  # in the middle and at the end of an epoch of four batches
        images, killed = start()
        with pytest.raises(KilledError):
            fit(killed, loader(images, crop=1), recipe=how, saver=Dying(tmp_path / "s.safetensors", after), **settings)
        images, resumed = start()
        saver = Saver(tmp_path / "s.safetensors", identity="this", minutes=0, resume=True)
        assert fit(resumed, loader(images, crop=1), recipe=how, saver=saver, **settings) == losses
        for name, tensor in unbroken.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], tensor), name
        saver.forget()
        assert not list(tmp_path.iterdir())


def test_a_damaged_or_foreign_state_is_left_aside(tmp_path, caplog):
    images, path = task(), tmp_path / "s.safetensors"
    settings = {"epochs": 2, "loss": cross_entropy(0.1), "execution": CPU, "description": "x"}

    def trained(saver=None, how=None):
        torch.manual_seed(0)
        net = network()
        fit(net, loader(images), recipe=how or recipe(), saver=saver, **settings)
        return net.state_dict()

    wanted = trained()
    with pytest.raises(KilledError):
        trained(Dying(path, 3), recipe(optimizer=partial(torch.optim.AdamW, lr=0.1)))
    whole = path.read_bytes()
    for data in (whole, whole[:-9]):
        path.write_bytes(data)
        found = trained(Saver(path, identity="this", minutes=60, resume=True))
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
        assert "training from the start" in caplog.text
        caplog.clear()
    found = trained(Saver(path, identity="this", minutes=60, resume=False))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_state_of_another_training_is_not_taken(tmp_path, caplog):
    path = tmp_path / "s.safetensors"
    settings = {"epochs": 2, "loss": cross_entropy(0.1), "description": "x", "recipe": recipe()}
    with pytest.raises(KilledError):
        fit(network(), loader(task()), saver=Dying(path, 3), execution=CPU, **settings)
    for identity, images, execution in (("other", task(), CPU), ("this", task(32), CPU), ("this", task(), on_cpu(torch.bfloat16))):
        fit(network(), loader(images), saver=Saver(path, identity=identity, minutes=60, resume=True), execution=execution, **settings)
        assert "training from the start" in caplog.text
        caplog.clear()
    tensors, facts = load_tensors(path)
    for change in ({"epoch": 7}, {"batch": 4}, {"losses": [1.0, 2.0]}):
        save_tensors(path, tensors, facts | change)
        fit(network(), loader(task()), saver=Saver(path, identity="this", minutes=60, resume=True), execution=CPU, **settings)
        assert "training from the start" in caplog.text
        caplog.clear()


def test_a_full_disk_does_not_end_a_training(tmp_path, monkeypatch, caplog):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlprune.training.progress.save_tensors", full)
    saver = Saver(tmp_path / "s.safetensors", identity="this", minutes=0, resume=False)
    losses = fit(network(), loader(task()), saver=saver, epochs=2, loss=cross_entropy(0.0), recipe=recipe(), execution=CPU, description="x")
    assert len(losses) == 2
    assert "the state cannot be saved" in caplog.text


class Restless(nn.Module):
    """Draws from Python's and numpy's streams, and keeps something that no state dict holds."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.register_buffer("hidden", torch.zeros(()), persistent=False)

    def forward(self, images):
        if self.training:
            self.hidden += random.random() + float(np.random.rand())
        return self.net(images) * (1 + 0.01 * self.hidden)


def test_a_resumed_training_has_its_other_streams_and_hidden_buffers_back(tmp_path):
    def start():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        return task(), Restless()

    settings = {"epochs": 2, "loss": cross_entropy(0.1), "execution": CPU, "description": "x", "recipe": recipe()}
    images, unbroken = start()
    fit(unbroken, loader(images), **settings)
    images, killed = start()
    with pytest.raises(KilledError):
        fit(killed, loader(images), saver=Dying(tmp_path / "s.safetensors", 3), **settings)
    images, resumed = start()
    fit(resumed, loader(images), saver=Saver(tmp_path / "s.safetensors", identity="this", minutes=60, resume=True), **settings)
    assert torch.equal(resumed.hidden, unbroken.hidden)
    assert torch.equal(resumed.net[0].weight, unbroken.net[0].weight)


def test_a_network_without_weights_to_train_is_named():
    with pytest.raises(UserError, match="model: Flatten has no weights to train"):
        parameter_groups(nn.Flatten())


def test_scores_that_are_no_numbers_are_no_answers():
    class Broken(Fixed):
        def forward(self, images):
            return super().forward(images) * float("nan")

    images = Images(torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 1, 4, 5, 11]))
    accuracy = Evaluator(images, PLAIN, CPU).accuracy(Broken())
    assert (accuracy.correct, accuracy.correct_top5) == (0, 0)


def test_the_moving_average_is_the_result():
    torch.manual_seed(0)
    images, net = task(), network()
    seen = []

    class Watch(Saver):
        def restore(self, progress):
            self.save_if_due(progress)

        def save_if_due(self, progress):
            seen.append({name: tensor.clone() for name, tensor in progress.network.state_dict().items() if tensor.is_floating_point()})

    settings = {"epochs": 2, "loss": cross_entropy(0.0), "execution": CPU, "description": "x"}
    fit(net, loader(images), recipe=recipe(ema=0.75), saver=Watch(Path("unused"), identity="", minutes=0, resume=False), **settings)
    assert len(seen) == 9
    average = seen[0]
    for steps, weights in enumerate(seen[1:], 1):
        decay = min(0.75, (1 + steps) / (10 + steps))
        average = {name: decay * average[name] + (1 - decay) * tensor for name, tensor in weights.items()}
    for name, tensor in average.items():
        torch.testing.assert_close(net.state_dict()[name], tensor, msg=name)
    assert not torch.equal(net[0].weight, seen[-1]["0.weight"])
    assert int(net[1].num_batches_tracked) == 8  # counted, not averaged


def test_weights_survive_the_round_trip_and_damage_is_named(tmp_path):
    net, path = network(), tmp_path / "w.safetensors"
    save_tensors(path, net.state_dict(), {"epochs": 3})
    tensors, metadata = load_tensors(path)
    assert metadata == {"epochs": 3}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in net.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
    flipped = bytearray(path.read_bytes())
    flipped[-5] ^= 64
    path.write_bytes(flipped)
    with pytest.raises(UserError, match="is damaged"):
        load_tensors(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"w\.safetensors: is not a whole safetensors file"):
        load_tensors(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_tensors(tmp_path / "absent.safetensors")


def test_a_disk_that_is_full_while_tensors_are_written_is_an_os_error(tmp_path, monkeypatch):
    def full(*arguments):
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("rlprune.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_equal_tensors_are_equal_files_and_shared_memory_is_written_out(tmp_path):
    weight = torch.randn(4, 3)
    tensors = {"a": weight, "b": weight.T, "c": weight[1:], "d": torch.ones(2, dtype=torch.int64)}
    for index in range(12):
        save_tensors(tmp_path / f"{index}.safetensors", tensors, {"x": index // 100, "y": [1, 2]})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    found = load_tensors(tmp_path / "0.safetensors")[0]
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"net": {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}}, "args": argparse.Namespace(lr=0.1)},
        lambda s: {"state_dict": {(f"module.{k}" if "0" in k else k): v for k, v in s.items()} | {"n_averaged": torch.tensor(3)}},
        lambda s: {"model": s, "best": np.float64(0.5), "path": Path("x"), "epochs": np.int64(3)},
    ],
)
def test_state_dicts_come_in_several_wrappings(tmp_path, wrap):
    net, other = network(), network()
    torch.save(wrap(net.state_dict()), tmp_path / "w.pt")
    load_into(other, load_weights(tmp_path / "w.pt")[0], "w.pt")
    assert torch.equal(net[0].weight, other[0].weight)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(network(), path)  # a pickled module would run code
    with pytest.raises(UserError, match="more than plain weights"):
        load_weights(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds no state dict"):
        load_weights(path)
    torch.save({3: torch.zeros(1)}, path)
    with pytest.raises(UserError, match="holds no state dict"):
        load_weights(path)
    with pytest.raises(UserError, match="is a folder"):
        load_weights(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(tmp_path / "absent.pt")
    net = network()
    state = net.state_dict()
    wide = {name: tensor for name, tensor in state.items() if name != "5.bias"} | {
        "extra": torch.zeros(1),
        "0.weight": torch.zeros(5, 3, 3, 3),
    }
    with pytest.raises(
        UserError,
        match=r"1 missing \(first: 5\.bias\), 1 unexpected \(first: extra\), 1 misshapen \(first: 0\.weight \(5, 3",
    ):
        load_into(net, wide, "w.pt")
    state = {name: tensor.clone() for name, tensor in state.items()}
    for change, message in (
        (state["0.weight"].to(torch.int8), r"0\.weight is of type torch\.int8, the model's is torch\.float32"),
        (torch.full((4, 3, 3, 3), 3e39, dtype=torch.float64), r"0\.weight holds values that are not finite"),
        (state["0.weight"].to_sparse(), r"0\.weight is no plain tensor"),
    ):
        with pytest.raises(UserError, match=message):
            load_into(net, state | {"0.weight": change}, "w.pt")
    state["0.weight"][0] = float("nan")
    with pytest.raises(UserError, match=r"0\.weight holds values that are not finite"):
        load_into(net, state, "w.pt")
