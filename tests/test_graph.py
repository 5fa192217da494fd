import copy

import nets
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import rlprune
from rlprune.errors import UserError
from rlprune.graph import Slicer, freeze_failures, verify_together

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

# network → expected groups: (producing layers, units)
EXACT = {
    nets.Plain: [(("stem",), 8), (("features.2",), 6)],
    nets.FlattenHead: [(("stem",), 8), (("head.1",), 7)],
    nets.ViewHead: [(("stem",), 8), (("head.1",), 7)],
    nets.Residual: [(("stem", "b"), 8), (("a",), 4)],
    nets.InputResidual: [(("stem",), 8)],
    nets.Concat: [(("stem",), 8), (("a",), 4), (("b",), 6)],
    nets.ConcatInput: [(("stem",), 8), (("b",), 6)],
    nets.SqueezeExcite: [(("stem", "up"), 8), (("down",), 3)],
    nets.SqueezeExciteConv: [(("stem", "gate.3"), 8), (("gate.1",), 3)],
    nets.SigmoidBetween: [(("stem",), 8), (("a",), 4)],
    nets.Depthwise: [(("stem", "dw"), 8), (("pw",), 6)],
    nets.DepthwiseMultiplier: [(("stem", "dw"), 8), (("pw",), 6)],
    nets.DepthwiseOnInput: [(("pw",), 8)],
    nets.Grouped: [(("stem",), 2), (("g",), 3), (("p",), 6)],
    nets.Transposed: [(("stem",), 8), (("t",), 6), (("c",), 4)],
    nets.Shared: [(("stem", "again"), 8)],
    nets.ParametricRelu: [(("stem",), 8), (("a",), 8)],
    nets.LayerScale: [(("stem",), 8), (("a",), 6)],
    nets.ScalarGate: [(("stem",), 8)],
    nets.PadChannels: [(("stem", "a"), 8)],
    nets.Upsample: [(("stem",), 8), (("a",), 6)],
    nets.Permute: [(("stem",), 8), (("mix",), 6)],
    nets.FlattenPermuted: [(("stem",), 8)],
    nets.Softmaxed: [(("stem",), 8), (("a",), 6)],
    nets.Instance: [(("stem",), 8), (("a",), 6)],
    nets.NoAffine: [(("stem",), 8), (("a",), 6)],
    nets.AxisKeyword: [(("stem",), 8), (("a",), 4), (("b",), 6)],
    nets.LostConvolution: [(("c",), 4)],
    nets.WeightNormed: [(("stem",), 8)],
}
# network → part of the reason why `a` is kept
BARRIERS = {
    nets.Roll: "no channel rule for `roll`",
    nets.Chunk: "no channel rule for `chunk`",
    nets.Shuffle: "splits channels",
    nets.NumpyTrip: "`numpy`",
    nets.SliceChannels: "cuts or reorders channels",
    nets.IndexedAssignment: "",
    nets.SoftmaxChannels: "`softmax` mixes channels",
    nets.LayerNormed: "no channel rule for `group_norm` in norm",
    nets.MeanOfChannels: "mixes channels",
    nets.DataDependent: "mixes channels",
    nets.PlainConstant: "unknown origin",
    nets.WidthInArithmetic: "removed exactly",
    nets.FreshChannels: "removed exactly",
    nets.ScriptedInPlace: "removed exactly",
    nets.LiteralExpand: "removed exactly",
    nets.WidthOfLayer: "removed exactly",
    nets.LiteralGroups: "removed exactly",
    nets.InPlaceTranspose: "no channel rule for `transpose`",
    nets.Einsum: "no channel rule for `einsum`",
    nets.Scripted: "compiled module inner",
    nets.TiedTranspose: "no channel rule for `einsum`",
}


def build(kind):
    torch.manual_seed(0)
    return nets.randomised(kind()).eval().double()


def half(graph):
    return {group.name: np.arange(group.num_units)[::2] for group in graph.groups}


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.__name__)
def test_groups_are_the_expected_ones(kind):
    graph = rlprune.trace(build(kind), EXAMPLE.double())
    assert [(group.layers, group.num_units) for group in graph.groups] == EXACT[kind]


@pytest.mark.parametrize("kind", [*EXACT, *BARRIERS], ids=lambda kind: kind.__name__)
def test_removed_equals_zeroed_and_counts_are_exact(kind):
    network, example = build(kind), EXAMPLE.double()
    graph = rlprune.trace(network, example)
    assert graph.groups
    for name, verdict in rlprune.verify(network, example, graph).items():
        assert verdict.exact, f"{name}: {verdict}"
    assert verify_together(network, example, graph).exact
    keep = half(graph)
    pruned, masked = rlprune.prune(network, graph, keep), rlprune.mask(network, graph, keep)
    torch.testing.assert_close(pruned(example), masked(example), rtol=1e-9, atol=1e-12)
    assert not torch.equal(pruned(example), network(example))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pruned(example)
    if not any("not counted" in warning for warning in graph.warnings) and kind not in (nets.Scripted, nets.LiteralGroups):
        assert graph.macs(keep) * 2 * len(example) == counter.get_total_flops()
    assert graph.params(keep) == sum(parameter.numel() for parameter in pruned.parameters())


@pytest.mark.parametrize("kind", BARRIERS, ids=lambda kind: kind.__name__)
def test_a_barrier_keeps_what_reaches_it_and_says_why(kind):
    graph = rlprune.trace(build(kind), EXAMPLE.double())
    assert "a" not in {layer for group in graph.groups for layer in group.layers}
    reasons = {frozen.layer: frozen.reason for frozen in graph.frozen}
    assert BARRIERS[kind] in reasons["a"]
    assert ("stem",) in [group.layers for group in graph.groups]
    assert graph.warnings or kind in (nets.Scripted, nets.PlainConstant)
    assert all(verdict.exact for verdict in rlprune.verify(build(kind), EXAMPLE.double(), graph).values())


def test_layers_without_a_rule_are_named():
    graph = rlprune.trace(build(nets.LostConvolution), EXAMPLE.double())
    reasons = {frozen.layer: frozen.reason for frozen in graph.frozen}
    assert "no channel rule for this use of `conv_transpose2d` in t" in reasons["t"]
    assert reasons["stem"] == reasons["t"]
    reasons = {frozen.layer: frozen.reason for frozen in rlprune.trace(build(nets.WeightNormed), EXAMPLE.double()).frozen}
    assert "is computed" in reasons["b"]


def test_buffers_that_a_forward_pass_writes_are_left_as_they_were():
    class Counting(nets.Plain):
        def build(self):
            super().build()
            self.register_buffer("calls", torch.zeros(()))

        def body(self, x):
            self.calls += 1
            return super().body(x)

    network = Counting()
    rlprune.trace(network, EXAMPLE)
    assert network.calls == 0


def test_a_literal_size_freezes_what_it_fixes():
    network = build(nets.LiteralView)
    graph = rlprune.trace(network, EXAMPLE.double())
    assert [group.layers for group in graph.groups] == [("head.1",)]
    assert any(frozen.layer == "stem" and "removed exactly" in frozen.reason for frozen in graph.frozen)


def test_a_wrong_map_is_caught():
    network = build(nets.Residual)
    graph = rlprune.trace(network, EXAMPLE.double())
    wrong = graph.groups[0].members[0].units
    wrong[[0, 1, 2, 3]] = wrong[[1, 2, 3, 0]]
    assert not verify_together(network, EXAMPLE, graph).exact
    repaired = freeze_failures(network, graph, EXAMPLE)
    assert [group.layers for group in repaired.groups] == [("a",)]
    assert any("stem" in warning for warning in repaired.warnings)


def test_pruning_leaves_the_original_alone_and_keeps_its_state():
    network = nets.Plain().train()
    network.stem.weight.requires_grad_(False)
    calls = []
    network.features[2].register_forward_hook(lambda *_: calls.append(1))
    network.to(memory_format=torch.channels_last).bfloat16()
    before = copy.deepcopy(network.state_dict())
    graph = rlprune.trace(network, EXAMPLE.bfloat16())
    calls.clear()
    pruned = rlprune.prune(network, graph, {"stem": [1, 4]})
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == {name: tensor.shape for name, tensor in before.items()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    pruned.stem.weight.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training
    assert pruned.training
    assert (pruned.stem.out_channels, pruned.features[0].num_features, pruned.features[2].in_channels) == (2, 2, 2)
    assert pruned.stem.weight.dtype == torch.bfloat16
    assert pruned.features[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert not pruned.stem.weight.requires_grad
    assert pruned.features[2].weight.requires_grad
    pruned(EXAMPLE.bfloat16())
    assert calls == [1]


def test_units_keep_their_order_and_identity():
    network = build(nets.Plain)
    graph = rlprune.trace(network, EXAMPLE.double())
    pruned = rlprune.prune(network, graph, {"features.2": [5, 0, 3]})
    assert torch.equal(pruned.features[2].weight, network.features[2].weight[[0, 3, 5]])
    assert torch.equal(pruned.features[3].running_mean, network.features[3].running_mean[[0, 3, 5]])
    assert torch.equal(pruned.head.weight, network.head.weight[:, [0, 3, 5]])


@pytest.mark.parametrize("kind", [nets.Residual, nets.Concat, nets.FlattenHead, nets.DepthwiseMultiplier, nets.PadChannels])
def test_the_graph_after_a_prune_is_the_graph_of_the_pruned_network(kind):
    network, example = build(kind), EXAMPLE.double()
    graph = rlprune.trace(network, example)
    keep = {group.name: np.arange(group.num_units)[1::2] for group in graph.groups}
    pruned = rlprune.prune(network, graph, keep)
    after, again = graph.after(keep), rlprune.trace(pruned, example)
    assert [(g.layers, g.num_units) for g in after.groups] == [(g.layers, g.num_units) for g in again.groups]
    for mine, fresh in zip(after.groups, again.groups, strict=True):
        known = {(member.tensor, member.dim): member.units for member in fresh.members}
        for member in mine.members:
            np.testing.assert_array_equal(member.units, known[member.tensor, member.dim])
    assert (after.macs({}), after.params({})) == (again.macs({}), again.params({}))
    assert verify_together(pruned, example, after).exact


def test_the_slicer_builds_what_prune_builds():
    network, example = build(nets.Depthwise), EXAMPLE.double()
    graph = rlprune.trace(network, example)
    slicer = Slicer(network, graph)
    for keep in ({"stem": [0, 3, 7]}, {"stem": [1, 2], "pw": [5]}, {}, {"pw": [0, 1, 2, 4]}):
        torch.testing.assert_close(slicer(keep)(example), rlprune.prune(network, graph, keep)(example), rtol=0, atol=0)
    assert network.stem.weight.shape == (8, 3, 3, 3)


@pytest.mark.parametrize("kind", [nets.Depthwise, nets.DepthwiseMultiplier, nets.Grouped])
def test_grouped_convolutions_survive_being_cut_to_one_unit(kind):
    network, example = build(kind), EXAMPLE.double()
    graph = rlprune.trace(network, example)
    first, *_, last = (group.name for group in graph.groups)
    slicer = Slicer(network, graph)
    for keep in ({first: [0]}, {}, {first: [1], last: [0, 1]}, {first: [0, 1]}):
        torch.testing.assert_close(slicer(keep)(example), rlprune.prune(network, graph, keep)(example), rtol=0, atol=0)
    once = rlprune.prune(network, graph, {first: [0]})
    twice = rlprune.prune(once, graph.after({first: [0]}), {last: [0, 1]})
    direct = rlprune.prune(network, graph, {first: [0], last: [0, 1]})
    torch.testing.assert_close(twice(example), direct(example), rtol=0, atol=0)


def test_a_graph_of_other_shapes_is_refused():
    network = build(nets.Plain)
    graph = rlprune.trace(network, EXAMPLE.double())
    pruned = rlprune.prune(network, graph, {"stem": [0, 1]})
    with pytest.raises(UserError, match=r"stem\.weight: is not as the graph knows it"):
        rlprune.prune(pruned, graph, {"stem": [0, 1]})
    with pytest.raises(UserError, match=r"pass the torch\.nn\.Module itself"):
        rlprune.trace(lambda x: x, EXAMPLE)


def test_a_network_that_only_runs_in_its_own_precision_is_proved_in_it():
    network = nets.randomised(nets.OnlyFloat32()).eval()
    graph = rlprune.trace(network, EXAMPLE)
    assert [group.layers for group in graph.groups] == [("stem",), ("a",)]
    graph.groups[0].members[0].units[[0, 1]] = graph.groups[0].members[0].units[[1, 0]]
    graph.groups[0].members[-1].units[[2, 3, 4]] = graph.groups[0].members[-1].units[[3, 4, 2]]
    assert not all(verify_together(network, EXAMPLE, graph, seed=seed).exact for seed in range(4))


def test_branches_of_training_are_named():
    network = build(nets.Plain)
    network.auxiliary = torch.nn.Linear(6, 5)
    assert any("auxiliary: not reached in eval mode" in warning for warning in rlprune.trace(network, EXAMPLE.double()).warnings)


def test_a_model_that_cannot_be_copied_says_so():
    import threading

    network = build(nets.Plain)
    network.lock = threading.Lock()
    graph = rlprune.trace(build(nets.Plain), EXAMPLE.double())
    with pytest.raises(UserError, match="Plain: cannot be copied"):
        rlprune.prune(network, graph, {})


def test_tied_weights_stay_tied():
    network = build(nets.Plain)
    network.twin = network.features
    graph = rlprune.trace(network, EXAMPLE.double())
    pruned = rlprune.prune(network, graph, {"features.2": [0, 1]})
    assert pruned.twin[2].weight is pruned.features[2].weight
    assert Slicer(network, graph)({"features.2": [0, 1]}).twin[2].weight.shape[0] == 2


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"nope": [0]}, "no such group"),
        ({"head": [0]}, "model output"),
        ({"stem": []}, "at least one"),
        ({"stem": [8]}, r"0\.\.7"),
        ({"stem": [-1]}, r"0\.\.7"),
        ({"stem": [1, 1]}, "duplicates"),
        ({"stem": [0.5]}, "index"),
        ({"stem": None}, "index"),
        ({"stem": [0, [1]]}, "list of unit indices"),
    ],
)
def test_bad_keeps_are_refused_by_name(keep, message):
    network = build(nets.Plain)
    with pytest.raises(UserError, match=message):
        rlprune.prune(network, rlprune.trace(network, EXAMPLE.double()), keep)


def test_ignore_takes_names_and_patterns():
    network = build(nets.Residual)
    graph = rlprune.trace(network, EXAMPLE.double(), ignore=["b"])
    assert [group.layers for group in graph.groups] == [("a",)]
    assert rlprune.trace(network, EXAMPLE.double(), ignore=["st.*", "a"]).groups == ()
    with pytest.raises(UserError, match="matches no layer"):
        rlprune.trace(network, EXAMPLE.double(), ignore=["conv9"])
    with pytest.raises(UserError, match="no regular expression"):
        rlprune.trace(network, EXAMPLE.double(), ignore=["("])


def test_what_cannot_run_is_one_clear_line():
    network = build(nets.Plain)
    with pytest.raises(UserError, match="Plain: cannot run on the example inputs"):
        rlprune.trace(network, torch.zeros(2, 4, 8, 8).double())
    with pytest.raises(UserError, match="hold no tensor"):
        rlprune.trace(network, ())
    with pytest.raises(UserError, match="took more than"):
        rlprune.trace(network, EXAMPLE.double(), time_limit=-1.0)


class ManyInputs(torch.nn.Module):
    def __init__(self, mean):
        super().__init__()
        self.a, self.b, self.mean = nets.conv(3, 6), nets.conv(6, 4), mean

    def forward(self, image, scale=None):
        hidden = torch.relu(self.a(image)) * scale
        return {"map": self.b(hidden), "mean": [hidden.mean((2, 3)).sum(1) if self.mean else scale]}


def test_several_inputs_and_outputs():
    inputs = {"image": EXAMPLE.double(), "scale": torch.full((2, 1, 1, 1), 2.0).double()}
    graph = rlprune.trace(ManyInputs(mean=True).double(), inputs)
    assert graph.groups == ()  # a sum over channels is an output
    assert {frozen.layer for frozen in graph.frozen} == {"a", "b"}
    network = ManyInputs(mean=False).double()
    for form in (inputs, tuple(inputs.values())):
        graph = rlprune.trace(network, form)
        assert [group.layers for group in graph.groups] == [("a",)]
        assert verify_together(network, form, graph).exact
