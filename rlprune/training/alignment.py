"""Group lasso on the units that a plan removes, so that weights align with it while they are trained (RLAL, section 3.2.3, equation 10)."""

import torch
from torch import Tensor, nn

from rlprune.graph import ChannelGraph
from rlprune.graph.channel_graph import Keep

OWN = ("out", "channel", "raw")  # roles of the entries that make a unit: filters, biases, scales and shifts, in norms or outside
TINY = 1e-12  # squared norm of a unit that counts as zero, whose gradient is none


class Alignment:
    """R(W; m*) = Σ ‖W_unit‖₂ over the units that a plan removes.

    W_unit is all that makes the unit: its filters in every producing layer, their biases, and the scales and shifts behind them, be they of
    norms or the network's own (layer scale, position embeddings); a unit whose norm is zero contributes nothing to what follows, so that
    its removal changes nothing. (Filters alone, which the norms behind them would scale up again, could vanish and leave the outputs as
    they are.)

    Args:
        network: whose weights they are; the same tensors are read at every call.
        graph: its channel graph.
        keep: units that stay, by group name.
    """

    def __init__(self, network: nn.Module, graph: ChannelGraph, keep: Keep) -> None:
        parameters = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        kept = graph.check(keep)
        self.num_units = 0
        self._entries: list[tuple[Tensor, int, Tensor]] = []  # a parameter, its dimension, which entries
        owners = []  # of these entries, among the units that go
        for group in graph.groups:
            gone = torch.ones(group.num_units, dtype=torch.bool)
            gone[torch.from_numpy(kept[group.name])] = False
            count = int(gone.sum())
            for member in group.members if count else ():
                if member.role in OWN and member.tensor in parameters:
                    units, weight = torch.from_numpy(member.units)[gone], parameters[member.tensor]
                    self._entries.append((weight, member.dim, units.flatten().to(weight.device)))
                    owners.append((self.num_units + torch.arange(count)).repeat_interleave(units.shape[1]))
            self.num_units += count
        self._owners = torch.cat(owners).to(self._entries[0][0].device) if owners else None

    def norms(self) -> Tensor:
        """‖W_unit‖₂ of every unit that goes, (unit,)."""
        if self._owners is None:
            return torch.zeros(0)
        squares = [
            weight.index_select(dim, entries).movedim(dim, 0).reshape(len(entries), -1).square().sum(1)
            for weight, dim, entries in self._entries
        ]
        sums = torch.cat(squares)
        return sums.new_zeros(self.num_units).index_add(0, self._owners, sums).clamp(min=TINY).sqrt()

    def __call__(self) -> Tensor:
        """R(W; m*), a scalar that knows its gradient."""
        return self.norms().sum()
