"""What a published network brings along besides its architecture."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Provenance:
    """Where a network's weights come from and the images it was made for.

    Args:
        weights: their name; None where they are freshly drawn.
        complete: the classifier's weights are among them; otherwise it has to be trained.
        side: pixels a side of the images it was made for; None where any will do.
        mean: of each channel of pixels in [0, 1], as its images were normalised; None where that is unknown.
        std: likewise.
    """

    weights: str | None = None
    complete: bool = False
    side: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def provenance(network: nn.Module) -> Provenance:
    """What `mark` noted on a network."""
    known = getattr(network, "rlprune_provenance", None)
    return known if isinstance(known, Provenance) else Provenance()


def mark(network: nn.Module, known: Provenance) -> nn.Module:
    """Note where a network comes from, on itself."""
    network.rlprune_provenance = known  # type: ignore[assignment]
    return network
