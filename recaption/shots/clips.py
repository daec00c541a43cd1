"""Shots cut into clips of bounded length."""

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
    """(shot_index, start_frame, end_frame) of clips that tile all shots; shots over `max_seconds` are divided evenly.

    Shots under `min_seconds` stay whole: what is too short is a verdict of the filters. A shot is not divided into
    clips under `min_seconds`, even if one then exceeds `max_seconds`.
    """
    if max_seconds <= 0 or min_seconds < 0 or min_seconds > max_seconds:
        raise UsageError(f"{min_seconds = } and {max_seconds = } must be 0 <= min <= max, max > 0")
    edges = np.append(np.asarray(pts_seconds, np.float64), end_seconds)
    clips = []
    for index, (start, end) in enumerate(shots):
        seconds = edges[end] - edges[start]
        parts = max(1, int(np.ceil(seconds / max_seconds - 1e-6)))
        if min_seconds > 1e-6:
            parts = max(1, min(parts, int(seconds / min_seconds + 1e-6)))
        parts = min(parts, end - start)
        ideal = edges[start] + seconds * np.arange(1, parts) / parts
        inner = start + np.searchsorted(edges[start:end], ideal - 1e-6)
        # a stretch without frames (a gap in the times) may put two edges on one frame: keep every part non-empty
        bounds = [start, *sorted({int(edge) for edge in inner} - {start, end}), end]
        clips += [(index, a, b) for a, b in pairwise(bounds)]
    return clips
