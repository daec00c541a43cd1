"""Clips of one video with their scores, fingerprints and previews, in memory that its length does not change.

    found = prepare_video("film.mp4", settings, scorers)
    found.video, found.rows, found.spans          # spans: what lists say of it, with the ids of the clips

One decode finds the shots while its small frames are kept; from them come the clips. Of a video whose frames take more than
`max_kept_bytes` none are kept, and a second decode brings them clip by clip. The rows are the same either way.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jobs.cluster import attempts
from jobs.prepare.listed_clips import ListedClips, cut_listed, has_spans, make_clip
from jobs.recipe.stage_settings import PrepareSettings
from recaption.decoding.messages import limit_text
from recaption.dedup.fingerprints import ClipFingerprint, fingerprint_clip
from recaption.errors import VideoError
from recaption.inputs.lists.listed import ListedSpan
from recaption.ledger.spans import list_hash, span_row
from recaption.quality.loudness import sound_scores
from recaption.quality.model_scorers import ModelScorers
from recaption.quality.scores import score_clip
from recaption.records import Clip, ClipPreview, ClipScores, Video
from recaption.shots.clips import cut_to_clips
from recaption.shots.scan import scan_shots
from recaption.video_io.frame_blocks import FrameBlocks
from recaption.video_io.frames import Frames
from recaption.video_io.opened_video import OpenedVideo, failed_video, open_video

JPEG_QUALITY = 82
NO_SCORERS = ModelScorers()


class ClipRows(NamedTuple):
    """One clip in the tables of its part."""

    clip: Clip
    scores: ClipScores
    fingerprint: ClipFingerprint
    preview: ClipPreview
    plugin_rows: list[tuple[str, dict[str, Any]]]
    """(plug-in, row of its table of scores)."""


class ClipPass:
    """Second decode: the frames of one clip at a time."""

    def __init__(self, clips: list[Clip], rows_of: Any, max_kept_bytes: int) -> None:
        self.clips = sorted(clips, key=lambda clip: clip.end_frame)
        self.rows_of, self.max_kept_bytes = rows_of, max_kept_bytes
        starts = [clip.start_frame for clip in self.clips]
        self.needed_from = [min(starts[i:]) for i in range(len(starts))]
        """First frame that clip i or a later one needs: the clips of lists may overlap."""
        self.rows: list[ClipRows] = []

    def begin(self, sizes: dict[str, tuple[int, int, int]], pts_seconds: np.ndarray, seconds: float) -> None:
        self.frames = {name: FrameBlocks() for name in sizes}
        self.block_bytes = dict.fromkeys(sizes, 0)
        self.rows = []

    def add(self, stream: str, numbers: np.ndarray, pixels_THWC: np.ndarray) -> None:
        self.frames[stream].add(numbers, pixels_THWC)
        while stream == "small" and (clip := self._next_clip()) is not None and numbers[-1] >= clip.end_frame - 1:
            attempts.progress()
            self.rows.append(self.rows_of(clip, self.frames))
        for blocks in self.frames.values():
            blocks.forget_before(self.needed_from[len(self.rows)] if len(self.rows) < len(self.clips) else 1 << 62)
        self.block_bytes[stream] = max(self.block_bytes[stream], pixels_THWC.nbytes)
        num_bytes = sum(blocks.num_bytes for blocks in self.frames.values())
        if num_bytes > self.max_kept_bytes + sum(
            self.block_bytes.values()
        ):  # a block may hold frames of other clips too
            limit = limit_text("max_kept_bytes", self.max_kept_bytes)
            raise VideoError("too_large", f"a single clip takes more than {limit}; shorter: --prepare.max-clip-seconds")

    def _next_clip(self) -> Clip | None:
        return self.clips[len(self.rows)] if len(self.rows) < len(self.clips) else None


class FoundClips(NamedTuple):
    """What one input is."""

    video: Video
    """Failed or not."""
    rows: list[ClipRows] = []  # noqa: RUF012
    spans: list[dict[str, Any]] = []  # noqa: RUF012
    """Rows of `SPANS_SCHEMA`."""


def prepare_video(
    uri: str,
    settings: PrepareSettings,
    scorers: ModelScorers = NO_SCORERS,
    listed: Sequence[ListedSpan] = (),
) -> FoundClips:
    """One input as a record, failed or not, and its clips.

    Args:
        listed: what lists say of it.
    """
    try:
        with open_video(uri, limits=settings.decode) as opened:
            found = _prepare_opened(opened, settings, scorers, listed)
    except VideoError as error:
        found = FoundClips(failed_video(uri, error))
    video = dataclasses.replace(found.video, list_hash=list_hash(listed), is_cut_by_list=has_spans(listed))
    return found._replace(video=video)


def _prepare_opened(
    opened: OpenedVideo, settings: PrepareSettings, scorers: ModelScorers, listed: Sequence[ListedSpan]
) -> FoundClips:
    found = scan_shots(opened, settings.shots, progress=attempts.progress)
    video, pts_seconds, kept = found.video, found.pts_seconds, found.kept
    if video.status != "ok":
        return FoundClips(video)
    cut = clips_of(video, pts_seconds, found.shots, settings, listed)
    video = dataclasses.replace(video, outside_seconds=cut.outside_seconds)

    def rows_of(clip: Clip, frames: dict[str, FrameBlocks]) -> ClipRows:
        row = _rows_of(clip, video, pts_seconds, frames, settings, scorers)
        loudness_lufs, silence_fraction = sound_scores(opened.sound, clip.start_seconds, clip.end_seconds)
        scores = dataclasses.replace(row.scores, loudness_lufs=loudness_lufs, silence_fraction=silence_fraction)
        return row._replace(scores=scores)

    if kept is not None:
        rows = []
        for clip in cut.clips:
            attempts.progress()
            rows.append(rows_of(clip, kept))
        return FoundClips(video, rows, cut.spans)
    if not cut.clips:
        return FoundClips(video, [], cut.spans)
    second = ClipPass(cut.clips, rows_of, settings.decode.max_kept_bytes)
    again, _ = opened.scan_into(second)
    if again.status != "ok":
        return FoundClips(again)
    return FoundClips(video, sorted(second.rows, key=lambda row: row.clip.clip_id), cut.spans)


def clips_of(
    video: Video,
    pts_seconds: np.ndarray,
    shots: list[tuple[int, int]],
    settings: PrepareSettings,
    listed: Sequence[ListedSpan] = (),
) -> ListedClips:
    """The clips of a video: the spans that lists name, else its shots, cut to the length of clips."""
    if has_spans(listed):
        return cut_listed(video, pts_seconds, shots, settings, listed)
    end_of_video = float(pts_seconds[0] + video.duration_seconds)
    spans = cut_to_clips(
        shots, pts_seconds, end_of_video, min_seconds=settings.min_clip_seconds, max_seconds=settings.max_clip_seconds
    )
    clips = [make_clip(video, pts_seconds, shot_index, start, end) for shot_index, start, end in spans]
    ids = [clip.clip_id for clip in clips]
    rows = [
        span_row(one, video_id=video.video_id, clip_ids=ids, start_frame=0, end_frame=video.num_frames)
        for one in listed
    ]
    return ListedClips(clips, rows)


def _rows_of(
    clip: Clip,
    video: Video,
    pts_seconds: np.ndarray,
    frames: dict[str, FrameBlocks],
    settings: PrepareSettings,
    scorers: ModelScorers,
) -> ClipRows:
    """Scores, fingerprint and preview of one clip."""
    small, detail = (_window(frames[name], clip, pts_seconds) for name in ("small", "detail"))
    size_px = (video.height_px, video.width_px)
    scores = score_clip(clip.clip_id, small, detail, settings.scores, source_size_px=size_px)
    scores = scorers.add(scores, detail.pixels_THWC)
    fingerprint = fingerprint_clip(clip, small, bytes_per_second=video.num_bytes / max(video.duration_seconds, 1e-9))
    plugin_rows = [(plugin.name, plugin.score(clip.clip_id, detail.pixels_THWC)) for plugin in scorers.plugins]
    return ClipRows(clip, scores, fingerprint, _preview(clip.clip_id, detail, small, settings.preview_px), plugin_rows)


def _window(blocks: FrameBlocks, clip: Clip, pts_seconds: np.ndarray) -> Frames:
    pixels_THWC, numbers = blocks.window(clip.start_frame, clip.end_frame)
    return Frames(pixels_THWC, pts_seconds[numbers], numbers)


def _preview(clip_id: str, detail: Frames, small: Frames, short_side_px: int) -> ClipPreview:
    frames = detail.pixels_THWC if len(detail.pixels_THWC) else small.pixels_THWC
    middle: np.ndarray = frames[len(frames) // 2]
    image = Image.fromarray(middle)
    scale = min(1.0, short_side_px / min(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    encoded = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(encoded, "JPEG", quality=JPEG_QUALITY)
    return ClipPreview(clip_id=clip_id, jpeg=encoded.getvalue())
