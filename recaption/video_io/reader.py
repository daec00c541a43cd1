"""Reads video files: probe, scan, frames by index, resampled clips.

    video = probe("s3://bucket/a.mp4")            # a records.Video, failures included; never raises for a bad video
    frames = read_frames("a.mp4", [0, 10, 20], short_side_px=224)
    frames.pixels_THWC, frames.pts_seconds        # uint8 RGB as displayed, presentation times

Index i is the i-th frame of a sequential decode: hidden pre-roll of edit lists does not count, variable frame rates and
rotation are honoured, header values are not trusted; stream, pixel aspect and fields are those of ffmpeg (docs/picture.md).
Decoding runs in a child process with limits on time and memory (process.py, recaption/decoding/worker.py); every failure
is a `VideoError` with a reason of `errors.FAILURE_REASONS`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from recaption.decoding.messages import ReadRequest
from recaption.errors import VideoError
from recaption.records import Video
from recaption.video_io.client import file_in_memory
from recaption.video_io.frames import DecodeLimits, Frames
from recaption.video_io.opened_video import Scan, decode, failed_scan, failed_video, open_video

__all__ = ["Scan", "decode_bytes", "probe", "read_clip", "read_frames", "scan"]


def probe(uri: str | os.PathLike[str], *, limits: DecodeLimits | None = None) -> Video:
    """Size, exact frame rate and the number of frames that really decode: decodes everything, returns no pixels.

    A bad video has `status="failed"`, a reason and a detail; nothing is raised for it.
    """
    try:
        with open_video(uri, limits=limits) as video:
            return video.probe()
    except VideoError as error:
        return failed_video(os.fspath(uri), error)


def scan(
    uri: str | os.PathLike[str],
    *,
    small_px: int = 48,
    detail_px: int = 256,
    detail_every_seconds: float = 0.5,
    limits: DecodeLimits | None = None,
) -> Scan:
    """`probe`, and the frames that shot detection and quality scores need, in one decode.

    Args:
        small_px: short side of `small`, every frame. A smaller video is not enlarged.
        detail_px: short side of `detail`, the first frame of every `detail_every_seconds`.

    Nothing is raised for a bad video: `scan(uri).video.status == "failed"`, with a reason and without frames.
    """
    try:
        with open_video(uri, limits=limits) as video:
            return video.scan(small_px=small_px, detail_px=detail_px, detail_every_seconds=detail_every_seconds)
    except VideoError as error:
        return failed_scan(failed_video(os.fspath(uri), error))


def read_frames(
    uri: str | os.PathLike[str],
    indices: Sequence[int] | np.ndarray | None,
    *,
    short_side_px: int | None = None,
    snap_seconds: float = 0.0,
    snap_within: tuple[int, int] = (0, 1 << 62),
    limits: DecodeLimits | None = None,
) -> Frames:
    """Frames by index, in any order, repeats allowed; all of them for `indices=None`.

    Args:
        short_side_px: scale so that the shorter side has exactly this size (None = as stored, rotation applied).
        snap_seconds: a frame with a keyframe this close, and in `snap_within` (half-open), may be replaced by it: a
            keyframe decodes alone, others need all frames since theirs. `Frames.indices` has the frames returned.

    Raises:
        VideoError: the file cannot be used, or (frame_mismatch) it does not have a frame of that index.
    """
    with open_video(uri, limits=limits) as video:
        return video.read_frames(
            indices, short_side_px=short_side_px, snap_seconds=snap_seconds, snap_within=snap_within
        )


OWN_SAMPLE_LIMITS = DecodeLimits(max_kept_bytes=32 << 30)
"""For samples of shards: their size was chosen by the buckets, not by a stranger."""


def decode_bytes(payload: bytes, *, limits: DecodeLimits = OWN_SAMPLE_LIMITS) -> Frames:
    """All frames of an encoded video in memory, such as an .mp4 member of a shard.

    Raises:
        VideoError: as `read_frames`.
    """
    with file_in_memory(payload) as file:
        return decode(file, "<bytes>", limits, ReadRequest())


def read_clip(
    uri: str | os.PathLike[str],
    start_seconds: float,
    *,
    num_frames: int,
    fps: float,
    height_px: int,
    width_px: int,
    start_frame: int,
    end_frame: int,
    limits: DecodeLimits | None = None,
) -> np.ndarray:
    """A span resampled to a constant rate and size: (num_frames, height_px, width_px, 3) uint8 RGB.

    Frame k is the one displayed at `start_seconds + k / fps` (with 0.4 source frames of tolerance), never from outside
    `[start_frame, end_frame)`. Frames are scaled to cover the size, then center-cropped.

    Raises:
        VideoError: the file cannot be used, or (frame_mismatch) it does not have these frames.
    """
    with open_video(uri, limits=limits) as video:
        return video.read_clip(
            start_seconds,
            num_frames=num_frames,
            fps=fps,
            height_px=height_px,
            width_px=width_px,
            start_frame=start_frame,
            end_frame=end_frame,
        )
