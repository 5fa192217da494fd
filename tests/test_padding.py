import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rlprune.config import build, shipped
from rlprune.data.base import Augmentation, Images, Normalization
from rlprune.data.batches import Batches
from rlprune.graph import Padded, prune, trace
from rlprune.training.execution import MULTIPLE, Execution, Way
from rlprune.training.fit import Recipe, cross_entropy, fit


def execution(memory_format, pad_channels="auto"):
    return Execution(torch.device("cpu"), None, (Way(None, memory_format),), "auto", pad_channels, False)


EXACT = execution(torch.channels_last)


class Odd(nn.Module):
    """A sigmoid, whose zero is not zero, behind a concatenation, a chunk, a depthwise convolution and group norm."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(3, 20, 3, padding=1)
        self.deep = nn.Conv2d(44, 44, 3, padding=1, groups=44)
        self.c, self.norm = nn.Conv2d(44, 32, 1), nn.GroupNorm(8, 32)
        self.head = nn.Linear(16, 4)

    def forward(self, images):
        both = torch.sigmoid(torch.cat([self.a(images), torch.sigmoid(self.b(images))], 1))
        left, right = self.norm(self.c(torch.sigmoid(self.deep(both)))).chunk(2, 1)
        return self.head((left * torch.sigmoid(right)).mean((2, 3)))


def shipped_net(name, **settings):
    return build(shipped("model", name, settings), "model", in_channels=3, num_classes=4)


NETS = {
    "odd": Odd,
    "resnet8": partial(shipped_net, "resnet20", depth=8),
    "shuffle": partial(shipped_net, "shufflenetv2", width=0.25),
    "mobilenetv3": partial(shipped_net, "mobilenetv3_small", width=0.25),
    "dense": partial(shipped_net, "densenet121", width=0.25),
}


def random_keep(graph, share=0.45):
    rng = np.random.default_rng(1)
    return {g.name: np.sort(rng.permutation(g.num_units)[: max(1, round(share * g.num_units))]) for g in graph.groups}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "optimizer", [partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1), partial(torch.optim.AdamW, lr=0.01, eps=1e-3)]
)
def test_a_padded_network_learns_what_the_pruned_one_learns(name, optimizer):
    images, labels = torch.rand(2, 8, 3, 32, 32, dtype=torch.float64), torch.arange(16).view(2, 8) % 4
    dense = NETS[name]().double().train()
    for module in dense.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # draws as many numbers as there are channels
    graph = trace(dense, images[0])
    keep = random_keep(graph)
    plain = prune(dense, graph, keep)
    small = copy.deepcopy(plain)
    padded = Padded(dense, graph, keep, small, multiple=MULTIPLE)
    widths = [m.out_channels for m in padded.network.modules() if isinstance(m, nn.Conv2d)]
    assert sum(widths) > sum(m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d))
    for network, mask in ((plain, lambda: None), (padded.network, padded.mask_gradients)):
        torch.manual_seed(0)
        step = optimizer(network.parameters())
        for x, y in zip(images, labels, strict=True):
            step.zero_grad()
            F.cross_entropy(network(x), y).backward()
            mask()
            step.step()
    padded.write_back()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(small.state_dict()[key], value, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
    torch.testing.assert_close(padded.network.eval()(images[0]), plain.eval()(images[0]), rtol=1e-9, atol=1e-9)


def test_widths_are_filled_up_to_multiples_but_not_beyond_the_dense_network():
    dense = NETS["resnet8"]()
    graph = trace(dense, torch.zeros(1, 3, 32, 32))
    keep = {group.name: np.arange(3, min(20, group.num_units)) for group in graph.groups}
    padded = Padded(dense, graph, keep, prune(dense, graph, keep), multiple=16)
    widths = {name: m.out_channels for name, m in padded.network.named_modules() if isinstance(m, nn.Conv2d)}
    for name, module in dense.named_modules():
        if isinstance(module, nn.Conv2d):
            assert widths[name] == min(module.out_channels, 32 if module.out_channels > 16 else 16)


def test_fit_trains_the_padded_network_and_leaves_the_result_in_the_pruned_one():
    dense = NETS["resnet8"]()
    graph = trace(dense, torch.zeros(1, 3, 32, 32))
    keep = random_keep(graph)
    images = Images(torch.randint(0, 255, (32, 3, 16, 16), dtype=torch.uint8), torch.arange(32) % 4)
    networks = [prune(dense, graph, keep) for _ in range(2)]
    recipe = Recipe(partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3), "constant", (), 0.1, 0, 1.0, None)
    for network, padded in zip(networks, (None, Padded(dense, graph, keep, networks[1], multiple=MULTIPLE)), strict=True):
        batches = Batches(
            images,
            batch_size=16,
            normalization=Normalization((0.5,) * 3, (0.25,) * 3),
            augmentation=Augmentation(crop=2),
            num_classes=4,
            seed=0,
            device=torch.device("cpu"),
        )
        fit(network, batches, epochs=2, loss=cross_entropy(0.0), recipe=recipe, execution=EXACT, description="x", padded=padded)
    for key, value in networks[0].state_dict().items():
        torch.testing.assert_close(networks[1].state_dict()[key], value, rtol=1e-3, atol=1e-4)


def test_padding_is_for_odd_widths_in_channels_last_on_a_cpu():
    odd, even, plain = nn.Conv2d(3, 13, 3), nn.Conv2d(3, 16, 3), torch.contiguous_format
    assert (EXACT.pads(odd), EXACT.pads(even), execution(plain).pads(odd)) == (True, False, False)
    assert execution(torch.channels_last, "false").pads(odd) is False
    assert execution(plain, "true").pads(odd) is True
