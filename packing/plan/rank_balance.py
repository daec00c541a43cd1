"""Order of the packs so that the ranks of each step get packs of about equal FLOPs, and as many packs as they need.

`split_packs` halves packs until their number divides by the ranks; `balanced_order` sorts them into steps; `length_mix`
measures how far the sample lengths of a step are then from those of the set.
"""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from recaption.rng import random_keys, random_permutation

WINDOW_STEPS = 32
"""Packs are sorted by cost inside windows of this many steps: wide enough that neighbours cost the same (rank efficiency
0.985 at 8 and 64 ranks on tests/benchmarks/packing/bench_plan.py), narrow enough that an epoch stays mixed."""


def split_packs(pack_starts: np.ndarray, num_packs: int) -> tuple[np.ndarray, np.ndarray]:
    """Halve the packs with most samples until there are `num_packs`, or every pack is a single sample.

    Args:
        pack_starts: pack i is `samples[pack_starts[i] : pack_starts[i + 1]]`.

    Returns:
        Start and end of each pack among the samples; second halves come after all packs.
    """
    starts, ends = pack_starts[:-1].copy(), pack_starts[1:].copy()
    num_missing = max(0, num_packs - len(starts))
    # a split takes the pack with most samples, so none but the largest `num_missing` can ever be split
    largest = np.argsort(starts - ends, kind="stable")[:num_missing]
    heap = [(int(starts[i] - ends[i]), int(i)) for i in largest]
    halves: list[tuple[int, int]] = []
    spans = {int(i): (int(starts[i]), int(ends[i])) for i in largest}
    while len(halves) < num_missing and heap and heap[0][0] < -1:
        _, i = heapq.heappop(heap)
        start, end = spans[i]
        middle = start + (end - start) // 2
        new = len(starts) + len(halves)
        halves.append((middle, end))
        for index, span in ((i, (start, middle)), (new, (middle, end))):
            spans[index] = span
            heapq.heappush(heap, (span[0] - span[1], index))
    starts = np.concatenate([starts, np.zeros(len(halves), np.int64)])
    ends = np.concatenate([ends, np.zeros(len(halves), np.int64)])
    for index, (start, end) in spans.items():
        starts[index], ends[index] = start, end
    return starts, ends


def pack_sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sum of `values` over each pack; the packs tile the values, in any order."""
    order = np.argsort(starts, kind="stable")
    sums = np.empty(len(starts), values.dtype)
    sums[order] = np.add.reduceat(values, starts[order])
    return sums


def concat_spans(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`values[start:end]` of all spans concatenated, and where each span starts in the result."""
    counts = ends - starts
    edges = np.concatenate([[0], np.cumsum(counts)])
    indices = np.arange(edges[-1]) + np.repeat(starts - edges[:-1], counts)
    return values[indices], edges


def balanced_order(pack_flops: np.ndarray, num_ranks: int, seed: int, epoch: int) -> np.ndarray:
    """Order of packs in which those of each step cost about the same, while cheap and costly steps stay mixed.

    Shuffle all; sort by cost inside windows of WINDOW_STEPS steps; cut into steps; shuffle the steps, and the packs
    within each step, so that no rank always has the cheapest pack.
    """
    order = random_permutation(len(pack_flops), seed, epoch, "rows")
    num_steps = len(order) // num_ranks
    if num_ranks == 1 or num_steps == 0:
        return order
    whole, rest = np.split(order, [num_steps * num_ranks])
    num_windows = max(1, num_steps // WINDOW_STEPS)
    edges = [num_steps * i // num_windows * num_ranks for i in range(num_windows + 1)]
    for start, end in pairwise(edges):
        window = whole[start:end]
        whole[start:end] = window[np.argsort(pack_flops[window], kind="stable")]
    steps = whole.reshape(num_steps, num_ranks)[random_permutation(num_steps, seed, epoch, "steps")]
    within = np.argsort(random_keys(steps.size, seed, epoch, "ranks").reshape(steps.shape), axis=1, kind="stable")
    return np.concatenate([np.take_along_axis(steps, within, axis=1).ravel(), rest])


class LengthMix(NamedTuple):
    """Total variation distance between the sample lengths of a step and those of the set, mean over steps.

    Lengths are binned into octaves of tokens. 0: every step has the set's distribution; 1: none of its lengths.
    """

    per_step: float
    random_baseline: float
    """The same packs in random order: the distance that so few samples a step have by chance."""


def length_mix(num_tokens: np.ndarray, starts: np.ndarray, *, num_ranks: int, seed: int, epoch: int) -> LengthMix:
    """Measure it for the packs of an epoch; an incomplete last step is ignored.

    Args:
        num_tokens: of each sample, in the order of the packs.
        starts: where each pack starts among the samples, and the end of the last.
        seed, epoch: of the random baseline.
    """
    num_packs = len(starts) - 1
    num_steps = num_packs // num_ranks
    if not num_steps:
        return LengthMix(0.0, 0.0)
    octave = np.log2(num_tokens).astype(np.int64)
    pack = np.repeat(np.arange(num_packs), np.diff(starts))
    pack_counts = np.zeros((num_packs, int(octave.max()) + 1))
    np.add.at(pack_counts, (pack, octave), 1)
    set_fractions = pack_counts.sum(axis=0) / pack_counts.sum()

    def distance(order: np.ndarray) -> float:
        step_counts = pack_counts[order].reshape(num_steps, -1, pack_counts.shape[1]).sum(axis=1)
        step_fractions = step_counts / step_counts.sum(axis=1, keepdims=True)
        return float(np.abs(step_fractions - set_fractions).sum(axis=1).mean() / 2)

    num_whole = num_steps * num_ranks
    random_order = random_permutation(num_packs, seed, epoch, "mix")
    return LengthMix(distance(np.arange(num_whole)), distance(random_order[:num_whole]))
