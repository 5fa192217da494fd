"""Code whose behaviour hangs on the number of channels in ways that a trace cannot see at once: kept, or exact at any width."""

import math
import types
import warnings
import weakref

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rlprune
from rlprune.errors import UserError

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
TABLE = [0.1 * index for index in range(20)]


def exact_at_every_width(network, graph, example=EXAMPLE):
    """Every group alone, at every number of units: the pruned network runs, and equals the masked one."""
    for group in graph.groups:
        for count in range(1, group.num_units):
            keep = {group.name: np.random.default_rng(count).permutation(group.num_units)[:count]}
            pruned, masked = rlprune.prune(network, graph, keep), rlprune.mask(network, graph, keep)
            with torch.no_grad():
                torch.testing.assert_close(pruned(example), masked(example), rtol=1e-8, atol=1e-10, msg=f"{group.name} keeps {count}")


class Nasty(nets.Barrier):
    def build(self):
        super().build()
        self.c, self.dw = nets.conv(6, 6), nets.conv(6, 6, groups=6)
        self.norm, self.pair, self.table = nn.GroupNorm(6, 6, affine=False), nn.Bilinear(6, 6, 6), nn.Embedding(6, 6)
        self.scale6, self.by_width = 2.0, nn.ModuleDict({"6": nets.conv(6, 6)})
        self.register_buffer("order", torch.tensor([3, 0, 5, 1, 4, 2]))


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit is deprecated, and still in users' networks

    @torch.jit.script
    def inverse(width: int) -> float:
        return 1.0 / float(width)


def swallow(self, x):
    try:
        if x.sum() > -1e9:
            return self.c(x)
    except Exception:
        return x
    return x


def repeated(self, x):
    for _ in range(x.shape[1]):
        x = x * 0.9
    return x


def write_number(self, x):
    y = x.clone()
    y[:, :, 0] = x.shape[1]
    return y


KEPT = {
    "remainder": lambda self, x: x * 2 if x.shape[1] % 4 else x,
    "remainder_and_values": lambda self, x: x * (2 if x.sum() > -1e9 and len(x[0]) % 4 else 1),
    "weight_shape": lambda self, x: x * self.b.weight.shape[1] ** -0.5,
    "weight_size": lambda self, x: x / self.b.weight.size(1),
    "weight_numel": lambda self, x: x / self.a.weight.numel(),
    "weight_len": lambda self, x: x / len(self.a.weight),
    "bias_len": lambda self, x: x / len(self.a.bias),
    "weight_compared": lambda self, x: x * 2 if self.b.weight.shape[1] >= 6 else x,
    "parameters_counted": lambda self, x: x * sum(p.numel() for p in self.a.parameters()) / 100,
    "shape_numel": lambda self, x: x / x.shape[1:].numel(),
    "len": lambda self, x: x / len(x[0]),
    "len_transposed": lambda self, x: x / len(x.transpose(0, 1)),
    "range": repeated,
    "log": lambda self, x: x * math.log(x.shape[1]),
    "dict_miss": lambda self, x: x * {3: 0.5, 4: 0.7}.get(x.shape[1], 1.0),
    "set_miss": lambda self, x: x * 2 if x.shape[1] in {3, 4, 12} else x,
    "list_index": lambda self, x: x * TABLE[x.shape[1]],
    "list_repeat": lambda self, x: x * sum([0.1] * x.shape[1]),
    "attribute_by_name": lambda self, x: x * getattr(self, f"scale{x.shape[1]}", 1.0),
    "text": lambda self, x: x * 2 if str(tuple(x.shape[1:])) == "(6, 8, 8)" else x,
    "difference": lambda self, x: x * 2 if x.shape[1] - 4 >= 1 else x,
    "squeezed": lambda self, x: x * self.c(x).mean((2, 3), keepdim=True).squeeze().square().sum(-1).view(-1, 1, 1, 1) * len(x[0]),
    "selected": lambda self, x: x + x.select(2, x.shape[1] - 1).unsqueeze(2),
    "truth": lambda self, x: x * 2 if x.shape[1] - 6 else x,
    "stride": lambda self, x: x / x.stride(0),
    "scripted_number": lambda self, x: x * inverse(x.shape[1]),
    "depthwise_width": lambda self, x: self.dw(x) / self.dw.out_channels,
    "depthwise_compared": lambda self, x: self.dw(x) * 2 if self.dw.in_channels == 6 else self.dw(x),
    "norm_width": lambda self, x: self.norm(x) / self.norm.num_channels,
    "bilinear_width": lambda self, x: x * (self.pair(x.mean((2, 3)), x.mean((2, 3))) / self.pair.in1_features)[..., None, None],
    "index_len": lambda self, x: x[:, self.order] / len(self.order),
    "index_elsewhere": lambda self, x: self.c(x[:, self.order])[:, :, :, self.order],
    "index_embedded": lambda self, x: x[:, self.order] * self.table(self.order).mean(0)[:, None, None],
    "roll_round": lambda self, x: x.roll(6, 1),
    "roll_further": lambda self, x: x.roll(7, 1),
    "roll_back": lambda self, x: torch.roll(x, -8, dims=1),
    "full_of_width": lambda self, x: x * torch.full((1,), x.shape[1]).to(x.dtype),
    "pad_with_width": lambda self, x: F.pad(x, (1, 1), value=x.shape[1]),
    "write_width": write_number,
    "module_by_width": lambda self, x: self.by_width[str(x.shape[1])](x),
    "slices_in_range": lambda self, x: torch.cat([x[:, 2 * i : 2 * i + 2] * i for i in range(x.size(1) // 2)], 1),
    "common_divisor": lambda self, x: x.view(2, math.gcd(x.shape[1], 4), -1, 8, 8).transpose(1, 2).reshape(2, -1, 8, 8),
}
EXACT = {
    "hardtanh": lambda self, x: F.hardtanh(x, 0.25, 2.0),
    "swallowed": swallow,
    "keywords": lambda self, x: F.conv2d(input=x, weight=self.c.weight, padding=1),
    "keywords_of_moves": lambda self, x: torch.permute(input=torch.permute(input=x, dims=(0, 2, 3, 1)), dims=(0, 3, 1, 2)),
    "numpy_numbers": lambda self, x: torch.cat([x[:, np.int64(2) :], x[:, : np.int64(2)]], 1),
    "asserted": lambda self, x: x.view(2, 3, x.shape[1] // 3, 8, 8).flatten(1, 2) if x.shape[1] % 3 == 0 else 1 / 0,
    "cached_by_shape": lambda self, x: x * {(6, 8, 8): 2.0}.setdefault(tuple(x.shape[1:])[1:], 3.0),
    "affine_grid": lambda self, x: F.grid_sample(
        x, F.affine_grid(torch.eye(2, 3).expand(2, -1, -1).to(x), x.shape, align_corners=False), align_corners=False
    ),
    "own_width": lambda self, x: self.c(x).reshape(x.shape),
}


def nasty(work):
    torch.manual_seed(0)
    network = nets.randomised(Nasty()).eval().double()
    network.odd = types.MethodType(work, network)
    return network


@pytest.mark.parametrize("name", KEPT)
def test_what_hangs_on_the_number_of_channels_keeps_them(name):
    network = nasty(KEPT[name])
    graph = rlprune.trace(network, EXAMPLE)
    assert any(frozen.layer == "a" for frozen in graph.frozen), graph.groups
    exact_at_every_width(network, graph)


@pytest.mark.parametrize("name", EXACT)
def test_what_can_be_followed_is_exact_at_every_width(name):
    network = nasty(EXACT[name])
    graph = rlprune.trace(network, EXAMPLE)
    assert any("a" in group.layers for group in graph.groups), graph.frozen
    exact_at_every_width(network, graph)


WRITES = {
    "flattened": lambda y: y.flatten(2).add_(1.0),
    "half": lambda y: y[:, : y.shape[1] // 2].add_(1.0),
    "chunk": lambda y: y.chunk(2, 1)[0].sigmoid_(),
    "detached": lambda y: y.detach().sigmoid_(),
    "permuted": lambda y: y.permute(0, 2, 3, 1).sigmoid_(),
    "data": lambda y: y.data.sigmoid_(),
}


@pytest.mark.parametrize("name", WRITES)
def test_sums_after_writes_through_views_are_exact(name):
    def work(self, x):
        y = x.clone()
        WRITES[name](y)
        return y * y.sum(1, keepdim=True)

    network = nasty(work)
    graph = rlprune.trace(network, EXAMPLE)
    assert ("stem",) in [group.layers for group in graph.groups]
    exact_at_every_width(network, graph)


# -- networks that refer to themselves --------------------------------------------------------------------------------------------------


class Closure(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.gate = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1), nn.Parameter(torch.rand(6, 1, 1))
        self.run = lambda x: self.b(self.a(x).relu())
        inner = self.b.forward
        self.b.forward = lambda x: inner(x) * 2
        self.a.register_forward_hook(lambda module, inputs, output: output * self.gate)
        self.b.parent = weakref.ref(self)

    def forward(self, x):
        return self.run(x) if self.b.parent() is self else None


def test_closures_hooks_and_weak_references_follow_the_copy():
    network = Closure().double()
    graph = rlprune.trace(network, EXAMPLE)
    assert [group.layers for group in graph.groups] == [("a",)]
    exact_at_every_width(network, graph)
    pruned = rlprune.prune(network, graph, {"a": [0]})
    assert not torch.equal(pruned(EXAMPLE), network(EXAMPLE))
    assert pruned.b.parent() is pruned


class Indirect(nn.Module):
    """Ways to reach a module that a copy of the network does not follow."""

    def __init__(self, form):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)
        if form == "defaults":
            self.run = lambda x, a=self.a, *, b=self.b: b(a(x).relu())
        elif form == "namespace":
            self.run = types.SimpleNamespace(__call__=lambda x: self.b(self.a(x).relu())).__call__
        else:
            self.held = {"deep": {"deeper": [lambda x: self.b(self.a(x).relu())]}}
            self.run = lambda x: self.held["deep"]["deeper"][0](x)

    def forward(self, x):
        return self.run(x)


@pytest.mark.parametrize("form", ["defaults", "namespace", "nested"])
def test_a_copy_never_runs_the_originals_layers(form):
    network = Indirect(form).double()
    graph = rlprune.trace(network, EXAMPLE)
    for group in graph.groups:
        pruned = rlprune.prune(network, graph, {group.name: [0]})
        assert not torch.equal(pruned(EXAMPLE), network(EXAMPLE))
    assert graph.groups or form == "nested"


def test_caches_outside_of_the_network_are_told_of():
    cache = {}

    class Cached(nets.Plain):
        def forward(self, x):
            return super().forward(x) * cache.setdefault("one", x.new_ones(1, 1))

    with pytest.warns(UserWarning, match="keeps tensors outside of the network"):
        graph = rlprune.trace(Cached().double(), EXAMPLE)
    assert any("clear such caches" in warning for warning in graph.warnings)


class Keeping(nets.Barrier):
    """Caches of the kinds that users write."""

    def build(self):
        super().build()
        self.cache, self.features, self.note = {}, [], types.SimpleNamespace(last=None)
        self.a.register_forward_hook(lambda module, inputs, output: self.features.append(output))

    def odd(self, x):
        key = tuple(x.shape[1:])
        if key not in self.cache:
            self.cache[key] = x.new_ones(1, 1, *x.shape[2:])
        self.note.last = x
        return x * self.cache[key]


def test_caches_of_the_original_are_not_touched():
    network = nets.randomised(Keeping()).eval().double()
    graph = rlprune.trace(network, EXAMPLE)
    assert (network.cache, network.features, network.note.last) == ({}, [], None)
    assert network(EXAMPLE).shape == (2, 5)
    assert ("stem",) in [group.layers for group in graph.groups]


class Merging(nn.Linear):
    """Low-rank weights that are merged in eval mode."""

    def __init__(self):
        super().__init__(6, 5)
        self.up, self.merged = nn.Parameter(torch.randn(5, 6)), False

    def train(self, mode=True):
        if not mode and not self.merged:
            self.weight.data += self.up
            self.merged = True
        return super().train(mode)


def test_weights_that_eval_mode_merges_stay_as_they_are():
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Merging()).double()
    before = network(EXAMPLE)
    rlprune.trace(network, EXAMPLE)
    rlprune.verify(network, EXAMPLE)
    assert torch.equal(network(EXAMPLE), before)


def test_functional_norms_leave_a_modules_own_numbers_alone():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_features, self.a, self.b = 100, nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)
            self.norm = nn.GroupNorm(3, 6)

        def forward(self, x):
            x = F.instance_norm(self.a(x))
            return self.b(F.group_norm(x, self.norm.num_groups, self.norm.weight, self.norm.bias))

    network = Own().double()
    graph = rlprune.trace(network, EXAMPLE)
    pruned = rlprune.prune(network, graph, {"a": [1]})
    assert pruned.num_features == 100
    assert (pruned.norm.num_groups, pruned.norm.num_channels) == (1, 2)
    exact_at_every_width(network, graph)


# -- ways to call -----------------------------------------------------------------------------------------------------------------------


def test_a_number_beside_the_images_is_no_batch():
    class Scaled(nets.Plain):
        def forward(self, scale, x):
            return super().forward(x) * scale

    network = Scaled().double()
    graph = rlprune.trace(network, (torch.tensor(2.0), EXAMPLE))
    assert graph.macs({}) == rlprune.trace(nets.Plain().double(), EXAMPLE).macs({})


def test_inference_mode_is_no_obstacle():
    with torch.inference_mode():
        graph = rlprune.trace(nets.Plain().double(), EXAMPLE)
    assert len(graph.groups) == 2


def test_code_that_only_runs_without_gradients_is_compared_by_outputs():
    network = nasty(lambda self, x: torch.cat([part.relu_() for part in x.chunk(2, 1)], 1))
    graph = rlprune.trace(network, EXAMPLE, prove=True)
    assert any(group.layers == ("a",) and group.num_units == 3 for group in graph.groups), graph.frozen


def test_objects_that_point_at_each_other_are_walked_once():
    class Node:
        def __init__(self, parent):
            self.parent, self.kids, self.value = parent, [], None

    class Tree(nets.Plain):
        def forward(self, x):
            root = Node(None)
            root.value = super().forward(x)
            root.kids = [Node(root) for _ in range(60)]
            return root

    assert len(rlprune.trace(Tree().double(), EXAMPLE).groups) == 2


def test_misuse_is_one_clear_line():
    network = nets.Plain().double()
    graph = rlprune.trace(network, EXAMPLE)
    other = rlprune.trace(nets.Residual().double(), EXAMPLE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    pruned = rlprune.prune(network, graph, {"stem": [0]})
    lazy = nn.Sequential(nn.LazyConv2d(4, 1)).double()
    for call, message in (
        (lambda: rlprune.prune(network, None, {}), "pass the network, its channel graph"),
        (lambda: rlprune.prune(graph, network, {}), "pass the network, its channel graph"),
        (lambda: rlprune.prune(network, other, {}), "the graph does not know it|not as the graph knows it"),
        (lambda: rlprune.prune(network, graph, [0]), "keep: is a list"),
        (lambda: rlprune.prune(network, graph, {graph.groups[0].num_units: [0]}), "no such group"),
        (lambda: rlprune.trace(network, EXAMPLE, ignore=[3]), "ignore=3: is a int"),
        (lambda: rlprune.rebind(optimizer, network, nn.Linear(2, 2), graph, {}), "is not what prune"),
        (lambda: rlprune.rebind(optimizer, network, pruned, graph, {"stem": [0, 1]}), "is not what prune"),
        (lambda: rlprune.trace(lazy, EXAMPLE), "run the network once"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert rlprune.trace(network, EXAMPLE, ignore=None).groups
    lbfgs = torch.optim.LBFGS(network.parameters())
    with pytest.raises(UserError, match="keeps parameters in places of its own"):
        rlprune.rebind(lbfgs, network, pruned, graph, {"stem": [0]})
