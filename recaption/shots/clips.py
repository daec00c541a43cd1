"""Cut shots into clips of bounded length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from recaption.errors import UsageError


def cut_to_clips(
    shots: Sequence[tuple[int, int]],
    pts_seconds: np.ndarray,
    end_seconds: float,
    *,
    max_seconds: float,
    min_seconds: float = 0.0,
) -> list[tuple[int, int, int]]:
    """Return (shot_index, start_frame, end_frame) of clips that tile all shots; shots over `max_seconds` are split evenly.

    Shots under `min_seconds` stay whole: the filters decide what is too short. A shot is not split into clips under
    `min_seconds`, even if a clip then exceeds `max_seconds`.
    """
    if max_seconds <= 0 or min_seconds < 0 or min_seconds > max_seconds:
        raise UsageError(f"{min_seconds = } and {max_seconds = } must be 0 <= min <= max, max > 0")
    edges = np.append(np.asarray(pts_seconds, np.float64), end_seconds)
    clips = []
    for index, (start, end) in enumerate(shots):
        seconds = edges[end] - edges[start]
        num_clips = max(1, int(np.ceil(seconds / max_seconds - 1e-6)))
        if min_seconds > 1e-6:
            num_clips = max(1, min(num_clips, int(seconds / min_seconds + 1e-6)))
        num_clips = min(num_clips, end - start)
        split_seconds = edges[start] + seconds * np.arange(1, num_clips) / num_clips
        split_frames = start + np.searchsorted(edges[start:end], split_seconds - 1e-6)
        # a gap in the timestamps may put two edges on the same frame: every clip must have at least one
        bounds = [start, *sorted({int(edge) for edge in split_frames} - {start, end}), end]
        clips += [(index, a, b) for a, b in pairwise(bounds)]
    return clips
