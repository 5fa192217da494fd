import nets
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rlprune
from rlprune.config import build
from rlprune.criteria.l1 import L1
from rlprune.criteria.taylor import WeightTaylor
from rlprune.errors import UserError

IMAGES, LABELS = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(3)), torch.arange(12) % 5


def score(criterion, network):
    graph = rlprune.trace(network, IMAGES[:2])
    return criterion.scores(network, graph, IMAGES, LABELS), graph


def taylor(**settings):
    return WeightTaylor(**({"reduction": "sum_of_abs", "mode": "eval", "calibration_images": 100} | settings))


def test_l1_is_the_sum_of_absolute_weights():
    network = nets.randomised(nets.Plain())
    scores, _ = score(L1(), network)
    torch.testing.assert_close(scores["features.2"], network.features[2].weight.abs().sum((1, 2, 3)).double())


def test_a_group_takes_the_mean_over_its_producing_layers():
    network = nets.randomised(nets.Residual())
    scores, graph = score(L1(), network)
    assert graph.groups[0].layers == ("stem", "b")
    expected = (network.stem.weight.abs().sum((1, 2, 3)) + network.b.weight.abs().sum((1, 2, 3))) / 2
    torch.testing.assert_close(scores[graph.groups[0].name], expected.double())
    grouped = nets.GroupedPositions()
    scores, graph = score(L1(), grouped)
    by_filter = grouped.g.weight.abs().sum((1, 2, 3)).double()
    torch.testing.assert_close(scores["g"], by_filter.view(2, 6).mean(0))


@pytest.mark.parametrize("reduction", ["sum_of_abs", "abs_of_sum"])
def test_taylor_is_weight_times_gradient(reduction):
    network = nets.randomised(nets.Plain()).eval()
    scores, _ = score(taylor(reduction=reduction), network)
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
    node = {"_target_": "rlprune.criteria.taylor.WeightTaylor", "reduction": "abs_of_sum", "mode": "train", "calibration_images": 5}
    with pytest.raises(UserError, match=r"criterion\.mode=train: reduction=abs_of_sum is zero"):
        build(node, "criterion")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_scoring_leaves_the_network_as_it_was(mode):
    network = nets.randomised(nets.Plain()).train(mode == "eval")
    network.stem.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    training = network.training
    scores, _ = score(taylor(mode=mode), network)
    assert scores["stem"].min() > 0  # frozen weights are scored too
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training is training
    assert not network.stem.weight.requires_grad
    assert network.stem.weight.grad is None


def test_useless_filters_rank_last():
    network = nets.randomised(nets.Plain()).eval()
    network.features[3].weight.data[4] = 0
    network.features[3].bias.data[4] = 0
    scores, _ = score(taylor(), network)
    assert scores["features.2"].argmin() == 4


def test_weights_outside_the_loss_score_zero():
    class Auxiliary(nets.Plain):
        def build(self):
            super().build()
            self.extra = nn.Conv2d(6, 3, 1)

        def forward(self, x):
            y = self.body(F.relu(self.stem(x)))
            self.last = self.extra(y)
            return self.head(y.mean((2, 3)))

    scores, _ = score(taylor(), Auxiliary().eval())
    assert scores["extra"].abs().max() == 0
