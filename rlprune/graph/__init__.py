"""Channel graphs: tracing, surgery and proof."""

from rlprune.graph.channel_graph import ChannelGraph, Frozen, Group, Member
from rlprune.graph.optimizers import rebind
from rlprune.graph.surgery import Slicer, graft, mask, prune
from rlprune.graph.trace import trace
from rlprune.graph.verify import Report, Verdict, freeze_failures, verify

__all__ = [
    "ChannelGraph",
    "Frozen",
    "Group",
    "Member",
    "Report",
    "Slicer",
    "Verdict",
    "freeze_failures",
    "graft",
    "mask",
    "prune",
    "rebind",
    "trace",
    "verify",
]
