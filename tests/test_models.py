from pathlib import Path

import pytest
import torch

from rlprune.config import build, conf_dir, shipped
from rlprune.errors import UserError
from rlprune.graph import trace, verify

MODELS = sorted(path.stem for path in Path(conf_dir() / "model").glob("*.yaml"))
EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def make(name, classes=10, **settings):
    return build(shipped("model", name, settings), "model", in_channels=3, num_classes=classes)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_traces_and_verifies(name):
    network = make(name, **({} if name == "torchvision" else {"width": 0.125}))
    graph = trace(network, EXAMPLE)
    assert verify(network, EXAMPLE, graph).exact
    assert [frozen.reason for frozen in graph.frozen] == ["model output"]


def test_sizes_agree_with_the_papers():
    # RL-Pruner, tables 1 and 2; their counter adds 4 multiply-adds for each output element of a batch norm
    graph = trace(make("vgg19", classes=100), EXAMPLE)
    assert (graph.params({}), graph.macs({})) == (39_327_652, 417_415_168)
    graph = trace(make("resnet56"), EXAMPLE)
    assert (graph.params({}), graph.macs({}), graph.num_channels) == (855_770, 125_747_840, 2128)
    graph = trace(make("resnet56", shortcut="A"), EXAMPLE)
    assert (graph.params({}), graph.macs({})) == (853_018, 125_485_696)


def test_slim_vgg_has_one_linear_layer():
    network = make("vgg16", classifier="slim", width=0.25)
    assert sum(isinstance(module, torch.nn.Linear) for module in network.modules()) == 1


def test_odd_depths_are_refused():
    with pytest.raises(UserError, match=r"model\.depth=21: must be 6n \+ 2"):
        make("resnet20", depth=21)
    with pytest.raises(UserError, match=r"model\.depth=12: must be one of 11, 13"):
        make("vgg11", depth=12)
    with pytest.raises(UserError, match=r"model\.width=0\.0: must be > 0"):
        make("vgg11", width=0.0)
    with pytest.raises(UserError, match="not shipped"):
        make("lenet")
    with pytest.raises(UserError, match="no setting"):
        shipped("model", "vgg11", {"_target_": "os.system"})
