"""Channel graphs: tracing, surgery and proof."""

from rlprune.graph.channel_graph import ChannelGraph, Frozen, Group, Member
from rlprune.graph.surgery import Slicer, mask, prune
from rlprune.graph.trace import trace
from rlprune.graph.verify import Verdict, freeze_failures, verify, verify_together

__all__ = [
    "ChannelGraph",
    "Frozen",
    "Group",
    "Member",
    "Slicer",
    "Verdict",
    "freeze_failures",
    "mask",
    "prune",
    "trace",
    "verify",
    "verify_together",
]
