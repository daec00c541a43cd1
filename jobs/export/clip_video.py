"""The mp4 of one exported clip: the whole file, its packets, its frames encoded, or its frames fitted to a model.

<<<<<<< HEAD
    with open_video(clip.uri) as opened:
        video = clip_video(opened, clip, crf=12, fit=False)
=======
    with OpenVideos(limits) as sources:                   # a remote video is fetched once for its clips
        video = clip_video(sources, clip, crf=12, fit=False)
>>>>>>> 842dbe49fb7ce22f4907dab17dcce6b0f4e35b72
        video.mp4, video.cut                                   # b"...", "encoded"

Frames are decoded in the child process and encoded here, with one thread and no dates: the same clip gives the same bytes.
"""

from __future__ import annotations

<<<<<<< HEAD
import hashlib
=======
import os
>>>>>>> 842dbe49fb7ce22f4907dab17dcce6b0f4e35b72
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jobs.export.clip_files import ExportClip
<<<<<<< HEAD
from recaption.decoding.messages import ReadRequest
from recaption.errors import PASSING_REASONS, VideoError
from recaption.video_io.client import file_in_memory
from recaption.video_io.opened_video import OpenedVideo, decode
=======
from recaption.inputs.open_input import InputState
from recaption.video_io.opened_video import OpenedVideo, OpenVideos
>>>>>>> 842dbe49fb7ce22f4907dab17dcce6b0f4e35b72
from recaption.video_io.writer import encode_video

MAX_BLOCK_BYTES = 256 << 20
"""Frames of a native clip are read in blocks of at most so much: 10 s of 2160p are 7 GB."""
QUICKTIME_BRAND = b"qt  "
FREE_BOX_OF_ENCODED_BYTES = 8
"""The empty box that FFmpeg writes before the data in any case."""


@dataclass(frozen=True)
class ClipVideo:
    """A finished clip."""

    mp4: bytes
    cut: str
    """`copied`, `cut` or `encoded`."""
    width_px: int
    height_px: int

<<<<<<< HEAD
    @classmethod
    def of(cls, mp4: bytes, clip: ExportClip) -> ClipVideo:
        """What the clip's bytes say of how they were made, so that a resumed export says the same."""
        if clip.clip_id.startswith(hashlib.sha256(mp4).hexdigest()[:16]):
            return cls(mp4, "copied", clip.source_width_px, clip.source_height_px)
        if clip.may_copy and has_reserved_space(mp4):
            return cls(mp4, "cut", clip.source_width_px, clip.source_height_px)
        return cls(mp4, "encoded", clip.width_px, clip.height_px)


def clip_video(opened: OpenedVideo, clip: ExportClip, *, crf: int, fit: bool) -> ClipVideo:
=======

def clip_video(sources: OpenVideos, clip: ExportClip, *, crf: int, fit: bool) -> ClipVideo:
>>>>>>> 842dbe49fb7ce22f4907dab17dcce6b0f4e35b72
    """The clip as an mp4.

    Raises:
        VideoError: the source cannot be used, or has other bytes than `prepare` hashed.
    """
<<<<<<< HEAD
    mp4 = b""
    if clip.may_copy:
        mp4 = (_whole_mp4(opened) if clip.is_whole else b"") or _cut_mp4(opened, clip)
    if not mp4:
        frames = iter(_fitted_frames(opened, clip)) if fit else _native_frames(opened, clip)
        mp4 = encode_video(frames, fps=Fraction(clip.fps), crf=crf)
    return ClipVideo.of(mp4, clip)


def _whole_mp4(opened: OpenedVideo) -> bytes:
    """The bytes of the source; none where it is in another container."""
    file = opened.input.file
    file.seek(0)
    start = file.read(12)
    if not is_mp4(start):
        return b""
    mp4 = start + file.read()
    opened.input.check_unchanged()
    return mp4
=======
    source = sources.open(clip.uri, InputState(video_id=clip.clip_id.partition("-")[0]))
    if clip.may_copy and is_mp4(os.pread(source.input.file.fileno(), 12, 0)):
        payload = source.read_bytes()
        return ClipVideo(payload, "copied", clip.source_width_px, clip.source_height_px)
    frames = iter(_fitted_frames(source, clip)) if fit else _native_frames(source, clip)
    mp4 = encode_video(frames, fps=Fraction(clip.fps), crf=crf)
    return ClipVideo(mp4, "encoded", clip.width_px, clip.height_px)
>>>>>>> 842dbe49fb7ce22f4907dab17dcce6b0f4e35b72


def is_mp4(start: bytes) -> bool:
    """Whether a file that starts with these 12 bytes is an mp4, and not a QuickTime file, which a suffix mp4 would hide."""
    return start[4:8] == b"ftyp" and start[8:12] != QUICKTIME_BRAND


<<<<<<< HEAD
def _cut_mp4(opened: OpenedVideo, clip: ExportClip) -> bytes:
    """The clip's packets in an mp4, if they decode alone to the very frames of the clip; else none."""
    mp4, _ = opened.cut(clip.start_frame, clip.end_frame)
    if not mp4:
        return b""
    with file_in_memory(mp4) as file:
        try:
            for start, end in _blocks(clip, 0, clip.num_frames):
                alone = decode(file, clip.uri, opened.limits, ReadRequest(indices=[*range(start, end)]))
                there = opened.read_frames(range(clip.start_frame + start, clip.start_frame + end))
                if not np.array_equal(alone.pixels_THWC, there.pixels_THWC):
                    return b""
        except VideoError as error:
            if error.reason in PASSING_REASONS:
                raise
            return b""
    return mp4


def has_reserved_space(mp4: bytes) -> bool:
    """Whether there is free space behind the index, as in an mp4 that was cut (recaption/decoding/lossless_cut.py)."""
    position = 0
    while position + 8 <= len(mp4):
        num_bytes, name = int.from_bytes(mp4[position : position + 4], "big"), mp4[position + 4 : position + 8]
        if name == b"free":
            return num_bytes > FREE_BOX_OF_ENCODED_BYTES
        if name not in (b"ftyp", b"moov") or num_bytes < 8:
            return False
        position += num_bytes
    return False


def _blocks(clip: ExportClip, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Half-open spans of frames that take at most `MAX_BLOCK_BYTES`."""
    size = max(1, MAX_BLOCK_BYTES // (clip.source_height_px * clip.source_width_px * 3))
    for start in range(first, last, size):
        yield start, min(start + size, last)


def _fitted_frames(opened: OpenedVideo, clip: ExportClip) -> np.ndarray:
    return opened.read_clip(
=======
def _fitted_frames(source: OpenedVideo, clip: ExportClip) -> np.ndarray:
    return source.read_clip(
>>>>>>> 842dbe49fb7ce22f4907dab17dcce6b0f4e35b72
        clip.start_seconds,
        num_frames=clip.num_frames,
        fps=float(Fraction(clip.fps)),
        height_px=clip.height_px,
        width_px=clip.width_px,
        start_frame=clip.start_frame,
        end_frame=clip.end_frame,
    )


<<<<<<< HEAD
def _native_frames(opened: OpenedVideo, clip: ExportClip) -> Iterator[np.ndarray]:
    """Every frame of the clip; of odd sizes without the last row or column, which 4:2:0 colour cannot hold."""
    for start, end in _blocks(clip, clip.start_frame, clip.end_frame):
        for frame_HWC in opened.read_frames(range(start, end)).pixels_THWC:
=======
def _native_frames(source: OpenedVideo, clip: ExportClip) -> Iterator[np.ndarray]:
    """Every frame of the clip; of odd sizes without the last row or column, which 4:2:0 colour cannot hold."""
    frame_bytes = clip.source_height_px * clip.source_width_px * 3
    block = max(1, MAX_BLOCK_BYTES // frame_bytes)
    for start in range(clip.start_frame, clip.end_frame, block):
        indices = range(start, min(start + block, clip.end_frame))
        for frame_HWC in source.read_frames(indices).pixels_THWC:
>>>>>>> 842dbe49fb7ce22f4907dab17dcce6b0f4e35b72
            yield frame_HWC[: clip.height_px, : clip.width_px]
