import copy
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rlprune
from rlprune.agents.base import Finetuning
from rlprune.data.base import Augmentation, Images, Normalization, Splits
from rlprune.graph import Slicer
from rlprune.training.execution import Execution, Way
from rlprune.training.fit import Recipe
from rlprune.training.recover import Recovery
from rlprune.training.refresh import BriefRecovery, FineTuning, Recalibration

CPU = Execution(torch.device("cpu"), None, (Way(None, torch.contiguous_format),), "auto", False)
PLAIN = Normalization((0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def setup():
    pixels = torch.randint(0, 256, (300, 3, 8, 8), dtype=torch.uint8)
    images = Images(pixels, torch.arange(300) % 5)
    splits = Splits(images, images.subset(np.arange(20)), PLAIN, tuple("abcde"), Augmentation())
    return SimpleNamespace(splits=splits, execution=CPU)


class Norms(nn.Module):
    """Norms behind one another, one without statistics, and dropout."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Conv2d(4, 6, 3)
        self.d, self.e = nn.BatchNorm2d(6, momentum=None), nn.BatchNorm2d(6, track_running_stats=False)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, 5)

    def forward(self, x):
        x = self.e(self.d(self.c(self.drop(self.b(self.a(x))).relu())))
        return self.head(x.mean((2, 3)))


def test_batch_norms_take_the_statistics_of_the_images(setup):
    network = Norms().train()
    parameters = copy.deepcopy(dict(network.named_parameters()))
    recalibration = Recalibration(setup, 200, 0)
    recalibration(network)
    (batch,) = recalibration.batches
    assert len(batch) == 200
    with torch.no_grad():
        outputs = network.a(batch)
        torch.testing.assert_close(network.b.running_mean, outputs.mean((0, 2, 3)))
        torch.testing.assert_close(network.b.running_var, outputs.transpose(0, 1).flatten(1).var(1))
        standard = (outputs - outputs.mean((0, 2, 3), keepdim=True)) / (outputs.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(network.d.running_mean, network.c(standard.relu()).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert (network.b.momentum, network.d.momentum, network.e.running_mean) == (0.3, None, None)
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(parameter, parameters[name]) for name, parameter in network.named_parameters())


def test_batches_are_averaged(setup):
    network, whole = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)), Recalibration(setup, 300, 0)
    assert [len(batch) for batch in whole.batches] == [150, 150]
    whole(network)
    with torch.no_grad():
        means = [network[0](batch).mean((0, 2, 3)) for batch in whole.batches]
    torch.testing.assert_close(network[1].running_mean, (means[0] + means[1]) / 2)
    assert int(network[1].num_batches_tracked) == 2


def test_norms_that_do_not_run_keep_their_statistics(setup):
    class Auxiliary(Norms):
        def __init__(self):
            super().__init__()
            self.aside = nn.BatchNorm2d(4)

    network = Auxiliary()
    network.aside.running_mean.fill_(3.0)
    Recalibration(setup, 100, 0)(network)
    assert network.aside.running_mean.tolist() == [3.0] * 4
    assert network.aside.running_var.tolist() == [1.0] * 4


def test_a_candidate_gets_new_statistics_and_the_network_it_is_cut_from_keeps_its_own(setup):
    network = nets.randomised(nets.Plain()).eval()
    graph = rlprune.trace(network, torch.zeros(2, 3, 8, 8))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    slicer, keep = Slicer(network, graph), {graph.groups[0].name: [0, 1]}
    statistics = slicer(keep).state_dict()
    Recalibration(setup, 100, 0)(slicer(keep))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(tensor, statistics[name]) for name, tensor in slicer(keep).state_dict().items())  # and the next candidate too


def test_networks_without_batch_norm_stay_as_they_are(setup):
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).train()
    Recalibration(setup, 100, 0)(network)
    assert network.training


def test_a_brief_recovery_trains_a_copy_on_the_same_batches_every_time(setup, capsys):
    brief, network = brief_recovery(setup)
    assert len(brief.splits.train) == 64
    first, again = brief(network), brief(network)
    assert torch.equal(first[1].weight, again[1].weight)
    assert not torch.equal(first[1].weight, network[1].weight)
    assert capsys.readouterr().err == ""  # a bar for every candidate would be noise


def test_tied_weights_stay_tied_in_a_brief_recovery(setup):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.b.weight, self.head = self.a.weight, nn.Linear(4, 5)

        def forward(self, x):
            return self.head(self.b(self.a(self.stem(x)).relu()).mean((2, 3)))

    network = Tied().eval()
    graph = rlprune.trace(network, torch.zeros(2, 3, 8, 8))
    keep = {group.name: [0, 1, 3] for group in graph.groups}
    small = Slicer(network, graph)(keep)
    assert small.a.weight is small.b.weight
    trained = brief_recovery(setup)[0](small)
    assert trained.a.weight is trained.b.weight
    assert sum(p.numel() for p in small.parameters()) == graph.params(keep)


def brief_recovery(setup):
    recipe = Recipe(partial(torch.optim.SGD, lr=0.1), "one_cycle", (), 0.1, 0, None, None)
    recovery = Recovery(recipe=recipe, batch_size=32, epochs=3, final_epochs=4, rho=0.5, temperature=2.0, control=False)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).requires_grad_(False)
    teacher = copy.deepcopy(network)
    return BriefRecovery(setup, recovery, teacher, 2, 0), network


class Watched(torch.optim.SGD):
    """Remembers the rate of every step."""

    rates: ClassVar[list[float]] = []

    def step(self, *arguments):
        Watched.rates.append([group["lr"] for group in self.param_groups])
        return super().step(*arguments)


@pytest.mark.parametrize(("batches", "steps"), [(None, 2 * 10), (2, 2 * 2)])
def test_fine_tuning_takes_the_labels_at_a_constant_rate(setup, batches, steps, capsys):
    recipe = Recipe(partial(Watched, lr=0.1), "one_cycle", (), 0.1, 1.0, None, None)
    recovery = Recovery(recipe=recipe, batch_size=32, epochs=3, final_epochs=4, rho=0.5, temperature=2.0, control=False)
    tune, settings = FineTuning(setup, recovery, 0), Finetuning(epochs=2, batches=batches, lr=0.003)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    first, again, other = copy.deepcopy(network), copy.deepcopy(network), copy.deepcopy(network)
    Watched.rates.clear()
    tune(first, settings, "fine-tune layer 3")
    assert Watched.rates == [[0.003, 0.003]] * steps
    tune(other, settings, "fine-tune layer 4")
    tune(again, settings, "fine-tune layer 3")
    assert torch.equal(first[1].weight, again[1].weight)  # a path leads to the same network every time
    assert not torch.equal(first[1].weight, other[1].weight)
    assert not torch.equal(first[1].weight, network[1].weight)
    assert not first.training
    assert capsys.readouterr().err == ""
    images = setup.splits.normalization(setup.splits.train.pixels)
    losses = [F.cross_entropy(model(images), setup.splits.train.labels).item() for model in (network, first)]
    assert losses[1] < losses[0]
