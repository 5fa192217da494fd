import logging

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_graph import BARRIERS, EXACT
from torch import nn

import rlprune
from rlprune.config import build, conf_dir, load_yaml
from rlprune.criteria.base import Reduction
from rlprune.errors import UserError

# 16 divides the 64 pixels of a map: an axis of pixels could be taken for one of examples
IMAGES, LABELS = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3)), torch.arange(16) % 5
WITH_DATA = ("taylor", "activation_taylor")
CHOICES = sorted(path.stem for path in (conf_dir() / "criterion").glob("*.yaml"))
WITHOUT_DATA = [name for name in CHOICES if name not in WITH_DATA]


def make(name, **settings):
    seed = {"seed": 0} if name == "random" else {}
    return build(load_yaml(conf_dir() / "criterion" / f"{name}.yaml") | seed | settings, "criterion")


def score(criterion, network):
    graph = rlprune.trace(network, IMAGES[:2])
    return criterion.scores(network, graph, IMAGES, LABELS), graph


def rows(weight):
    return weight.detach().flatten(1).double()


# -- from channels to units ------------------------------------------------------------------------------------------------------------


def test_a_group_aggregates_over_its_producing_layers():
    network = nets.randomised(nets.Residual())
    first, second = rows(network.stem.weight).abs().sum(1), rows(network.b.weight).abs().sum(1)
    expected = {"mean": (first + second) / 2, "sum": first + second, "max": torch.maximum(first, second), "first": first}
    for aggregation, scores in expected.items():
        found, graph = score(make("l1", aggregation=aggregation), network)
        assert graph.groups[0].layers == ("stem", "b")
        torch.testing.assert_close(found[graph.groups[0].name], scores, rtol=1e-5, atol=0)


def test_a_unit_of_several_channels_aggregates_over_them():
    grouped = nets.GroupedPositions()
    by_filter = rows(grouped.g.weight).abs().sum(1).view(2, 6)
    expected = {"mean": by_filter.mean(0), "sum": by_filter.sum(0), "max": by_filter.amax(0), "first": by_filter.mean(0)}
    for aggregation, scores in expected.items():
        torch.testing.assert_close(score(make("l1", aggregation=aggregation), grouped)[0]["g"], scores, rtol=1e-5, atol=0)


def test_a_tied_weight_is_scored_along_both_of_its_dimensions():
    network = nets.TiedDecoder()
    scores, graph = score(make("l1"), network)
    assert [group.layers for group in graph.groups][1:3] == [("a", "up"), ("up",)]
    weight = network.up.weight.detach().double().abs()
    torch.testing.assert_close(scores["up"], weight.sum(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(scores["a"], (rows(network.a.weight).abs().sum(1) + weight.sum(0)) / 2, rtol=1e-5, atol=0)


def test_normalization_divides_by_a_number_of_the_group():
    network = nets.randomised(nets.Plain())
    plain = score(make("l1"), network)[0]
    for normalization, scale in (("l2", torch.linalg.vector_norm), ("mean", torch.mean), ("max", torch.amax)):
        for name, scores in score(make("l1", normalization=normalization), network)[0].items():
            torch.testing.assert_close(scores, plain[name] / scale(plain[name]))
            assert float(scale(scores)) == pytest.approx(1)


@pytest.mark.parametrize("normalization", ["none", "l2", "mean", "max"])
def test_a_group_of_zeros_stays_zero(normalization):
    assert torch.equal(Reduction("mean", normalization).units([torch.zeros(3, 2)]), torch.zeros(3))


@pytest.mark.parametrize(
    ("name", "setting", "value", "message"),
    [
        ("l1", "aggregation", "median", r"criterion\.aggregation=median: must be one of mean, sum, max, first"),
        ("l1", "normalization", "std", r"criterion\.normalization=std: must be one of none, l2, mean, max"),
        ("taylor", "calibration_images", 0, r"criterion\.calibration_images=0: must be ≥ 1"),
        ("activation_taylor", "calibration_images", 0, r"criterion\.calibration_images=0: must be ≥ 1"),
        ("activation_taylor", "mode", "test", r"criterion\.mode=test: must be one of eval, train"),
    ],
)
def test_settings_out_of_range_are_named(name, setting, value, message):
    with pytest.raises(UserError, match=message):
        make(name, **{setting: value})
    settings = load_yaml(conf_dir() / "criterion" / f"{name}.yaml") | {setting: value}
    settings.pop("_target_")
    with pytest.raises(ValueError, match=rf"^{setting}={value}: must be"):  # the constructor checks too, without a config
        type(make(name))(**settings)


# -- every criterion on every odd network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*EXACT, *BARRIERS], ids=lambda kind: kind.__name__)
def test_every_criterion_scores_every_unit(kind):
    network = nets.randomised(kind()).eval()
    graph = rlprune.trace(network, IMAGES[:2], prove=False)
    names = WITHOUT_DATA if kind is nets.InPlace else CHOICES  # torch itself refuses to take that network's gradients
    for name in names:
        scores = make(name).scores(network, graph, *((IMAGES, LABELS) if name in WITH_DATA else ()))
        assert {key: values.shape for key, values in scores.items()} == {group.name: (group.num_units,) for group in graph.groups}
        assert all(values.isfinite().all() and (values >= 0).all() for values in scores.values()), name
        reached = name in WITHOUT_DATA or kind is not nets.PositionEmbedding  # whose class scores depend on a token, and on no pixel
        assert any(values.max() > values.min() for values in scores.values()) == reached, name


@pytest.mark.parametrize("name", WITH_DATA)
def test_a_criterion_by_gradients_says_that_it_needs_data(name):
    network = nets.Plain()
    graph = rlprune.trace(network, IMAGES[:2])
    for data in ((), (IMAGES, None), (IMAGES[:0], LABELS[:0])):
        with pytest.raises(UserError, match=f"criterion={name}: scores by gradients"):
            make(name).scores(network, graph, *data)


class Restless(nets.Plain):
    """Writes a buffer, replaces another, and draws random numbers while it trains."""

    def build(self):
        super().build()
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def body(self, x):
        self.calls += 1
        self.last = x.detach().mean()
        return self.dropout(super().body(x))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", WITH_DATA)
def test_scoring_leaves_the_network_as_it_was(name, mode):
    network = nets.randomised(Restless()).train(mode == "eval")
    network.features[0].eval()
    network.stem.weight.requires_grad_(False)
    graph = rlprune.trace(nets.Plain(), IMAGES[:2])  # of the same layers: a trace would keep whole what reaches a replaced buffer
    before = {key: (tensor, tensor.clone()) for key, tensor in network.state_dict(keep_vars=True).items()}
    modes, state = [module.training for module in network.modules()], torch.get_rng_state()
    scores = make(name, mode=mode).scores(network, graph, IMAGES, LABELS)
    assert scores["stem"].min() > 0  # frozen weights are scored too
    after = network.state_dict(keep_vars=True)
    assert all(after[key] is tensor and torch.equal(tensor, value) for key, (tensor, value) in before.items())
    assert [module.training for module in network.modules()] == modes
    assert [key for key, parameter in network.named_parameters() if not parameter.requires_grad] == ["stem.weight"]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", WITH_DATA)
def test_useless_filters_rank_last(name):
    network = nets.randomised(nets.Plain()).eval()
    network.features[3].weight.data[4] = 0
    network.features[3].bias.data[4] = 0
    scores, _ = score(make(name), network)
    assert scores["features.2"].argmin() == 4


class Auxiliary(nets.Plain):
    def build(self):
        super().build()
        self.extra = nn.Conv2d(6, 3, 1)

    def forward(self, x):
        y = self.body(F.relu(self.stem(x)))
        self.last = self.extra(y)
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("name", WITH_DATA)
def test_weights_outside_the_loss_score_zero(name):
    scores, _ = score(make(name), Auxiliary().eval())
    assert scores["extra"].abs().max() == 0
    assert scores["stem"].min() > 0


# -- without data ----------------------------------------------------------------------------------------------------------------------


def test_scores_of_filters_are_their_closed_forms():
    network = nets.randomised(nets.Plain())
    weight = rows(network.features[2].weight)
    distances = torch.stack([sum((one - other).square().sum().sqrt() for other in weight) for one in weight])
    expected = {
        "l1": weight.abs().sum(1),
        "l2": weight.square().sum(1).sqrt(),
        "variance": (weight - weight.mean(1, keepdim=True)).square().mean(1),
        "fpgm": distances,
        "bn_scale": network.features[3].weight.detach().abs().double(),
    }
    for name, scores in expected.items():
        torch.testing.assert_close(score(make(name), network)[0]["features.2"], scores, rtol=1e-5, atol=0)


def test_fpgm_holds_on_wide_layers_far_from_zero():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 60), nn.ReLU(), nn.Linear(60, 5))
    network[1].weight.data += 3  # what all filters share says nothing about their distances
    weight = rows(network[1].weight)
    expected = (weight[:, None] - weight).square().sum(2).sqrt().sum(1)
    torch.testing.assert_close(score(make("fpgm"), network)[0]["1"], expected, rtol=1e-5, atol=0)


def test_fpgm_ranks_duplicates_last():
    network = nets.Plain()
    network.features[2].weight.data[[1, 4]] = network.features[2].weight.data[3].clone()
    scores, _ = score(make("fpgm"), network)
    assert set(scores["features.2"].argsort()[:3].tolist()) == {1, 3, 4}


def test_bn_scale_takes_every_norm_of_a_group_and_filters_where_there_is_none(caplog):
    network = nets.randomised(nets.ConcatThenNorm())  # stem and a are joined, then normalised
    network.norm.weight.data[3] *= -1
    criterion = make("bn_scale")
    with caplog.at_level(logging.WARNING):
        scores, graph = score(criterion, network)
        criterion.scores(network, graph)
    torch.testing.assert_close(scores["stem"], network.norm.weight.detach()[:8].abs().double())
    torch.testing.assert_close(scores["a"], network.norm.weight.detach()[8:].abs().double())
    torch.testing.assert_close(scores["b"], rows(network.b.weight).abs().sum(1), rtol=1e-5, atol=0)
    assert [record.getMessage() for record in caplog.records] == [
        "criterion=bn_scale: no batch norm with a scale behind b; scored by the L1 norm of its filters"
    ]
    network = nets.randomised(nets.Dense())  # the stem's channels pass three norms
    expected = torch.stack([layer[0].weight.detach()[:8].double() for layer in network.layers])
    torch.testing.assert_close(score(make("bn_scale"), network)[0]["stem"], expected.mean(0))
    torch.testing.assert_close(score(make("bn_scale", aggregation="first"), network)[0]["stem"], expected[0])


def test_random_scores_belong_to_a_seed_and_to_a_network_state():
    network = nets.Plain()
    scores, graph = score(make("random"), network)
    again = make("random").scores(network, graph)
    assert all(torch.equal(scores[name], again[name]) for name in scores)
    assert not torch.equal(make("random", seed=1).scores(network, graph)["stem"], scores["stem"])
    keep = {"stem": np.arange(7)}
    pruned = make("random").scores(rlprune.prune(network, graph, keep), graph.after(keep))
    assert pruned["stem"].shape == (7,)
    assert not torch.equal(pruned["features.2"], scores["features.2"])


# -- weight Taylor ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["sum_of_abs", "abs_of_sum"])
def test_taylor_is_weight_times_gradient(reduction):
    network = nets.randomised(nets.Plain()).eval()
    scores, _ = score(make("taylor", reduction=reduction), network)
    loss = F.cross_entropy(network(IMAGES), LABELS)
    products = network.stem.weight * torch.autograd.grad(loss, network.stem.weight)[0]
    flat = products.flatten(1)
    expected = flat.abs().sum(1) if reduction == "sum_of_abs" else flat.sum(1).abs()
    torch.testing.assert_close(scores["stem"], expected.double(), rtol=1e-5, atol=1e-8)


def test_abs_of_sum_vanishes_before_batch_norm_in_train_mode_and_is_refused_there():
    network = nets.randomised(nets.Plain()).train()
    weight = network.features[2].weight
    products = (weight * torch.autograd.grad(F.cross_entropy(network(IMAGES), LABELS), weight)[0]).flatten(1)
    assert products.sum(1).abs().max() < 1e-3 * products.abs().sum(1).max()
    with pytest.raises(UserError, match=r"criterion\.mode=train: reduction=abs_of_sum is zero"):
        make("taylor", reduction="abs_of_sum", mode="train")


# -- activation Taylor -----------------------------------------------------------------------------------------------------------------


class InPlaceRelu(nets.Net):
    def build(self):
        self.layers = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 1), nn.Sigmoid())
        self.head = nn.Linear(4, 5)

    def body(self, x):
        return self.layers(x)


class TokensFirst(nets.Net):
    """Pixels lie along the first axis, examples along the second."""

    def build(self):
        self.mix = nn.Linear(8, 6)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        tokens = F.gelu(self.mix(x.flatten(2).permute(2, 0, 1)))
        return tokens.permute(1, 2, 0).unsqueeze(-1)


class WithAndWithoutBatch(nets.Net):
    """One layer is called on a batch, and on its first example without a batch axis."""

    def build(self):
        self.mix = nn.Linear(8, 6)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        means = x.mean((2, 3))
        return (F.gelu(self.mix(means)) + F.gelu(self.mix(-means[0])))[..., None, None]


class Frames(nets.Net):
    """Four quarters of every image are pictures of their own for a while."""

    def build(self):
        self.a = nets.conv(8, 6)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        n = x.shape[0]
        quarters = torch.stack(x.chunk(4, 2), 1).flatten(0, 1)
        return self.a(quarters).relu().unflatten(0, (n, 4)).mean(1)


def brute_force(network, layer, axis, images=IMAGES, labels=LABELS):
    """Mean over examples of |Σ over calls and space of h · ∂C/∂h|, one example and its captured activations at a time; shape (channel,)."""
    total = 0
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        outputs = []
        keep = layer.register_forward_hook(lambda module, inputs, output, outputs=outputs: outputs.append(output) or output.clone())
        loss = F.cross_entropy(network(image), label)
        keep.remove()
        slopes = torch.autograd.grad(loss, outputs)
        signed = sum((h * g).movedim(axis, 0).reshape(h.shape[axis], -1).sum(1) for h, g in zip(outputs, slopes, strict=True))
        total = total + signed.detach().abs().double()
    return total / len(images)


def unit_length(scores):
    return scores / torch.linalg.vector_norm(scores)


@pytest.mark.parametrize(
    ("kind", "layer", "axis"),
    [
        (nets.Plain, "stem", 1),
        (nets.Plain, "features.2", 1),
        (InPlaceRelu, "layers.0", 1),
        (InPlaceRelu, "layers.2", 1),
        (nets.FlattenHead, "head.1", 1),
        (nets.Permute, "mix", 3),
        (nets.Transposed, "t", 1),
        (nets.Bilinear, "pair", 1),
        (nets.Conv1d, "a", 1),
        (nets.Conv3d, "a", 1),
        (Frames, "a", 1),
        (TokensFirst, "mix", 2),  # takes a pass for each example
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_activation_taylor_is_activation_times_gradient_inside_every_example(kind, layer, axis):
    network = nets.randomised(kind()).eval()
    scores, graph = score(make("activation_taylor"), network)
    assert next(group for group in graph.groups if group.name == layer).layers == (layer,)
    expected = unit_length(brute_force(network, network.get_submodule(layer), axis))
    torch.testing.assert_close(scores[layer], expected, rtol=1e-4, atol=1e-6)


def test_activation_taylor_normalises_layers_before_it_forms_groups_and_adds_the_calls_of_a_shared_one():
    network = nets.Shared().eval()
    scores, graph = score(make("activation_taylor"), network)
    assert [group.layers for group in graph.groups] == [("stem", "again")]
    expected = (unit_length(brute_force(network, network.stem, 1)) + unit_length(brute_force(network, network.again, 1))) / 2
    torch.testing.assert_close(scores["stem"], expected, rtol=1e-4, atol=1e-6)


def test_activation_taylor_adds_the_maps_that_an_entry_of_a_grouped_transposed_convolution_makes():
    network = nets.GroupedTransposedPositions().eval()  # the weight holds the 6 positions of 2 groups
    expected = unit_length(brute_force(network, network.t, 1).view(2, 6).sum(0))
    torch.testing.assert_close(score(make("activation_taylor"), network)[0]["t"], expected, rtol=1e-4, atol=1e-6)
    network = nets.GroupedTransposed().eval()  # whole groups: two rows of inputs, which make three maps
    scores, graph = score(make("activation_taylor", aggregation="sum"), network)
    assert graph.groups[1].layers == ("a", "t")
    by_group = brute_force(network, network.t, 1).view(4, 3).sum(1)
    by_input = unit_length(brute_force(network, network.a, 1)).view(4, 2).sum(1)
    torch.testing.assert_close(scores["a"], by_input + 2 * unit_length(by_group.repeat_interleave(2))[::2], rtol=1e-4, atol=1e-6)


class Tapped(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(("kind", "axis"), [(nets.RawWeight, 1), (nets.RawMatmul, 3), (nets.TransposedWeight, 3), (nets.EinsumWeight, 1)])
def test_activation_taylor_scores_raw_weights(kind, axis):
    network = kind().eval()
    scores, _ = score(make("activation_taylor"), network)

    class Seen(kind):
        def odd(self, x):
            if kind is nets.RawWeight:
                return F.relu(self.tap(F.conv2d(x, self.weight, self.bias, padding=1)))
            if kind is nets.EinsumWeight:
                return self.tap(torch.einsum("nchw,cd->ndhw", x, self.weight))
            return F.relu(self.tap(x.permute(0, 2, 3, 1) @ self.weight)).permute(0, 3, 1, 2)

    seen = Seen()
    seen.load_state_dict(network.state_dict())
    seen.tap = Tapped()
    expected = unit_length(brute_force(seen.eval(), seen.tap, axis))
    torch.testing.assert_close(scores["weight"], expected, rtol=1e-4, atol=1e-6)


def test_activation_taylor_scores_what_all_examples_share_inside_every_example():
    network = nets.EmbeddingScale().eval()
    scores, graph = score(make("activation_taylor", aggregation="sum"), network)
    assert graph.groups[1].layers == ("a", "table")
    expected = unit_length(brute_force(network, network.a, 1)) + unit_length(brute_force(network, network.table, 1))
    torch.testing.assert_close(scores["a"], expected, rtol=1e-4, atol=1e-6)


def test_activation_taylor_in_train_mode_takes_the_statistics_of_the_batch():
    network = nets.randomised(nets.Plain())
    scores, _ = score(make("activation_taylor", mode="train"), network)
    outputs = []
    network.train()
    network.features[2].register_forward_hook(lambda module, inputs, output: outputs.append(output) or output.clone())
    slopes = torch.autograd.grad(F.cross_entropy(network(IMAGES), LABELS), outputs)[0]
    expected = unit_length((outputs[0] * slopes).sum((2, 3)).abs().sum(0).detach().double())
    torch.testing.assert_close(scores["features.2"], expected, rtol=1e-3, atol=1e-5)


def test_activation_taylor_in_train_mode_refuses_weights_that_need_single_examples():
    for kind, layer in ((nets.RawMatmul, "weight"), (TokensFirst, "mix"), (nets.EmbeddingScale, "table")):
        with pytest.raises(UserError, match=rf"criterion\.mode=train: the outputs of {layer} cannot .* type criterion\.mode=eval"):
            score(make("activation_taylor", mode="train"), kind())


def test_activation_taylor_of_one_image_is_that_of_its_example():
    network = nets.randomised(nets.Plain()).eval()
    graph = rlprune.trace(network, IMAGES[:2])
    scores = make("activation_taylor").scores(network, graph, IMAGES[:1], LABELS[:1])
    expected = unit_length(brute_force(network, network.features[2], 1, IMAGES[:1], LABELS[:1]))
    torch.testing.assert_close(scores["features.2"], expected, rtol=1e-4, atol=1e-6)


def test_activation_taylor_counts_every_call_where_only_some_have_an_axis_of_examples():
    network = WithAndWithoutBatch().eval()
    graph = rlprune.trace(network, IMAGES[:2])
    scores = make("activation_taylor").scores(network, graph, IMAGES[:1], LABELS[:1])
    expected = unit_length(brute_force(network, network.mix, -1, IMAGES[:1], LABELS[:1]))
    torch.testing.assert_close(scores["mix"], expected, rtol=1e-4, atol=1e-6)
