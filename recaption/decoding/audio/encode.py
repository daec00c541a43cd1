"""Encodes a span of decoded audio as AAC, on the clock of the video: gaps are silence, what overlaps is left out.

    track = encode_span(packets, 12.48, 22.48, source_codec="ac3")
    track.packets[0].time                    # -1024: the encoder's delay, which the edit list of the mp4 hides

FFmpeg's own AAC-LC encoder, at `BITS_PER_CHANNEL` a second. The same span gives the same bytes on the same kind of CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np

from recaption.decoding.audio.streams import DecodedPacket, Timeline, named_layout, samples_of
from recaption.decoding.audio.tracks import LAYOUTS, AudioTrack, Packet
from recaption.errors import VideoError

BITS_PER_CHANNEL = 96_000
"""A second: 192 kbit/s for stereo, where listeners no longer tell AAC-LC from its source."""
FRAME_SAMPLES = 1024
RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""Kept as they are; other rates become 48000."""
BACK_FOR_SIDE = {"5.0(side)": "5.0", "5.1(side)": "5.1"}
"""The same speakers under the names that AAC has for them."""
BLOCK_SAMPLES = 48_000


def encode_span(
    packets: Iterable[DecodedPacket], start_seconds: float, end_seconds: float, *, source_codec: str, language: str = ""
) -> AudioTrack | None:
    """[start, end) of a stream as one track; None where nothing decodes in it.

    Raises:
        VideoError: a packet in the span is damaged.
    """
    placed = _PlacedSamples(start_seconds, end_seconds)
    encoder: Any = None
    encoded: list[Packet] = []
    for block_CN in placed.blocks(packets):
        if encoder is None:
            encoder = _Encoder(placed.rate_hz, placed.layout)
        encoded += encoder.encode(block_CN)
    if encoder is None:
        return None
    encoded += encoder.finish()
    return AudioTrack("aac", encoder.rate_hz, encoder.layout, tuple(encoded), source_codec, language)


class _PlacedSamples:
    """Decoded frames, as consecutive samples from the start of a span to its end."""

    def __init__(self, start_seconds: float, end_seconds: float) -> None:
        self.start_seconds, self.end_seconds = start_seconds, end_seconds
        self.rate_hz = 0
        self.layout = ""
        """Of the first frame, like the rate; others are converted to it."""

    def blocks(self, packets: Iterable[DecodedPacket]) -> Iterator[np.ndarray]:
        """(channels, samples) float32 blocks that fill the span."""
        timeline: Timeline | None = None
        done = num_samples = num_channels = 0
        for packet in packets:
            if packet.error and packet.seconds >= self.start_seconds:
                raise VideoError("truncated", f"damaged at {packet.seconds:.2f} s: {packet.error}")
            for frame in packet.frames:
                if timeline is None:
                    self.rate_hz, self.layout = frame.sample_rate, named_layout(frame.layout).name
                    timeline = Timeline(self.start_seconds, self.rate_hz)
                    num_samples = max(1, round((self.end_seconds - self.start_seconds) * self.rate_hz))
                    num_channels = frame.layout.nb_channels
                samples_CN = self._as_first(frame)
                seconds = None if frame.pts is None else float(frame.pts * frame.time_base)
                position = timeline.place(seconds, samples_CN.shape[1])
                samples_CN = samples_CN[:, max(0, done - position) : max(0, num_samples - position)]
                position = max(position, done)
                if not samples_CN.shape[1]:
                    continue
                yield from _silence(num_channels, position - done)
                yield samples_CN
                done = position + samples_CN.shape[1]
        if done:
            yield from _silence(num_channels, num_samples - done)

    def _as_first(self, frame: Any) -> np.ndarray:
        layout = named_layout(frame.layout).name
        if (frame.sample_rate, layout) == (self.rate_hz, self.layout):
            return samples_of(frame)
        block = av.AudioFrame.from_ndarray(samples_of(frame), format="fltp", layout=layout)
        block.sample_rate, block.pts, block.time_base = frame.sample_rate, 0, Fraction(1, frame.sample_rate)
        resampler = av.AudioResampler(format="fltp", layout=self.layout, rate=self.rate_hz)
        parts = [part.to_ndarray() for part in (*resampler.resample(block), *resampler.resample(None))]
        return np.concatenate(parts, axis=1)


def _silence(num_channels: int, num_samples: int) -> Iterator[np.ndarray]:
    while num_samples > 0:
        count = min(num_samples, BLOCK_SAMPLES)
        yield np.zeros((num_channels, count), np.float32)
        num_samples -= count


def track_layout(layout: str, num_channels: int) -> str:
    """The layout that a track has: as the source where AAC has a number for it, else 5.1, stereo or mono."""
    layout = BACK_FOR_SIDE.get(layout, layout)
    if layout in LAYOUTS:
        return layout
    return "5.1" if num_channels >= 6 else "stereo" if num_channels >= 2 else "mono"


class _Encoder:
    """AAC-LC of consecutive samples."""

    def __init__(self, source_rate_hz: int, source_layout: str) -> None:
        self.source_rate_hz, self.source_layout = source_rate_hz, source_layout
        num_channels = av.AudioLayout(source_layout).nb_channels
        self.rate_hz = source_rate_hz if source_rate_hz in RATES_HZ else 48_000
        self.layout = track_layout(source_layout, num_channels)
        self.num_pushed = 0
        self.resampler = av.AudioResampler(
            format="fltp", layout=self.layout, rate=self.rate_hz, frame_size=FRAME_SAMPLES
        )
        self.context: Any = av.CodecContext.create("aac", "w")
        self.context.sample_rate, self.context.layout, self.context.format = self.rate_hz, self.layout, "fltp"
        self.context.time_base = Fraction(1, self.rate_hz)
        self.context.bit_rate = BITS_PER_CHANNEL * av.AudioLayout(self.layout).nb_channels
        self.context.thread_count = 1
        self.context.options = {"flags": "+bitexact"}

    def encode(self, samples_CN: np.ndarray) -> list[Packet]:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples_CN), format="fltp", layout=self.source_layout)
        frame.sample_rate, frame.time_base = self.source_rate_hz, Fraction(1, self.source_rate_hz)
        frame.pts = self.num_pushed
        self.num_pushed += samples_CN.shape[1]
        return self._encoded(self.resampler.resample(frame))

    def finish(self) -> list[Packet]:
        return [*self._encoded(self.resampler.resample(None)), *self._packets(None)]

    def _encoded(self, frames: list[Any]) -> list[Packet]:
        return [packet for frame in frames for packet in self._packets(frame)]

    def _packets(self, frame: Any) -> list[Packet]:
        return [Packet(packet.pts, FRAME_SAMPLES, bytes(packet)) for packet in self.context.encode(frame)]
