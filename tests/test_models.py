import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rlprune.config import build, conf_dir, load_yaml, shipped
from rlprune.errors import UserError
from rlprune.graph import trace, verify

SCALABLE = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml") if "width" in load_yaml(path))
EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
# A network of every kind.
FAMILIES = [
    ("resnet20", {}),
    ("vgg11", {}),
    ("resnet18", {}),
    ("resnet50", {}),
    ("googlenet", {}),
    ("densenet121", {}),
    ("mobilenetv2", {}),
    ("mobilenetv3_large", {"variant": "paper"}),
    ("mobilenetv3_large", {"variant": "torchvision"}),
    ("mobilenetv3_small", {"variant": "paper"}),
    ("mobilenetv3_small", {"variant": "torchvision"}),
    ("shufflenetv2", {}),
]


def make(name, classes=10, **settings):
    return build(shipped("model", name, settings), "model", in_channels=3, num_classes=classes)


@pytest.mark.no_cover
@pytest.mark.parametrize("name", [*SCALABLE, "torchvision"])
def test_every_model_traces_and_verifies(name):
    network = make(name, **({"width": 0.125} if name in SCALABLE else {}))
    graph = trace(network, EXAMPLE)
    assert verify(network, EXAMPLE, graph).exact
    assert [frozen.reason for frozen in graph.frozen] == ["model output"]


@pytest.mark.parametrize("width", [0.25, 0.5, 1.5])
@pytest.mark.parametrize(("name", "settings"), FAMILIES)
def test_every_family_has_any_width(name, settings, width):
    network = make(name, width=width, **settings).eval()
    graph = trace(network, EXAMPLE, prove=False)
    assert not graph.doubts
    assert [frozen.reason for frozen in graph.frozen] == ["model output"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert network(EXAMPLE[:1]).shape == (1, 10)
    assert graph.macs({}) * 2 == counter.get_total_flops()
    assert graph.params({}) == sum(parameter.numel() for parameter in network.parameters())


def test_widths_grow_as_documented():
    def first(name, layer, width):
        return make(name, width=width).get_submodule(layer).out_channels

    assert [first("resnet18", "conv1", width) for width in (0.01, 0.3, 1.0)] == [1, 19, 64]
    assert [first("mobilenetv2", "features.0", width) for width in (0.01, 0.3, 0.6, 1.0)] == [8, 16, 24, 32]  # 9.6 → 8 is 17 % less
    assert [first("shufflenetv2", "features.0", width) for width in (0.01, 0.125, 0.5, 0.75, 2.0)] == [2, 4, 24, 18, 24]


# -- against the papers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "classes", "params", "printed"),
    [
        ("vgg19", {}, 100, 39_327_652, ("39.33", "418.63")),
        ("resnet56", {}, 10, 855_770, ("0.86", "127.93")),
        ("densenet121", {}, 100, 7_048_548, ("7.05", "907.93")),
        ("googlenet", {}, 100, 6_402_884, ("6.40", "535.66")),
        ("mobilenetv3_large", {"variant": "paper"}, 100, 4_025_832, ("4.03", "7.47")),
    ],
)
def test_sizes_agree_with_the_papers(name, settings, classes, params, printed):
    """RL-Pruner, tables 1 and 2, in millions."""
    network = make(name, classes, **settings)
    graph = trace(network, EXAMPLE, prove=False)
    norms, pools = counted_by_thop(network)
    assert graph.params({}) == params
    assert graph.macs({}) + norms == pytest.approx(float(printed[1]) * 1e6, rel=0.003)
    assert (f"{params / 1e6:.2f}", f"{(graph.macs({}) + norms + pools) / 1e6:.2f}") == printed


def counted_by_thop(network):
    """What the counter of the paper, thop, adds to MACs for one image: 4 for each output of a batch norm; for poolings the sums."""
    norms, pools = [], []

    def count(module, inputs, output):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            norms.append(4 * output.numel())
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            pools.append(inputs[0].numel() + output.numel())
        elif isinstance(module, nn.AvgPool2d):
            pools.append(output.numel())

    handles = [module.register_forward_hook(count) for module in network.modules()]
    with torch.no_grad():
        network.eval()(EXAMPLE[:1])
    for handle in handles:
        handle.remove()
    return sum(norms), sum(pools)


def test_sizes_are_the_known_ones():
    graph = trace(make("vgg19", classes=100), EXAMPLE)
    assert graph.macs({}) == 417_415_168
    graph = trace(make("resnet56"), EXAMPLE)
    assert (graph.macs({}), graph.num_channels) == (125_747_840, 2128)
    graph = trace(make("resnet56", shortcut="A"), EXAMPLE)
    assert (graph.params({}), graph.macs({})) == (853_018, 125_485_696)
    graph = trace(make("densenet169", classes=100), EXAMPLE)
    assert (graph.params({}), graph.macs({})) == (12_643_172, 1_059_949_056)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("densenet169", 12_493_322),
        ("mobilenetv2", 2_236_682),
        ("shufflenetv2", 1_263_854),
    ],
)
def test_parameters_at_ten_classes(name, params):
    assert sum(parameter.numel() for parameter in make(name).parameters()) == params


# -- against torchvision ---------------------------------------------------------------------------------------------------------------


def theirs(name, **settings):
    """A network of torchvision for ten classes, with the stem for 32×32 images."""
    network = torchvision.models.get_model(name, weights=None, num_classes=10, **settings)
    if name.startswith("resnet"):
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    elif name.startswith("densenet"):
        network.features.conv0 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        del network.features.norm0, network.features.relu0, network.features.pool0
    elif name == "mobilenet_v2":
        network.features[0][0].stride = network.features[2].conv[1][0].stride = (1, 1)
    elif name.startswith("shufflenet"):
        network.conv1[0].stride, network.maxpool = (1, 1), nn.Identity()
    return network.eval()


@pytest.mark.parametrize(
    ("ours", "settings", "name", "their_settings"),
    [
        ("resnet18", {}, "resnet18", {}),
        ("resnet34", {}, "resnet34", {}),
        ("resnet50", {}, "resnet50", {}),
        ("densenet121", {}, "densenet121", {}),
        ("densenet169", {}, "densenet169", {}),
        ("mobilenetv2", {}, "mobilenet_v2", {}),
        ("mobilenetv3_large", {"variant": "torchvision"}, "mobilenet_v3_large", {}),
        ("mobilenetv3_large", {"variant": "torchvision", "width": 0.35}, "mobilenet_v3_large", {"width_mult": 0.35}),
        ("mobilenetv3_small", {"variant": "torchvision"}, "mobilenet_v3_small", {}),
        ("mobilenetv3_small", {"variant": "torchvision", "width": 1.5}, "mobilenet_v3_small", {"width_mult": 1.5}),
        ("shufflenetv2", {"width": 0.5}, "shufflenet_v2_x0_5", {}),
        ("shufflenetv2", {"width": 1.0}, "shufflenet_v2_x1_0", {}),
        ("shufflenetv2", {"width": 1.5}, "shufflenet_v2_x1_5", {}),
        ("shufflenetv2", {"width": 2.0}, "shufflenet_v2_x2_0", {}),
    ],
)
def test_functions_are_torchvisions(ours, settings, name, their_settings):
    torch.manual_seed(0)
    mine, reference = make(ours, **settings).eval(), theirs(name, **their_settings)
    for tensor in reference.parameters():  # initial norms and biases would hide mistakes
        if tensor.dim() == 1:
            nn.init.uniform_(tensor, 0.5, 1.5)
    mine.load_state_dict(dict(zip(mine.state_dict(), reference.state_dict().values(), strict=True)))
    with torch.no_grad():
        torch.testing.assert_close(mine(EXAMPLE), reference(EXAMPLE), rtol=1e-4, atol=1e-4)
    counts, known = trace(mine, EXAMPLE, prove=False), trace(reference, EXAMPLE, prove=False)
    assert (counts.params({}), counts.macs({})) == (known.params({}), known.macs({}))


@pytest.mark.parametrize(("size", "millions", "macs"), [("large", "4.33", "7.20"), ("small", "1.62", "2.26")])
def test_torchvisions_mobilenetv3_has_its_counts(size, millions, macs):
    graph = trace(make(f"mobilenetv3_{size}", 100, variant="torchvision"), EXAMPLE, prove=False)
    known = torchvision.models.get_model(f"mobilenet_v3_{size}", weights=None, num_classes=100)
    assert graph.params({}) == sum(parameter.numel() for parameter in known.parameters())
    assert (f"{graph.params({}) / 1e6:.2f}", f"{graph.macs({}) / 1e6:.2f}") == (millions, macs)


# -- settings --------------------------------------------------------------------------------------------------------------------------


def test_slim_vgg_has_one_linear_layer():
    network = make("vgg16", classifier="slim", width=0.25)
    assert sum(isinstance(module, nn.Linear) for module in network.modules()) == 1


def test_weights_of_narrow_resnets_keep_their_names():
    names = list(make("resnet20").state_dict())
    assert (len(names), names[0], names[-1]) == (128, "conv1.weight", "linear.bias")
    assert {"bn1.weight", "layer1.0.conv1.weight", "layer1.0.bn2.running_var", "layer2.0.shortcut.0.weight", "layer3.2.bn1.bias"} <= {
        *names
    }


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet20", {"depth": 21}, r"depth=21: must be 6n \+ 2"),
        ("vgg11", {"depth": 12}, r"depth=12: must be one of 11, 13"),
        ("resnet18", {"depth": 19}, r"depth=19: must be one of 18, 34, 50$"),
        ("densenet121", {"depth": 120}, r"depth=120: must be one of 121, 169$"),
        ("mobilenetv3_large", {"variant": "timm"}, r"variant=timm: must be one of paper, torchvision$"),
        ("mobilenetv3_large", {"size": "medium"}, r"size=medium: must be one of large, small$"),
    ],
)
def test_odd_settings_are_refused(name, settings, message):
    with pytest.raises(UserError, match=rf"^model\.{message}"):
        make(name, **settings)


@pytest.mark.parametrize("width", [0.0, -0.5])
@pytest.mark.parametrize("name", SCALABLE)
def test_widths_must_be_positive(name, width):
    with pytest.raises(UserError, match=rf"^model\.width={width}: must be > 0$"):
        make(name, width=width)


def test_only_shipped_models_are_built():
    with pytest.raises(UserError, match="not shipped"):
        make("lenet")
    with pytest.raises(UserError, match="no setting"):
        shipped("model", "vgg11", {"_target_": "os.system"})
