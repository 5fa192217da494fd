"""Ranges that the settings of several learners share; a ValueError names the first that is out of its own."""

from collections.abc import Sequence


def check_widths(example: str = "[300,300]", **hidden: Sequence[int]) -> None:
    """Widths of hidden layers, by name: at least one layer, each of one unit or more."""
    for name, widths in hidden.items():
        if not widths or min(widths) < 1:
            raise ValueError(f"{name}={list(widths)}: must be widths ≥ 1, such as {example}")


def check_rates(**rates: float) -> None:
    """Learning rates, by name."""
    for name, rate in rates.items():
        if rate <= 0:
            raise ValueError(f"{name}={rate}: must be > 0")


def check_off_policy(*, discount: float, tau: float, replay_size: int, batch_size: int) -> None:
    """What learning from a replay memory, with slow targets, is set by."""
    if not 0 <= discount <= 1:
        raise ValueError(f"discount={discount}: must be in [0, 1]")
    if not 0 < tau <= 1:
        raise ValueError(f"tau={tau}: must be in (0, 1]")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be ≥ 1")
    if replay_size < batch_size:
        raise ValueError(f"replay_size={replay_size}: must hold a batch, ≥ batch_size={batch_size}")
