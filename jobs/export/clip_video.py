"""The mp4 of one exported clip: the whole file, its packets, its frames encoded, or its frames fitted to a model.

    with open_video(clip.uri) as opened:
        video = clip_video(opened, clip, crf=12, fit=False)
        video.mp4, video.cut                                   # b"...", "encoded"

Frames are decoded in the child process and encoded here, with one thread and no dates: the same clip gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from jobs.export.clip_files import ExportClip
from recaption.decoding.audio.tracks import NO_AUDIO, ClipAudio
from recaption.decoding.messages import ReadRequest
from recaption.errors import PASSING_REASONS, VideoError
from recaption.video_io.client import file_in_memory
from recaption.video_io.opened_video import CutVideo, OpenedVideo, decode
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
    audio: str = ""
    """As `records.Sample.audio`."""
    lost_audio: tuple[str, ...] = ()
    """Audio streams that are left out, and why."""

    @property
    def detail(self) -> str:
        """What of the audio is lost, for the clip's row."""
        return f"audio lost: {'; '.join(self.lost_audio)}" if self.lost_audio else ""

    @classmethod
    def of(cls, mp4: bytes, clip: ExportClip) -> ClipVideo:
        """What the clip's bytes say of how they were made, so that a resumed export says the same."""
        if clip.clip_id.startswith(hashlib.sha256(mp4).hexdigest()[:16]):
            return cls(mp4, "copied", clip.source_width_px, clip.source_height_px)
        if clip.may_copy and has_reserved_space(mp4):
            return cls(mp4, "cut", clip.source_width_px, clip.source_height_px)
        return cls(mp4, "encoded", clip.width_px, clip.height_px)


def clip_video(opened: OpenedVideo, clip: ExportClip, *, crf: int, fit: bool) -> ClipVideo:
    """The clip as an mp4.

    Raises:
        VideoError: the source cannot be used.
    """
    if clip.may_copy:
        mp4 = _whole_mp4(opened) if clip.is_whole else b""
        if mp4:
            return replace(ClipVideo.of(mp4, clip), audio=clip.audio_codec)
        cut = _cut_mp4(opened, clip)
        if cut.mp4:
            return replace(ClipVideo.of(cut.mp4, clip), audio=cut.audio, lost_audio=cut.lost)
    frames = iter(_fitted_frames(opened, clip)) if fit else _native_frames(opened, clip)
    audio = _audio(opened, clip)
    times_seconds = None if fit or not audio.tracks else _uneven_times(opened, clip)
    fps = Fraction(clip.fps)
    mp4 = encode_video(frames, fps=fps, crf=crf, audio=audio.tracks, times_seconds=times_seconds)
    return replace(ClipVideo.of(mp4, clip), audio=audio.description, lost_audio=audio.lost)


def with_audio_columns(video: ClipVideo, opened: OpenedVideo, clip: ExportClip) -> ClipVideo:
    """A clip that a killed export has written, with what its audio was made of: the same as then."""
    if video.cut == "copied":
        return replace(video, audio=clip.audio_codec)
    audio = _audio(opened, clip)
    return replace(video, audio=audio.description, lost_audio=audio.lost)


def _audio(opened: OpenedVideo, clip: ExportClip) -> ClipAudio:
    if not clip.audio_codec:
        return NO_AUDIO
    end_seconds = clip.start_seconds + clip.seconds
    return opened.read_audio(clip.start_seconds, end_seconds, may_copy=clip.may_copy_audio)


def _uneven_times(opened: OpenedVideo, clip: ExportClip) -> np.ndarray | None:
    """When the frames of a native clip are shown; None where the even spacing of `clip.fps` is right to half a frame.

    Without audio such frames are spaced evenly all the same, as trainers count them; with audio they would lose it.
    """
    seconds = opened.frame_seconds(clip.start_frame, clip.end_frame)
    seconds -= seconds[0]
    frame_seconds = float(1 / Fraction(clip.fps))
    is_even = np.abs(seconds - np.arange(len(seconds)) * frame_seconds).max() <= frame_seconds / 2
    return None if is_even else seconds


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


def is_mp4(start: bytes) -> bool:
    """Whether a file that starts with these 12 bytes is an mp4, and not a QuickTime file, which a suffix mp4 would hide."""
    return start[4:8] == b"ftyp" and start[8:12] != QUICKTIME_BRAND


def _cut_mp4(opened: OpenedVideo, clip: ExportClip) -> CutVideo:
    """The clip's packets in an mp4, if they decode alone to the very frames of the clip; else none."""
    audio_seconds = (clip.start_seconds, clip.end_seconds) if clip.audio_codec else None
    cut = opened.cut(clip.start_frame, clip.end_frame, audio_seconds=audio_seconds)
    if not cut.mp4:
        return cut
    nothing = CutVideo(b"", "its packets do not decode alone")
    with file_in_memory(cut.mp4) as file:
        try:
            for start, end in _blocks(clip, 0, clip.num_frames):
                alone = decode(file, clip.uri, opened.limits, ReadRequest(indices=[*range(start, end)]))
                there = opened.read_frames(range(clip.start_frame + start, clip.start_frame + end))
                if not np.array_equal(alone.pixels_THWC, there.pixels_THWC):
                    return nothing
        except VideoError as error:
            if error.reason in PASSING_REASONS:
                raise
            return nothing
    return cut


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
        clip.start_seconds,
        num_frames=clip.num_frames,
        fps=float(Fraction(clip.fps)),
        height_px=clip.height_px,
        width_px=clip.width_px,
        start_frame=clip.start_frame,
        end_frame=clip.end_frame,
    )


def _native_frames(opened: OpenedVideo, clip: ExportClip) -> Iterator[np.ndarray]:
    """Every frame of the clip; of odd sizes without the last row or column, which 4:2:0 colour cannot hold."""
    for start, end in _blocks(clip, clip.start_frame, clip.end_frame):
        for frame_HWC in opened.read_frames(range(start, end)).pixels_THWC:
            yield frame_HWC[: clip.height_px, : clip.width_px]
