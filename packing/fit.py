"""The two packing algorithms, on plain lists of lengths in arrival order. `plan` gives them their order and checks.

first_fit([5, 4, 3, 3], 8)      # (array([0, 2, 1, 3]), array([0, 2, 4])): packs [0, 2] and [1, 3], laid end to end
best_fit([5, 4, 3, 3], 8, 64)
"""

from __future__ import annotations

from bisect import bisect_right, insort

import numpy as np


def first_fit(lengths: list[int], capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Each sample goes to the earliest pack that has room, else opens a new one. O(n log packs).

    A binary tree over packs holds the most room below each node; the way down that keeps left where it can ends at the
    earliest pack. Packs not yet opened have full room, so opening one is the same walk.

    Returns:
        (samples, starts): pack i holds the samples `samples[starts[i] : starts[i + 1]]`, in order of arrival.
    """
    num_leaves = 64
    room = [capacity] * (2 * num_leaves)
    pack_of = []
    for length in lengths:
        if room[1] < length or room[-1] != capacity:  # the last leaf is in use: no pack is left unopened
            room = _doubled(room, num_leaves, capacity)
            num_leaves *= 2
        node = 1
        while node < num_leaves:
            node *= 2
            if room[node] < length:
                node += 1
        pack_of.append(node - num_leaves)
        room[node] -= length
        node >>= 1
        while node:
            left, right = room[2 * node], room[2 * node + 1]
            most = left if left >= right else right
            if room[node] == most:
                break
            room[node] = most
            node >>= 1
    packs = np.array(pack_of, dtype=np.int64)
    counts = np.bincount(packs) if len(packs) else np.zeros(0, dtype=np.int64)
    return np.argsort(packs, kind="stable"), np.concatenate([[0], np.cumsum(counts)])


def _doubled(room: list[int], num_leaves: int, capacity: int) -> list[int]:
    """The same tree with twice the leaves, the new ones empty packs."""
    levels = [room[num_leaves:] + [capacity] * num_leaves]
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([max(pair) for pair in zip(below[::2], below[1::2])])
    return [0] + [value for level in reversed(levels) for value in level]


def best_fit(lengths: list[int], capacity: int, pool: int) -> tuple[np.ndarray, np.ndarray]:
    """The oldest of `pool` waiting samples opens a pack; the largest waiting sample that fits joins, until none does.

    Every sample taken is replaced by the next to arrive. The oldest always leaves next, so none waits for more than
    `pool` packs. O(n log pool), and the state between packs is the waiting samples alone.

    Returns:
        (samples, starts) as `first_fit`; within a pack in the order of choice.
    """
    # One sorted list of integers (length, then age: the older, the larger), so that one bisection finds the largest
    # length that fits and, among equals, the oldest.
    num = len(lengths)
    shift = max(1, num).bit_length()
    mask = (1 << shift) - 1
    waiting = sorted(lengths[i] << shift | (mask - i) for i in range(min(pool, num)))
    arrived = len(waiting)
    taken = bytearray(num)
    samples: list[int] = []
    starts = [0]
    oldest = 0
    while waiting:
        while taken[oldest]:
            oldest += 1
        room = capacity
        place = bisect_right(waiting, lengths[oldest] << shift | (mask - oldest)) - 1
        while place >= 0:
            key = waiting.pop(place)
            sample = mask - (key & mask)
            taken[sample] = 1
            samples.append(sample)
            room -= key >> shift
            if arrived < num:
                insort(waiting, lengths[arrived] << shift | (mask - arrived))
                arrived += 1
            place = bisect_right(waiting, room << shift | mask) - 1
        starts.append(len(samples))
    return np.array(samples, dtype=np.int64), np.array(starts, dtype=np.int64)
