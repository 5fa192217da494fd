"""What judges networks: a criterion's scores of their units, and accuracy on the search split."""

from collections.abc import Callable

from torch import Tensor, nn

from rlprune.criteria.base import Criterion
from rlprune.data.base import sample
from rlprune.graph import ChannelGraph
from rlprune.seeding import numpy_generator
from rlprune.setup import Setup
from rlprune.training.evaluate import Evaluator
from rlprune.training.merged import mergeable

Score = Callable[[nn.Module, ChannelGraph], dict[str, Tensor]]
"""Network and graph → scores of the units of every group, each of shape (unit,)."""


def make_score(criterion: Criterion, setup: Setup, seed: int) -> Score:
    """The criterion, on the training images that a run of this seed calibrates it with."""
    if criterion.calibration_images == 0:
        return lambda network, graph: criterion.scores(network, graph)
    chosen = sample(setup.splits.train, criterion.calibration_images, numpy_generator(seed, "calibration"))
    calibration = chosen.load().to(setup.execution.device)
    images = setup.splits.normalization(calibration.pixels)
    return lambda network, graph: criterion.scores(network, graph, images, calibration.labels)


def search_evaluator(setup: Setup, network: nn.Module, *, samples: int | None, seed: int, doubtful: bool) -> Evaluator:
    """Measures on `samples` images of the search split, those that a run of this seed draws; None: on all.

    Args:
        setup: data and device.
        network: whose batch norms are merged while it, or one pruned from it, is measured.
        samples: at most so many images.
        seed: of the run.
        doubtful: its trace saw less than the whole network, so that nothing is merged.
    """
    images = setup.dataset.hold(sample(setup.splits.search, samples, numpy_generator(seed, "search samples")))
    pairs = () if doubtful else mergeable(network, setup.example())
    return Evaluator(images, setup.splits.normalization, setup.execution, pairs=pairs)
