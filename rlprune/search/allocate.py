"""From real-valued shares to whole units that weigh the budget exactly."""

import numpy as np


def allocate(shares: np.ndarray, budget: int, weights: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """Units to remove from every group, so that the channels removed are `budget`, or as close below it as whole units come.

    Each group gets its share of the budget, rounded down to whole units and cut at its capacity; what is left goes by largest remainder,
    then to whatever group still has room. Where units of several channels leave a gap, one unit is exchanged for another that fills it.

    Args:
        shares: share of the budget for each group, ≥ 0, shape (group,); they need not add up to 1.
        budget: channels to remove.
        weights: channels that one unit of each group weighs, ≥ 1, shape (group,).
        capacity: units that each group may lose, shape (group,).
    """
    budget = min(budget, int(weights @ capacity))
    total = shares.sum()
    wanted = (shares / total if total > 0 else np.full(len(shares), 1 / len(shares))) * budget / weights  # units, real-valued
    counts = np.minimum(np.floor(wanted + 1e-9).astype(int), capacity)
    left = budget - int(weights @ counts)
    while left > 0:
        open_groups = np.flatnonzero((counts < capacity) & (weights <= left))
        if len(open_groups) == 0:
            break
        # Largest remainder first; groups that want no more come last, in proportion to the room they have.
        remainder = wanted[open_groups] - counts[open_groups]
        room = (capacity - counts)[open_groups]
        best = open_groups[np.lexsort((-room, -remainder))[0]]
        counts[best] += 1
        left -= int(weights[best])
    return _fill_gap(counts, left, weights, capacity) if left > 0 else counts


def _fill_gap(counts: np.ndarray, left: int, weights: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """Exchange units so that `left` more channels go: first one for one, then one for several of another group."""
    for give in np.flatnonzero(counts > 0):
        for take in np.flatnonzero(counts < capacity):
            units, rest = divmod(left + int(weights[give]), int(weights[take]))
            if give != take and rest == 0 and units <= capacity[take] - counts[take]:
                filled = counts.copy()
                filled[give] -= 1
                filled[take] += units
                return filled
    return counts
