"""Small networks, one odd layer pattern each."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


def conv(i, o, k=3, **kw):
    return nn.Conv2d(i, o, k, padding=k // 2, **kw)


class Net(nn.Module):
    """Base: a stem, a body that the subclass writes, a head."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.build()

    def build(self):
        self.head = nn.Linear(8, 5)

    def body(self, x):
        return x

    def forward(self, x):
        return self.head(self.body(F.relu(self.stem(x))).mean((2, 3)))


class Plain(Net):
    def build(self):
        self.features = nn.Sequential(
            nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.head = nn.Linear(6, 5)

    def body(self, x):
        return self.features(x)


class FlattenHead(Net):
    def build(self):
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 5))

    def forward(self, x):
        return self.head(self.pool(F.relu(self.stem(x))))


class ViewHead(FlattenHead):
    def forward(self, x):
        y = self.pool(F.relu(self.stem(x)))
        return self.head[1:](y.view(y.size(0), -1))


class LiteralView(FlattenHead):
    def forward(self, x):
        return self.head[1:](self.pool(F.relu(self.stem(x))).view(-1, 32))


class Residual(Net):
    def build(self):
        self.a, self.b, self.bn = conv(8, 4), conv(4, 8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def body(self, x):
        return F.relu(self.bn(self.b(F.relu(self.a(x)))) + x)


class InputResidual(Net):
    def build(self):
        self.b = conv(8, 3)
        self.head = nn.Linear(3, 5)

    def forward(self, x):
        return self.head((self.b(F.relu(self.stem(x))) + x).mean((2, 3)))


class Concat(Net):
    def build(self):
        self.a, self.b = conv(8, 4), conv(12, 6)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        return self.b(torch.cat([F.relu(self.a(x)), x], dim=1))


class ConcatInput(Net):
    def build(self):
        self.b = conv(11, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.b(torch.cat((x, F.relu(self.stem(x))), 1)).mean((2, 3)))


class SqueezeExcite(Net):
    def build(self):
        self.down, self.up = nn.Linear(8, 3), nn.Linear(3, 8)
        self.head = nn.Linear(8, 5)

    def body(self, x):
        n, c, _, _ = x.size()
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1).view(n, c))))).view(n, c, 1, 1)
        return x * gate.expand_as(x)


class SqueezeExciteConv(Net):
    def build(self):
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 3, 1), nn.ReLU(), nn.Conv2d(3, 8, 1), nn.Hardsigmoid())
        self.head = nn.Linear(8, 5)

    def body(self, x):
        return x * self.gate(x)


class SigmoidBetween(Net):
    def build(self):
        self.a = conv(8, 4)
        self.head = nn.Linear(4, 5)

    def body(self, x):
        return torch.sigmoid(self.a(torch.exp(-x) + 1.5))


class Depthwise(Net):
    def build(self):
        self.dw, self.pw = conv(8, 8, groups=8), conv(8, 6, 1)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        return F.relu6(self.pw(self.dw(x)))


class DepthwiseMultiplier(Net):
    def build(self):
        self.dw, self.pw = conv(8, 16, groups=8), conv(16, 6, 1)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        return self.pw(F.relu(self.dw(x)))


class DepthwiseOnInput(Net):
    def build(self):
        self.dw, self.pw = conv(3, 6, groups=3), conv(6, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.pw(F.relu(self.dw(x))).mean((2, 3)))


class Grouped(Net):
    def build(self):
        self.g, self.p = conv(8, 12, groups=4), conv(12, 6, 1)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        return self.p(F.relu(self.g(x)))


class Transposed(Net):
    def build(self):
        self.t, self.c = nn.ConvTranspose2d(8, 6, 2, 2), conv(6, 4)
        self.head = nn.Linear(4, 5)

    def body(self, x):
        return self.c(F.relu(self.t(x)))


class Shared(Net):
    """One module used twice."""

    def build(self):
        self.again = conv(8, 8)
        self.head = nn.Linear(8, 5)

    def body(self, x):
        return F.relu(self.again(F.relu(self.again(x))))


class ParametricRelu(Net):
    def build(self):
        self.one, self.many, self.a = nn.PReLU(), nn.PReLU(8), conv(8, 8)
        self.head = nn.Linear(8, 5)

    def body(self, x):
        return self.many(self.a(self.one(x)))


class LayerScale(Net):
    """A raw parameter that scales each channel."""

    def build(self):
        self.a = conv(8, 6)
        self.scale, self.shift = nn.Parameter(torch.rand(6, 1, 1) + 0.5), nn.Parameter(torch.rand(1, 6, 1, 1))
        self.head = nn.Linear(6, 5)

    def body(self, x):
        return self.a(x) * self.scale + self.shift


class ScalarGate(Net):
    """A single channel scales all others."""

    def build(self):
        self.gate = conv(8, 1)
        self.head = nn.Linear(8, 5)

    def body(self, x):
        return x * torch.sigmoid(self.gate(x))


class PadChannels(Net):
    """The option-A shortcut of CIFAR ResNets."""

    def build(self):
        self.a = conv(8, 12, stride=2)
        self.head = nn.Linear(12, 5)

    def body(self, x):
        return F.relu(self.a(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


class Upsample(Net):
    def build(self):
        self.a = conv(8, 6)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        return self.a(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0))


class Permute(Net):
    """Channels move behind the pixels and through a linear layer."""

    def build(self):
        self.mix = nn.Linear(8, 6)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        return F.gelu(self.mix(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class FlattenPermuted(Net):
    def build(self):
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(F.relu(self.stem(x)), 4).permute(0, 2, 3, 1).flatten(1))


class Softmaxed(Net):
    def build(self):
        self.a = conv(8, 6)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        return self.a(x * torch.softmax(x.flatten(2), dim=-1).sum(-1)[..., None, None])


class Instance(Net):
    def build(self):
        self.norm, self.a = nn.InstanceNorm2d(8, affine=True), conv(8, 6)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        return self.a(F.silu(self.norm(x)))


class NoAffine(Net):
    def build(self):
        self.norm, self.a = nn.BatchNorm2d(8, affine=False), conv(8, 6)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        return self.a(self.norm(x))


class AxisKeyword(Net):
    """numpy's word for dim."""

    def build(self):
        self.a, self.b = conv(8, 4), conv(12, 6)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        return self.b(torch.cat([self.a(x), x], axis=1))


class OnlyFloat32(Net):
    """A type is written into the code, so the check cannot run in float64."""

    def build(self):
        self.a = conv(8, 6)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        return self.a(x.to(torch.float32))


class LostConvolution(Net):
    """A convolution along an axis that does not hold the channels has no rule: it is kept, and named."""

    def build(self):
        self.t, self.c = conv(8, 8), conv(8, 4)
        self.head = nn.Linear(4, 5)

    def body(self, x):
        return self.c(F.relu(self.t(x.transpose(1, 2))).transpose(1, 2))


# -- networks that hold a barrier: channels that reach it stay, the others go ---------------------------------------------------------


class Barrier(Net):
    """stem → a → odd → b → head."""

    def build(self):
        self.a, self.b = conv(8, 6), conv(6, 6)
        self.head = nn.Linear(6, 5)

    def odd(self, x):
        return x

    def body(self, x):
        return self.b(self.odd(self.a(x)))


class Roll(Barrier):
    def odd(self, x):
        return torch.roll(x, 1, dims=1)


class Chunk(Barrier):
    def odd(self, x):
        first, second = x.chunk(2, dim=1)
        return torch.cat([second, first], 1)


class Shuffle(Barrier):
    def odd(self, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class NumpyTrip(Barrier):
    def odd(self, x):
        return torch.from_numpy(x.detach().cpu().numpy() * 2).to(x.dtype)


class SliceChannels(Barrier):
    def odd(self, x):
        return torch.cat([x[:, :3], x[:, 3:] * 2], 1)


class IndexedAssignment(Barrier):
    def odd(self, x):
        y = torch.zeros_like(x)
        y[:, ::2] = x[:, ::2]
        return y + x


class SoftmaxChannels(Barrier):
    def odd(self, x):
        return torch.softmax(x, dim=1)


class LayerNormed(Barrier):
    def build(self):
        super().build()
        self.norm = nn.GroupNorm(2, 6)

    def odd(self, x):
        return self.norm(x)


class MeanOfChannels(Barrier):
    def odd(self, x):
        return x - x.mean(dim=1, keepdim=True)


class DataDependent(Barrier):
    def odd(self, x):
        return x * 2 if x.sum() > 0 else x * 3


class PlainConstant(Barrier):
    """A tensor that is neither parameter nor buffer."""

    def build(self):
        super().build()
        self.constant = [torch.arange(6.0).view(1, 6, 1, 1)]

    def odd(self, x):
        return x + self.constant[0].to(x.dtype)


class WidthInArithmetic(Barrier):
    def odd(self, x):
        return x / x.size(1)


class ScriptedInPlace(Barrier):
    """Compiled code that mixes channels and returns the tensor it was given."""

    def odd(self, x):
        return mix_in_place(x)


class LiteralExpand(Barrier):
    def odd(self, x):
        return x * x.mean((2, 3), keepdim=True).expand(-1, 6, -1, -1)


class WidthOfLayer(Barrier):
    def odd(self, x):
        return x / self.a.out_channels


class LiteralGroups(Barrier):
    def build(self):
        super().build()
        self.dw = conv(6, 6, groups=6)

    def odd(self, x):
        return F.conv2d(x, self.dw.weight, self.dw.bias, padding=1, groups=6)


class InPlaceTranspose(Barrier):
    def odd(self, x):
        return x.clone().transpose_(1, 2).transpose_(1, 2)


class FreshChannels(Barrier):
    """Zeros as wide as the network now is."""

    def build(self):
        super().build()
        self.b = conv(12, 6)

    def odd(self, x):
        return torch.cat([x, torch.zeros(x.shape, dtype=x.dtype)], 1)


class Einsum(Barrier):
    def odd(self, x):
        return torch.einsum("nchw,cd->ndhw", x, torch.eye(6, dtype=x.dtype))


class WeightNormed(Barrier):
    def build(self):
        super().build()
        self.b = weight_norm(self.b)

    def odd(self, x):
        return x


class Scripted(Barrier):
    def build(self):
        super().build()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and still in users' networks
            self.inner = torch.jit.trace(nn.Sequential(conv(6, 6), nn.ReLU()).eval(), torch.zeros(1, 6, 8, 8))

    def odd(self, x):
        return self.inner(x)


class TiedTranspose(Barrier):
    """A weight is used a second time in a way without a rule."""

    def odd(self, x):
        return x + 0.1 * torch.einsum("nchw,oc->nohw", x, self.b.weight.sum((2, 3)))


# -- moved, cut and joined channels: a → odd → b, with b of 6 inputs unless a net says otherwise ---------------------------------------


class Flip(Barrier):
    def odd(self, x):
        return torch.flip(x, (1, 3))


class RollHalf(Barrier):
    def odd(self, x):
        return torch.roll(x, x.shape[1] // 2, 1)


class RollBack(Barrier):
    def odd(self, x):
        return x.roll(-2, dims=1)


class SplitLiteral(Barrier):
    def odd(self, x):
        first, second = torch.split(x, 3, dim=1)
        return torch.cat([second, F.relu(first)], 1)


class SplitShape(Barrier):
    def odd(self, x):
        first, second = torch.split(x, x.size(1) // 2, 1)
        return torch.cat([second, F.relu(first)], 1)


class SplitLayers(Barrier):
    """Cut where two layers were joined, by their own widths."""

    def build(self):
        super().build()
        self.c, self.b = conv(8, 5), conv(11, 6)

    def body(self, x):
        y = torch.cat([self.a(x), self.c(x)], 1)
        first, second = y.split([self.a.out_channels, self.c.out_channels], 1)
        return self.b(torch.cat([second, first], 1))


class SliceBack(Barrier):
    """The same by the shape of a tensor."""

    def build(self):
        super().build()
        self.c, self.b = conv(8, 5), conv(11, 6)

    def body(self, x):
        a = self.a(x)
        y = torch.cat([a, self.c(x)], 1)
        return self.b(torch.cat([y[:, a.shape[1] :], y[:, : a.shape[1]]], 1))


class SliceHalves(Barrier):
    def odd(self, x):
        half = x.shape[1] // 2
        return torch.cat([x[:, :half] * 2, x[:, half:]], 1)


class SliceFromEnd(Barrier):
    def odd(self, x):
        return torch.cat([x[:, -2:], x[:, :-2] + 1], 1)


class EverySecond(Barrier):
    def odd(self, x):
        return torch.cat([x[:, 0::2], x[:, 1::2]], 1)


class SliceTooLong(Barrier):
    """Ghost modules cut to a width that is the whole."""

    def odd(self, x):
        return x[:, :6]


class IndexBuffer(Barrier):
    def build(self):
        super().build()
        self.register_buffer("order", torch.tensor([3, 0, 5, 1, 4, 2]))

    def odd(self, x):
        return x[:, self.order]


class IndexSelect(IndexBuffer):
    def odd(self, x):
        return torch.index_select(x, 1, self.order)


class IndexSome(IndexBuffer):
    """Some channels twice, others not at all."""

    def build(self):
        super().build()
        self.b = conv(4, 6)
        self.register_buffer("order", torch.tensor([3, 0, 3, 1]))

    def odd(self, x):
        return x[:, self.order]


class IndexList(Barrier):
    def build(self):
        super().build()
        self.b = conv(3, 6)

    def odd(self, x):
        return x[:, [2, 0, 1]]


class OneChannel(Barrier):
    def odd(self, x):
        return x * torch.sigmoid(x[:, 1:2])


class SelectChannel(Barrier):
    def odd(self, x):
        return x * x[:, 2].unsqueeze(1)


class Narrow(Barrier):
    def odd(self, x):
        half = x.size(1) // 2
        return torch.cat([x.narrow(1, half, half), x.narrow(1, 0, half)], 1)


class ChannelShuffleModule(Barrier):
    def build(self):
        super().build()
        self.shuffle = nn.ChannelShuffle(3)

    def odd(self, x):
        return self.shuffle(x)


class ShuffleMinusOne(Barrier):
    def odd(self, x):
        n, c, h, w = x.shape
        return x.reshape(n, 3, -1, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleLiteral(Barrier):
    def odd(self, x):
        n, _, h, w = x.shape
        return x.view(n, 2, 3, h, w).transpose(1, 2).reshape(n, 6, h, w)


class TwoShuffles(Barrier):
    def odd(self, x):
        n, c, h, w = x.shape
        x = torch.sigmoid(x.view(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2))
        return x.view(n, 3, c // 3, h, w).transpose(1, 2).flatten(1, 2)


class PixelShuffle(Barrier):
    def build(self):
        super().build()
        self.a, self.b = conv(8, 12), conv(3, 6)

    def odd(self, x):
        return F.pixel_shuffle(x, 2)


class PixelUnshuffle(Barrier):
    def build(self):
        super().build()
        self.b = conv(24, 6)

    def odd(self, x):
        return F.pixel_unshuffle(x, 2)


class Patches(Barrier):
    """unfold and fold."""

    def odd(self, x):
        return F.fold(F.unfold(x, 2, stride=2), x.shape[2:], 2, stride=2)


class StackSum(Barrier):
    def build(self):
        super().build()
        self.c = conv(8, 6)

    def body(self, x):
        return self.b(torch.stack([self.a(x), self.c(x)]).sum(0))


class StackInterleave(Barrier):
    def build(self):
        super().build()
        self.c, self.b = conv(8, 6), conv(12, 6)

    def body(self, x):
        return self.b(torch.stack([self.a(x), self.c(x)], 2).flatten(1, 2))


class SelectiveKernel(Barrier):
    """Softmax over two branches."""

    def build(self):
        super().build()
        self.c, self.gate = conv(8, 6), conv(6, 12, 1)

    def body(self, x):
        y = torch.stack([self.a(x), self.c(x)], 1)
        n, branches, c, _, _ = y.shape
        gate = self.gate(y.sum(1).mean((2, 3), keepdim=True)).view(n, branches, c, 1, 1).softmax(1)
        return self.b((y * gate).sum(1))


class Maxout(Barrier):
    def build(self):
        super().build()
        self.b = conv(3, 6)

    def odd(self, x):
        n, c, h, w = x.shape
        return x.view(n, c // 2, 2, h, w).max(2).values


class GatedUnit(Barrier):
    def build(self):
        super().build()
        self.b = conv(3, 6)

    def odd(self, x):
        return F.glu(x, dim=1)


class GatedByChunk(GatedUnit):
    def odd(self, x):
        value, gate = x.chunk(2, 1)
        return value * torch.sigmoid(gate)


class FlattenAndBack(Barrier):
    def odd(self, x):
        n, c, h, w = x.shape
        return F.relu(x.flatten(1)).view(n, c, h, w)


class Unflatten(Barrier):
    def odd(self, x):
        return x.flatten(1).unflatten(1, (-1, 8, 8))


class Repeat(Barrier):
    def build(self):
        super().build()
        self.b = conv(12, 6)

    def odd(self, x):
        return x.repeat(1, 2, 1, 1)


class RepeatInterleave(Repeat):
    def odd(self, x):
        return x.repeat_interleave(2, dim=1)


class ExpandGate(Barrier):
    """A map of one channel spread to as many as there are."""

    def build(self):
        super().build()
        self.gate = conv(8, 1)

    def body(self, x):
        y = self.a(x)
        return self.b(y * self.gate(x).expand(-1, y.shape[1], -1, -1).sigmoid())


class WriteHalves(Barrier):
    """Two layers written into one tensor."""

    def build(self):
        super().build()
        self.c, self.b = conv(8, 5), conv(11, 6)

    def body(self, x):
        a, c = self.a(x), self.c(x)
        n, width, h, w = a.shape
        y = torch.zeros(n, width + c.shape[1], h, w, dtype=x.dtype)
        y[:, :width] = a
        y[:, width:] = c
        return self.b(y)


class WriteLiteral(Barrier):
    def odd(self, x):
        y = torch.zeros(x.shape[0], 6, 8, 8, dtype=x.dtype)
        y[:, :6] = x
        return y


class OnesLike(Barrier):
    def odd(self, x):
        return x * torch.ones_like(x) + torch.full_like(x, 0.5)


class ConcatThenNorm(Barrier):
    """A norm over joined channels, as in DenseNet."""

    def build(self):
        super().build()
        self.norm, self.b = nn.BatchNorm2d(14), conv(14, 6)

    def body(self, x):
        return self.b(F.relu(self.norm(torch.cat([x, self.a(x)], 1))))


class ShapeCompared(Barrier):
    """A projection only where widths differ."""

    def build(self):
        super().build()
        self.c = conv(8, 6)

    def body(self, x):
        y, z = self.a(x), self.c(x)
        return self.b(y + z if y.shape == z.shape else y)


# -- layers -----------------------------------------------------------------------------------------------------------------------------


class GroupedWhole(Barrier):
    """Many narrow groups: whole groups go."""

    def build(self):
        super().build()
        self.a, self.g, self.b = conv(8, 8), conv(8, 12, groups=4), conv(12, 6)

    def odd(self, x):
        return F.relu(self.g(x))


class GroupedPositions(GroupedWhole):
    """Few wide groups: the same positions of every group go."""

    def build(self):
        super().build()
        self.g = conv(8, 12, groups=2)


class GroupedLiteral(GroupedWhole):
    def odd(self, x):
        return F.conv2d(x, self.g.weight, self.g.bias, padding=1, groups=4)


class GroupedOnInput(Net):
    def build(self):
        self.stem, self.g = conv(3, 8), conv(3, 6, groups=3)
        self.head = nn.Linear(14, 5)

    def forward(self, x):
        return self.head(torch.cat([self.stem(x), self.g(x)], 1).mean((2, 3)))


class GroupedTransposed(Barrier):
    def build(self):
        super().build()
        self.a, self.t, self.b = conv(8, 8), nn.ConvTranspose2d(8, 12, 2, 2, groups=4), conv(12, 6)

    def odd(self, x):
        return F.relu(self.t(x))


class GroupedTransposedPositions(GroupedTransposed):
    def build(self):
        super().build()
        self.t = nn.ConvTranspose2d(8, 12, 2, 2, groups=2)


class DepthwiseTransposed(GroupedTransposed):
    def build(self):
        super().build()
        self.t, self.b = nn.ConvTranspose2d(8, 8, 2, 2, groups=8), conv(8, 6)


class GroupNorm(Barrier):
    def build(self):
        super().build()
        self.norm = nn.GroupNorm(3, 6)

    def odd(self, x):
        return self.norm(x)


class GroupNormByChannel(GroupNorm):
    def build(self):
        super().build()
        self.norm = nn.GroupNorm(6, 6, affine=False)


class GroupNormAll(GroupNorm):
    def build(self):
        super().build()
        self.norm = nn.GroupNorm(1, 6)


class GroupNormLiteral(GroupNorm):
    def odd(self, x):
        return F.group_norm(x, 3, self.norm.weight, self.norm.bias)


class InstanceNoAffine(Barrier):
    def build(self):
        super().build()
        self.norm = nn.InstanceNorm2d(6)

    def odd(self, x):
        return self.norm(x)


class LayerNormPixels(Barrier):
    def build(self):
        super().build()
        self.norm = nn.LayerNorm(8)

    def odd(self, x):
        return self.norm(x)


class LayerNormChannels(Barrier):
    """The hidden layer behind the norm is free."""

    def build(self):
        super().build()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 7), nn.Linear(7, 6)

    def odd(self, x):
        y = x.permute(0, 2, 3, 1)
        return (y + self.down(F.gelu(self.up(self.norm(y))))).permute(0, 3, 1, 2)


class FrozenNorm(Barrier):
    """Batch norm out of buffers, as detection networks freeze it."""

    def build(self):
        super().build()
        for name, value in (
            ("weight", torch.rand(6) + 0.5),
            ("bias", torch.rand(6)),
            ("mean", torch.rand(6)),
            ("var", torch.rand(6) + 0.5),
        ):
            self.register_buffer(name, value)

    def odd(self, x):
        scale = self.weight.reshape(1, -1, 1, 1) * (self.var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (self.bias[:, None, None] - self.mean[None, :, None, None] * scale)


class Divisor(Barrier):
    def build(self):
        super().build()
        self.register_buffer("divisor", torch.rand(1, 6, 1, 1) + 0.5)

    def odd(self, x):
        return x / self.divisor


class RawWeight(Barrier):
    def build(self):
        super().build()
        self.weight = nn.Parameter(torch.randn(7, 6, 3, 3))
        self.bias = nn.Parameter(torch.randn(7))
        self.b = conv(7, 6)

    def odd(self, x):
        return F.relu(F.conv2d(x, self.weight, self.bias, padding=1))


class RawMatmul(Barrier):
    def build(self):
        super().build()
        self.weight = nn.Parameter(torch.randn(6, 7))
        self.b = conv(7, 6)

    def odd(self, x):
        return F.relu(x.permute(0, 2, 3, 1) @ self.weight).permute(0, 3, 1, 2)


class TransposedWeight(RawMatmul):
    def odd(self, x):
        return F.relu(F.linear(x.permute(0, 2, 3, 1), self.weight.t())).permute(0, 3, 1, 2)


class EinsumWeight(RawMatmul):
    def odd(self, x):
        return torch.einsum("nchw,cd->ndhw", x, self.weight)


class TiedDecoder(Barrier):
    """One weight forth and, transposed, back."""

    def build(self):
        super().build()
        self.up = nn.Linear(6, 7, bias=False)

    def odd(self, x):
        return F.linear(F.relu(self.up(x.permute(0, 2, 3, 1))), self.up.weight.t()).permute(0, 3, 1, 2)


class Conv1d(Net):
    def build(self):
        self.a, self.norm = nn.Conv1d(8, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.a(F.relu(self.stem(x)).flatten(2)))).mean(-1))


class Conv3d(Net):
    def build(self):
        self.a, self.norm = nn.Conv3d(8, 6, 3, padding=1), nn.BatchNorm3d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(F.max_pool3d(self.norm(self.a(F.relu(self.stem(x)).unsqueeze(2))), (1, 2, 2)).mean((2, 3, 4)))


class Embedding(Barrier):
    """A table of vectors, read at constant places."""

    def build(self):
        super().build()
        self.table = nn.Embedding(4, 6)

    def odd(self, x):
        return x + self.table(torch.arange(4, device=x.device)).mean(0)[:, None, None]


class EmbeddingScale(Barrier):
    def build(self):
        super().build()
        self.table = nn.Embedding(64, 6)
        self.register_buffer("places", torch.arange(64))

    def odd(self, x):
        c, h, w = x.shape[1:]
        return x * self.table(self.places).t().reshape(1, c, h, w)


class Bilinear(Net):
    def build(self):
        self.a, self.pair = conv(8, 6), nn.Bilinear(6, 8, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(self.pair(self.a(x).mean((2, 3)), x.mean((2, 3))))


class BilinearPooling(Barrier):
    """Every channel with every other: two axes of the same channels."""

    def build(self):
        super().build()
        self.head = nn.Linear(36, 5)

    def forward(self, x):
        y = self.a(F.relu(self.stem(x))).flatten(2)
        return self.head(torch.bmm(y, y.transpose(1, 2)).flatten(1))


class PositionEmbedding(Barrier):
    def build(self):
        super().build()
        self.places, self.token = nn.Parameter(torch.randn(1, 65, 6)), nn.Parameter(torch.randn(1, 1, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        y = self.a(F.relu(self.stem(x))).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1) + self.places
        return self.head(F.gelu(y)[:, 0])


class Attention(Barrier):
    """Heads whose number follows the width; the width of a head is in the code."""

    scale = None

    def build(self):
        super().build()
        self.q, self.k, self.v = (nn.Linear(6, 12) for _ in range(3))
        self.out = nn.Linear(12, 6)

    def heads(self, x):
        n, tokens, _ = x.shape
        return x.view(n, tokens, -1, 3).transpose(1, 2)

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)

    def odd(self, x):
        h, w = x.shape[2:]
        y = x.flatten(2).transpose(1, 2)
        y = self.attend(self.heads(self.q(y)), self.heads(self.k(y)), self.heads(self.v(y)))
        return self.out(y.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, (h, w))


class AttentionByHand(Attention):
    def attend(self, q, k, v):
        return (q @ k.transpose(-2, -1) * 3**-0.5).softmax(-1) @ v


class AttentionEinsum(Attention):
    def attend(self, q, k, v):
        return torch.einsum("nhst,nhtd->nhsd", torch.einsum("nhsd,nhtd->nhst", q, k).softmax(-1), v)


class AttentionWidth(Attention):
    """The number of heads is in the code, their width is not: that of the values is free, that of queries scales the scores."""

    def heads(self, x):
        n, tokens, c = x.shape
        return x.view(n, tokens, 4, c // 4).transpose(1, 2)


class AttentionScaled(AttentionWidth):
    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, scale=0.5)


class MultiHead(Barrier):
    """torch's own attention is left whole."""

    def build(self):
        super().build()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def odd(self, x):
        h, w = x.shape[2:]
        y = x.flatten(2).transpose(1, 2)
        return (y + self.attention(y, y, y, need_weights=False)[0]).transpose(1, 2).unflatten(2, (h, w))


class TokenMixer(Barrier):
    """A linear layer along the pixels."""

    def build(self):
        super().build()
        self.up, self.down = nn.Linear(64, 7), nn.Linear(7, 64)

    def odd(self, x):
        return (x.flatten(2) + self.down(F.gelu(self.up(x.flatten(2))))).unflatten(2, (8, 8))


# -- reductions ---------------------------------------------------------------------------------------------------------------------------


class SumOfChannels(Barrier):
    def odd(self, x):
        return F.relu(x) / (1 + F.relu(x).sum(1, keepdim=True))


class SumAfterSigmoid(Barrier):
    """Zero is one half by then, and the sum takes it in."""

    def odd(self, x):
        return x * torch.sigmoid(x).sum(1, keepdim=True)


class Normalize(Barrier):
    def odd(self, x):
        return F.normalize(x, dim=1)


class MaxOfChannels(Barrier):
    def odd(self, x):
        return x * torch.amax(x, 1, keepdim=True)


class MaxOfPixels(Barrier):
    def odd(self, x):
        return x * x.flatten(2).max(-1)[0][..., None, None] + x.flatten(2).var(-1)[..., None, None]


class Unpool(Barrier):
    def odd(self, x):
        y, places = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(F.relu(y), places, 2)


class InPlace(Barrier):
    def build(self):
        super().build()
        self.c = conv(8, 6)

    def body(self, x):
        y = self.a(x).sigmoid_().add_(0.5)
        y *= self.c(x)
        return self.b(F.relu_(y).clamp_(max=2.0))


class Highway(Barrier):
    def build(self):
        super().build()
        self.c, self.gate = conv(8, 6), conv(8, 6)

    def body(self, x):
        gate = torch.sigmoid(self.gate(x))
        return self.b(self.a(x) * gate + self.c(x) * (1 - gate))


class Where(Barrier):
    def odd(self, x):
        return torch.where(x > 0, x, x * 0.1).masked_fill(x > 1, 1.0)


class UNet(Net):
    def build(self):
        self.down, self.mid = conv(8, 10, stride=2), conv(10, 10)
        self.up, self.join = nn.ConvTranspose2d(10, 6, 2, 2), conv(14, 8)
        self.head = nn.Linear(8, 5)

    def body(self, x):
        return self.join(torch.cat([x, self.up(F.relu(self.mid(F.relu(self.down(x)))))], 1))


class Dense(Net):
    def build(self):
        self.layers = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(), conv(8 + 4 * i, 4)) for i in range(3))
        self.head = nn.Linear(20, 5)

    def body(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class SplitChain(Net):
    """Res2Net's hierarchy, with parts that follow the width."""

    def build(self):
        self.inner = nn.ModuleList(conv(2, 2) for _ in range(3))
        self.out = conv(8, 6)
        self.head = nn.Linear(6, 5)

    def body(self, x):
        first, *parts = x.chunk(4, 1)
        done = [first]
        for part, layer in zip(parts, self.inner, strict=True):
            done.append(F.relu(layer(part + done[-1])))
        return self.out(torch.cat(done, 1))


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit is deprecated, and still in users' networks

    @torch.jit.script
    def mix_in_place(x: torch.Tensor):
        return x.sub_(x.mean(1, keepdim=True))


def randomised(network):
    """Batch-norm statistics and affine parameters as after training, so that zero and removed can differ."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            if module.running_mean is not None:
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) / 5)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            if module.weight is not None:
                module.weight.data.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                module.bias.data.copy_(torch.randn(module.bias.shape, generator=generator) / 5)
    return network
