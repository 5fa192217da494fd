"""What `rlprune inspect` says of a network: its groups, what is left alone and why, what it costs, and what a plan removed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlprune.results.tables import change, frozen_table, group_table, to_markdown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rlprune.graph import ChannelGraph, Report
    from rlprune.graph.channel_graph import Keep


@dataclass(frozen=True)
class Inspected:
    """A network and its channel graph.

    Args:
        title: what it is.
        network: as it is now.
        graph: of the dense network.
        keep: kept units by group; None where nothing was removed.
        example: images that it takes, shape (n, C, H, W).
    """

    title: str
    network: "nn.Module"
    graph: "ChannelGraph"
    keep: "Keep | None"
    example: "Tensor"

    def prove(self, seed: int) -> "Report":
        """Whether zeroed equals removed for every group of the network as it is now."""
        from rlprune.graph import verify

        return verify(self.network, self.example, self.graph if self.keep is None else self.graph.after(self.keep), seed=seed)


def inspection_text(subject: Inspected, report: "Report | None") -> str:
    """Markdown: warnings, groups, kept layers, totals, and the proof if there is one."""
    graph, plan = subject.graph, subject.keep or {}
    dense, gone = graph.num_channels, int(graph.counts(plan) @ graph.channels_per_unit)
    cost = ", ".join([change(graph.macs({}), graph.macs(plan), "MACs"), change(graph.params({}), graph.params(plan), "parameters")])
    shape = "×".join(map(str, subject.example.shape[1:]))
    parts = [
        *(f"warning: {warning}" for warning in graph.warnings),
        to_markdown(group_table(graph, report.groups if report else {}, subject.keep)) if graph.groups else "no channel can be removed",
        to_markdown(frozen_table(graph)) if graph.frozen else "",
        f"images of {shape}: {len(graph.groups)} groups, {change(dense, dense - gone, 'prunable channels', str)}; {cost}",
    ]
    if report and graph.groups:
        proof = f"every group, and all at once: zeroed equals removed, outputs and gradients (tolerance {report.together.tolerance:.0e})"
        parts.append(proof if report.exact else f"all at once: {report.together}")
    return "\n\n".join(part for part in parts if part)
