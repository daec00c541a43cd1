"""Cuts the audio of a span out of a file: its packets where that is exact, else encoded as AAC.

    audio = cut_audio(video, 12.48, 22.48)
    audio.description                # "aac" (copied), "aac from ac3" (encoded), "" (none)
    audio.lost                       # ("stream 1 (aac): damaged at 14.2 s: Invalid data found",)

Packets are copied where an mp4 holds the codec as browsers and trainers read it (AAC-LC, MP3, Opus), they follow each other
without a gap, and the first is there at the start of the span. A few packets before the start are copied too, for the
decoder, and hidden by the edit list: the cut is exact to a sample. All else (AC-3, PCM, Vorbis, HE-AAC, gaps, a late start)
is laid on the clock of the video, gaps filled with silence, and encoded (encode.py).
"""

from __future__ import annotations

import re
import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recaption.decoding.audio.codecs import OPUS_RATE_HZ, num_opus_samples, parse_aac_config, without_adts
from recaption.decoding.audio.encode import encode_span
from recaption.decoding.audio.streams import (
    MAX_STREAMS,
    DecodedPacket,
    audio_streams,
    decoded_packets,
    named_layout,
    opened_audio,
)
from recaption.decoding.audio.tracks import LAYOUTS, AudioTrack, ClipAudio, Packet
from recaption.errors import VideoError

if TYPE_CHECKING:
    from recaption.decoding.video_file import VideoFile

FRAME_SAMPLES = {"aac": (1024,), "mp3": (1152, 576), "opus": ()}
"""Samples of a packet of the codecs that are copied; those of Opus are in the packet."""
PREROLL_SAMPLES = {"aac": 2 * 1024, "mp3": 10 * 1152, "opus": 3840}
"""Before the start, for the decoder: AAC overlaps by one frame; the main data of an MP3 frame may begin 511 bytes earlier,
up to 9 frames at 32 kbit/s; Opus converges within 80 ms (RFC 7845, 4.2)."""


def cut_audio(video: VideoFile, start_seconds: float, end_seconds: float, *, may_copy: bool = True) -> ClipAudio:
    """The audio streams of a file in [start, end), times as those of its video frames.

    Args:
        may_copy: whether packets may be copied; else all streams are encoded.

    No damage raises an error: it costs the stream that has it.
    """
    if video.is_webp:
        return ClipAudio()
    with opened_audio(video) as container:
        streams = audio_streams(container)
        kept = sorted(streams[:MAX_STREAMS], key=lambda stream: stream.index)
        facts = [_StreamFacts.of(stream) for stream in kept]
    lost = [f"{len(streams) - MAX_STREAMS} more streams than {MAX_STREAMS}"] if len(streams) > MAX_STREAMS else []
    tracks = []
    for stream in facts:
        try:
            track = _cut_stream(video, stream, start_seconds, end_seconds, may_copy=may_copy)
        except VideoError as error:
            lost.append(f"stream {stream.index} ({stream.codec}): {error.detail}")
            continue
        if track is not None:
            tracks.append(track)
    return ClipAudio(tuple(tracks), tuple(lost))


@dataclass(frozen=True)
class _StreamFacts:
    index: int
    codec: str
    config: bytes
    language: str

    @classmethod
    def of(cls, stream: Any) -> _StreamFacts:
        context = stream.codec_context
        language = str(stream.metadata.get("language", "")).lower()
        language = language if re.fullmatch("[a-z]{3}", language) and language != "und" else ""
        return cls(stream.index, context.codec.canonical_name, bytes(context.extradata or b""), language)


@dataclass
class _Span:
    """What decoding a span once has shown of it."""

    preroll: deque[DecodedPacket] = field(default_factory=deque)
    packets: list[DecodedPacket] = field(default_factory=list)
    rates_hz: set[int] = field(default_factory=set)
    layouts: set[str] = field(default_factory=set)
    longest_frame: int = 0


def _cut_stream(
    video: VideoFile, stream: _StreamFacts, start_seconds: float, end_seconds: float, *, may_copy: bool
) -> AudioTrack | None:
    """None where the stream has no sound in the span.

    Raises:
        VideoError: it is damaged there.
    """
    span = _survey(video, stream, start_seconds, end_seconds)
    if not span.packets or not span.rates_hz:
        return None
    track = _copied(stream, span, start_seconds) if may_copy else None
    track = track or encode_span(
        decoded_packets(video, stream.index, start_seconds, end_seconds),
        start_seconds,
        end_seconds,
        source_codec=stream.codec,
        language=stream.language,
    )
    return track and track.ending_at(end_seconds - start_seconds)


def _survey(video: VideoFile, stream: _StreamFacts, start_seconds: float, end_seconds: float) -> _Span:
    """Decode the span, and keep only its packets, not what they decode to."""
    span = _Span()
    is_copyable = stream.codec in FRAME_SAMPLES
    for packet in decoded_packets(video, stream.index, start_seconds, end_seconds):
        frame_seconds = sum(frame.samples / frame.sample_rate for frame in packet.frames)
        is_before = packet.seconds + frame_seconds <= start_seconds if packet.frames else packet.seconds < start_seconds
        kept = DecodedPacket(packet.seconds, packet.payload if is_copyable else b"", [], packet.error, packet.is_hidden)
        if is_before:
            span.preroll.append(kept)
            while len(span.preroll) > 32:
                span.preroll.popleft()
            continue
        if packet.error:
            raise VideoError("truncated", f"damaged at {packet.seconds:.2f} s: {packet.error}")
        span.packets.append(kept)
        for frame in packet.frames:
            span.rates_hz.add(frame.sample_rate)
            span.layouts.add(named_layout(frame.layout).name)
            span.longest_frame = max(span.longest_frame, frame.samples)
    return span


def _copied(stream: _StreamFacts, span: _Span, start_seconds: float) -> AudioTrack | None:
    """The packets as they are; None where that would not be exact."""
    if stream.codec not in FRAME_SAMPLES or len(span.rates_hz) != 1 or len(span.layouts) != 1:
        return None
    (rate_hz,), (layout,) = span.rates_hz, span.layouts
    if layout not in LAYOUTS or any(packet.is_hidden for packet in span.packets):
        return None
    if stream.codec == "opus" and (rate_hz != OPUS_RATE_HZ or layout not in ("mono", "stereo")):
        return None
    preroll = [packet.payload for packet in span.preroll]
    payloads = _raw_payloads(stream, [*preroll, *(packet.payload for packet in span.packets)])
    if payloads is None:
        return None
    durations = _durations(stream.codec, span.longest_frame, payloads)
    if durations is None:
        return None
    first = len(preroll)
    position = _first_position(span.packets, durations[first:], rate_hz, start_seconds)
    if position is None or position > durations[first] // 2:
        return None
    begin = first
    time = position
    while begin > 0 and position - time < PREROLL_SAMPLES[stream.codec]:
        begin -= 1
        time -= durations[begin]
    packets = []
    for payload, duration in zip(payloads[begin:], durations[begin:], strict=True):
        packets.append(Packet(time, duration, payload))
        time += duration
    return AudioTrack(stream.codec, rate_hz, layout, tuple(packets), language=stream.language)


def _raw_payloads(stream: _StreamFacts, payloads: list[bytes]) -> list[bytes] | None:
    """Packets as an mp4 holds them; None where it does not."""
    if stream.codec != "aac":
        return payloads
    if stream.config:
        config = parse_aac_config(stream.config)
        return payloads if config is not None and config.is_plain else None
    raw = []
    for payload in payloads:
        parsed = without_adts(payload)
        if parsed is None or not parsed[0].is_plain:
            return None
        raw.append(parsed[1])
    return raw


def _durations(codec: str, longest_frame: int, payloads: list[bytes]) -> list[int] | None:
    """Samples of each packet; None where that is not certain."""
    if codec == "opus":
        durations = [num_opus_samples(payload) for payload in payloads]
        return durations if all(durations) else None
    return [longest_frame] * len(payloads) if longest_frame in FRAME_SAMPLES[codec] else None


def _first_position(
    packets: list[DecodedPacket], durations: list[int], rate_hz: int, start_seconds: float
) -> int | None:
    """Samples from the start of the span to the first packet, by the times of all; None where there are gaps.

    Times are rounded in files: the median over all packets is closer than any of them.
    """
    offsets = list(_offsets(packets, durations, rate_hz, start_seconds))
    middle = statistics.median(offsets)
    if max(abs(offset - middle) for offset in offsets) > min(durations) / 2:
        return None
    return round(middle)


def _offsets(packets: list[DecodedPacket], durations: list[int], rate_hz: int, start_seconds: float) -> Iterator[float]:
    counted = 0
    for packet, duration in zip(packets, durations, strict=True):
        yield (packet.seconds - start_seconds) * rate_hz - counted
        counted += duration
