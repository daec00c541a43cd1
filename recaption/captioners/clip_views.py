"""Frame sampling for captioners: the same frames for captioning, scoring and verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recaption.captions.windows import split_into_windows
from recaption.errors import VideoError
from recaption.records import Clip
from recaption.video_io.opened_video import OpenedVideo

if TYPE_CHECKING:
    from recaption.captioners.interface import Captioner, EncodedClip


@dataclass(frozen=True, kw_only=True)
class CaptionInput:
    """The sampled frames of a whole clip, or of one window of it."""

    clip: Clip
    window: int
    """0: the whole clip; 1, 2, ...: its windows."""
    start_seconds: float
    """In the time of the source video."""
    end_seconds: float
    frames_THWC: np.ndarray | EncodedClip
    """Frames, or their cached encoder output."""


def sample_frames(video: OpenedVideo, clip: Clip, captioner: Captioner, *, snap_seconds: float = 0.0) -> np.ndarray:
    """`captioner.num_frames` evenly spaced frames, each from the middle of an equal span: (T, H, W, 3) uint8.

    Args:
        video: the one that the clip is of.
        snap_seconds: a keyframe within this distance replaces a frame, which is faster; see `read_frames`.

    Raises:
        VideoError: as `read_frames`.
    """
    indices = _uniform_indices(clip.start_frame, clip.end_frame, captioner.num_frames)
    short_side = _short_side(clip, captioner)
    within = (clip.start_frame, clip.end_frame)
    frames = video.read_frames(indices, short_side_px=short_side, snap_seconds=snap_seconds, snap_within=within)
    return frames.pixels_THWC


def sample_windows(
    video: OpenedVideo, clip: Clip, captioner: Captioner, *, window_seconds: float = 0.0, snap_seconds: float = 0.0
) -> list[CaptionInput]:
    """Sampled frames of the whole clip, then of each of its windows; spaced as by `sample_frames`.

    Raises:
        VideoError: as `read_frames`.
    """
    windows = split_into_windows(clip, window_seconds)
    whole = (
        [] if snap_seconds and windows else [_uniform_indices(clip.start_frame, clip.end_frame, captioner.num_frames)]
    )
    if not windows:
        frames_THWC = sample_frames(video, clip, captioner, snap_seconds=snap_seconds)
        return [_caption_input(clip, 0, clip.start_seconds, clip.end_seconds, frames_THWC)]
    # One read for everything, with the first frame of each window: its timestamp is the start time of the window.
    first_frames = np.array([start for start, _ in windows])
    indices_per_part = [
        first_frames,
        *whole,
        *(_uniform_indices(start, end, captioner.num_frames) for start, end in windows),
    ]
    frames = video.read_frames(np.concatenate(indices_per_part), short_side_px=_short_side(clip, captioner))
    edges = np.cumsum([len(indices) for indices in indices_per_part])
    parts = np.split(frames.pixels_THWC, edges[:-1])[1:]
    if not whole:  # only the whole clip snaps to keyframes: those may lie outside a window
        parts.insert(0, sample_frames(video, clip, captioner, snap_seconds=snap_seconds))
    times = clip.start_seconds + frames.pts_seconds[: len(windows)] - frames.pts_seconds[0]
    starts = [clip.start_seconds, *(float(time) for time in times)]
    ends = [clip.end_seconds, *starts[2:], clip.end_seconds]
    return [_caption_input(clip, i, starts[i], ends[i], part) for i, part in enumerate(parts)]


def _caption_input(
    clip: Clip, window: int, start_seconds: float, end_seconds: float, frames_THWC: np.ndarray
) -> CaptionInput:
    return CaptionInput(
        clip=clip,
        window=window,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        frames_THWC=np.ascontiguousarray(frames_THWC),
    )


def _uniform_indices(start_frame: int, end_frame: int, num_frames: int) -> np.ndarray:
    """Frame indices in the middle of `num_frames` equal spans; all frames where there are fewer."""
    count = min(num_frames, end_frame - start_frame)
    if count < 1:
        raise VideoError("zero_frames", f"the clip has no frames: {start_frame = }, {end_frame = }")
    return start_frame + ((np.arange(count) + 0.5) * (end_frame - start_frame) / count).astype(np.int64)


def _short_side(clip: Clip, captioner: Captioner) -> int:
    return min(captioner.frame_px, clip.width_px, clip.height_px)
