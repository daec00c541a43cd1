"""From packs to rows: as many as the ranks need, in an order in which the ranks of a step cost the same.

Packs lie end to end: pack i is `samples[starts[i] : starts[i + 1]]`, a row is a span of samples.
"""

from __future__ import annotations

import hashlib
import heapq
from itertools import pairwise

import numpy as np

WINDOW_STEPS = 32
"""Rows are sorted by cost inside windows of this many steps: wide enough that neighbours cost the same (rank efficiency
0.985 at 8 and 64 ranks on tests/benchmarks/bench_plan.py), narrow enough that an epoch stays mixed."""


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


def random_keys(num: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    """uint64 keys by (seed, epoch, purpose). Raw Philox output, which numpy promises never to change."""
    digest = hashlib.sha256(f"{seed} {epoch} {purpose}".encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)).random_raw(num)


def shuffled(num: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    return np.argsort(random_keys(num, seed, epoch, purpose), kind="stable")
