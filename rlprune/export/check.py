"""An exported network held against torch, on the same images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlprune.errors import UserError

SIZES = (1, 5)  # of the first batches: other than the two images that were traced; the rest follows in batches of
CHUNK = 32


@dataclass(frozen=True)
class Check:
    """How far an exported network is from torch.

    Args:
        difference: the largest one between two scores.
        scale: the largest score, or 1.
        agreement: share of the images whose largest score is the same one.
        images: how many there were.
    """

    difference: float
    scale: float
    agreement: float
    images: int

    def require(self, tolerance: float, source: str) -> None:
        """Refuse what is too far off.

        Raises:
            UserError: says by how much.
        """
        if not self.difference <= tolerance * self.scale:  # not a number is too far as well
            raise UserError(
                f"{source}: its scores differ from torch's by up to {self.difference:.2e} where {tolerance * self.scale:.2e} is allowed; "
                "the file was deleted; raise tolerance, or try another opset, or fold_bn=false"
            )


@torch.no_grad()
def compare(run: Callable[[Tensor], Tensor], network: Callable[[Tensor], Tensor], images: Tensor, *, batch: int | None) -> Check:
    """Run both on the same batches.

    Args:
        run: the exported network.
        network: the same in torch, in eval mode.
        images: normalised, shape (n, C, H, W), n ≥ 1.
        batch: images that the exported network takes; None for any number, when batches of several sizes are tried.

    Raises:
        UserError: it cannot run on them, or returns scores of another shape.
    """
    found, wanted = [], []
    for part in _batches(images, batch):
        found.append(run(part).float())
        wanted.append(network(part).float())
        if found[-1].shape != wanted[-1].shape:
            raise UserError(
                f"export: returns scores of shape {tuple(found[-1].shape)} for {len(part)} images, torch {tuple(wanted[-1].shape)}; "
                "the network takes one batch size alone: dynamic_batch=false"
            )
    ours, theirs = torch.cat(wanted).flatten(1), torch.cat(found).flatten(1)
    return Check(
        difference=float((ours - theirs).abs().max()),
        scale=max(float(ours.abs().max()), 1.0),
        agreement=float((ours.argmax(1) == theirs.argmax(1)).float().mean()),
        images=len(ours),
    )


def _batches(images: Tensor, batch: int | None) -> list[Tensor]:
    if batch is not None:
        count = -(-len(images) // batch) * batch
        return list(images[torch.arange(count) % len(images)].split(batch))
    parts, start = [], 0
    for size in (*SIZES, *[CHUNK] * len(images)):
        parts.append(images[start : start + size])
        start += size
    return [part for part in parts if len(part)]
