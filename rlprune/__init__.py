"""rlprune: channel pruning of convolutional networks, decided by reinforcement learning.

graph = rlprune.trace(model, example_inputs)
smaller = rlprune.prune(model, graph, {"layer1.0.conv1": [0, 2, 5]})
result = rlprune.compress(model, train_data, agent="mcq", macs=0.5)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlprune.api.compress import compress
    from rlprune.benchmark.bench import bench
    from rlprune.export.export import export_network
    from rlprune.graph import ChannelGraph, mask, prune, rebind, trace, verify
    from rlprune.latency.build import with_latency
    from rlprune.results.artefact import load
    from rlprune.results.drawing import draw
    from rlprune.results.preprocessing import load_preprocessing
    from rlprune.search.pruning_env import pruning_env

__all__ = [
    "ChannelGraph",
    "bench",
    "compress",
    "draw",
    "export_network",
    "load",
    "load_preprocessing",
    "mask",
    "prune",
    "pruning_env",
    "rebind",
    "trace",
    "verify",
    "with_latency",
]

_HOMES = dict.fromkeys(("ChannelGraph", "mask", "prune", "rebind", "trace", "verify"), "rlprune.graph") | {
    "bench": "rlprune.benchmark.bench",
    "compress": "rlprune.api.compress",
    "draw": "rlprune.results.drawing",
    "export_network": "rlprune.export.export",
    "load": "rlprune.results.artefact",
    "load_preprocessing": "rlprune.results.preprocessing",
    "pruning_env": "rlprune.search.pruning_env",
    "with_latency": "rlprune.latency.build",
}


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for: `rlprune --help` takes a fifth of a second."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rlprune' has no attribute {name!r}")
