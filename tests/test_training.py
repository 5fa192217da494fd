import logging
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rlprune.checkpoint import load_into, load_tensors, load_weights, save_tensors
from rlprune.data.base import Images, Normalization, Splits
from rlprune.data.batches import Batches
from rlprune.errors import UserError
from rlprune.training.evaluate import Accuracy, Evaluator
from rlprune.training.execution import Execution, choose_device, choose_execution, choose_precision
from rlprune.training.fit import Recipe, cross_entropy, fit, make_scheduler, parameter_groups
from rlprune.training.recover import Recovery, distillation, recover

CPU = Execution(torch.device("cpu"), None, "auto", False)
PLAIN = Normalization((0.5,) * 3, (0.25,) * 3)


def task(count=64):
    """Bright images are class 1."""
    labels = torch.arange(count) % 2
    pixels = (labels.view(-1, 1, 1, 1) * 120 + torch.randint(0, 100, (count, 3, 8, 8))).byte()
    return Images(pixels, labels)


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def loader(images, seed=0, crop=0):
    return Batches(images, batch_size=16, normalization=PLAIN, crop=crop, flip=False, generator=torch.Generator().manual_seed(seed))


def recipe(lr=0.1, schedule="one_cycle", clip=None):
    return Recipe(partial(torch.optim.SGD, lr=lr, momentum=0.9, nesterov=True, weight_decay=0.1), schedule, clip)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_training_solves_an_easy_task(schedule, dtype):
    images, net = task(), network()
    execution = Execution(torch.device("cpu"), dtype, "auto", False)
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
    for name in ("one_cycle", "cosine", "constant"):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        scheduler = make_scheduler(optimizer, name, 10)
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
    with pytest.raises(UserError, match="lr_schedule=step"):
        make_scheduler(optimizer, "step", 3)


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
    splits = Splits(images, images, PLAIN, ("dark", "bright"), 0, False)
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


def test_the_memory_format_depends_on_widths_alone():
    odd, even = nn.Sequential(nn.Conv2d(3, 13, 3)), nn.Sequential(nn.Conv2d(3, 16, 3))
    assert CPU.memory_format(even, training=True) == torch.channels_last
    assert CPU.memory_format(odd, training=True) == torch.contiguous_format
    assert CPU.memory_format(odd, training=False) == torch.channels_last
    assert Execution(torch.device("cpu"), None, "true", False).memory_format(odd, training=True) == torch.channels_last
    assert Execution(torch.device("cpu"), None, "false", False).memory_format(even, training=False) == torch.contiguous_format


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


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": {f"module.{k}": v for k, v in s.items()}}]
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
    state["0.weight"][0] = float("nan")
    with pytest.raises(UserError, match=r"0\.weight holds values that are not finite"):
        load_into(net, state, "w.pt")
