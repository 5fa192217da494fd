"""Running a pruned network at widths the hardware is fast at: some removed units are put back as zeros, and taken out again."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from rlprune.graph.channel_graph import ChannelGraph, Group
from rlprune.graph.run import named_tensors
from rlprune.graph.surgery import Slices, prune


class Padded:
    """A pruned network and a wider one that computes the same and learns the same.

    The wide network is the dense one with fewer units removed, so it is a valid network whatever the architecture does with its widths.
    Weights of units that are put back are zero on both sides of the unit: what it puts out is multiplied by zeros, and the gradient that
    reaches it is zero. `mask_gradients` keeps them zero where an activation of zero is not zero (a sigmoid); then no optimizer moves them.

    Args:
        dense: the network that `graph` was traced on.
        graph: its channel graph.
        keep: units of the dense network that the pruned one has, by group.
        pruned: the network, `prune(dense, graph, keep)` with any weights.
        multiple: channels of every layer are filled up to a multiple of this, though never beyond the dense network's.
    """

    def __init__(self, dense: nn.Module, graph: ChannelGraph, keep: dict[str, np.ndarray], pruned: nn.Module, *, multiple: int) -> None:
        kept = graph.check(keep)
        wider = {group.name: _filled_up(group, kept[group.name], multiple) for group in graph.groups}
        self.pruned, self.network = pruned, prune(dense, graph, wider)
        self._wide = dict(named_tensors(dict(self.network.named_modules())))
        within = {name: np.searchsorted(wider[name], units) for name, units in kept.items()}
        self._places = Slices(graph.after(wider), within).dims
        self._roles = {member.tensor: member.role for group in graph.groups for member in group.members}
        self._numbers = {buffer.tensor for buffer in graph.indices}
        self._masks = self._fill()

    def _fill(self) -> list[tuple[Tensor, Tensor]]:
        """Take over the pruned network's values; returns parameters with zeros among them, and where they are not zero."""
        masks: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            for name, value in named_tensors(dict(self.pruned.named_modules())):
                wide = self._wide[name]
                if name in self._numbers:
                    continue
                if name not in self._places:
                    wide.copy_(value)
                    continue
                place = self._place(name)
                if self._roles[name] in ("out", "in", "channel"):  # as in `mask`: not what may be a divisor
                    wide.zero_()
                if isinstance(wide, nn.Parameter):
                    mask = torch.zeros_like(wide)
                    mask[place] = 1
                    masks.append((wide, mask))
                wide[place] = value
        return masks

    def _place(self, name: str) -> tuple[Tensor, ...]:
        """Index of the pruned network's entries in a wide tensor."""
        wide, kept = self._wide[name], dict(self._places[name])
        indices = [kept.get(dim, torch.arange(size)).to(wide.device) for dim, size in enumerate(wide.shape)]
        return tuple(index.view([-1 if axis == dim else 1 for axis in range(wide.ndim)]) for dim, index in enumerate(indices))

    def mask_gradients(self) -> None:
        """Zero the gradients of what is put back."""
        for parameter, mask in self._masks:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    def write_back(self) -> None:
        """Give the pruned network the values that the wide one has now."""
        with torch.no_grad():
            for name, value in named_tensors(dict(self.pruned.named_modules())):
                if name not in self._numbers:
                    value.copy_(self._wide[name][self._place(name)] if name in self._places else self._wide[name])


def _filled_up(group: Group, kept: np.ndarray, multiple: int) -> np.ndarray:
    """The kept units and the first removed ones, so that the group's layers have a multiple of so many channels."""
    entries = group.producers[0].units.shape[1] if group.producers else 1
    step = multiple // math.gcd(multiple, entries)
    missing = min(group.num_units, -(-len(kept) // step) * step) - len(kept)
    return np.sort(np.concatenate([kept, np.setdiff1d(np.arange(group.num_units), kept)[:missing]]))
