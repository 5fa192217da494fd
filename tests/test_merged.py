import nets
import pytest
import torch
from torch import nn

import rlprune
from rlprune.config import build, shipped
from rlprune.graph import Slicer
from rlprune.training.merged import mergeable, merged

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Norms(nn.Module):
    """One pair that can be merged, and four that must not."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.read_twice, self.after = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.shared, self.once, self.again = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.blind, self.batch = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
        self.through, self.late = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        y = self.read_twice(x)
        x = self.after(y) + y
        x = self.again(self.shared(self.once(self.shared(x))))
        x = self.batch(self.blind(x))
        return self.head(self.late(self.through(x).relu()).mean((2, 3)))


@torch.no_grad()
def test_only_pairs_that_change_nothing_are_merged():
    network = nets.randomised(Norms()).eval()
    pairs = mergeable(network, EXAMPLE)
    assert pairs == (("stem", "norm"),)
    before, weights = network(EXAMPLE), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with merged(network, pairs):
        torch.testing.assert_close(network(EXAMPLE), before)
        assert network.norm.forward(EXAMPLE) is EXAMPLE
    assert torch.equal(network(EXAMPLE), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert "forward" not in vars(network.norm)
    assert mergeable(Norms(), EXAMPLE) == pairs  # fresh norms hide nothing


class Between(nn.Module):
    """Something happens to the convolution's output in place before the norm reads it."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.norm(self.stem(x).clamp_(-100, 100)).mean((2, 3)))


class SwitchedOff(Between):
    """A second reader that is off for now."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        y = self.stem(x)
        return self.head((self.norm(y) + self.gate * y).mean((2, 3)))


def test_what_two_images_do_not_show_is_not_merged():
    assert mergeable(Between(), EXAMPLE) == ()
    assert mergeable(SwitchedOff(), EXAMPLE) == ()


@torch.no_grad()
@pytest.mark.parametrize("model", ["resnet20", "vgg11", "mobilenetv2", "mobilenetv3_small", "googlenet", "shufflenetv2"])
def test_shipped_networks_are_merged_whole_and_so_are_their_candidates(model):
    network = nets.randomised(build(shipped("model", model, {"width": 0.25}), "model", in_channels=3, num_classes=10)).eval()
    pairs = mergeable(network, IMAGES)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert len(pairs) == norms > 0
    graph = rlprune.trace(network, IMAGES)
    slicer = Slicer(network, graph)
    keep = {group.name: range(0, group.num_units, 2) for group in graph.groups}
    small = slicer({name: list(units) for name, units in keep.items()}).double()
    wanted = small(IMAGES.double())
    with merged(small, pairs):
        torch.testing.assert_close(small(IMAGES.double()), wanted)


def test_what_a_context_changed_is_put_back_when_it_fails():
    network = nets.randomised(Norms()).eval()
    weight = network.stem.weight
    with pytest.raises(ZeroDivisionError), merged(network, (("stem", "norm"), ("gone", "norm"))):
        raise ZeroDivisionError
    assert network.stem.weight is weight
    assert "forward" not in vars(network.norm)


def test_networks_of_any_kind_are_looked_at_without_harm():
    class Moody(nn.Module):
        def forward(self, x):
            raise KeyError("single precision only")

    assert mergeable(Moody(), EXAMPLE) == ()
    assert mergeable(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), EXAMPLE) == ()
