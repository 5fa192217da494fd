import copy

import pytest
import torch
from torch import nn

from rlprune.kernels import careful_kernels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def run(layer, images, gradient, folded):
    """Output, gradients and state behind two steps."""
    layer, images = copy.deepcopy(layer).train(), images.clone().requires_grad_()
    for _ in range(2):
        if folded:
            with careful_kernels(layer, CPU):
                output = layer(images)
                output.backward(gradient)
        else:
            output = layer(images)
            output.backward(gradient)
    return [output.detach(), images.grad, *(p.grad for p in layer.parameters()), *layer.state_dict().values()]


LAYERS = {
    "plain": nn.BatchNorm2d(13),
    "no affine": nn.BatchNorm2d(13, affine=False),
    "no statistics": nn.BatchNorm2d(13, track_running_stats=False),
    "cumulative": nn.BatchNorm2d(13, momentum=None),
    "eps and momentum": nn.BatchNorm2d(13, eps=0.1, momentum=0.3),
    "even": nn.BatchNorm2d(32),
    "in place behind it": nn.Sequential(nn.BatchNorm2d(13), nn.ReLU(inplace=True)),
    "strided": nn.Sequential(nn.BatchNorm2d(13), nn.Conv2d(13, 5, 1, stride=2), nn.Conv2d(5, 6, 1, stride=(1, 2), bias=False)),
    "twice": nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 13, 3), nn.BatchNorm2d(13)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(8, 6, 6), (3, 5, 7), (1, 4, 4), (16, 1, 1)])
def test_layers_compute_what_torchs_do(name, shape):
    layer = copy.deepcopy(LAYERS[name]).double()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1, 2)
    count, height, width = shape
    channels = next(m for m in layer.modules() if isinstance(m, nn.BatchNorm2d)).num_features
    if name == "twice":
        height, width = height + 2, width + 2
    images = (3 * torch.randn(count, channels, height, width, dtype=torch.float64) + 1).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(layer.eval()(images))
    for plain, folded in zip(run(layer, images, gradient, False), run(layer, images, gradient, True), strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-10, atol=1e-10)


def test_it_runs_folded_and_only_inside_of_the_context(monkeypatch):
    from rlprune import kernels

    calls = []
    affine = kernels._affine
    monkeypatch.setattr(kernels, "_affine", lambda *arguments: calls.append(arguments[0].shape[1]) or affine(*arguments))
    layer, images = nn.BatchNorm2d(12), torch.randn(4, 12, 8, 8).contiguous(memory_format=torch.channels_last)
    with careful_kernels(layer, CPU):
        layer(images)
        layer.eval()(images)
        layer.train()(images.contiguous())
    assert calls == [48]  # four times twelve channels, in training and channels_last alone
    layer(images)
    assert calls == [48]
    with careful_kernels(layer, CPU, folded=False):
        layer(images)
    assert calls == [48]
    torch.set_num_threads(1)
    with careful_kernels(layer, CPU):
        layer(images)
    assert calls == [48]
    assert "forward" not in vars(layer)


def test_bfloat16_is_as_close_to_the_truth_as_torchs():
    layer = nn.BatchNorm2d(13)
    images = (torch.randn(32, 13, 8, 8) + 2).bfloat16().contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(images)
    exact = run(layer.double(), images.double(), gradient.double(), False)
    layer = layer.float()
    errors = []
    for folded in (False, True):
        found = run(layer, images, gradient, folded)
        errors.append([float((value.double() - truth.double()).square().mean().sqrt()) for value, truth in zip(found, exact, strict=True)])
    for theirs, ours in zip(*errors, strict=True):
        assert ours <= 1.5 * theirs + 1e-6  # a sum of two terms is rounded twice


class Mine(nn.Conv2d):
    """A convolution under another name."""


@pytest.mark.parametrize("kind", [nn.Conv2d, Mine])
def test_a_strided_convolution_of_few_channels_survives_its_backward_pass(kind):
    layer = kind(8, 16, 1, stride=2, bias=False).to(memory_format=torch.channels_last)  # torch's own kernel kills the process here
    images = torch.randn(16, 8, 64, 64).contiguous(memory_format=torch.channels_last)
    with careful_kernels(layer, CPU):
        layer(images).sum().backward()
    expected = images[:, :, ::2, ::2].sum((0, 2, 3)).view(1, 8, 1, 1).expand(16, -1, -1, -1)
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-4, atol=1e-2)
