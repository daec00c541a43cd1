"""Seconds of clips that overlap, each counted once: the clips of a list may overlap, and a video has its seconds once.

counted_seconds(clips, rank)          # (N,); of two clips 0 to 4 s and 2 to 6 s: [4.0, 2.0]
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

TOUCHING_SECONDS = 1e-9
"""Rounding of clips that meet."""


def counted_seconds(clips: pa.Table, rank: np.ndarray) -> np.ndarray:
    """(N,) the length of each clip, without what clips of the same video with a smaller rank, or before it, have too.

    Args:
        clips: N rows with `uri`, `start_seconds` and `end_seconds`.
        rank: (N,) which of overlapping clips counts a second.
    """
    start, end = (clips[name].to_numpy().astype(np.float64) for name in ("start_seconds", "end_seconds"))
    counted = end - start
    if not len(counted):
        return counted
    video = clips["uri"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((end, start, video))
    is_new = np.append(True, video[order][1:] != video[order][:-1])
    begins_early = np.append(False, start[order][1:] < end[order][:-1] - TOUCHING_SECONDS) & ~is_new
    firsts = np.flatnonzero(is_new)
    lasts = np.append(firsts[1:], len(order))
    # Two clips that overlap without being neighbours do so with those between them.
    for group in np.flatnonzero(np.logical_or.reduceat(begins_early, firsts)):
        rows = order[firsts[group] : lasts[group]]
        counted[rows] = _shared_out(start[rows], end[rows], rank[rows])
    return counted


def _shared_out(start: np.ndarray, end: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """(N,) the seconds that each clip of one video, sorted by start, counts."""
    counted = np.zeros(len(start))
    edges = np.unique(np.concatenate([start, end]))
    open_clips: list[tuple[int, int]] = []
    waiting = 0
    for left, right in itertools.pairwise(edges):
        while waiting < len(start) and start[waiting] <= left:
            heapq.heappush(open_clips, (int(rank[waiting]), waiting))
            waiting += 1
        while open_clips and end[open_clips[0][1]] <= left:
            heapq.heappop(open_clips)
        if open_clips:
            counted[open_clips[0][1]] += right - left
    return counted


def union_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Length of what is in any of the spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
