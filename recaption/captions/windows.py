"""Windows of a long clip: consecutive spans of equal length, each with its own caption.

split_into_windows(clip, 4.0)                        # [(0, 96), (96, 192), (192, 288)]: frames of a 12 s clip at 24 fps
caption_for_window(captions, 3.9, 8.1).text          # the caption of the second window

A training sample may show only a part of its clip, and the caption of the whole clip may describe what happens before or
after it. So the caption is chosen by overlap in time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

from recaption.records import Caption, Clip

SLACK_SECONDS = 1e-6
"""Rounding tolerance: a clip of 12.0000001 s has three windows of 4 s. Times are sums of frame durations."""


def split_into_windows(clip: Clip, window_seconds: float) -> list[tuple[int, int]]:
    """Half-open frame spans in the video's numbering: the fewest equal windows of at most `window_seconds`.

    Equal, because a remainder of half a second would get a caption as long as the others. Empty where the clip is not
    longer than one window, or `window_seconds` is 0: its own caption is enough.
    """
    if window_seconds <= 0:
        return []
    count = min(math.ceil((clip.duration_seconds - SLACK_SECONDS) / window_seconds), clip.num_frames)
    if count < 2:
        return []
    return list(pairwise(clip.start_frame + clip.num_frames * i // count for i in range(count + 1)))


def caption_for_window(captions: Iterable[Caption], start_seconds: float, end_seconds: float) -> Caption | None:
    """The caption, of those without a reason, whose window overlaps most (IoU over time) with the requested seconds.

    By IoU a window of 4 s wins over the whole clip for a part of that window, and the whole clip wins where most of it is
    requested. Ties go to the shorter window, then to the earlier. None where no caption without a reason overlaps.

    Args:
        captions: of one clip and one kind.
    """

    def iou(caption: Caption) -> float:
        intersection = min(caption.end_seconds, end_seconds) - max(caption.start_seconds, start_seconds)
        union = max(caption.end_seconds, end_seconds) - min(caption.start_seconds, start_seconds)
        return round(max(intersection, 0.0) / union, 9) if union > 0 else 0.0

    def rank(caption: Caption) -> tuple[float, float, float]:
        return -iou(caption), caption.end_seconds - caption.start_seconds, caption.start_seconds

    candidates = [caption for caption in captions if caption.reason is None and iou(caption) > 0]
    return min(candidates, key=rank) if candidates else None
