"""The one door to video files: frames out of them, clips into them.

    video = probe("s3://bucket/a.mp4")            # a row for records.Video, failures too; never raises for a bad video
    frames = read_frames("a.mp4", [0, 10, 20], short_side_px=224)
    frames.pixels_THWC, frames.pts_seconds        # uint8 RGB as displayed, presentation times
    payload = encode_video(frames.pixels_THWC, fps=8)

Index i is the i-th frame that a sequential decode shows: hidden pre-roll of edit lists does not count, variable frame
rates and rotation are honoured, what headers claim is not believed; of several video streams the first counts. Decoding
runs in a child process with limits on time and memory (process.py, worker.py); every refusal is a
`VideoError` with a reason of the closed list.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recaption.errors import UsageError, VideoError
from recaption.inputs.local_files import file_id, local_copy
from recaption.records import Video
from recaption.video_io.client import Answer
from recaption.video_io.frames import DecodeLimits, Frames


@dataclass(frozen=True)
class Scan:
    """All that `prepare` needs of one video, from one decode."""

    video: Video
    """Final: `num_frames` is what decodes. Where `video.status` is "failed", the frames below are none."""
    pts_seconds: np.ndarray
    """(N,) float64, every frame."""
    small: Frames
    """Every frame, short side `small_px`."""
    detail: Frames
    """One frame per `detail_every_seconds`, short side `detail_px`."""


def _described(uri: str, path: str, answer: Answer | None, refusal: VideoError | None) -> Video:
    video_id, num_bytes = file_id(path)
    known = answer.header["video"] if answer is not None else {}
    if answer is not None and answer.header["kind"] == "error":
        refusal = VideoError(answer.header["reason"], answer.header["detail"])
    if refusal is None:
        return Video(video_id=video_id, uri=uri, num_bytes=num_bytes, **known)
    failed: dict[str, Any] = {"status": "failed", "reason": refusal.reason, "detail": refusal.detail}
    return Video(video_id=video_id, uri=uri, num_bytes=num_bytes, **known, **failed)


def _whole(uri: str, limits: DecodeLimits, request: dict[str, Any]) -> tuple[Video, Answer | None]:
    """Decode everything; (what became of it, the answer where there was one)."""
    answer, refusal = None, None
    try:
        with local_copy(uri) as path:
            try:
                answer = Answer(path, b"", limits, request)
            except VideoError as error:
                refusal = error
            try:
                return _described(uri, path, answer, refusal), answer
            except OSError as error:
                raise VideoError("unreadable", str(error)) from None
    except VideoError as error:
        return Video(video_id="", uri=uri, status="failed", reason=error.reason, detail=error.detail), None


def probe(uri: str | os.PathLike[str], *, limits: DecodeLimits | None = None) -> Video:
    """Size, exact frame rate and the number of frames that really decode: decodes everything, keeps no pixels.

    A bad video is a row with `status="failed"`, a reason and a detail; nothing is raised for it.
    """
    video, _ = _whole(os.fspath(uri), limits or DecodeLimits(), {"op": "probe"})
    return video


def scan(
    uri: str | os.PathLike[str],
    *,
    small_px: int = 48,
    detail_px: int = 256,
    detail_every_seconds: float = 0.5,
    limits: DecodeLimits | None = None,
) -> Scan:
    """`probe` and the frames that shots and scores look at, in one decode.

    Args:
        small_px: short side of `small`, every frame. A smaller video is not enlarged.
        detail_px: short side of `detail`, the first frame of every `detail_every_seconds`.

    A bad video is not raised but returned: `scan(uri).video.status == "failed"`, with a reason and without frames.
    """
    request = {"op": "scan", "small_px": small_px, "detail_px": detail_px, "detail_every_seconds": detail_every_seconds}
    video, answer = _whole(os.fspath(uri), limits or DecodeLimits(), request)
    if video.status != "ok" or answer is None:
        none = Frames(np.zeros((0, 0, 0, 3), np.uint8), np.zeros(0), np.zeros(0, np.int64))
        return Scan(video, np.zeros(0), none, none)
    pts_seconds = answer.pts_seconds
    small = Frames(answer.rooms["small"].filled(), pts_seconds, np.arange(len(pts_seconds)))
    numbers = np.array(answer.header["detail"], np.int64)
    return Scan(video, pts_seconds, small, Frames(answer.rooms["detail"].filled(), pts_seconds[numbers], numbers))


def read_frames(
    uri: str | os.PathLike[str],
    indices: Sequence[int] | np.ndarray | None,
    *,
    short_side_px: int | None = None,
    snap_seconds: float = 0.0,
    snap_within: tuple[int, int] = (0, 1 << 62),
    limits: DecodeLimits | None = None,
) -> Frames:
    """Frames by number, in any order, repeats allowed; all of them for `indices=None`.

    Args:
        short_side_px: scale so that the shorter side has exactly this size (None = as stored, rotation applied).
        snap_seconds: a frame with a keyframe this close, and in `snap_within` (half-open), may be that one instead: it
            decodes alone, where others need all frames since their keyframe. `Frames.indices` says what came.

    Raises:
        VideoError: the file is refused, or (frame_mismatch) it does not have a frame of that number.
    """
    numbers = None if indices is None else [int(i) for i in indices]
    if numbers == []:
        raise UsageError("read_frames: indices is empty; pass None for all frames")
    with local_copy(uri) as path:
        request = _read_request(numbers, short_side_px, snap_seconds, snap_within)
        return _read(os.fspath(uri), path, b"", limits or DecodeLimits(), request)


def decode_bytes(payload: bytes, *, limits: DecodeLimits | None = None) -> Frames:
    """All frames of an encoded video held in memory, such as an .mp4 member of a shard.

    Raises:
        VideoError: as `read_frames`.
    """
    return _read("<bytes>", None, payload, limits or DecodeLimits(), _read_request(None, None))


def _read_request(
    indices: list[int] | None,
    short_side_px: int | None,
    snap_seconds: float = 0.0,
    snap_within: tuple[int, int] = (0, 1 << 62),
) -> dict[str, Any]:
    snap = {"snap_seconds": snap_seconds, "snap_within": snap_within}
    return {"op": "read", "indices": indices, "short_side_px": short_side_px, **snap}


def _read(uri: str, path: str | None, payload: bytes, limits: DecodeLimits, request: dict[str, Any]) -> Frames:
    try:
        answer = Answer(path, payload, limits, request)
    except VideoError as error:
        raise VideoError(error.reason, error.detail, uri=uri) from None
    answer.raise_refusal(uri)
    return answer.frames(np.array(answer.header["indices"], np.int64))


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
    """A span at a steady rate and a given size: (num_frames, height_px, width_px, 3) uint8 RGB.

    Frame k is what is on screen at `start_seconds + k / fps` (with 0.4 source frames of tolerance), never from outside
    `[start_frame, end_frame)`. Pictures are scaled to cover the size, then the centre is cropped.

    Raises:
        VideoError: the file is refused, or (frame_mismatch) it does not have these frames.
    """
    limits = limits or DecodeLimits()
    request = {
        "op": "clip",
        "start_seconds": float(start_seconds),
        "num_frames": num_frames,
        "fps": float(fps),
        "height_px": height_px,
        "width_px": width_px,
        "start_frame": int(start_frame),
        "end_frame": int(end_frame),
    }
    with local_copy(uri) as path:
        try:
            answer = Answer(path, b"", limits, request)
        except VideoError as error:
            raise VideoError(error.reason, error.detail, uri=os.fspath(uri)) from None
    answer.raise_refusal(os.fspath(uri))
    return answer.frames(np.zeros(0, np.int64)).pixels_THWC
