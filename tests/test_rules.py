"""One operation between `a` (6 channels) and `b`: how many units `a` has after it, None where it is kept; always exact."""

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rlprune

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
VECTOR = torch.rand(6).double() + 0.5

# name → (operation on (N, 6, 8, 8), inputs of `b`, units of `a`)
CASES = {
    "hstack": (lambda x: torch.hstack([x, x * 2]), 12, 6),
    "vstack": (lambda x: torch.vstack([x, x * 2])[:2], 6, 6),
    "dstack": (lambda x: torch.dstack([x, x * 2]), 6, 6),
    "cat_pixels": (lambda x: torch.cat([x, x * 2], 3), 6, 6),
    "cat_empty": (lambda x: torch.cat([torch.zeros(0).to(x), x], 1), 6, 6),
    "cat_constant": (lambda x: torch.cat([x, torch.ones(2, 2, 8, 8).to(x)], 1), 8, 6),
    "cat_pixels_constant": (lambda x: torch.cat([x, torch.ones(2, 6, 1, 8).to(x)], 2), 6, None),
    "cat_other_axes": (lambda x: torch.cat([x, x.transpose(1, 2).reshape(2, 6, 8, 8)], 1), 12, None),
    "stack_constant": (lambda x: torch.stack([x, torch.ones(2, 6, 8, 8).to(x)]).sum(0), 6, None),
    "unbind": (lambda x: torch.stack(x.unbind(0)), 6, 6),
    "unbind_channels": (lambda x: torch.stack(x.unbind(1), 1), 6, None),
    "select_pixels": (lambda x: x.select(2, 0).unsqueeze(2).expand(-1, -1, 8, -1), 6, 6),
    "select_channel": (lambda x: x * x.select(1, 0).unsqueeze(1), 6, 5),
    "select_last": (lambda x: x * x.select(1, -1).unsqueeze(1), 6, 5),
    "negative_index": (lambda x: x * x[:, -1:], 6, 5),
    "index_none": (lambda x: x[:, None].squeeze(1), 6, 6),
    "index_ellipsis": (lambda x: x[..., ::2, 1:] + 1, 6, 6),
    "index_pixels": (lambda x: x[:, :, [0, 3, 1]], 6, 6),
    "index_two": (lambda x: x[:, :, torch.tensor([0, 1]), torch.tensor([1, 2])][..., None], 6, None),
    "index_mask": (lambda x: x[:, torch.tensor([True] * 6)], 6, None),
    "index_computed": (lambda x: x[:, x.mean((0, 2, 3)).argsort()], 6, None),
    "index_select_pixels": (lambda x: x.index_select(2, torch.tensor([1, 0])), 6, 6),
    "index_arange": (lambda x: x[:, torch.arange(3)], 3, 3),
    "narrow_pixels": (lambda x: x.narrow(2, 1, 3), 6, 6),
    "narrow_literal": (lambda x: x.narrow(1, 0, 2), 2, 4),
    "tensor_split": (lambda x: torch.cat(torch.tensor_split(x, 3, 1)[::-1], 1), 6, 2),
    "tensor_split_at": (lambda x: torch.cat(torch.tensor_split(x, (2,), 1)[::-1], 1), 6, 4),
    "tensor_split_uneven": (lambda x: torch.cat(torch.tensor_split(x, 4, 1), 1), 6, None),
    "split_pixels": (lambda x: torch.cat(x.split(3, 2)[::-1], 2), 6, 6),
    "split_list": (lambda x: torch.cat(x.split([2, 4], 1)[::-1], 1), 6, None),
    "split_rest": (lambda x: torch.cat(x.split([2, x.shape[1] - 2], 1)[::-1], 1), 6, 4),
    "split_wide": (lambda x: x.split(100, 1)[0], 6, 6),
    "chunk_pixels": (lambda x: torch.cat(x.chunk(2, 3)[::-1], 3), 6, 6),
    "chunk_uneven": (lambda x: torch.cat(x.chunk(4, 1)[::-1], 1), 6, None),
    "roll_pixels": (lambda x: x.roll((1, 2), (2, 3)), 6, 6),
    "roll_all": (lambda x: x.roll(3), 6, None),
    "roll_both": (lambda x: x.roll((2, 1), (1, 2)), 6, 4),
    "flip_pixels": (lambda x: x.flip(-1), 6, 6),
    "fliplr": (lambda x: torch.fliplr(x), 6, 6),
    "every_third": (lambda x: x[:, ::3], 2, 2),
    "every_second_of_some": (lambda x: x[:, 1:5:2], 2, 1),
    "glu_pixels": (lambda x: F.glu(x, -1), 6, 6),
    "view_as": (lambda x: x.flatten(1).view_as(x), 6, 6),
    "reshape_as_other": (lambda x: torch.ones(2, 6, 64).to(x).reshape_as(x) + x, 6, None),
    "flatten_all": (lambda x: x.flatten().view(2, -1, 8, 8), 6, 6),
    "ravel": (lambda x: x.ravel().view(2, -1, 8, 8), 6, 6),
    "view_dtype": (lambda x: x.view(torch.float64), 6, None),
    "batch_merged": (lambda x: (x.reshape(-1, 8, 8) * 2).reshape(2, -1, 8, 8), 6, 6),
    "movedim": (lambda x: x.movedim(1, -1).relu().movedim(-1, 1), 6, 6),
    "channels_last_twice": (lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 6, 6),
    "squeeze": (lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).unsqueeze(-1), 6, 6),
    "transpose_batch": (lambda x: x.transpose(0, 1).transpose(0, 1), 6, 6),
    "T": (lambda x: x.mean((2, 3)).T.T[..., None, None], 6, 6),
    "expand": (lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8), 6, 6),
    "expand_as": (lambda x: x * torch.sigmoid(x.mean(1, keepdim=True).detach() * 0 + 1).expand_as(x), 6, None),
    "repeat_pixels": (lambda x: x.repeat(1, 1, 2, 1), 6, 6),
    "repeat_axis": (lambda x: x.repeat(3, 1, 1, 1, 1)[0], 6, 6),
    "tile": (lambda x: x.tile((1, 2, 1, 1)), 12, 6),
    "interleave_pixels": (lambda x: x.repeat_interleave(2, dim=3), 6, 6),
    "unfold_pixels": (lambda x: x.unfold(2, 2, 2).sum(-1), 6, 6),
    "unfold_channels": (lambda x: x.unfold(1, 2, 2).sum(-1), 3, None),
    "pad_pixels": (lambda x: F.pad(x, (1, 1)), 6, 6),
    "pad_reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 6, 6),
    "pad_value": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2), value=3.0), 9, 6),
    "pad_to_width": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 9 - x.shape[1])), 9, None),
    "pad_cut": (lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)), 5, None),
    "shuffle_kernel": (lambda x: F.channel_shuffle(x, 2), 6, 3),
    "set_pixels": (lambda x: _set(x.clone(), (slice(None), slice(None), 0), 5.0), 6, 6),
    "set_channels": (lambda x: _set(x.clone(), (slice(None), slice(0, 2)), 5.0), 6, 4),
    "set_vector": (lambda x: _set(x.clone(), (Ellipsis, 0, 0), VECTOR), 6, None),
    "set_one": (lambda x: _set(x.clone(), (slice(None), slice(2, 3)), x[:, 2:3] * 2), 6, 3),
    "add_in_view": (lambda x: _add(x.clone()), 6, 3),
    "fill": (lambda x: x * torch.empty_like(x).fill_(2.0), 6, 6),
    "new_zeros": (lambda x: torch.cat([x, x.new_zeros(2, x.shape[1], 8, 8)], 1), 12, 6),
    "new_full": (lambda x: x + x.new_full(x.shape, 0.5), 6, 6),
    "full": (lambda x: x + torch.full((2, x.shape[1], 1, 1), 0.5).to(x), 6, 6),
    "random": (lambda x: x + 0 * torch.rand(x.shape).to(x), 6, None),
    "type_as": (lambda x: x.float().type_as(x), 6, 6),
    "to_other": (lambda x: x.to(VECTOR), 6, 6),
    "copy": (lambda x: torch.empty_like(x).copy_(x), 6, 6),
    "out": (lambda x: torch.add(x, 1.0, out=torch.empty_like(x)), 6, None),
    "lerp": (lambda x: torch.lerp(x, x.tanh(), 0.3), 6, 6),
    "addcmul": (lambda x: torch.addcmul(x, x.sin(), x.cos(), value=0.5), 6, 6),
    "power": (lambda x: (x.abs() + 1) ** 0.5 + 2**x, 6, 6),
    "reversed_operators": (lambda x: 1 - x + 1 / (x.abs() + 1), 6, 6),
    "maximum": (lambda x: torch.max(x, -x) + torch.minimum(x, x * 2), 6, 6),
    "comparison": (lambda x: x * (x > 0) + (x == x).to(x), 6, 6),
    "clamp_tensor": (lambda x: x.clamp(min=VECTOR.view(6, 1, 1)), 6, None),
    "norm_pixels": (lambda x: x / (x.norm(dim=(2, 3), keepdim=True) + 1), 6, 6),
    "logsumexp_pixels": (lambda x: x + x.logsumexp((2, 3), keepdim=True), 6, 6),
    "logsumexp": (lambda x: x + x.logsumexp(1, keepdim=True), 6, None),
    "sort_pixels": (lambda x: x.sort(-1).values, 6, 6),
    "topk_pixels": (lambda x: x.topk(3, -1)[0], 6, 6),
    "cumsum_pixels": (lambda x: x.cumsum(2), 6, 6),
    "cumsum": (lambda x: x.cumsum(1), 6, None),
    "mean_all": (lambda x: x * x.mean(), 6, None),
    "sum_all": (lambda x: x * x.sum(), 6, 6),
    "normalize_pixels": (lambda x: F.normalize(x, dim=-1), 6, 6),
    "response_norm": (lambda x: F.local_response_norm(x, 3), 6, None),
    "log_softmax_pixels": (lambda x: x.flatten(2).log_softmax(-1).view(2, -1, 8, 8), 6, 6),
    "grid_sample": (lambda x: F.grid_sample(x, torch.zeros(2, 4, 4, 2).to(x), align_corners=False), 6, 6),
    "pool_indices": (lambda x: F.adaptive_max_pool2d(x, 4, return_indices=True)[0], 6, 6),
    "pool_channels": (lambda x: F.avg_pool3d(x, 2), 3, None),
    "pool_1d": (lambda x: F.avg_pool1d(x.flatten(2), 4).unsqueeze(-1), 6, 6),
    "lp_pool": (lambda x: F.lp_pool2d(x.abs() + 1, 2, 2), 6, 6),
    "fft": (lambda x: torch.fft.fft(x, dim=-1).abs(), 6, None),
    "mm": (lambda x: (x.flatten(2).transpose(1, 2).flatten(0, 1).mm(torch.eye(6).to(x))).view(2, 8, 8, 6).permute(0, 3, 1, 2), 6, None),
    "gram": (lambda x: (x.flatten(2) @ x.flatten(2).transpose(1, 2))[..., None], 6, None),
    "linear_attention": (lambda x: (x.flatten(2) @ (x.flatten(2).transpose(1, 2) @ x.flatten(2))).view_as(x), 6, 6),
    "non_local": (lambda x: _non_local(x.flatten(2), x.flatten(2).transpose(1, 2)).view_as(x), 6, 6),
    "einsum_self": (lambda x: torch.einsum("bchw,bcij->bhw", x, x)[:, None].expand(-1, 6, -1, -1) + x, 6, None),
    "einsum_ellipsis": (lambda x: torch.einsum("bc...,bc...->bc...", x, x), 6, 6),
    "outer": (lambda x: torch.einsum("bc,bd->bcd", x.mean((2, 3)), x.mean((2, 3)))[..., None], 6, None),
    "vector_product": (lambda x: x * (x.mean((0, 2, 3)) @ VECTOR), 6, None),
    "custom_function": (lambda x: _Double.apply(x), 6, 6),
    "checkpoint": (lambda x: torch.utils.checkpoint.checkpoint(F.relu, x, use_reentrant=False), 6, 6),
    "nan_to_num": (lambda x: torch.nan_to_num(x), 6, 6),
}  # fmt: skip


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x * 2

    @staticmethod
    def backward(context, gradient):
        return gradient * 2


def _non_local(x, y):
    return ((y @ x).softmax(-1) @ y).transpose(1, 2)


def _set(target, index, value):
    target[index] = value
    return target


def _add(target):
    part = target[:, : target.shape[1] // 2]
    part.add_(1.0)
    return target


class Case(nets.Barrier):
    def __init__(self, work, inputs):
        self.work, self.inputs = [work], inputs
        super().__init__()

    def build(self):
        super().build()
        self.b = nets.conv(self.inputs, 6)

    def odd(self, x):
        return self.work[0](x)


@pytest.mark.parametrize("name", CASES)
def test_an_operation_is_followed_or_keeps_what_reaches_it(name):
    work, inputs, units = CASES[name]
    torch.manual_seed(0)
    network = Case.__new__(Case)
    nn.Module.__init__(network)
    network.work, network.inputs = [work], inputs
    network.stem = nets.conv(3, 8)
    network.build()
    network = network.eval().double()
    graph = rlprune.trace(network, EXAMPLE)
    found = {group.layers: group.num_units for group in graph.groups}
    report = rlprune.verify(network, EXAMPLE, graph)
    assert report.exact, str(report)
    assert found.get(("a",)) == units, (found, graph.frozen, graph.warnings)
    assert found[("stem",)] == 8
    if units is None:
        assert any(frozen.layer == "a" and frozen.reason for frozen in graph.frozen)
        return
    for group in graph.groups:
        if group.layers == ("a",) and group.num_units > 1:
            for keep in ({group.name: [0]}, {group.name: range(1, group.num_units)}):
                one, other = rlprune.prune(network, graph, keep), rlprune.mask(network, graph, keep)
                torch.testing.assert_close(one(EXAMPLE), other(EXAMPLE), rtol=1e-9, atol=1e-12)
