"""The tracker of a run, from its config."""

from rlprune.commands.setup import require
from rlprune.config import build
from rlprune.skeleton import PruneConfig, TrainConfig
from rlprune.trackers.tracking import Tracking


def make_tracking(config: PruneConfig | TrainConfig, choices: dict[str, str]) -> Tracking:
    """The run's tracker, which has not begun yet.

    Raises:
        UserError: its package is missing, or a setting is wrong.
    """
    tracker = build(config.tracker, "tracker")
    require(tracker, config.tracker, "tracker", "folder", "start", "log", "finish", "close")
    return Tracking(tracker, choices["tracker"])
