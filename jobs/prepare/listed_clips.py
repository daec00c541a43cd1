"""Spans that lists name as clips of a video whose frames are known.

    cut = cut_listed(video, pts_seconds, shots, settings, listed)
    cut.clips                       # one per span, two spans of the same frames are one; overlapping ones are clips each
    cut.spans                       # rows of RUN/spans, with the ids of the clips; failed ones have the reason `bad_span`
    cut.outside_seconds             # of the video, in no span

Times are those from the first frame; an edge is the start of the frame that is nearest, so that spans which meet in a list
meet in frames.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jobs.recipe.stage_settings import PrepareSettings
from recaption.errors import VideoError
from recaption.inputs.lists.listed import ListedSpan
from recaption.ledger.overlap import union_seconds
from recaption.ledger.spans import span_row
from recaption.records import Clip, Video
from recaption.shots.clips import cut_to_clips

MAX_SECONDS_BEYOND = 1.0
"""A span may end so much later than its video: lists round, and count the last frame otherwise."""
Frames = tuple[int, int]


@dataclass
class ListedClips:
    """The clips of a video, as lists name them."""

    clips: list[Clip] = field(default_factory=list)
    """By start and end, each once."""
    spans: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `SPANS_SCHEMA`, in the order of the lists."""
    outside_seconds: float = 0.0


def has_spans(listed: Iterable[ListedSpan]) -> bool:
    """Whether lists name spans of a video, and not only the video."""
    return any(span.unit or span.refusal for span in listed)


def make_clip(video: Video, pts_seconds: np.ndarray, shot_index: int, start: int, end: int) -> Clip:
    """The clip of frames [start, end) of a video."""
    end_of_video = float(pts_seconds[0] + video.duration_seconds)
    start_seconds = float(pts_seconds[start])
    end_seconds = float(pts_seconds[end]) if end < len(pts_seconds) else end_of_video
    return Clip(
        clip_id=f"{video.video_id}-{start:07d}-{end:07d}",
        video_id=video.video_id,
        uri=video.uri,
        shot_index=shot_index,
        start_frame=start,
        end_frame=end,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        width_px=video.width_px,
        height_px=video.height_px,
        fps=(end - start) / max(end_seconds - start_seconds, 1e-9),
    )


def cut_listed(
    video: Video,
    pts_seconds: np.ndarray,
    shots: Sequence[Frames],
    settings: PrepareSettings,
    listed: Sequence[ListedSpan],
) -> ListedClips:
    """
    Args:
        listed: all that lists say of this video; a row without times is the whole video.
    """
    edges = np.append(pts_seconds, pts_seconds[0] + video.duration_seconds)
    shot_starts = [start for start, _ in shots]
    clips: dict[Frames, Clip] = {}
    rows = []
    for span in listed:
        try:
            start, end = frames_of(span, edges)
        except VideoError as error:
            row = span_row(span, video_id=video.video_id, status="failed", reason=error.reason, detail=error.detail)
            rows.append(row)
            continue
        pieces = [(start, end)]
        if settings.cut_spans:
            pieces = _cut_at_shots((start, end), shots, edges, settings)
        for first, last in pieces:
            shot_index = max(0, bisect.bisect_right(shot_starts, first) - 1)
            clips.setdefault((first, last), make_clip(video, pts_seconds, shot_index, first, last))
        clip_ids = [clips[piece].clip_id for piece in pieces]
        rows.append(span_row(span, video_id=video.video_id, start_frame=start, end_frame=end, clip_ids=clip_ids))
    inside = union_seconds([(clip.start_seconds, clip.end_seconds) for clip in clips.values()])
    return ListedClips([clips[key] for key in sorted(clips)], rows, max(0.0, video.duration_seconds - inside))


def frames_of(span: ListedSpan, edges: np.ndarray) -> Frames:
    """The frames [start, end) of a span.

    Args:
        edges: (N + 1,) when each frame begins, and the end of the last one.

    Raises:
        VideoError: bad_span, where it is none or not in the video.
    """
    num_frames = len(edges) - 1
    if span.refusal or not span.unit or span.start is None or span.end is None:
        if span.refusal:
            raise VideoError("bad_span", span.refusal)
        return 0, num_frames
    if span.unit == "frames":
        if span.end > num_frames:
            raise VideoError("bad_span", f"frames {span.start:.0f} to {span.end:.0f} of a video of {num_frames}")
        return int(span.start), int(span.end)
    length = float(edges[-1] - edges[0])
    if span.start >= length or span.end > length + MAX_SECONDS_BEYOND:
        raise VideoError("bad_span", f"{span.start:g} to {span.end:g} s of a video of {length:.3f} s")
    start = min(_nearest(edges, float(edges[0]) + span.start), num_frames - 1)
    return start, max(start + 1, _nearest(edges, float(edges[0]) + span.end))


def _nearest(edges: np.ndarray, seconds: float) -> int:
    after = int(np.searchsorted(edges, seconds))
    if after in (0, len(edges)):
        return min(after, len(edges) - 1)
    return after - 1 if seconds - edges[after - 1] <= edges[after] - seconds else after


def _cut_at_shots(span: Frames, shots: Sequence[Frames], edges: np.ndarray, settings: PrepareSettings) -> list[Frames]:
    """A span cut where shots change, and to the length of clips."""
    inside = [(max(a, span[0]), min(b, span[1])) for a, b in shots if a < span[1] and b > span[0]]
    cut = cut_to_clips(
        inside,
        edges[:-1],
        float(edges[-1]),
        min_seconds=settings.min_clip_seconds,
        max_seconds=settings.max_clip_seconds,
    )
    return [(start, end) for _, start, end in cut]
