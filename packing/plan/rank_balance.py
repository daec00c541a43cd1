"""From packs to rows: as many as the ranks need, in an order in which the ranks of a step cost the same.

Packs lie end to end: pack i is `samples[starts[i] : starts[i + 1]]`, a row is a span of samples.
"""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from packing.mixture.rng import random_keys, shuffled

WINDOW_STEPS = 32
"""Rows are sorted by cost inside windows of this many steps: wide enough that neighbours cost the same (rank efficiency
0.985 at 8 and 64 ranks on tests/benchmarks/packing/bench_plan.py), narrow enough that an epoch stays mixed."""


def split_packs(pack_starts: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Halve the packs with most samples until there are `num_rows`, or none is left to halve.

    Returns:
        Start and end of each row among the samples; second halves come after all packs.
    """
    starts, ends = pack_starts[:-1].copy(), pack_starts[1:].copy()
    lacking = max(0, num_rows - len(starts))
    # a split takes the pack with most samples, so none but the largest `lacking` can ever be split
    largest = np.argsort(starts - ends, kind="stable")[:lacking]
    heap = [(int(starts[i] - ends[i]), int(i)) for i in largest]
    halves: list[tuple[int, int]] = []
    spans = {int(i): (int(starts[i]), int(ends[i])) for i in largest}
    while len(halves) < lacking and heap and heap[0][0] < -1:
        _, i = heapq.heappop(heap)
        start, end = spans[i]
        middle = start + (end - start) // 2
        new = len(starts) + len(halves)
        halves.append((middle, end))
        for row, span in ((i, (start, middle)), (new, (middle, end))):
            spans[row] = span
            heapq.heappush(heap, (span[0] - span[1], row))
    starts = np.concatenate([starts, np.zeros(len(halves), np.int64)])
    ends = np.concatenate([ends, np.zeros(len(halves), np.int64)])
    for row, (start, end) in spans.items():
        starts[row], ends[row] = start, end
    return starts, ends


def row_sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sum of `values` over each row; the rows tile the values, in any order."""
    order = np.argsort(starts, kind="stable")
    sums = np.empty(len(starts), values.dtype)
    sums[order] = np.add.reduceat(values, starts[order])
    return sums


def gathered(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The spans of `values` laid end to end, and where each starts."""
    counts = ends - starts
    edges = np.concatenate([[0], np.cumsum(counts)])
    places = np.arange(edges[-1]) + np.repeat(starts - edges[:-1], counts)
    return values[places], edges


def balanced_order(row_flops: np.ndarray, num_ranks: int, seed: int, epoch: int) -> np.ndarray:
    """Order of rows in which every `num_ranks` neighbours cost about the same, yet cheap and dear steps are mixed.

    Shuffle all; sort by cost inside windows of WINDOW_STEPS steps; cut into steps; shuffle the steps, and the rows
    within each step, so that no rank always has the cheapest row.
    """
    order = shuffled(len(row_flops), seed, epoch, "rows")
    num_steps = len(order) // num_ranks
    if num_ranks == 1 or num_steps == 0:
        return order
    whole, rest = np.split(order, [num_steps * num_ranks])
    num_windows = max(1, num_steps // WINDOW_STEPS)
    edges = [num_steps * i // num_windows * num_ranks for i in range(num_windows + 1)]
    for start, end in pairwise(edges):
        window = whole[start:end]
        whole[start:end] = window[np.argsort(row_flops[window], kind="stable")]
    steps = whole.reshape(num_steps, num_ranks)[shuffled(num_steps, seed, epoch, "steps")]
    within = np.argsort(random_keys(steps.size, seed, epoch, "ranks").reshape(steps.shape), axis=1, kind="stable")
    return np.concatenate([np.take_along_axis(steps, within, axis=1).ravel(), rest])


class SizeMix(NamedTuple):
    """How far the sizes within a step are from those of the set: total variation distance of the shares of samples by
    size (octaves of tokens), mean over steps. 0: every step is the set in small; 1: it has sizes of its own."""

    of_steps: float
    of_random_rows: float
    """The same packs in random order: what chance alone makes of so few samples a step."""


def size_mix(num_tokens: np.ndarray, starts: np.ndarray, *, num_ranks: int, seed: int, epoch: int) -> SizeMix:
    """Measure it for rows of samples laid end to end; an incomplete last step is left aside.

    Args:
        num_tokens: of each sample, in the order of the rows.
        starts: where each row starts, and the end of the last.
        seed, epoch: of the random order.
    """
    num_rows = len(starts) - 1
    num_steps = num_rows // num_ranks
    if not num_steps:
        return SizeMix(0.0, 0.0)
    octave = np.log2(num_tokens).astype(np.int64)
    row = np.repeat(np.arange(num_rows), np.diff(starts))
    of_rows = np.zeros((num_rows, int(octave.max()) + 1))
    np.add.at(of_rows, (row, octave), 1)
    of_set = of_rows.sum(axis=0) / of_rows.sum()

    def distance(order: np.ndarray) -> float:
        of_steps = of_rows[order].reshape(num_steps, -1, of_rows.shape[1]).sum(axis=1)
        shares = of_steps / of_steps.sum(axis=1, keepdims=True)
        return float(np.abs(shares - of_set).sum(axis=1).mean() / 2)

    whole = num_steps * num_ranks
    at_random = shuffled(num_rows, seed, epoch, "mix")
    return SizeMix(distance(np.arange(whole)), distance(at_random[:whole]))
