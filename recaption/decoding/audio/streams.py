"""Audio streams of an untrusted file: which there are, and their packets and frames from a given time on.

    with opened_audio(video) as container:
        for stream in audio_streams(container): ...
    for packet in decoded_packets(video, stream_index, 12.5, 22.5):
        packet.seconds, packet.frames, packet.error

Every pass opens the file anew with all other streams switched off: damage in the audio cannot reach the video.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.stream import Discard, Disposition

from recaption.decoding.damage.checked_decoder import error_text
from recaption.decoding.libav_log import ERROR_LOG

if TYPE_CHECKING:
    from recaption.decoding.video_file import VideoFile

MAX_STREAMS = 8
"""Of one file that are kept: a film has one per language. More are left out, and said."""
MAX_CHANNELS = 64
DEFAULT_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""Of files that only count their channels: libav's own defaults, in the order of WAVE files."""
SEEK_MARGIN_SECONDS = 1.0
"""Decoding starts this much before what is wanted: decoders need the packets before it, and indexes are coarse."""
MAX_PACKETS_PER_SECOND = 1000
"""Of a stream: Opus has up to 400, the packets of PCM in AVI some 100. A file with more is not read on."""
RESTART_SECONDS = 0.5
"""Timestamps that jump back by more belong to a second recording joined to the first (MPEG-TS), and go on from there."""
NUM_LATE_FRAMES, MAX_OFFSET_SECONDS = 8, 0.002
"""Times of Matroska and FLV are off by up to 1 ms."""


@dataclass(frozen=True)
class DecodedPacket:
    """One packet of an audio stream and what it decodes to."""

    seconds: float
    """Presentation time of its first sample, on the clock of the video; counted on where the packet has none."""
    payload: bytes
    frames: list[Any] = field(default_factory=list)
    error: str = ""
    """Why it cannot be used: the decoder's words."""
    is_hidden: bool = False
    """An edit list leaves it out."""


def audio_streams(container: Any) -> list[Any]:
    """The audio streams that have a decoder, the best first: the default one, then that with the most channels.

    Raises:
        ValueError: a stream states more channels than `MAX_CHANNELS`.
    """
    streams = [s for s in container.streams.audio if s.codec_context is not None]
    return sorted(streams, key=_rank)


def _rank(stream: Any) -> tuple[bool, int, int]:
    return not stream.disposition & Disposition.default, -stream.codec_context.channels, stream.index


@contextlib.contextmanager
def opened_audio(video: VideoFile, stream_index: int | None = None) -> Iterator[Any]:
    """The container at the start of the file, with only its audio switched on, or only one stream of it."""
    with video.opened() as (container, _):
        for stream in container.streams:
            is_wanted = stream.type == "audio" if stream_index is None else stream.index == stream_index
            stream.discard = Discard.default if is_wanted else Discard.all
        yield container


def decoded_packets(
    video: VideoFile, stream_index: int, start_seconds: float, end_seconds: float
) -> Iterator[DecodedPacket]:
    """Packets from `SEEK_MARGIN_SECONDS` before the start, or the first one, up to the first at or after the end.

    A packet that does not decode has an error, and the next ones follow.
    """
    wanted = start_seconds - SEEK_MARGIN_SECONDS
    with opened_audio(video, stream_index) as container:
        stream = container.streams[stream_index]
        if wanted > 0 and video_is_seekable(container) and _seek(container, stream, wanted):
            packets = _timed(container.demux(stream), stream)
            first = next(packets, None)
            if first is not None and first[0] <= start_seconds - SEEK_MARGIN_SECONDS / 2:
                yield from _decoded(_chain(first, packets), stream, end_seconds, start_seconds)
                return
    with opened_audio(video, stream_index) as container:
        stream = container.streams[stream_index]
        packets = _timed(container.demux(stream), stream)
        yield from _decoded(packets, stream, end_seconds, start_seconds)


def video_is_seekable(container: Any) -> bool:
    """Whether times after a seek are those of a pass from the start: not where recordings may be joined."""
    return container.format.name.split(",")[0] in ("mov", "matroska", "avi", "flv", "asf")


def _seek(container: Any, stream: Any, seconds: float) -> bool:
    try:
        container.seek(int(seconds / stream.time_base), stream=stream)
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        return False
    return True


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _timed(packets: Iterator[Any], stream: Any) -> Iterator[tuple[float, Any]]:
    """Packets with their times, until the demuxer ends; a jump back goes on where the stream was."""
    expected, offset = 0.0, 0.0
    try:
        for packet in packets:
            if not packet.size:
                continue
            tick = packet.dts if packet.pts is None else packet.pts
            seconds = expected if tick is None else float(tick * stream.time_base) + offset
            if tick is not None and seconds < expected - RESTART_SECONDS:
                offset += expected - seconds
                seconds = expected
            yield seconds, packet
            expected = seconds + float((packet.duration or 0) * stream.time_base)
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise


def _decoded(
    packets: Iterator[tuple[float, Any]], stream: Any, end_seconds: float, start_seconds: float
) -> Iterator[DecodedPacket]:
    context = stream.codec_context
    context.thread_count = 1
    num_left = int((end_seconds - max(0.0, start_seconds - SEEK_MARGIN_SECONDS) + 60) * MAX_PACKETS_PER_SECOND)
    for seconds, packet in packets:
        if seconds >= end_seconds:
            return
        num_left -= 1
        if num_left < 0:
            yield DecodedPacket(seconds, b"", error=f"more than {MAX_PACKETS_PER_SECOND} packets a second")
            return
        payload, is_hidden, is_corrupt = bytes(packet), packet.is_discard, packet.is_corrupt
        ERROR_LOG.lines.clear()
        try:
            frames, error = list(packet.decode()), ""
        except (av.error.FFmpegError, ValueError) as caught:
            if isinstance(caught, MemoryError):
                raise
            frames, error = [], error_text(caught)
        if not error and ERROR_LOG.lines:
            error = ERROR_LOG.lines[0]
        if not error and is_corrupt:
            error = "the container says that the packet is damaged"
        if any(frame.layout.nb_channels > MAX_CHANNELS for frame in frames):
            frames, error = [], f"more than {MAX_CHANNELS} channels"
        yield DecodedPacket(seconds, payload, frames, error, is_hidden)


def named_layout(layout: Any) -> Any:
    """A layout whose channels have names; as it is where their number has no default."""
    has_names = all(channel.name != "NONE" for channel in layout.channels)
    default = DEFAULT_LAYOUTS.get(layout.nb_channels)
    return layout if has_names or default is None else av.AudioLayout(default)


def samples_of(frame: Any) -> np.ndarray:
    """(channels, samples) float32 of a decoded frame, full scale +-1."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    if values.dtype.kind == "i":
        return values.astype(np.float32) / float(np.iinfo(values.dtype).max + 1)
    return values.astype(np.float32, copy=False)


class Timeline:
    """Sample positions of frames that follow each other, from their times.

    Times in files are rounded and jitter: a frame within half a frame of where the last one ended follows it. Where
    `NUM_LATE_FRAMES` in a row are off by more than `MAX_OFFSET_SECONDS` to the same side, the times are right.

    Args:
        start_seconds: of sample 0.
    """

    def __init__(self, start_seconds: float, rate_hz: int) -> None:
        self.start_seconds, self.rate_hz = start_seconds, rate_hz
        self.next_sample: int | None = None
        self.offsets: deque[int] = deque(maxlen=NUM_LATE_FRAMES)

    def place(self, seconds: float | None, num_samples: int) -> int:
        """Position of the first sample of the next frame."""
        position = 0 if self.next_sample is None else self.next_sample
        if seconds is not None:
            stated = round((seconds - self.start_seconds) * self.rate_hz)
            offset = stated - position
            self.offsets.append(offset)
            if (
                self.next_sample is None
                or abs(offset) > max(num_samples // 2, self.rate_hz // 100)
                or self._is_shifted()
            ):
                position = stated
                self.offsets.clear()
        self.next_sample = position + num_samples
        return position

    def _is_shifted(self) -> bool:
        limit = MAX_OFFSET_SECONDS * self.rate_hz
        is_full = len(self.offsets) == NUM_LATE_FRAMES
        return is_full and (min(self.offsets) > limit or max(self.offsets) < -limit)
