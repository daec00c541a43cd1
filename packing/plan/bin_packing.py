"""The packing algorithms, on plain lists of lengths in arrival order. `plan` gives them their order and checks.

first_fit([5, 4, 3, 3], 8)      # (array([0, 2, 1, 3]), array([0, 2, 4])): packs [0, 2] and [1, 3], laid end to end
best_fit([5, 4, 3, 3], 8, 64)
subset_sum([5, 4, 3, 3], 8, 64)
cost_fit([5, 4, 3, 3], 8, 64, budget=30.0, cost=(1.0, 1.0))
"""

from __future__ import annotations

from bisect import bisect_right, insort
from math import sqrt

import numpy as np

Packed = tuple[np.ndarray, np.ndarray]
"""(samples, starts): pack i holds the samples `samples[starts[i] : starts[i + 1]]`."""


def first_fit(lengths: list[int], capacity: int) -> Packed:
    """Each sample goes to the earliest pack that has room, else opens a new one. O(n log packs).

    A binary tree over packs holds the most room below each node; the way down that keeps left where it can ends at the
    earliest pack. Packs not yet opened have full room, so opening one is the same walk. Within a pack in order of arrival.
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


class _Pool:
    """The waiting samples of a sliding pool: `size` at most, refilled in order of arrival whenever one leaves.

    One sorted list of integers (length, then age: the older, the larger), so that one bisection finds the largest
    length that fits and, among equals, the oldest.
    """

    def __init__(self, lengths: list[int], size: int) -> None:
        self.lengths = lengths
        self.shift = max(1, len(lengths)).bit_length()
        self.mask = (1 << self.shift) - 1
        self.arrived = min(size, len(lengths))
        self.waiting = sorted(self.key(i) for i in range(self.arrived))
        self.taken = bytearray(len(lengths))
        self.oldest = 0

    def key(self, sample: int) -> int:
        return self.lengths[sample] << self.shift | (self.mask - sample)

    def seed(self) -> int:
        """The oldest waiting sample; it stays."""
        while self.taken[self.oldest]:
            self.oldest += 1
        return self.oldest

    def place_of(self, sample: int) -> int:
        return bisect_right(self.waiting, self.key(sample)) - 1

    def largest(self, room: int) -> int:
        """Place of the largest waiting sample of at most `room`, -1 where there is none."""
        return bisect_right(self.waiting, room << self.shift | self.mask) - 1

    def take(self, place: int) -> int:
        sample = self.mask - (self.waiting.pop(place) & self.mask)
        self.taken[sample] = 1
        if self.arrived < len(self.lengths):
            insort(self.waiting, self.key(self.arrived))
            self.arrived += 1
        return sample


def best_fit(lengths: list[int], capacity: int, pool: int) -> Packed:
    """The oldest of `pool` waiting samples opens a pack; the largest waiting sample that fits joins, until none does.

    Every sample taken is replaced by the next to arrive. The oldest always leaves next, so none waits for more than
    `pool` packs. O(n log pool), and the state between packs is the waiting samples alone. Within a pack in the order of
    choice.
    """
    waiting = _Pool(lengths, pool)
    samples: list[int] = []
    starts = [0]
    while waiting.waiting:
        room = capacity
        place = waiting.place_of(waiting.seed())
        while place >= 0:
            sample = waiting.take(place)
            samples.append(sample)
            room -= lengths[sample]
            place = waiting.largest(room)
        starts.append(len(samples))
    return np.array(samples, dtype=np.int64), np.array(starts, dtype=np.int64)


def cost_fit(lengths: list[int], capacity: int, pool: int, *, budget: float, cost: tuple[float, float]) -> Packed:
    """`best_fit` under two limits: `capacity` tokens, and `budget` of a cost that grows with the square of a length.

    Args:
        budget: of a pack, in the unit of `cost`; the dearest sample must be within it.
        cost: (a, b) of a * length + b * length^2, b above 0.
    """
    linear, square = cost
    waiting = _Pool(lengths, pool)
    samples: list[int] = []
    starts = [0]
    while waiting.waiting:
        room, left = capacity, budget
        place = waiting.place_of(waiting.seed())
        while place >= 0:
            sample = waiting.take(place)
            samples.append(sample)
            length = lengths[sample]
            room -= length
            left -= (linear + square * length) * length
            if left <= 0:
                break
            affordable = int((sqrt(linear * linear + 4 * square * left) - linear) / (2 * square))
            place = waiting.largest(min(room, affordable))
        starts.append(len(samples))
    return np.array(samples, dtype=np.int64), np.array(starts, dtype=np.int64)


def subset_sum(lengths: list[int], capacity: int, pool: int) -> Packed:
    """The oldest of `pool` waiting samples opens a pack; the subset of the others with the largest sum that fits joins.

    Which sums the k oldest can make is one integer of `capacity` bits, so a further sample costs a shift and an or.
    Older samples are preferred: the search ends with the first that completes a full pack. O(n pool capacity / 64).
    """
    waiting = list(range(min(pool, len(lengths))))
    arrived = len(waiting)
    samples: list[int] = []
    starts = [0]
    while waiting:
        room = capacity - lengths[waiting[0]]
        full = (1 << room + 1) - 1
        sums = [1]  # sums[k]: bit s is set where some of waiting[1 .. k] sum to s
        for sample in waiting[1:]:
            sums.append((sums[-1] | sums[-1] << lengths[sample]) & full)
            if sums[-1] >> room:
                break
        reached = sums[-1].bit_length() - 1
        chosen = [0]
        for k in range(len(sums) - 1, 0, -1):
            if not sums[k - 1] >> reached & 1:
                chosen.append(k)
                reached -= lengths[waiting[k]]
        samples += [waiting[k] for k in chosen]
        starts.append(len(samples))
        for k in sorted(chosen, reverse=True):
            del waiting[k]
        more = min(len(chosen), len(lengths) - arrived)
        waiting += range(arrived, arrived + more)
        arrived += more
    return np.array(samples, dtype=np.int64), np.array(starts, dtype=np.int64)
