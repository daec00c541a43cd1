"""The mp4 of one exported clip: the whole video byte for byte, its frames encoded, or its frames fitted to a model.

    with OpenVideos(limits) as sources:                   # a remote video is fetched once for its clips
        video = clip_video(sources, clip, crf=12, fit=False)
        video.mp4, video.cut                                   # b"...", "encoded"

Frames are decoded in the child process and encoded here, with one thread and no dates: the same clip gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jobs.export.clip_files import ExportClip
from recaption.inputs.open_input import InputState
from recaption.video_io.opened_video import OpenedVideo, OpenVideos
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


def clip_video(sources: OpenVideos, clip: ExportClip, *, crf: int, fit: bool) -> ClipVideo:
    """The clip as an mp4.

    Raises:
        VideoError: the source cannot be used, or has other bytes than `prepare` hashed.
    """
    source = sources.open(clip.uri, InputState(video_id=clip.clip_id.partition("-")[0]))
    if clip.may_copy and is_mp4(os.pread(source.input.file.fileno(), 12, 0)):
        payload = source.read_bytes()
        return ClipVideo(payload, "copied", clip.source_width_px, clip.source_height_px)
    frames = iter(_fitted_frames(source, clip)) if fit else _native_frames(source, clip)
    mp4 = encode_video(frames, fps=Fraction(clip.fps), crf=crf)
    return ClipVideo(mp4, "encoded", clip.width_px, clip.height_px)


def is_mp4(start: bytes) -> bool:
    """Whether a file that starts with these 12 bytes is an mp4, and not a QuickTime file, which a suffix mp4 would hide."""
    return start[4:8] == b"ftyp" and start[8:12] != QUICKTIME_BRAND


def _fitted_frames(source: OpenedVideo, clip: ExportClip) -> np.ndarray:
    return source.read_clip(
        clip.start_seconds,
        num_frames=clip.num_frames,
        fps=float(Fraction(clip.fps)),
        height_px=clip.height_px,
        width_px=clip.width_px,
        start_frame=clip.start_frame,
        end_frame=clip.end_frame,
    )


def _native_frames(source: OpenedVideo, clip: ExportClip) -> Iterator[np.ndarray]:
    """Every frame of the clip; of odd sizes without the last row or column, which 4:2:0 colour cannot hold."""
    frame_bytes = clip.source_height_px * clip.source_width_px * 3
    block = max(1, MAX_BLOCK_BYTES // frame_bytes)
    for start in range(clip.start_frame, clip.end_frame, block):
        indices = range(start, min(start + block, clip.end_frame))
        for frame_HWC in source.read_frames(indices).pixels_THWC:
            yield frame_HWC[: clip.height_px, : clip.width_px]
