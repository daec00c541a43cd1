"""Bin packing algorithms over plain lists of lengths in arrival order; `steps` shuffles and validates.

first_fit([5, 4, 3, 3], 8)      # Packs(samples=[0, 2, 1, 3], starts=[0, 2, 4]): packs [0, 2] and [1, 3]
best_fit([5, 4, 3, 3], 8, 64)
subset_sum([5, 4, 3, 3], 8, 64)
cost_fit([5, 4, 3, 3], 8, 64, budget=30.0, cost=(1.0, 1.0))
"""

from __future__ import annotations

from bisect import bisect_right, insort
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

import numpy as np


class Packs(NamedTuple):
    """Packs in one flat array: pack i holds the samples `samples[starts[i] : starts[i + 1]]`."""

    samples: np.ndarray
    """int64: sample indices."""
    starts: np.ndarray
    """int64 (num_packs + 1)."""

    @property
    def num_packs(self) -> int:
        return len(self.starts) - 1

    def to_list(self) -> list[np.ndarray]:
        return [self.samples[start:end] for start, end in pairwise(self.starts.tolist())]


def first_fit(lengths: list[int], capacity: int) -> Packs:
    """Each sample goes to the earliest pack that has room, else opens a new one. O(n log packs).

    A segment tree over the packs holds the largest room below each node; descending to the left child wherever it has room
    ends at the earliest pack. Unopened packs have full room, so opening one is the same descent. Samples of a pack are in
    order of arrival.
    """
    num_leaves = 64
    room = [capacity] * (2 * num_leaves)
    pack_of = []
    for length in lengths:
        if room[1] < length or room[-1] != capacity:  # the last leaf is in use: no pack is left unopened
            room = _double_leaves(room, num_leaves, capacity)
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
    return Packs(np.argsort(packs, kind="stable"), np.concatenate([[0], np.cumsum(counts)]))


def _double_leaves(room: list[int], num_leaves: int, capacity: int) -> list[int]:
    """The same tree with twice the leaves, the new ones empty packs."""
    levels = [room[num_leaves:] + [capacity] * num_leaves]
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([max(pair) for pair in zip(below[::2], below[1::2])])
    return [0] + [value for level in reversed(levels) for value in level]


class _PackingBuffer:
    """The next `size` samples in order of arrival, refilled whenever one is removed.

    One sorted list of integers (length, then age: the older, the larger), so that one bisection finds the largest
    length that fits and, among equals, the oldest.
    """

    def __init__(self, lengths: list[int], size: int) -> None:
        self.lengths = lengths
        self.shift = max(1, len(lengths)).bit_length()
        self.mask = (1 << self.shift) - 1
        self.num_arrived = min(size, len(lengths))
        self.sorted_keys = sorted(self.key(i) for i in range(self.num_arrived))
        self.is_removed = bytearray(len(lengths))
        self.oldest = 0

    def __bool__(self) -> bool:
        return bool(self.sorted_keys)

    def key(self, sample: int) -> int:
        return self.lengths[sample] << self.shift | (self.mask - sample)

    def index_of_oldest(self) -> int:
        """Index among the sorted samples of the one that arrived first."""
        while self.is_removed[self.oldest]:
            self.oldest += 1
        return bisect_right(self.sorted_keys, self.key(self.oldest)) - 1

    def index_of_largest(self, room: int) -> int:
        """Index among the sorted samples of the largest of at most `room` tokens, -1 where there is none."""
        return bisect_right(self.sorted_keys, room << self.shift | self.mask) - 1

    def pop(self, index: int) -> int:
        """Remove a sample by its index among the sorted ones; the next one to arrive takes its place."""
        sample = self.mask - (self.sorted_keys.pop(index) & self.mask)
        self.is_removed[sample] = 1
        if self.num_arrived < len(self.lengths):
            insort(self.sorted_keys, self.key(self.num_arrived))
            self.num_arrived += 1
        return sample


def best_fit(lengths: list[int], capacity: int, pool: int) -> Packs:
    """The oldest of `pool` buffered samples opens a pack; the largest one that fits is added until none fits.

    Every removed sample is replaced by the next to arrive. Each pack takes the oldest, so none waits for more than `pool`
    packs. O(n log pool), and the state between packs is the buffer alone. Samples of a pack are in order of choice.
    """
    buffer = _PackingBuffer(lengths, pool)
    samples: list[int] = []
    starts = [0]
    while buffer:
        room = capacity
        index = buffer.index_of_oldest()
        while index >= 0:
            sample = buffer.pop(index)
            samples.append(sample)
            room -= lengths[sample]
            index = buffer.index_of_largest(room)
        starts.append(len(samples))
    return Packs(np.array(samples, dtype=np.int64), np.array(starts, dtype=np.int64))


def cost_fit(lengths: list[int], capacity: int, pool: int, *, budget: float, cost: tuple[float, float]) -> Packs:
    """`best_fit` under two limits: `capacity` tokens, and `budget` of a cost that grows with the square of a length.

    Args:
        budget: of a pack, in the unit of `cost`; the costliest sample must be within it.
        cost: (a, b) of a * length + b * length^2, b above 0.
    """
    linear, square = cost
    buffer = _PackingBuffer(lengths, pool)
    samples: list[int] = []
    starts = [0]
    while buffer:
        room, remaining = capacity, budget
        index = buffer.index_of_oldest()
        while index >= 0:
            sample = buffer.pop(index)
            samples.append(sample)
            length = lengths[sample]
            room -= length
            remaining -= (linear + square * length) * length
            if remaining <= 0:
                break
            affordable = int((sqrt(linear * linear + 4 * square * remaining) - linear) / (2 * square))
            index = buffer.index_of_largest(min(room, affordable))
        starts.append(len(samples))
    return Packs(np.array(samples, dtype=np.int64), np.array(starts, dtype=np.int64))


def subset_sum(lengths: list[int], capacity: int, pool: int) -> Packs:
    """The oldest of `pool` buffered samples opens a pack; the subset of the others with the largest sum that fits is added.

    Which sums the k oldest can make is one integer of `capacity` bits, so a further sample costs a shift and an or.
    Older samples are preferred: the search ends with the first that completes a full pack. O(n pool capacity / 64).
    """
    buffer = list(range(min(pool, len(lengths))))
    num_arrived = len(buffer)
    samples: list[int] = []
    starts = [0]
    while buffer:
        room = capacity - lengths[buffer[0]]
        full = (1 << room + 1) - 1
        sums = [1]  # sums[k]: bit s is set where some of buffer[1 .. k] sum to s
        for sample in buffer[1:]:
            sums.append((sums[-1] | sums[-1] << lengths[sample]) & full)
            if sums[-1] >> room:
                break
        remaining = sums[-1].bit_length() - 1
        chosen = [0]
        for k in range(len(sums) - 1, 0, -1):
            if not sums[k - 1] >> remaining & 1:
                chosen.append(k)
                remaining -= lengths[buffer[k]]
        samples += [buffer[k] for k in chosen]
        starts.append(len(samples))
        for k in sorted(chosen, reverse=True):
            del buffer[k]
        num_new = min(len(chosen), len(lengths) - num_arrived)
        buffer += range(num_arrived, num_arrived + num_new)
        num_arrived += num_new
    return Packs(np.array(samples, dtype=np.int64), np.array(starts, dtype=np.int64))
