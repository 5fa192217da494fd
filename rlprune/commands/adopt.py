"""What a command that works on the network of a run takes over from it."""

from collections.abc import Iterable

from rlprune.config import shipped
from rlprune.results.origin import Origin
from rlprune.skeleton import RunConfig


def adopt_origin(config: RunConfig, choices: dict[str, str], origin: Origin, dense_seed: int, named: Iterable[str]) -> None:
    """Make the config that of a network from a run: its search split, its model, and its data set unless the line names one.

    Args:
        config: changed in place.
        choices: likewise.
        origin: of the network.
        dense_seed: of the run.
        named: settings of the line, as typed.
    """
    config.dense_seed = dense_seed
    choices["model"] = origin.model
    if not any(override.startswith("dataset=") for override in named):
        choices["dataset"], limit = origin.dataset, config.dataset.get("limit")
        config.dataset = shipped("dataset", origin.dataset, origin.dataset_settings)
        config.dataset["limit"] = limit if limit is not None else config.dataset["limit"]
