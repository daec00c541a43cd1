"""The mp4 of one exported clip: the whole video byte for byte, its frames encoded, or its frames fitted to a model.

    with SourceVideos(limits) as sources:
        video = clip_video(sources, clip, crf=12, fit=False)
        video.mp4, video.cut                                   # b"...", "encoded"

Frames are decoded in the child process and encoded here, with one thread and no dates: the same clip gives the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType

import numpy as np
from recaption.inputs.local_files import file_id, local_copy

from jobs.export.clip_files import ExportClip
from recaption.errors import VideoError
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.reader import read_clip, read_frames
from recaption.video_io.writer import encode_video

MAX_BLOCK_BYTES = 256 << 20
"""Frames of a native clip are read in blocks of at most so much: 10 s of 2160p are 7 GB."""
QUICKTIME_BRAND = b"qt  "


@dataclass(frozen=True)
class ClipVideo:
    """A finished clip."""

    mp4: bytes
    cut: str
    """`copied` or `encoded`."""
    width_px: int
    height_px: int


class SourceVideos:
    """Holds the last source video open: the clips of a video come one after another, and a remote one is fetched once."""

    def __init__(self, limits: DecodeLimits) -> None:
        self.limits = limits
        self._uri, self._path = "", ""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> SourceVideos:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._uri = ""
        self._stack.close()

    def path(self, uri: str, video_id: str) -> str:
        """Local path of a video whose bytes are those that `prepare` hashed.

        Raises:
            VideoError: unreadable, or source_changed.
        """
        if uri != self._uri:
            self.close()
            self._path = self._stack.enter_context(local_copy(uri))
            found, _ = file_id(self._path)
            if found != video_id:
                self.close()
                raise VideoError("source_changed", "its bytes are not those that were prepared", uri=uri)
            self._uri = uri
        return self._path


def clip_video(sources: SourceVideos, clip: ExportClip, *, crf: int, fit: bool) -> ClipVideo:
    """The clip as an mp4.

    Raises:
        VideoError: the source cannot be used.
    """
    path = sources.path(clip.uri, clip.clip_id.partition("-")[0])
    if clip.may_copy:
        with open(path, "rb") as file:
            start = file.read(12)
            if is_mp4(start):
                return ClipVideo(start + file.read(), "copied", clip.source_width_px, clip.source_height_px)
    if fit:
        frames = iter(_fitted_frames(path, clip, sources.limits))
    else:
        frames = _native_frames(path, clip, sources.limits)
    mp4 = encode_video(frames, fps=Fraction(clip.fps), crf=crf)
    return ClipVideo(mp4, "encoded", clip.width_px, clip.height_px)


def is_mp4(start: bytes) -> bool:
    """Whether a file that starts with these 12 bytes is an mp4, and not a QuickTime file, which a suffix mp4 would hide."""
    return start[4:8] == b"ftyp" and start[8:12] != QUICKTIME_BRAND


def _fitted_frames(path: str, clip: ExportClip, limits: DecodeLimits) -> np.ndarray:
    return read_clip(
        path,
        clip.start_seconds,
        num_frames=clip.num_frames,
        fps=float(Fraction(clip.fps)),
        height_px=clip.height_px,
        width_px=clip.width_px,
        start_frame=clip.start_frame,
        end_frame=clip.end_frame,
        limits=limits,
    )


def _native_frames(path: str, clip: ExportClip, limits: DecodeLimits) -> Iterator[np.ndarray]:
    """Every frame of the clip; of odd sizes without the last row or column, which 4:2:0 colour cannot hold."""
    frame_bytes = clip.source_height_px * clip.source_width_px * 3
    block = max(1, MAX_BLOCK_BYTES // frame_bytes)
    for start in range(clip.start_frame, clip.end_frame, block):
        indices = range(start, min(start + block, clip.end_frame))
        for frame_HWC in read_frames(path, indices, limits=limits).pixels_THWC:
            yield frame_HWC[: clip.height_px, : clip.width_px]
