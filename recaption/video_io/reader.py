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
from dataclasses import dataclass
from typing import Any

import numpy as np

from recaption.decoding.messages import ClipRequest, ProbeRequest, ReadRequest, Request, ScanRequest
from recaption.errors import UsageError, VideoError
from recaption.inputs.local_files import file_id, local_copy
from recaption.records import Video
from recaption.video_io.client import DecodeResponse
from recaption.video_io.frames import DecodeLimits, Frames


@dataclass(frozen=True)
class Scan:
    """Metadata, timestamps and downscaled frames of one video, from one decode."""

    video: Video
    """`num_frames` is the number that decodes. Where `video.status` is "failed", there are no frames below."""
    pts_seconds: np.ndarray
    """(N,) float64, presentation time of every frame."""
    small: Frames
    """Every frame, short side `small_px`."""
    detail: Frames
    """One frame per `detail_every_seconds`, short side `detail_px`."""


def _video_record(uri: str, path: str, response: DecodeResponse | None, failure: VideoError | None) -> Video:
    video_id, num_bytes = file_id(path)
    video_fields = response.header["video"] if response is not None else {}
    if response is not None and response.header["kind"] == "error":
        failure = VideoError(response.header["reason"], response.header["detail"])
    if failure is None:
        return Video(video_id=video_id, uri=uri, num_bytes=num_bytes, **video_fields)
    failed: dict[str, Any] = {"status": "failed", "reason": failure.reason, "detail": failure.detail}
    return Video(video_id=video_id, uri=uri, num_bytes=num_bytes, **video_fields, **failed)


def _decode_whole(uri: str, limits: DecodeLimits, request: Request) -> tuple[Video, DecodeResponse | None]:
    """Send a request that decodes everything: (the video, failed or not; the response where there is one)."""
    response, failure = None, None
    try:
        with local_copy(uri) as path:
            try:
                response = DecodeResponse(path, b"", limits, request)
            except VideoError as error:
                failure = error
            try:
                return _video_record(uri, path, response, failure), response
            except OSError as error:
                raise VideoError("unreadable", str(error)) from None
    except VideoError as error:
        return Video(video_id="", uri=uri, status="failed", reason=error.reason, detail=error.detail), None


def probe(uri: str | os.PathLike[str], *, limits: DecodeLimits | None = None) -> Video:
    """Size, exact frame rate and the number of frames that really decode: decodes everything, returns no pixels.

    A bad video has `status="failed"`, a reason and a detail; nothing is raised for it.
    """
    video, _ = _decode_whole(os.fspath(uri), limits or DecodeLimits(), ProbeRequest())
    return video


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
    request = ScanRequest(small_px=small_px, detail_px=detail_px, detail_every_seconds=detail_every_seconds)
    video, response = _decode_whole(os.fspath(uri), limits or DecodeLimits(), request)
    if video.status != "ok" or response is None:
        no_frames = Frames(np.zeros((0, 0, 0, 3), np.uint8), np.zeros(0), np.zeros(0, np.int64))
        return Scan(video, np.zeros(0), no_frames, no_frames)
    pts_seconds = response.pts_seconds
    small = Frames(response.buffers["small"].filled(), pts_seconds, np.arange(len(pts_seconds)))
    indices = np.array(response.header["detail"], np.int64)
    return Scan(video, pts_seconds, small, Frames(response.buffers["detail"].filled(), pts_seconds[indices], indices))


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
    frame_indices = None if indices is None else [int(i) for i in indices]
    if frame_indices == []:
        raise UsageError("read_frames: indices is empty; pass None for all frames")
    request = ReadRequest(
        indices=frame_indices, short_side_px=short_side_px, snap_seconds=snap_seconds, snap_within=snap_within
    )
    with local_copy(uri) as path:
        return _read(os.fspath(uri), path, b"", limits or DecodeLimits(), request)


def decode_bytes(payload: bytes, *, limits: DecodeLimits | None = None) -> Frames:
    """All frames of an encoded video in memory, such as an .mp4 member of a shard.

    Raises:
        VideoError: as `read_frames`.
    """
    return _read("<bytes>", None, payload, limits or DecodeLimits(), ReadRequest())


def _read(
    uri: str, path: str | None, payload: bytes, limits: DecodeLimits, request: ReadRequest | ClipRequest
) -> Frames:
    try:
        response = DecodeResponse(path, payload, limits, request)
    except VideoError as error:
        raise VideoError(error.reason, error.detail, uri=uri) from None
    response.raise_for_error(uri)
    return response.frames(np.array(response.header["indices"], np.int64))


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
    request = ClipRequest(
        start_seconds=float(start_seconds),
        num_frames=num_frames,
        fps=float(fps),
        height_px=height_px,
        width_px=width_px,
        start_frame=int(start_frame),
        end_frame=int(end_frame),
    )
    with local_copy(uri) as path:
        return _read(os.fspath(uri), path, b"", limits or DecodeLimits(), request).pixels_THWC
