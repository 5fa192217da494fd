"""What users of the graph hold on to: optimizers, reports, an original that is left alone."""

import copy
import gc
import weakref

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rlprune
from rlprune.errors import UserError
from rlprune.graph.sizes import Size

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),
}


def build(kind=nets.Residual):
    torch.manual_seed(0)
    return nets.randomised(kind()).eval().double()


def steps(network, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        network(EXAMPLE).square().sum().backward()
        optimizer.step()


def kept(graph, keep, name, tensor):
    for (owner, dim), gone in graph.removed_entries(keep).items():
        if owner == name:
            tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(~gone)))
    return tensor


# -- optimizers -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("kind", [nets.Residual, nets.Depthwise, nets.PixelShuffle])
def test_an_optimizer_goes_on_as_if_the_channels_had_never_been_there(make, kind):
    network = build(kind)
    graph = rlprune.trace(network, EXAMPLE)
    optimizer = make(network.parameters())
    steps(network, optimizer, 3)
    keep = {group.name: np.arange(1, group.num_units) for group in graph.groups}
    masked, pruned = rlprune.mask(network, graph, keep), rlprune.prune(network, graph, keep)
    beside = make(masked.parameters())
    beside.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rlprune.rebind(optimizer, network, pruned, graph, keep)
    steps(pruned, optimizer, 1)
    steps(masked, beside, 1)
    for name, tensor in pruned.named_parameters():
        torch.testing.assert_close(tensor, kept(graph, keep, name, dict(masked.named_parameters())[name]), rtol=1e-9, atol=1e-12)


def test_rebinding_keeps_groups_and_schedule_and_lets_the_old_network_go():
    network = build()
    graph = rlprune.trace(network, EXAMPLE)
    rest = [tensor for name, tensor in network.named_parameters() if name != "stem.weight"]
    optimizer = torch.optim.SGD([{"params": [network.stem.weight], "lr": 0.5}, {"params": rest}], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    steps(network, optimizer, 2)
    momentum = optimizer.state[network.stem.weight]["momentum_buffer"].clone()
    keep = {"stem": [1, 4], "a": [0]}
    pruned = rlprune.prune(network, graph, keep)
    rlprune.rebind(optimizer, network, pruned, graph, keep)
    assert optimizer.param_groups[0]["params"][0] is pruned.stem.weight
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(pruned.parameters()))
    torch.testing.assert_close(optimizer.state[pruned.stem.weight]["momentum_buffer"], momentum[[1, 4]], rtol=0, atol=0)
    old = weakref.ref(network.stem.weight)
    del network, rest
    gc.collect()
    assert old() is None
    steps(pruned, optimizer, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.05]


def test_rebinding_a_strangers_optimizer_is_refused_and_changes_nothing():
    network = build()
    graph = rlprune.trace(network, EXAMPLE)
    pruned = rlprune.prune(network, graph, {"stem": [0]})
    optimizer = torch.optim.SGD(build().parameters(), lr=0.1)
    before = [id(tensor) for tensor in optimizer.param_groups[0]["params"]]
    with pytest.raises(UserError, match="optimizer: 10 of its parameters are not the network's"):
        rlprune.rebind(optimizer, network, pruned, graph, {"stem": [0]})
    assert [id(tensor) for tensor in optimizer.param_groups[0]["params"]] == before
    optimizer = torch.optim.LBFGS(network.parameters())

    def closure():
        optimizer.zero_grad()
        loss = network(EXAMPLE).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(UserError, match="LBFGS keeps"):
        rlprune.rebind(optimizer, network, pruned, graph, {"stem": [0]})


# -- reports ----------------------------------------------------------------------------------------------------------------------------


def test_verify_traces_for_itself_and_tells_by_group():
    network = build()
    before = copy.deepcopy(network.state_dict())
    report = rlprune.verify(network, EXAMPLE)
    assert report.exact
    assert list(report.groups) == ["stem", "a"]
    assert report.failed == ()
    assert all(0 <= verdict.outputs < 1e-9 and 0 <= verdict.gradients < 1e-9 for verdict in report.groups.values())
    assert "stem: exact" in str(report)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(tensor.grad is None for tensor in network.parameters())


def test_a_network_without_derivatives_is_compared_by_its_outputs():
    class Counted(nets.Plain):
        def forward(self, x):
            return torch.round(super().forward(x) * 1e6).detach()

    report = rlprune.verify(build(Counted), EXAMPLE)
    assert report.exact
    assert all(np.isnan(verdict.gradients) for verdict in report.groups.values())


def test_no_group_is_an_empty_report():
    report = rlprune.verify(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double(), EXAMPLE)
    assert report.exact
    assert str(report) == "no group to check"


# -- the original -----------------------------------------------------------------------------------------------------------------------


class Caching(nets.Barrier):
    """Keeps what it computes, and counts."""

    def build(self):
        super().build()
        self.seen, self.last = {}, None
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("table", torch.arange(6.0).view(6, 1, 1))

    def odd(self, x):
        self.calls += 1
        self.last, self.width = x, x.shape[1]
        self.grid = torch.ones_like(x)
        self.table.mul_(1.0)
        return x * self.grid


def test_a_trace_leaves_no_trace():
    network = build(Caching).train()
    network.a.eval()
    attributes = {name: dict(module.__dict__) for name, module in network.named_modules()}
    rlprune.trace(network, EXAMPLE)
    for name, module in network.named_modules():
        assert module.__dict__.keys() == attributes[name].keys()
        assert not any(isinstance(value, Size) for value in module.__dict__.values())
        assert not any(value.is_meta for value in module.__dict__.values() if isinstance(value, torch.Tensor))
        assert module.training == attributes[name]["training"]
    assert network.last is None
    assert network.calls == 0
    assert torch.equal(network.table.flatten(), torch.arange(6.0).double())
    assert not network.a._forward_hooks


def test_hooks_that_change_outputs_are_part_of_the_network():
    network = build(nets.Barrier)
    network.a.register_forward_hook(lambda module, inputs, output: output[:, [5, 4, 3, 2, 1, 0]])
    graph = rlprune.trace(network, EXAMPLE)
    assert "a" not in {layer for group in graph.groups for layer in group.layers}  # the order is written into the code
    network = build(nets.Barrier)
    network.a.register_forward_hook(lambda module, inputs, output: torch.flip(output, (1,)))
    graph = rlprune.trace(network, EXAMPLE)
    assert ("a",) in [group.layers for group in graph.groups]
    assert rlprune.verify(network, EXAMPLE, graph).exact


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_precision_is_traced(dtype):
    network = nets.randomised(nets.Residual()).to(dtype)
    graph = rlprune.trace(network, EXAMPLE.to(dtype))
    assert [group.layers for group in graph.groups] == [("stem", "b"), ("a",)]
    assert rlprune.verify(network, EXAMPLE.to(dtype), graph).exact


def test_other_sizes_of_images_give_the_same_groups():
    network = build(nets.UNet)
    one, other = rlprune.trace(network, EXAMPLE), rlprune.trace(network, torch.randn(3, 3, 16, 12).double())
    assert [(group.name, group.num_units) for group in one.groups] == [(group.name, group.num_units) for group in other.groups]
    assert other.macs({}) - 40 == 3 * (one.macs({}) - 40)  # the head sees no pixels


# -- sizes ------------------------------------------------------------------------------------------------------------------------------


def space_and_size(value=6):
    recorder = []

    class Seen(nets.Barrier):
        def odd(self, x):
            recorder.append(x.shape[1])
            return x

    rlprune.trace(build(Seen), EXAMPLE, prove=False)
    return recorder[0]


def test_a_size_is_an_int_like_any_other_once_the_trace_is_over():
    size = space_and_size()
    assert isinstance(size, Size)
    assert size == 6
    assert not size != 6  # noqa: SIM202
    assert type(size + 1) is int
    assert (size + 1, 1 + size, size - 1, 7 - size, size * 2, 2 * size, size // 2, size % 4, -size, size**2) == (
        7,
        7,
        5,
        1,
        12,
        12,
        3,
        2,
        -6,
        36,
    )
    assert (size / 4, int(size), float(size), round(size), hash(size), f"{size}", [0] * size) == (1.5, 6, 6.0, 6, hash(6), "6", [0] * 6)
    assert copy.deepcopy(size) == 6


class Arithmetic(nets.Barrier):
    def odd(self, x):
        n, c, h, w = x.shape
        return self.work(x, n, c, h, w)


@pytest.mark.parametrize(
    ("work", "units"),
    [
        (lambda self, x, n, c, h, w: x.reshape(n, c * h * w).reshape(n, c, h, w), 6),
        (lambda self, x, n, c, h, w: x.reshape(n, 2 * c // 2, -1).reshape(x.shape), 6),
        (lambda self, x, n, c, h, w: x[:, : c - 0], 6),
        (lambda self, x, n, c, h, w: x.reshape(n, c // 3, 3, h, w).sum(2).repeat_interleave(3, 1), 2),
        (lambda self, x, n, c, h, w: x * torch.zeros(n, c, 1, 1).to(x).add(2.0), 6),
        (lambda self, x, n, c, h, w: x if c > 0 else x * 2, 6),
        (lambda self, x, n, c, h, w: x * c**-0.5, None),
        (lambda self, x, n, c, h, w: x * (2 if c > 4 else 3), None),
        (lambda self, x, n, c, h, w: x * len(x[0]), None),
        (lambda self, x, n, c, h, w: x + torch.arange(c).view(1, c, 1, 1).to(x), None),
        (lambda self, x, n, c, h, w: x[:, : int(c * 1.0)] * 1.0, None),
        (lambda self, x, n, c, h, w: x * {6: 2.0}.get(c, 3.0), None),
        (lambda self, x, n, c, h, w: F.layer_norm(x, (c, h, w)), None),
        (lambda self, x, n, c, h, w: x * np.prod(x.shape[1:]), None),
        (lambda self, x, n, c, h, w: x / max(c, 4), None),
    ],
)
def test_arithmetic_with_sizes_is_followed_or_keeps_the_channels(work, units):
    network = build(Arithmetic)
    network.work = work.__get__(network)
    graph = rlprune.trace(network, EXAMPLE)
    found = {group.layers: group.num_units for group in graph.groups}
    assert found.get(("a",)) == units
    assert rlprune.verify(network, EXAMPLE, graph).exact
