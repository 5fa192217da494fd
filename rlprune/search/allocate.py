"""From real-valued shares to whole units, so that the goal of a step is met and no share is lost to rounding.

Every chunk of units waits for its turn: the moment at which the group's share of what has been removed so far would have earned half of
it (Webster's method of apportionment). What a group earned and could not get whole is carried to the next step, so that over the steps
the units removed follow the shares, however small.
"""

import numpy as np

from rlprune.search.limits import Goal, Room


def turns_by_share(shares: np.ndarray, carry: np.ndarray, room: Room) -> np.ndarray:
    """The moment at which each chunk is due, in channels removed from the whole network, shape (chunk,).

    Args:
        shares: share of the budget for each group, ≥ 0, shape (group,); they need not add up to 1.
        carry: channels that earlier steps owe each group, shape (group,).
        room: what can go.
    """
    shares = _normalized(shares, room)
    middle = (room.first + room.last) / 2
    due = middle * room.weights[room.owner] - carry[room.owner]
    share = shares[room.owner]
    turns = np.where(due > 0, np.inf, -np.inf)
    np.divide(due, share, out=turns, where=share > 0)
    # Groups without a share come last, in proportion to the room they have: they take what the others cannot.
    behind = 1 + np.max(np.abs(turns), where=np.isfinite(turns), initial=0.0)
    return np.where(turns == np.inf, behind * (1 + middle / room.capacity[room.owner]), turns)


def allocate(turns: np.ndarray, room: Room, goal: Goal) -> np.ndarray:
    """Units to remove from every group, shape (group,), taken in the order of their turns until the goal is met.

    A chunk that would overshoot is passed over for later ones that fit. If none fits, units of several channels are exchanged where that
    closes the gap; then an exact goal takes the chunk that overshoots least and gives back what it can, so that it is met within one unit
    of the cheapest group, and any other leaves the rest to the next step. A first chunk that is heavier than the whole step goes alone,
    and the next steps remove less; where the goal is exact it waits.

    Args:
        turns: when each chunk is due, ascending within each group, shape (chunk,).
        room: what can go.
        goal: when enough is gone.
    """
    order = np.argsort(turns, kind="stable")
    rank = np.empty(len(order), dtype=int)
    rank[order] = np.arange(len(order))
    taken = _longest_prefix(order, room, goal)
    if not taken.any() and not goal.exact and len(order) and goal.excess(room.graph, room.units(taken)) > 0:
        taken[room.owner[order[0]]] = 1
        return room.units(taken)
    while goal.excess(room.graph, room.units(taken)) > 0:
        trials, groups, excess = _next_chunks(taken, room, goal)
        if len(groups) == 0:
            break
        by_turn = rank[room.starts[groups] + taken[groups]]
        fits = excess >= 0
        if fits.any():
            taken = trials[np.argmin(np.where(fits, by_turn, len(order)))]
            continue
        filled = _exchange(taken, room, goal)
        if filled is not None:
            taken = filled
        elif goal.exact:
            taken = give_back(trials[np.lexsort((by_turn, -excess))[0]], room, goal)
        break
    return room.units(taken)


def carried(shares: np.ndarray, carry: np.ndarray, counts: np.ndarray, room: Room) -> np.ndarray:
    """Channels owed to each group after `counts` units went, shape (group,); they add up to 0.

    A group that can lose no more hands its share on to the others and is owed nothing.
    """
    is_open = counts < room.capacity
    if not is_open.any():
        return np.zeros(len(carry))
    shares, removed = _normalized(np.where(is_open, shares, 0.0), room, is_open), counts * room.weights
    earned = removed[is_open].sum() - carry[is_open].sum()
    return np.where(is_open, carry + shares * earned - removed, 0.0)


def _normalized(shares: np.ndarray, room: Room, among: np.ndarray | bool = True) -> np.ndarray:
    """Shares that add up to 1; where all are zero, in proportion to the room that groups have."""
    shares = shares if shares.sum() > 0 else np.where(among, room.capacity, 0)
    normalized: np.ndarray = shares / max(1e-300, shares.sum())
    return normalized


def _longest_prefix(order: np.ndarray, room: Room, goal: Goal) -> np.ndarray:
    """Chunks that go from each group: as many in order as do not overshoot, shape (group,)."""

    def first(number: int) -> np.ndarray:
        return np.bincount(room.owner[order[:number]], minlength=len(room.num_chunks))

    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if goal.excess(room.graph, room.units(first(middle))) >= 0 else (low, middle - 1)
    return first(low)


def _next_chunks(taken: np.ndarray, room: Room, goal: Goal) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One more chunk of each group that has one: (trial, group) chunks taken, (trial,) group, (trial,) excess."""
    groups = np.flatnonzero(taken < room.num_chunks)
    trials = np.repeat(taken[None], len(groups), axis=0)
    trials[np.arange(len(groups)), groups] += 1
    return trials, groups, goal.excess(room.graph, room.units(trials))


def give_back(taken: np.ndarray, room: Room, goal: Goal) -> np.ndarray:
    """As few chunks as still meet the goal: the heaviest that can come back does, again and again, shape (group,)."""
    taken = taken.copy()
    while True:
        counts = room.units(taken)
        excess = goal.excess_of_one(room.graph, counts, room.units(np.maximum(taken - 1, 0)) - counts)
        fits = (taken > 0) & (excess <= 0)
        if not fits.any():
            return taken
        taken[np.argmax(np.where(fits, excess, -np.inf))] -= 1


def _exchange(taken: np.ndarray, room: Room, goal: Goal) -> np.ndarray | None:
    """Give one chunk back and take one to several of another group, so that the goal is met to the unit; None where that cannot be.

    Only tried where channels alone are asked for: of other goals almost none can be met to the unit.
    """
    if np.isfinite([goal.macs, goal.params, goal.latency]).any():
        return None
    left = round(float(goal.excess(room.graph, room.units(taken))) * room.graph.num_channels)
    chunk = (room.last - room.first) * room.weights[room.owner]
    if left % np.gcd.reduce(chunk):
        return None
    waiting = {}  # group → channels that its next chunks weigh together → how many they are
    for take in np.flatnonzero(taken < room.num_chunks):
        sums = np.cumsum(chunk[room.starts[take] + taken[take] : room.starts[take] + room.num_chunks[take]])
        waiting[take] = {weight: number for number, weight in enumerate(sums.tolist(), start=1)}
    for give in np.flatnonzero(taken > 0):
        gap = left + int(chunk[room.starts[give] + taken[give] - 1])
        for take, numbers in waiting.items():
            if gap in numbers and take != give:
                filled = taken.copy()
                filled[give] -= 1
                filled[take] += numbers[gap]
                return filled
    return None
