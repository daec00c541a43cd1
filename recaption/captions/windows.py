"""Windows of a long clip: consecutive spans, each with captions of its own frames.

windows_of(clip, 4.0)                                       # [(0, 96), (96, 192), (192, 288)] frames of a 12 s clip
caption_for_window(captions, 3.9, 8.1).text                  # that of the second window

A sample of a training set shows a part of its clip. What is said of the whole clip may happen before or after it; the
caption for it is looked up by the seconds that it shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

from recaption.records import Caption, Clip

SLACK_SECONDS = 1e-6
"""Times are sums of frame durations: 12.0000001 s are three windows of 4 s."""


def windows_of(clip: Clip, window_seconds: float) -> list[tuple[int, int]]:
    """Half-open spans of frames, in the video's own numbering: as many equal ones as it takes for none to be longer.

    Equal ones, because a rest of half a second would get a caption as long as the others. None where the clip is no
    longer than one window, or `window_seconds` is 0: its own caption says it all.
    """
    if window_seconds <= 0:
        return []
    count = min(math.ceil((clip.duration_seconds - SLACK_SECONDS) / window_seconds), clip.num_frames)
    if count < 2:
        return []
    return list(pairwise(clip.start_frame + clip.num_frames * i // count for i in range(count + 1)))


def caption_for_window(captions: Iterable[Caption], start_seconds: float, end_seconds: float) -> Caption | None:
    """Of the good captions of one clip and one kind, the one whose window is most like the seconds asked for.

    Likeness is the time in common over the time covered by either: a window of 4 s beats the whole clip for a part of
    it, and the whole clip beats each window where most of it is asked for. Among equals the shorter window counts, then
    the earlier. None where nothing good overlaps.
    """

    def overlap(caption: Caption) -> float:
        common = min(caption.end_seconds, end_seconds) - max(caption.start_seconds, start_seconds)
        either = max(caption.end_seconds, end_seconds) - min(caption.start_seconds, start_seconds)
        return round(max(common, 0.0) / either, 9) if either > 0 else 0.0

    def rank(caption: Caption) -> tuple[float, float, float]:
        return -overlap(caption), caption.end_seconds - caption.start_seconds, caption.start_seconds

    found = [caption for caption in captions if caption.reason is None and overlap(caption) > 0]
    return min(found, key=rank) if found else None
