"""What two processes compute against what one does; torchrun starts it (tests/test_distributed.py). Rank 0 prints the names that hold."""

import copy
import dataclasses
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rlprune.data.base import Augmentation, Images, Normalization
from rlprune.data.batches import WHOLE, Batches
from rlprune.distributed import LostError, joined, leading
from rlprune.errors import UserError
from rlprune.graph import prune, trace
from rlprune.launch import launched
from rlprune.seeding import seed_globals
from rlprune.training import fit as fitting
from rlprune.training.alignment import Alignment
from rlprune.training.execution import Execution, Way
from rlprune.training.fit import Recipe, StepLoss, Trainer, cross_entropy, fit
from rlprune.training.joint import _aligned
from rlprune.training.progress import Saver, everything
from rlprune.training.recover import distillation
from rlprune.training.team import Team

CPU = torch.device("cpu")
ALONE = Execution(CPU, None, (Way(None, torch.channels_last),), "auto", False)


class Own(nn.Module):
    """Calls the function itself, as some libraries' layers do, and holds what no pickle takes."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.rand(6))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))
        self.act = lambda x: F.relu(x)

    def forward(self, x):
        return self.act(F.batch_norm(x, self.mean, self.var, self.scale, self.shift, training=self.training))


class Net(nn.Module):
    """Batch norms of every kind; in float64 whatever comes."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.own = nn.Conv2d(6, 6, 3), Own()
        self.conv3, self.norm3 = nn.Conv2d(6, 5, 1, stride=2), nn.BatchNorm2d(5, affine=False, momentum=None)
        self.norm4 = nn.BatchNorm3d(5, track_running_stats=False)
        self.drop, self.fc, self.norm5 = nn.Dropout(dropout), nn.Linear(5 * 2 * 2, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x.to(self.fc.weight.dtype))), inplace=True)
        x = self.norm3(self.conv3(self.own(self.conv2(x))))
        x = self.norm4(x[:, :, None])[:, :, 0]
        return self.norm5(self.fc(self.drop(x.flatten(1))))


def make(dropout=0.0):
    seed_globals(0, "weights")
    return Net(dropout).double()


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Images(torch.randint(0, 255, (count, 3, 7, 7), generator=generator).byte(), torch.arange(count) % 4)


def batches(data, size, **augmentation):
    how = Augmentation(crop=1, flip=True, **augmentation)
    return Batches(
        data, batch_size=size, normalization=Normalization((0.5,) * 3, (0.25,) * 3), augmentation=how, num_classes=4, seed=3, device=CPU
    )


def recipe(optimizer=None, **changes):
    optimizer = optimizer or partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    return dataclasses.replace(Recipe(optimizer, "one_cycle", (), 0.5, 0, None, None), **changes)


# -- gradients ---------------------------------------------------------------------------------------------------------------------------


def gradient(team, net, teacher, data, start):
    """Of the part of a process, by rank 0's call in all of them; the loss is in float64."""
    pixels, labels = data
    rows = list(team.part.of(len(pixels)) or range(1))

    def loss():
        scores = net(pixels[rows])
        value = F.cross_entropy(scores, labels[rows], label_smoothing=0.1)
        if teacher is not None:
            with torch.no_grad():
                targets = F.log_softmax(teacher(pixels[rows]), 1)
            value = value + F.kl_div(F.log_softmax(scores, 1), targets, reduction="batchmean", log_target=True)
        return value

    net.zero_grad()
    return start(loss)


def step(team, net, teacher, data):
    return gradient(team, net, teacher, data, lambda loss: team.backward(loss, net, len(data[0])))


class Whole:
    """One process."""

    def __init__(self):
        self.part = WHOLE


def backward(loss):
    value = loss()
    value.backward()
    return value.detach()


def gradients_are_those_of_the_whole_batch(team):
    for count in (8, 7, 3, 2, 1):
        for distils in (False, True):
            for last in (False, True):
                net = make().train()
                if count == 1:  # one value a channel is no batch
                    net.norm5 = nn.Identity()
                teacher = copy.deepcopy(net).eval() if distils else None
                if distils:
                    with torch.no_grad():
                        teacher.fc.weight.mul_(-1)
                if last:
                    net = net.to(memory_format=torch.channels_last)
                pixels = torch.randn(count, 3, 7, 7, dtype=torch.float64)
                mixed = F.one_hot(torch.arange(count) % 4, 4).double() * 0.7 + 0.3 * F.one_hot((torch.arange(count) + 1) % 4, 4)
                data = (pixels.contiguous(memory_format=torch.channels_last) if last else pixels), mixed
                alone = copy.deepcopy(net)
                wanted = gradient(Whole(), alone, teacher, data, backward)
                if count == 1:
                    team.introduce(partial(make_without_last_norm), CPU)
                team.call(step, team, net, teacher, data)
                found = step(team, net, teacher, data)
                torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
                for (name, one), two in zip(alone.named_parameters(), net.parameters(), strict=True):
                    torch.testing.assert_close(two.grad, one.grad, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
                for (name, one), two in zip(alone.named_buffers(), net.buffers(), strict=True):
                    torch.testing.assert_close(two, one, rtol=1e-11, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def make_without_last_norm():
    net = make()
    net.norm5 = nn.Identity()
    return net


# -- trainings ---------------------------------------------------------------------------------------------------------------------------

TRAINED: list[nn.Module] = []  # what a process that follows has trained last


class Watched(Trainer):
    """Remembers its network."""

    def follow(self, *arguments):
        super().follow(*arguments)
        TRAINED[:] = [self.model]


fitting.Trainer = Watched


def compare(team, net):
    """How many tensors of what the other processes have trained are not, bit for bit, those of rank 0's network."""
    differ = torch.zeros(1)
    if not team.leads:
        pairs = zip(everything(TRAINED[0]).values(), everything(net).values(), strict=True)
        differ += sum(not torch.equal(one, two) for one, two in pairs)
    team.group.sum(differ)
    return float(differ)


def trained(team, start, net=None, loss=None, saver=None, **how):
    """A network, trained in place by one process or by all."""
    execution = dataclasses.replace(ALONE, team=team)
    net = make() if net is None else net
    losses = fit(
        net, start(images(21)),
        epochs=2, loss=loss or cross_entropy(0.1), recipe=recipe(**how), execution=execution, description="it", saver=saver,
        progress_bar=False,
    )  # fmt: skip
    return net, losses


def require_alike(one, two, tolerance=1e-5):
    for (name, wanted), found in zip(everything(one[0]).items(), everything(two[0]).values(), strict=True):
        one_scale, gap = float(wanted.detach().abs().max()), float((wanted - found).detach().abs().max())
        assert gap <= tolerance * max(1.0, one_scale), (name, gap)
    assert all(abs(a - b) <= tolerance * max(1, abs(a)) for a, b in zip(one[1], two[1], strict=True)), (one[1], two[1])


def trainings_come_to_the_same_weights(team):
    adam = partial(torch.optim.AdamW, lr=0.01)
    for data, how in (
        ({}, {}),  # 21 images in batches of 8: the last has 5, in parts of 2 and 3
        ({"mixup": 0.4, "cutmix": 1.0}, {"clip_norm": 0.1}),
        ({"randaugment": 9, "mixup": 0.2}, {"optimizer": adam, "lr_schedule": "cosine", "warmup_epochs": 1, "ema": 0.9}),
    ):
        start = partial(lambda data, images: batches(images, 8, **data), data)
        together = trained(team, start, **how)
        require_alike(trained(None, start, **how), together)
        if "ema" not in how:  # which rank 0 keeps alone
            team.call(compare, team, together[0])
            assert compare(team, together[0]) == 0


def pruned_networks_are_distilled_and_aligned(team):
    dense = make()
    with torch.no_grad():
        dense.conv1.weight.mul_(2)
    graph = trace(dense, torch.randn(2, 3, 7, 7), prove=False)
    keep = {group.name: list(range(0, group.num_units, 2)) for group in graph.groups}
    small = prune(dense, graph, keep)
    assert small.conv1.out_channels == 3

    def both(team, net, of, execution):
        return trained(team, partial(batches, size=8), net=net, loss=of(net, dataclasses.replace(execution, team=team)))

    def distils(net, execution):
        return distillation(dense, rho=0.5, temperature=3.0, execution=execution)

    def aligns(net, execution):
        return partial(_aligned, cross_entropy(0.0), Alignment(net, graph, keep), 0.1)

    for net, of in ((small, distils), (dense, aligns)):
        require_alike(*(both(members, copy.deepcopy(net), of, ALONE) for members in (None, team)))


class Copying(Saver):
    """Saves behind every batch, and keeps what it has saved behind the given one."""

    def __init__(self, path, after):
        super().__init__(path, identity="this", minutes=0, resume=False)
        self.after, self.kept = after, path.with_name(f"kept-{after}.safetensors")

    def save_if_due(self, progress):
        self._cost, self.after = 0.0, self.after - 1
        super().save_if_due(progress)
        if self.after == 0:
            shutil.copy(self.path, self.kept)


def states_go_on_with_any_number_of_processes(team):
    with tempfile.TemporaryDirectory() as folder:
        for first, then, dropout in ((team, team, 0.5), (None, team, 0.0), (team, None, 0.0)):
            if dropout:
                team.introduce(partial(make, dropout), CPU)
            for after in (2, 3):  # within an epoch of three batches, and at its end
                keeping = Copying(Path(folder) / "state.safetensors", after)
                whole = trained(first, partial(batches, size=8), net=make(dropout), saver=keeping)
                saver = Saver(keeping.kept, identity="this", minutes=9, resume=True)
                torch.manual_seed(9)
                again = trained(then, partial(batches, size=8), net=make(dropout), saver=saver)
                require_alike(whole, again, 0.0 if first is then else 1e-5)


def a_loss_of_whole_batches_is_refused(team):
    with pytest.raises(UserError, match="cannot be split"):
        trained(team, partial(batches, size=8), loss=StepLoss(lambda net, batch: net(batch[0]).sum()))


CASES = (
    gradients_are_those_of_the_whole_batch,
    trainings_come_to_the_same_weights,
    pruned_networks_are_distilled_and_aligned,
    states_go_on_with_any_number_of_processes,
    a_loss_of_whole_batches_is_refused,
)


def main():
    here = launched()
    if here.rank > 0:
        team = Team(joined(here))
        try:
            while True:
                team.answer()
        except LostError:
            return
    with leading(here) as group:
        team = Team(group)
        for case in CASES:
            seed_globals(1, case.__name__)
            team.introduce(make, CPU)
            case(team)
            sys.stdout.write(f"{case.__name__} holds\n")
    group.end()


if __name__ == "__main__":
    main()
