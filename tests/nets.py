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
    """A grouped transposed convolution has no rule: it is kept, and named."""

    def build(self):
        self.t, self.c = nn.ConvTranspose2d(8, 8, 2, 2, groups=2), conv(8, 4)
        self.head = nn.Linear(4, 5)

    def body(self, x):
        return self.c(F.relu(self.t(x)))


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
