"""Cuts a span of frames out of a video without decoding it: its packets, in an mp4 of their own, with its audio.

    found = lossless_cut(video, start_frame=48, end_frame=96)
    found.mp4          # bytes; empty where the span cannot be cut out, found.obstacle says why

A span can be cut where it starts with a keyframe and the next one starts with a keyframe or the video ends, and the packets
between them are exactly the frames of the span. Whether they also decode alone is for the caller to check: an H.264 keyframe
need not be one that later frames do not look behind.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from recaption.decoding.audio.cut import cut_audio
from recaption.decoding.audio.tracks import NO_AUDIO, AudioTrack, ClipAudio, TrackMuxer
from recaption.decoding.packet_index import Keyframe, PacketIndex, is_hidden
from recaption.decoding.video_file import VideoFile
from recaption.errors import VideoError

HEADER_BYTES, HEADER_BYTES_PER_PACKET = 8192, 40
"""Space for the mp4's index before its packets, so that players and loaders find it first; what is left stays empty."""


@dataclass(frozen=True)
class LosslessCut:
    """The result of a cut."""

    mp4: bytes = b""
    obstacle: str = ""
    """Why there is no mp4."""
    audio: ClipAudio = NO_AUDIO
    """What of the sound is in it."""


def lossless_cut(
    video: VideoFile, start_frame: int, end_frame: int, *, audio_seconds: Sequence[float] | None = None
) -> LosslessCut:
    """Frames [start_frame, end_frame) as they are stored, if that is possible.

    Args:
        audio_seconds: start and end of the span, whose audio is wanted too.

    Raises:
        VideoError: the file cannot be used, or (frame_mismatch) it does not have these frames.
    """
    times = video.times()
    if not 0 <= start_frame < end_frame <= len(times.ticks):
        detail = f"frames {start_frame}:{end_frame} were requested, the video has {len(times.ticks)} frames"
        raise VideoError("frame_mismatch", detail)
    if not times.index.is_seekable:
        return LosslessCut(obstacle="its packets do not number its frames")
    if times.cut is not None:
        return LosslessCut(obstacle="it is damaged")
    keyframe = _keyframe_at(times.index, start_frame)
    if keyframe is None:
        return LosslessCut(obstacle=f"frame {start_frame} is no keyframe")
    end = _keyframe_at(times.index, end_frame) if end_frame < len(times.ticks) else None
    if end is None and end_frame < len(times.ticks):
        return LosslessCut(obstacle=f"frame {end_frame} is no keyframe")
    audio = cut_audio(video, *audio_seconds) if audio_seconds else NO_AUDIO
    with video.opened() as (container, stream):
        try:
            packets = _packets(container, stream, keyframe, end)
            shown = [p.pts for p in packets if not p.is_discard and not is_hidden(video.video_fields["codec"], p)]
            if sorted(shown) != times.ticks[start_frame:end_frame].tolist():
                return LosslessCut(obstacle="frames outside of the span are stored between its keyframes")
            mp4 = _remuxed(stream, packets, int(times.ticks[start_frame]), audio.tracks)
            return LosslessCut(mp4=mp4, audio=audio)
        except (av.error.FFmpegError, ValueError) as error:  # ValueError: no mp4 holds this codec
            if isinstance(error, MemoryError):
                raise
            return LosslessCut(obstacle=f"its packets do not go into an mp4: {error}")


def _keyframe_at(index: PacketIndex, frame: int) -> Keyframe | None:
    tick = int(index.ticks[frame])
    return next((keyframe for keyframe in index.keyframes if keyframe.pts == tick), None)


def _packets(container: Any, stream: Any, start: Keyframe, end: Keyframe | None) -> list[Any]:
    """Packets from one keyframe up to another, in the order of the file; end=None: to the end of the file."""
    container.seek(min(start.dts, start.pts), stream=stream)
    found: list[Any] = []
    for packet in container.demux(stream):
        if not packet.size:
            continue
        is_start = packet.is_keyframe and packet.pts == start.pts
        if end is not None and packet.is_keyframe and packet.pts == end.pts:
            break
        if found or is_start:
            found.append(packet)
    return found


def _remuxed(stream: Any, packets: list[Any], first_tick: int, tracks: Sequence[AudioTrack]) -> bytes:
    """An mp4 of these packets, without dates, whose first frame is shown at 0."""
    sink = io.BytesIO()
    num_packets = len(packets) + sum(len(track.packets) for track in tracks)
    space = HEADER_BYTES * (1 + len(tracks)) + HEADER_BYTES_PER_PACKET * num_packets
    options = {"fflags": "+bitexact", "moov_size": str(space)}
    with av.open(sink, "w", format="mp4", options=options) as output:
        copied = output.add_stream_from_template(stream, opaque=True)
        audio = TrackMuxer(output, tracks)
        for packet in packets:
            pts, dts = packet.pts - first_tick, None if packet.dts is None else packet.dts - first_tick
            if dts is not None:
                audio.mux_before(Fraction(dts) * packet.time_base)
            packet.stream, packet.pts, packet.dts = copied, pts, dts
            output.mux(packet)
        audio.mux_before(None)
    return sink.getvalue()


def as_numpy(mp4: bytes) -> np.ndarray:
    """The bytes as an array, which a message can carry."""
    return np.frombuffer(mp4, np.uint8)
