"""Networks of other libraries and of the user's own."""

import socket
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from rlprune.config import build, shipped
from rlprune.errors import UserError
from rlprune.graph import trace
from rlprune.provenance import provenance


def make(choice, classes=10, channels=3, **settings):
    return build(shipped("model", choice, settings), "model", in_channels=channels, num_classes=classes)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of published weights that holds one file, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **settings: (_ for _ in ()).throw(OSError("no network")))
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    torch.manual_seed(5)
    state = torchvision.models.squeezenet1_1().state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / weights.url.rpartition("/")[2])
    return state


def test_published_weights_are_taken_whole_or_up_to_the_classifier(hub):
    whole = make("torchvision", 1000, name="squeezenet1_1", weights="DEFAULT")
    assert all(torch.equal(tensor, hub[name]) for name, tensor in whole.state_dict().items())
    known = provenance(whole)
    assert (known.weights, known.complete, known.side) == ("torchvision squeezenet1_1 IMAGENET1K_V1", True, 224)
    assert known.mean == (0.485, 0.456, 0.406)
    part = make("torchvision", 10, name="squeezenet1_1", weights="DEFAULT")
    assert provenance(part).complete is False
    differ = [name for name, tensor in part.state_dict().items() if not torch.equal(tensor, hub[name])]
    assert differ == ["classifier.1.weight", "classifier.1.bias"]
    assert provenance(make("torchvision", name="squeezenet1_1")).weights is None


def test_weights_that_cannot_be_had_say_what_to_fetch_and_where_to_put_it(hub, tmp_path):
    with pytest.raises(
        UserError,
        match=rf"model\.weights=IMAGENET1K_V1: cannot be .*; fetch https://.*/(resnet18-\w+\.pth) and put it at {tmp_path}/checkpoints/\1",
    ):
        make("torchvision", name="resnet18", weights="DEFAULT")
    with pytest.raises(UserError, match=r"model\.weights=V7: resnet18 has no such weights; choose IMAGENET1K_V1, DEFAULT, or null"):
        make("torchvision", name="resnet18", weights="V7")
    with pytest.raises(UserError, match=r"model\.name=resnet19: torchvision has no such network; did you mean resnet1"):
        make("torchvision", name="resnet19")
    with pytest.raises(UserError, match="takes images of 3 channels, the data set has 1"):
        make("torchvision", name="resnet18", channels=1)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_normalise_once_more_get_what_they_expect(hub, tmp_path, name):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    theirs = torchvision.models.get_model(name, init_weights=False)  # with the heads that only train
    state = {
        key: torch.rand_like(value) * (0.01 if value.ndim > 1 else 1) if value.is_floating_point() else value
        for key, value in theirs.state_dict().items()
    }
    torch.save(state, tmp_path / "checkpoints" / weights.url.rpartition("/")[2])
    theirs = torchvision.models.get_model(name, weights=weights).eval()
    ours = make("torchvision", 1000, name=name, weights="DEFAULT").eval()
    known, pixels = provenance(ours), torch.rand(2, 3, 96, 96)
    assert known.complete

    def normalised(mean, std):
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    imagenet = weights.transforms()
    expected = theirs(normalised(tuple(imagenet.mean), tuple(imagenet.std)))
    torch.testing.assert_close(ours(normalised(known.mean, known.std)), expected, rtol=1e-3, atol=1e-3)


def test_damaged_weights_in_the_cache_are_named(hub, tmp_path):
    (tmp_path / "checkpoints/resnet18-f37072fd.pth").write_bytes(b"abc")
    with pytest.raises(UserError, match=r"cannot be downloaded or read \(\w*Error"):
        make("torchvision", name="resnet18", weights="DEFAULT")


def test_timm_networks(tmp_path):
    timm = pytest.importorskip("timm")
    network = make("timm", 7, 1, name="resnet18")
    assert network(torch.zeros(2, 1, 64, 64)).shape == (2, 7)
    assert len(trace(network, torch.zeros(1, 1, 64, 64)).groups) > 5
    state = timm.create_model("resnet18", num_classes=1000).state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "w.pth")
    loaded = make("timm", 10, name="resnet18", weights=str(tmp_path / "w.pth"))
    assert (provenance(loaded).weights, provenance(loaded).complete) == (str(tmp_path / "w.pth"), False)
    assert torch.equal(loaded.conv1.weight, state["conv1.weight"])
    assert provenance(make("timm", 1000, name="resnet18", weights=str(tmp_path / "w.pth"))).complete
    for settings, message in (
        ({"name": "resnet_18"}, r"timm has no such network; did you mean resnet18"),
        ({"name": "resnet18.nope"}, r"timm has no such weights of resnet18; there are a1_in1k"),
        ({"name": "resnet18", "weights": "absent.pth"}, r"model\.weights=absent\.pth: is no file"),
    ):
        with pytest.raises(UserError, match=message):
            make("timm", **settings)
    torch.save(timm.create_model("resnet10t", num_classes=10).state_dict(), tmp_path / "other.pth")
    assert provenance(make("timm", 10, name="resnet10t", weights=str(tmp_path / "other.pth"))).complete
    with pytest.raises(UserError, match=r"model\.weights=.*other\.pth: holds weights of another architecture: \d+ missing"):
        make("timm", 10, name="resnet18", weights=str(tmp_path / "other.pth"))
    (tmp_path / "w.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"w\.pth: is damaged or holds more than plain weights"):
        make("timm", name="resnet18", weights=str(tmp_path / "w.pth"))


def test_timm_weights_that_cannot_be_had_say_what_to_fetch(monkeypatch):
    timm = pytest.importorskip("timm")

    def offline(name, pretrained, **settings):
        raise ConnectionError("no hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"\(no hub\); fetch https://huggingface\.co/timm/resnet18\.a1_in1k/.* and set model\.weights=FILE"):
        make("timm", name="resnet18", weights="DEFAULT")


def test_a_missing_timm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'rlprune\[timm\]'"):
        make("timm")


NETS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, width, 3), nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(self.conv(images).mean((2, 3)))

class Box:
    Inner = Net

def make():
    return Net(10)

def wrong():
    return 3

def fails():
    raise RuntimeError("boom")

def quits():
    raise SystemExit(3)

ready = Net(10)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module in the current folder, under a name that no other test has imported."""
    monkeypatch.chdir(tmp_path)
    name = f"nets_{abs(hash(tmp_path)) % 10**9}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    return name


def test_own_networks_are_found_in_the_current_folder(own):
    assert make("custom", 7, target=f"{own}.Net", kwargs={"width": 6}).head.weight.shape == (7, 6)
    assert make("custom", 7, target=f"{own}.Box.Inner", kwargs=None).head.weight.shape == (7, 4)
    assert make("custom", 7, target=f"{own}.make", kwargs=None).head.out_features == 10
    assert make("custom", target=f"{own}.Net", kwargs={"num_classes": 3}).head.out_features == 3


@pytest.mark.parametrize(
    ("target", "kwargs", "message"),
    [
        ("{}.Nett", None, r"has no Nett; did you mean Net\?"),
        ("{}.Box", None, r"is a class, but no torch\.nn\.Module"),
        ("{}.wrong", None, r"makes a int, not a torch\.nn\.Module"),
        ("{}.fails", None, r"fails\(\) fails \(RuntimeError: boom\)"),
        ("{}.ready", None, r"is a Net; name a class or a function"),
        ("{}.Net", {"depth": 3}, r"Net\(num_classes=10, depth=3\) fails .*set its arguments with model\.kwargs"),
        ("{}", None, "is no import path"),
        ("no_such_module.Net", None, r"cannot be imported \(No module named 'no_such_module'\); run rlprune in the folder"),
        ("{}.quits", None, r"quits\(\) fails \(SystemExit"),
        ("{}.Net", 3, r"model\.kwargs=3: must be a mapping"),
    ],
)
def test_own_networks_that_are_none_are_named(own, target, kwargs, message):
    with pytest.raises(UserError, match=message):
        make("custom", target=target.format(own), kwargs=kwargs)


def test_a_module_that_does_not_import_says_why(own):
    Path("broken_net.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=r"importing broken_net fails \(ZeroDivisionError"):
        make("custom", target="broken_net.Net", kwargs=None)
    Path("needs_more.py").write_text("import absent_package\n")
    with pytest.raises(UserError, match=r"No module named 'absent_package'\); needs_more needs it; install it"):
        make("custom", target="needs_more.Net", kwargs=None)


def test_a_network_that_nobody_marked_has_no_published_weights():
    assert provenance(nn.Linear(1, 1)).weights is None
