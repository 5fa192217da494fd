"""Published networks: exact, with closed-form costs, and nothing left alone but what must be. `make test-zoo` runs all of them."""

import warnings

import numpy as np
import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.vision_transformer import VisionTransformer

import rlprune
from rlprune.models.torchvision import network_names, torchvision_network

# One small network a family → groups and prunable channels.
SMALL = {
    "alexnet": (7, 9344),
    "convnext_tiny": (18, 26496),
    "densenet121": (120, 10240),
    "efficientnet_b0": (40, 30348),
    "efficientnet_v2_s": (75, 112128),
    "googlenet": (57, 7280),
    "inception_v3": (94, 17216),
    "lraspp_mobilenet_v3_large": (30, 17536),
    "mnasnet0_5": (25, 10312),
    "mobilenet_v2": (25, 17056),
    "mobilenet_v3_small": (27, 9968),
    "regnet_y_400mf": (38, 18784),
    "resnet18": (12, 4800),
    "resnext50_32x4d": (21, 34112),
    "shufflenet_v2_x0_5": (21, 3976),
    "squeezenet1_1": (25, 2944),
    "swin_t": (12, 17664),
    "swin_v2_t": (24, 23808),
}
ATTENTION = ("convnext", "maxvit", "swin", "vit")  # their streams go through norms over channels
OUTPUTS = {"lraspp_mobilenet_v3_large": 2}


def side(name):
    return 224 if name.startswith(("maxvit", "swin", "vit")) else 96


def check(network, example):
    """Zeroed equals removed, and the counts are those of torch."""
    graph = rlprune.trace(network, example, prove=False)
    assert not graph.doubts, graph.doubts
    report = rlprune.verify(network, example, graph)
    assert report.exact, str(report.together)
    keep = {group.name: np.arange(0, group.num_units, 2) for group in graph.groups}
    pruned = rlprune.prune(network, graph, keep)
    with FlopCounterMode(display=False) as counter:
        pruned(example)
    assert graph.macs(keep) * 2 == counter.get_total_flops()
    assert graph.params(keep) == sum(parameter.numel() for parameter in pruned.parameters())
    return graph


def prunable(network, layers=(torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
    return {name for name, module in network.named_modules() if isinstance(module, layers)}


@pytest.mark.no_cover
@pytest.mark.parametrize("name", SMALL)
def test_one_small_network_a_family(name):
    network = torchvision_network(name=name, weights=None, in_channels=3, num_classes=10).eval()
    graph = check(network, torch.randn(1, 3, side(name), side(name)))
    assert (len(graph.groups), graph.num_channels) == SMALL[name]
    if not name.startswith(ATTENTION):
        assert {frozen.reason for frozen in graph.frozen} == {"model output"}
        assert len(graph.frozen) == OUTPUTS.get(name, 1)


def test_a_small_vision_transformer():
    network = VisionTransformer(image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=10).eval()
    graph = check(network, torch.randn(2, 3, 32, 32)[:1])
    assert [group.layers for group in graph.groups] == [(f"encoder.layers.encoder_layer_{i}.mlp.0",) for i in range(3)]
    assert [group.num_units for group in graph.groups] == [24] * 3


@pytest.mark.no_cover
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "densenet121"])
def test_masked_and_removed_networks_agree(name):
    network = torchvision_network(name=name, weights=None, in_channels=3, num_classes=10).eval().double()
    example = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    graph = rlprune.trace(network, example)
    generator = np.random.default_rng(0)
    for share in (0.3, 0.7):
        keep = {g.name: generator.permutation(g.num_units)[: max(1, int(share * g.num_units))] for g in graph.groups}
        with torch.no_grad():
            one, other = rlprune.prune(network, graph, keep)(example), rlprune.mask(network, graph, keep)(example)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.zoo
@pytest.mark.parametrize("name", [name for name in network_names() if name not in SMALL])
def test_every_network_of_torchvision(name):
    network = torchvision_network(name=name, weights=None, in_channels=3, num_classes=10).eval()
    graph = check(network, torch.randn(1, 3, side(name), side(name)))
    assert graph.groups
    if not name.startswith(ATTENTION):
        assert {frozen.reason for frozen in graph.frozen} == {"model output"}
    hidden = {layer for group in graph.groups for layer in group.layers}
    if name.startswith("vit"):
        assert hidden == {layer for layer in prunable(network) if layer.endswith("mlp.0")}


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18", "s3d"])
def test_video_networks(name):
    network = torchvision.models.get_model(name, weights=None).eval()
    graph = check(network, torch.randn(1, 3, 16, *((224, 224) if name == "s3d" else (64, 64))))
    assert {frozen.reason for frozen in graph.frozen} == {"model output"}


TIMM = """resnet26d ecaresnet26t res2net50_26w_4s ghostnet_100 convmixer_768_32 mixer_s32_224 hrnet_w18_small dla34 repvgg_a0
    deit_tiny_patch16_224 mobileone_s0 xception41""".split()


@pytest.mark.zoo
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name):
    timm = pytest.importorskip("timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = timm.create_model(name).eval()
    example = torch.randn(1, 3, 224, 224) if name.startswith(("mixer", "deit")) else torch.randn(1, 3, 96, 96)
    assert check(network, example).groups
