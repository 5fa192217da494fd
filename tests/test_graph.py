import copy
import dataclasses
import sys

import nets
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import rlprune
from rlprune.errors import UserError
from rlprune.graph import Slicer, freeze_failures
from rlprune.graph.trace import Recorder

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
    nets.ConcatThenNorm: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.SqueezeExcite: [(("stem", "up"), 8), (("down",), 3)],
    nets.SqueezeExciteConv: [(("stem", "gate.3"), 8), (("gate.1",), 3)],
    nets.SigmoidBetween: [(("stem",), 8), (("a",), 4)],
    nets.Depthwise: [(("stem", "dw"), 8), (("pw",), 6)],
    nets.DepthwiseMultiplier: [(("stem", "dw"), 8), (("pw",), 6)],
    nets.DepthwiseOnInput: [(("pw",), 8)],
    nets.Grouped: [(("stem", "g"), 4), (("p",), 6)],
    nets.GroupedWhole: [(("stem",), 8), (("a", "g"), 4), (("b",), 6)],
    nets.GroupedPositions: [(("stem",), 8), (("a",), 4), (("g",), 6), (("b",), 6)],
    nets.GroupedLiteral: [(("stem",), 8), (("a",), 2), (("g",), 3), (("b",), 6)],
    nets.GroupedOnInput: [(("stem",), 8)],
    nets.Transposed: [(("stem",), 8), (("t",), 6), (("c",), 4)],
    nets.GroupedTransposed: [(("stem",), 8), (("a", "t"), 4), (("b",), 6)],
    nets.GroupedTransposedPositions: [(("stem",), 8), (("a",), 4), (("t",), 6), (("b",), 6)],
    nets.DepthwiseTransposed: [(("stem",), 8), (("a", "t"), 8), (("b",), 6)],
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
    nets.InstanceNoAffine: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.NoAffine: [(("stem",), 8), (("a",), 6)],
    nets.GroupNorm: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.GroupNormByChannel: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.LayerNormPixels: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.LayerNormChannels: [(("stem",), 8), (("up",), 7), (("b",), 6)],
    nets.FrozenNorm: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.Divisor: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.AxisKeyword: [(("stem",), 8), (("a",), 4), (("b",), 6)],
    nets.LostConvolution: [(("c",), 4)],
    nets.WeightNormed: [(("stem",), 8)],
    nets.RawWeight: [(("stem",), 8), (("a",), 6), (("weight",), 7), (("b",), 6)],
    nets.RawMatmul: [(("stem",), 8), (("a",), 6), (("weight",), 7), (("b",), 6)],
    nets.TransposedWeight: [(("stem",), 8), (("a",), 6), (("weight",), 7), (("b",), 6)],
    nets.EinsumWeight: [(("stem",), 8), (("a",), 6), (("weight",), 7), (("b",), 6)],
    nets.TiedDecoder: [(("stem",), 8), (("a", "up"), 6), (("up",), 7), (("b",), 6)],
    nets.Conv1d: [(("stem",), 8), (("a",), 6)],
    nets.Conv3d: [(("stem",), 8), (("a",), 6)],
    nets.Embedding: [(("stem",), 8), (("a", "table"), 6), (("b",), 6)],
    nets.EmbeddingScale: [(("stem",), 8), (("a", "table"), 6), (("b",), 6)],
    nets.Bilinear: [(("stem",), 8), (("a",), 6), (("pair",), 7)],
    nets.BilinearPooling: [(("stem",), 8)],
    nets.PositionEmbedding: [(("stem",), 8), (("a",), 6)],
    nets.Attention: [(("stem",), 8), (("a",), 6), (("q", "k", "v"), 4), (("out",), 6), (("b",), 6)],
    nets.AttentionByHand: [(("stem",), 8), (("a",), 6), (("q", "k", "v"), 4), (("out",), 6), (("b",), 6)],
    nets.AttentionEinsum: [(("stem",), 8), (("a",), 6), (("q", "k", "v"), 4), (("out",), 6), (("b",), 6)],
    nets.AttentionWidth: [(("stem",), 8), (("a",), 6), (("v",), 3), (("out",), 6), (("b",), 6)],
    nets.AttentionScaled: [(("stem",), 8), (("a",), 6), (("q", "k"), 3), (("v",), 3), (("out",), 6), (("b",), 6)],
    nets.TokenMixer: [(("stem",), 8), (("up",), 7), (("b",), 6)],
    nets.Roll: [(("stem",), 8), (("a",), 5), (("b",), 6)],
    nets.RollBack: [(("stem",), 8), (("a",), 4), (("b",), 6)],
    nets.RollHalf: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.Flip: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.Chunk: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.SplitShape: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.SplitLayers: [(("stem",), 8), (("a",), 6), (("c",), 5), (("b",), 6)],
    nets.SliceBack: [(("stem",), 8), (("a",), 6), (("c",), 5), (("b",), 6)],
    nets.SliceHalves: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.SliceChannels: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.SliceFromEnd: [(("stem",), 8), (("a",), 4), (("b",), 6)],
    nets.SliceTooLong: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.EverySecond: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.Narrow: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.IndexBuffer: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.IndexSelect: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.IndexSome: [(("stem",), 8), (("a",), 2), (("a",), 3), (("a",), 1), (("b",), 6)],
    nets.IndexList: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.OneChannel: [(("stem",), 8), (("a",), 4), (("b",), 6)],
    nets.SelectChannel: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.IndexedAssignment: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.Shuffle: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.ShuffleMinusOne: [(("stem",), 8), (("a",), 2), (("b",), 6)],
    nets.ChannelShuffleModule: [(("stem",), 8), (("a",), 2), (("b",), 6)],
    nets.PixelShuffle: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.PixelUnshuffle: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.Patches: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.StackSum: [(("stem",), 8), (("a", "c"), 6), (("b",), 6)],
    nets.StackInterleave: [(("stem",), 8), (("a", "c"), 6), (("b",), 6)],
    nets.SelectiveKernel: [(("stem",), 8), (("a", "c", "gate"), 6), (("b",), 6)],
    nets.Maxout: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.GatedUnit: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.GatedByChunk: [(("stem",), 8), (("a",), 3), (("b",), 6)],
    nets.FlattenAndBack: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.Unflatten: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.Repeat: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.RepeatInterleave: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.ExpandGate: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.WriteHalves: [(("stem",), 8), (("a",), 6), (("c",), 5), (("b",), 6)],
    nets.OnesLike: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.FreshChannels: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.ShapeCompared: [(("stem",), 8), (("a", "c"), 6), (("b",), 6)],
    nets.SumOfChannels: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.Normalize: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.MaxOfPixels: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.Unpool: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.InPlace: [(("stem",), 8), (("a", "c"), 6), (("b",), 6)],
    nets.Highway: [(("stem",), 8), (("gate", "a", "c"), 6), (("b",), 6)],
    nets.Where: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.DataDependent: [(("stem",), 8), (("a",), 6), (("b",), 6)],
    nets.UNet: [(("stem",), 8), (("down",), 10), (("mid",), 10), (("up",), 6), (("join",), 8)],
    nets.Dense: [(("stem",), 8), (("layers.0.2",), 4), (("layers.1.2",), 4), (("layers.2.2",), 4)],
    nets.SplitChain: [(("stem", "inner.0", "inner.1"), 2), (("inner.2",), 2), (("out",), 6)],
}
# network → part of the reason why `a` is kept
BARRIERS = {
    nets.NumpyTrip: "no channel rule for `numpy`",
    nets.SoftmaxChannels: "`softmax` mixes channels",
    nets.MeanOfChannels: "`mean` mixes channels",
    nets.MaxOfChannels: "`amax` mixes channels",
    nets.SumAfterSigmoid: "`sum` mixes channels",
    nets.GroupNormAll: "`group_norm` in norm takes statistics over all channels",
    nets.GroupNormLiteral: "num_groups=3 is written into the code",
    nets.PlainConstant: "shared with a tensor of unknown origin in `add`",
    nets.WidthInArithmetic: "their number enters `div`",
    nets.WidthOfLayer: "their number enters `div`",
    nets.ScriptedInPlace: "removed exactly",
    nets.LiteralExpand: "`expand` writes the number 6 into the code",
    nets.LiteralGroups: "groups=6 is written into the code",
    nets.SplitLiteral: "`split` writes the number 3 into the code",
    nets.ShuffleLiteral: "splits channels into sizes that are written into the code",
    nets.TwoShuffles: "`view` writes the number 3 into the code",
    nets.WriteLiteral: "shared with a tensor made by `zeros` in `setitem`",
    nets.InPlaceTranspose: "no channel rule for this use of `transpose`",
    nets.Einsum: "shared with a tensor made by `eye` in `einsum`",
    nets.MultiHead: "no channel rule for `multi_head_attention_forward` in attention",
    nets.Scripted: "compiled module inner",
    nets.TiedTranspose: "shared with the parameter b.weight in `einsum`",
}


def build(kind):
    torch.manual_seed(0)
    return nets.randomised(kind()).eval().double()


def misnumbered(graph, group, member):
    """The graph with a wrong index map of one member."""
    members = list(graph.groups[group].members)
    members[member] = dataclasses.replace(members[member], units=members[member].units[[1, 2, 3, 0, *range(4, len(members[member].units))]])
    groups = list(graph.groups)
    groups[group] = dataclasses.replace(groups[group], members=tuple(members))
    return dataclasses.replace(graph, groups=tuple(groups))


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
    report = rlprune.verify(network, example, graph)
    assert report.exact, str(report)
    assert set(report.groups) == {group.name for group in graph.groups}
    assert any(verdict.reached for verdict in report.groups.values())
    keep = half(graph)
    pruned, masked = rlprune.prune(network, graph, keep), rlprune.mask(network, graph, keep)
    torch.testing.assert_close(pruned(example), masked(example), rtol=1e-9, atol=1e-12)
    assert not torch.equal(pruned(example), network(example))
    with FlopCounterMode(display=False) as counter:
        pruned(example)
    if not any("not counted" in warning for warning in graph.warnings):
        assert graph.macs(keep) * 2 * len(example) == counter.get_total_flops()
    assert graph.params(keep) == sum(parameter.numel() for parameter in pruned.parameters())


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.__name__)
def test_one_unit_of_every_group_is_enough(kind):
    network, example = build(kind), EXAMPLE.double()
    graph = rlprune.trace(network, example)
    for units in ([0], [-1]):
        keep = {group.name: np.arange(group.num_units)[units] for group in graph.groups}
        pruned, masked = rlprune.prune(network, graph, keep), rlprune.mask(network, graph, keep)
        torch.testing.assert_close(pruned(example), masked(example), rtol=1e-9, atol=1e-12)
        again = rlprune.trace(pruned, example)  # what was cut is a network like any other
        assert again.macs({}) == graph.macs(keep) or kind is nets.EinsumWeight  # which torch does without a matrix product then


@pytest.mark.parametrize("kind", BARRIERS, ids=lambda kind: kind.__name__)
def test_a_barrier_keeps_what_reaches_it_and_says_why(kind):
    graph = rlprune.trace(build(kind), EXAMPLE.double())
    assert "a" not in {layer for group in graph.groups for layer in group.layers}
    reasons = {frozen.layer: frozen.reason for frozen in graph.frozen}
    assert BARRIERS[kind] in reasons["a"]
    assert ("stem",) in [group.layers for group in graph.groups]


@pytest.mark.parametrize("kind", [kind for kind in [*EXACT, *BARRIERS] if kind is not nets.Scripted], ids=lambda kind: kind.__name__)
def test_a_trace_without_values_finds_what_one_on_real_numbers_finds(kind, monkeypatch):
    network, example = build(kind), EXAMPLE.double()
    fast = rlprune.trace(network, example, prove=False)
    monkeypatch.setattr(sys.modules["rlprune.graph.trace"], "_record_symbolic", lambda *_: None)
    slow = rlprune.trace(network, example, prove=False)
    assert [(group.name, group.num_units) for group in fast.groups] == [(group.name, group.num_units) for group in slow.groups]
    for one, other in zip(fast.groups, slow.groups, strict=True):
        assert [(m.tensor, m.dim, m.role) for m in one.members] == [(m.tensor, m.dim, m.role) for m in other.members]
        assert all(np.array_equal(m.units, n.units) for m, n in zip(one.members, other.members, strict=True))
    assert (fast.macs({}), fast.frozen) == (slow.macs({}), slow.frozen)


def test_a_network_that_does_not_look_at_values_is_traced_without_them(monkeypatch):
    seen = []
    monkeypatch.setattr(Recorder, "fixed_macs", property(lambda self: 0.0, lambda self, value: seen.append(self.symbolic)), raising=False)
    rlprune.trace(build(nets.Residual), EXAMPLE.double())
    assert set(seen) == {True}
    seen.clear()
    rlprune.trace(build(nets.DataDependent), EXAMPLE.double())
    assert set(seen) == {True, False}


def test_layers_without_a_rule_are_named():
    graph = rlprune.trace(build(nets.LostConvolution), EXAMPLE.double())
    reasons = {frozen.layer: frozen.reason for frozen in graph.frozen}
    assert "no channel rule for this use of `conv2d` in t" in reasons["t"]
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
    assert any(frozen.layer == "stem" and "writes the number 32 into the code" in frozen.reason for frozen in graph.frozen)


def test_a_wrong_map_is_caught():
    network = build(nets.Residual)
    graph = rlprune.trace(network, EXAMPLE.double())
    graph = misnumbered(graph, 0, 0)
    assert not rlprune.verify(network, EXAMPLE, graph).exact
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
    assert rlprune.verify(pruned, example, after).exact


def test_the_slicer_builds_what_prune_builds():
    network, example = build(nets.Depthwise), EXAMPLE.double()
    graph = rlprune.trace(network, example)
    slicer = Slicer(network, graph)
    for keep in ({"stem": [0, 3, 7]}, {"stem": [1, 2], "pw": [5]}, {}, {"pw": [0, 1, 2, 4]}):
        torch.testing.assert_close(slicer(keep)(example), rlprune.prune(network, graph, keep)(example), rtol=0, atol=0)
    assert network.stem.weight.shape == (8, 3, 3, 3)


@pytest.mark.parametrize("kind", [*EXACT, *BARRIERS], ids=lambda kind: kind.__name__)
def test_padded_and_uncut_candidates_give_the_outputs_of_cut_ones(kind):
    network, example = build(kind), EXAMPLE.double()
    graph = rlprune.trace(network, example)
    generator = np.random.default_rng(0)
    slicers = [Slicer(network, graph, multiple=multiple) for multiple in (2, 3, None)]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for _ in range(2):
        keep = {g.name: generator.permutation(g.num_units)[: generator.integers(1, g.num_units + 1)] for g in graph.groups}
        wanted = rlprune.prune(network, graph, keep)(example)
        for slicer in slicers:
            torch.testing.assert_close(slicer(keep)(example), wanted, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_padded_widths_are_multiples_or_whole():
    network, example = build(nets.Plain), EXAMPLE.double()
    graph = rlprune.trace(network, example)
    keep = {"stem": [1, 5, 6], "features.2": [0, 2, 3, 4, 5]}
    widths = {}
    for multiple in (1, 4, None):
        padded = Slicer(network, graph, multiple=multiple)(keep)
        widths[multiple] = (padded.stem.out_channels, padded.features[0].num_features, padded.features[2].out_channels)
        assert int((padded.stem.weight.abs().sum((1, 2, 3)) > 0).sum()) == 3
    assert widths == {1: (3, 3, 5), 4: (4, 4, 6), None: (8, 8, 6)}


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
    graph = misnumbered(misnumbered(graph, 0, 0), 0, -1)
    assert not all(rlprune.verify(network, EXAMPLE, graph, seed=seed).exact for seed in range(4))


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
    for mean in (True, False):
        network = ManyInputs(mean=mean).double()
        for form in (inputs, tuple(inputs.values())):
            graph = rlprune.trace(network, form)
            assert [group.layers for group in graph.groups] == [("a",)]
            assert {frozen.layer: frozen.reason for frozen in graph.frozen} == {"b": "model output"}
            assert rlprune.verify(network, form, graph).exact
