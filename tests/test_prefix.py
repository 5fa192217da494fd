import inspect
from collections import Counter
from itertools import pairwise

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from rlprune.config import build, shipped
from rlprune.data.base import Images, Normalization
from rlprune.graph import Slicer, trace
from rlprune.training import evaluate
from rlprune.training.evaluate import Evaluator
from rlprune.training.execution import choose_execution
from rlprune.training.merged import mergeable
from rlprune.training.prefix import Prefix

NORMALIZATION = Normalization((0.5,) * 3, (0.25,) * 3)
COUNT, BATCH = 10, 4  # the last batch is smaller
PLAIN_FORMAT = {"Conv3d", "LiteralView", "ViewHead"}  # these fail in channels_last
FLOAT32 = {"Bilinear", "NumpyTrip"}  # these fail under autocast
ODD = {name: cls for name, cls in inspect.getmembers(nets, inspect.isclass) if issubclass(cls, nets.Net) and cls is not nets.Net}
WATCHED = "the network computes something else when its calls are watched"
FIRST = "no layer comes before the group"


class Case:
    """A network, its groups, and an evaluator; random images."""

    def __init__(self, network, size=8, precision="fp32", channels_last="auto"):
        pixels = torch.randint(0, 255, (COUNT, 3, size, size), dtype=torch.uint8)
        self.network, example = nets.randomised(network).eval(), NORMALIZATION(pixels[:2])
        self.execution = choose_execution(device="cpu", precision=precision, channels_last=channels_last, compile=False)
        self.images, self.pairs = Images(pixels, torch.randint(0, 5, (COUNT,))), mergeable(self.network, example)
        self.evaluator = self.fresh()
        self.graph = trace(self.network, example)
        self.slicer = Slicer(self.network, self.graph)
        self.generator = np.random.default_rng(0)

    def fresh(self):
        return Evaluator(self.images, NORMALIZATION, self.execution, batch_size=BATCH, pairs=self.pairs)

    def prefix(self, group, **how):
        return Prefix({member.tensor for member in self.group(group).members}, **how)

    def group(self, name):
        return next(group for group in self.graph.groups if group.name == name)

    def candidate(self, name):
        units = self.group(name).num_units
        keep = self.generator.choice(units, self.generator.integers(1, units + 1), replace=False)
        return self.slicer({name: np.sort(keep)})

    def measure(self, network, prefix=None):
        """Accuracy, and the logits of all images."""
        seen = []
        with network.register_forward_hook(lambda module, inputs, logits: seen.append(logits.clone())):
            accuracy = self.evaluator.accuracy(network, prefix)
        return accuracy, torch.cat(seen)[-COUNT:]

    def agree(self, group, prefix, candidates=3):
        """Both measure the same, bit by bit."""
        for _ in range(candidates):
            network = self.candidate(group)
            accuracy, logits = self.measure(network)
            shared_accuracy, shared_logits = self.measure(network, prefix)
            assert shared_accuracy == accuracy
            assert shared_logits.dtype == logits.dtype
            assert torch.equal(shared_logits, logits)


class Executed(TorchFunctionMode):
    """Counts the calls that are executed."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ODD)
def test_networks_of_any_kind_say_the_same(name, precision):
    if precision == "bf16" and name in FLOAT32:
        precision = "fp32"
    case = Case(ODD[name](), precision=precision, channels_last="false" if name in PLAIN_FORMAT else "auto")
    reasons = set()
    for group in case.graph.groups:
        prefix = case.prefix(group.name)
        case.agree(group.name, prefix)
        reasons.add(prefix.reason)
    if "Scripted" not in name:
        assert reasons <= ({WATCHED} if (name, precision) == ("MultiHead", "fp32") else {"", FIRST})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["resnet20", "densenet121", "mobilenetv2", "mobilenetv3_small", "shufflenetv2", "googlenet"])
def test_shipped_networks_say_the_same(model, precision):
    case = Case(build(shipped("model", model, {"width": 0.25}), "model", in_channels=3, num_classes=5), 32, precision)
    groups = case.graph.groups
    reasons, skipped = [], []
    for group in (groups[0], groups[1], groups[len(groups) // 2], groups[-1]):
        prefix = case.prefix(group.name)
        case.agree(group.name, prefix)
        reasons.append(prefix.reason)
        skipped.append(prefix.skipped)
    assert reasons == [FIRST, "", "", ""]
    assert all(one < other for one, other in pairwise(skipped))


def test_what_comes_before_the_group_is_computed_once():
    case = Case(build(shipped("model", "resnet20", {"width": 0.25}), "model", in_channels=3, num_classes=5), 32)
    prefix, batches = case.prefix("layer3.1.conv1"), 3
    layers = sum(isinstance(module, nn.Conv2d) for module in case.network.modules())
    behind = 4  # layer3.1 and layer3.2 of two convolutions each
    for expected in (batches * layers + 2 * layers, batches * behind, batches * behind):  # the calls are learned in two passes
        with Executed() as executed:
            case.evaluator.accuracy(case.candidate("layer3.1.conv1"), prefix)
        assert executed.count["conv2d"] == expected
    assert prefix.reason == ""


class Turns(nets.Plain):
    """Computes the same in another way every other time."""

    turn = 0

    def body(self, x):
        self.turn += 1
        return self.features(x + x if self.turn % 2 else x * 2)


class ByValue(nets.Plain):
    """Images decide which way it goes."""

    def forward(self, x):
        return super().forward(x * 2 if x.mean() > -1 else x - 1)


class PicksLayer(nets.Plain):
    """Images decide which of two layers is asked."""

    def build(self):
        super().build()
        self.bright, self.dark = nets.conv(3, 3), nets.conv(3, 3)

    def forward(self, x):
        return super().forward((self.bright if x.mean() > -1 else self.dark)(x))


class Caught(Turns):
    """The network's own code catches what goes wrong."""

    def body(self, x):
        try:
            return super().body(x)
        except Exception:
            return self.features(x)


@pytest.mark.parametrize("kind", [Turns, Caught])
def test_a_network_that_calls_otherwise_is_measured_plainly(kind):
    case = Case(kind())
    prefix = case.prefix("features.2")
    case.agree("features.2", prefix)
    assert prefix.reason


@pytest.mark.parametrize("kind", [ByValue, PicksLayer])
def test_branches_that_depend_on_values(kind):
    case = Case(kind())
    case.images.pixels[:BATCH] //= 8  # dark, and the next ones are not
    case.evaluator = case.fresh()
    prefix = case.prefix("features.2")
    case.agree("features.2", prefix)
    assert prefix.reason == "the calls depend on the images"
    case.images.pixels[:] //= 8
    case.evaluator, prefix = case.fresh(), case.prefix("features.2")
    case.agree("features.2", prefix)
    assert prefix.reason == ""


class WritesLater(nets.Net):
    """What one branch returned is written to behind the other."""

    def build(self):
        self.a, self.b = nets.conv(8, 4), nets.conv(8, 6)
        self.head = nn.Linear(10, 5)

    def body(self, x):
        a, b = self.a(x), self.b(x)
        return torch.cat([a.clamp_(-0.1, 0.1).add_(1).square_(), F.relu_(b)], 1)


class WritesToView(WritesLater):
    def body(self, x):
        a = self.a(x)
        first, b = a[:, :2], self.b(x)
        first.add_(1)
        return torch.cat([a, b], 1)


class WritesToPart(WritesLater):
    def build(self):
        super().build()
        self.head = nn.Linear(8, 5)

    def body(self, x):
        first = self.a(x).chunk(2, 1)[0]
        b = self.b(x)
        return torch.cat([first.add_(1), b], 1)


class WritesUnseen(WritesLater):
    """torch does not count what is done to `data`."""

    def body(self, x):
        a, b = self.a(x), self.b(x)
        a.data.mul_(2)
        return torch.cat([a, b], 1)


class WritesBefore(WritesLater):
    """The values that count are those from the time of the group's first call."""

    def body(self, x):
        a = self.a(x)
        whole = a.view(a.shape)
        a.mul_(2).relu_()
        whole[:, 1:].add_(0.5)
        return torch.cat([whole, self.b(x) + a.mean(1, keepdim=True)], 1)


class WritesToImages(WritesLater):
    """To a copy that is none where the images are in the right format already."""

    def forward(self, x):
        y = F.relu(self.stem(x))
        y = torch.cat([self.a(y), self.b(y)], 1).mean((2, 3))
        x.mul_(1)
        return self.head(y)


class WritesToWeight(nets.Plain):
    """A count of its passes."""

    def build(self):
        super().build()
        self.register_buffer("passes", torch.zeros(()))

    def body(self, x):
        self.passes.add_(1)
        return self.features(x)


@pytest.mark.parametrize(
    ("kind", "group", "reason"),
    [
        (WritesLater, "b", ""),
        (WritesBefore, "b", ""),
        (WritesToView, "b", "the network writes to a result that is needed in another form too"),
        (WritesUnseen, "b", "the network writes to a result in a way that is not counted"),
        (WritesToPart, "b", "the network writes to a part of a result"),
        (WritesToImages, "b", "the network writes to its images or to its own tensors"),
        (WritesToWeight, "features.2", "the network writes to its images or to its own tensors"),
    ],
)
def test_writing_in_place(kind, group, reason):
    case = Case(kind())
    prefix = case.prefix(group)
    case.agree(group, prefix)
    assert prefix.reason == reason


def test_memory_is_bounded():
    case = Case(nets.Plain())
    needed = COUNT * 8 * 8 * 8 * 4  # what the second convolution reads: 8 channels of 8x8 pixels in float32
    for max_bytes, reason in ((needed, ""), (needed - 1, f"more than {needed - 1} bytes would have to be kept")):
        prefix = case.prefix("features.2", max_bytes=max_bytes)
        case.agree("features.2", prefix)
        assert prefix.reason == reason


def test_images_from_disk_are_not_kept(monkeypatch):
    monkeypatch.setattr(evaluate, "RESIDENT_BYTES", 0)
    case = Case(nets.Plain())
    prefix = case.prefix("features.2")
    case.agree("features.2", prefix)
    assert (prefix.skipped, prefix.reason) == (0, "")


def test_other_weights_before_the_group_are_noticed():
    case = Case(nets.Plain())
    prefix = case.prefix("features.2")
    case.agree("features.2", prefix)
    case.network.stem.bias.data[3] += 1
    case.agree("features.2", prefix)
    assert prefix.reason == "stem.bias is another one than in the recorded network"


class Settings(nets.Plain):
    factor, operation, looks_back, returns_early = 2, torch.mul, False, False

    def forward(self, x):
        x = F.relu(self.stem(x))
        short = x.mean((2, 3))[:, :5]
        if self.returns_early:
            return short
        logits = self.head(self.features(self.operation(x, self.factor)).mean((2, 3)))
        return logits + short if self.looks_back else logits


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("factor", 3, "another call comes before the group than in the recorded network"),
        ("operation", torch.div, "another call comes before the group than in the recorded network"),
        ("looks_back", True, "another result is needed than in the recorded network"),
        ("returns_early", True, "another call comes before the group than in the recorded network"),  # the hook's
    ],
)
def test_a_network_that_works_otherwise_is_measured_plainly(name, value, reason):
    case = Case(Settings())
    prefix = case.prefix("features.2")
    case.agree("features.2", prefix)
    assert prefix.reason == ""
    setattr(case.candidate("features.2"), name, value)
    case.agree("features.2", prefix)
    assert prefix.reason == reason


def test_a_network_that_ends_before_the_group_is_measured_plainly():
    case = Case(Settings())
    prefix = case.prefix("features.2")
    case.agree("features.2", prefix)
    network = case.candidate("features.2")
    network.returns_early = True
    assert case.evaluator.accuracy(network, prefix) == case.evaluator.accuracy(network)
    assert prefix.reason == "calls before the group are missing"


def test_a_group_that_no_call_uses():
    case = Case(nets.Plain())
    prefix = Prefix({"nothing.weight"})
    case.agree("features.2", prefix)
    assert prefix.reason == "no call takes a tensor of the group"


def test_other_images_are_recorded_anew():
    case = Case(nets.Plain())
    prefix = case.prefix("features.2")
    case.agree("features.2", prefix)
    case.images.pixels.copy_(255 - case.images.pixels)
    case.evaluator = case.fresh()
    case.agree("features.2", prefix)
    case.evaluator = Evaluator(case.images, NORMALIZATION, case.execution, batch_size=3)
    case.agree("features.2", prefix)
    assert prefix.reason == ""


class Hungry(nets.Plain):
    limit = COUNT

    def body(self, x):
        if len(x) > self.limit:
            raise torch.OutOfMemoryError
        return self.features(x)


def test_out_of_memory_nothing_is_kept():
    case = Case(Hungry())
    prefix = case.prefix("features.2")
    case.agree("features.2", prefix)
    Hungry.limit = 2
    try:
        network = case.candidate("features.2")
        kept = case.prefix("features.2")
        accuracy, logits = case.measure(network, kept)
        assert kept.reason == "out of memory"
        assert case.evaluator.batch_size == 2
        assert (accuracy.n, len(logits)) == (COUNT, COUNT)
        case.agree("features.2", prefix)  # in the batches that are left
        assert prefix.reason == ""
    finally:
        Hungry.limit = COUNT


def test_what_is_kept_may_be_what_is_too_much(monkeypatch):
    case = Case(nets.Plain())
    prefix = case.prefix("features.2")

    def logits(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(prefix, "logits", logits)
    case.agree("features.2", prefix)
    assert (case.evaluator.batch_size, prefix.reason) == (BATCH, "out of memory")
