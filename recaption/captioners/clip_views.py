"""The frames of a clip that a captioner sees: one rule for who writes captions and for who checks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recaption.captions.windows import windows_of
from recaption.errors import VideoError
from recaption.records import Clip
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.reader import read_frames

if TYPE_CHECKING:
    from recaption.captioners.interface import Captioner, EncodedClip


@dataclass(frozen=True, kw_only=True)
class View:
    """The whole of a clip, or one window of it, as a captioner sees it."""

    clip: Clip
    window: int
    """0: the whole clip; 1, 2, ...: its windows."""
    start_seconds: float
    """In the source video's time."""
    end_seconds: float
    frames_THWC: np.ndarray | EncodedClip
    """Or what the captioner kept of them."""


def frames_of(clip: Clip, captioner: Captioner, decode: DecodeLimits, *, snap_seconds: float = 0.0) -> np.ndarray:
    """(T, H, W, 3) uint8: `captioner.num_frames` frames spread evenly, the middle of each of as many equal spans.

    Args:
        snap_seconds: a keyframe of the clip this close may stand in for a frame; see `read_frames`.

    Raises:
        VideoError: as `read_frames`.
    """
    indices = _spread(clip.start_frame, clip.end_frame, captioner.num_frames)
    short_side = _short_side(clip, captioner)
    within = (clip.start_frame, clip.end_frame)
    frames = read_frames(
        clip.uri, indices, short_side_px=short_side, snap_seconds=snap_seconds, snap_within=within, limits=decode
    )
    return frames.pixels_THWC


def views_of(
    clip: Clip, captioner: Captioner, decode: DecodeLimits, *, window_seconds: float = 0.0, snap_seconds: float = 0.0
) -> list[View]:
    """The whole clip, then its windows: frames as `frames_of` spreads them, over exactly that window.

    Raises:
        VideoError: as `read_frames`.
    """
    windows = windows_of(clip, window_seconds)
    whole = [] if snap_seconds and windows else [_spread(clip.start_frame, clip.end_frame, captioner.num_frames)]
    if not windows:
        frames_THWC = frames_of(clip, captioner, decode, snap_seconds=snap_seconds)
        return [_view(clip, 0, clip.start_seconds, clip.end_seconds, frames_THWC)]
    # One read for all of it, and the first frame of each window with it: only its own time says when a window starts.
    firsts = np.array([start for start, _ in windows])
    wanted = [firsts, *whole, *(_spread(start, end, captioner.num_frames) for start, end in windows)]
    read = read_frames(clip.uri, np.concatenate(wanted), short_side_px=_short_side(clip, captioner), limits=decode)
    edges = np.cumsum([len(indices) for indices in wanted])
    parts = np.split(read.pixels_THWC, edges[:-1])[1:]
    if not whole:  # a keyframe that stands in may lie outside of a window, so windows are read without
        parts.insert(0, frames_of(clip, captioner, decode, snap_seconds=snap_seconds))
    times = clip.start_seconds + read.pts_seconds[: len(windows)] - read.pts_seconds[0]
    starts = [clip.start_seconds, *(float(time) for time in times)]
    ends = [clip.end_seconds, *starts[2:], clip.end_seconds]
    return [_view(clip, i, starts[i], ends[i], part) for i, part in enumerate(parts)]


def _view(clip: Clip, window: int, start_seconds: float, end_seconds: float, frames_THWC: np.ndarray) -> View:
    return View(
        clip=clip,
        window=window,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        frames_THWC=np.ascontiguousarray(frames_THWC),
    )


def _spread(start_frame: int, end_frame: int, num_frames: int) -> np.ndarray:
    """Frame numbers: the middle of each of `num_frames` equal spans, or all frames where there are fewer."""
    count = min(num_frames, end_frame - start_frame)
    if count < 1:
        raise VideoError("zero_frames", f"frames {start_frame} to {end_frame} are none")
    return start_frame + ((np.arange(count) + 0.5) * (end_frame - start_frame) / count).astype(np.int64)


def _short_side(clip: Clip, captioner: Captioner) -> int:
    return min(captioner.frame_px, clip.width_px, clip.height_px)
