"""Sound levels of a video's audio: energies of every hundredth of a second, from one decode of its best stream.

    levels = measure(video, 0.0, 61.4)
    levels.fields                  # {"has_audio": True, "audio_codec": "aac", ...}: columns of records.Video
    levels.energies_N2             # (6140, 2) float32: K-weighted sum of the channels; loudest channel

K-weighting is the filter of ITU-R BS.1770-5, annex 1, with its coefficients for any rate by the bilinear transform (Brecht
De Man, "Evaluation of implementations of the EBU R128 loudness measurement", AES 145, 2018), run by libavfilter. The
loudness of a clip follows from these energies (recaption/quality/loudness.py), so one decode serves all clips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import av.filter
import numpy as np

from recaption.decoding.audio.sound import CELLS_PER_SECOND, no_energies
from recaption.decoding.audio.streams import (
    DecodedPacket,
    Timeline,
    audio_streams,
    decoded_packets,
    named_layout,
    opened_audio,
    samples_of,
)

if TYPE_CHECKING:
    from recaption.decoding.video_file import VideoFile

MAX_RUN_SAMPLES = 48_000
"""Frames are measured together up to so many samples a channel: a call of the filter costs as much as 500 samples."""
SURROUND_WEIGHT = 1.41
"""BS.1770-5, table 3: of channels beside and behind; 0 for the low frequencies, 1 for all others."""
SURROUND_CHANNELS = frozenset({"BL", "BR", "BC", "SL", "SR", "SDL", "SDR"})
LOW_FREQUENCY_CHANNELS = frozenset({"LFE", "LFE2"})


@dataclass
class Levels:
    """What is known of the sound of a video."""

    fields: dict[str, Any] = field(default_factory=dict)
    """Columns of `records.Video`."""
    energies_N2: np.ndarray = field(default_factory=no_energies)
    """As of `SoundLevels`, from the first frame on."""


def measure(video: VideoFile, start_seconds: float, end_seconds: float) -> Levels:
    """Decode the best audio stream within the time of the video.

    No damage raises an error: it is said in `audio_detail`, and costs those hundredths of a second.
    """
    with opened_audio(video) as container:
        streams = audio_streams(container)
        if not streams:
            return Levels()
        best = streams[0]
        context = best.codec_context
        fields = {
            "audio_codec": context.codec.canonical_name,
            "audio_channels": context.channels,
            "audio_rate_hz": context.sample_rate or 0,
            "num_audio_streams": len(streams),
        }
        index = best.index
    meter = _Meter(start_seconds, end_seconds)
    for packet in decoded_packets(video, index, start_seconds, end_seconds):
        meter.add(packet)
    meter.finish()
    fields["has_audio"] = meter.num_samples > 0
    if meter.num_samples:
        fields |= {"audio_channels": meter.channels, "audio_rate_hz": meter.rate_hz}
    if meter.num_errors:
        fields["audio_detail"] = f"{meter.num_errors} damaged packets, the first at {meter.first_error}"
    elif not meter.num_samples:
        fields["audio_detail"] = "the stream has no sound within the video"
    return Levels(fields, meter.energies_N2 if meter.num_samples else no_energies())


class _Meter:
    """Sums energies of decoded frames into cells."""

    def __init__(self, start_seconds: float, end_seconds: float) -> None:
        self.start_seconds = start_seconds
        num_cells = max(1, math.ceil((end_seconds - start_seconds) * CELLS_PER_SECOND - 1e-6))
        self.energies_N2 = np.zeros((num_cells, 2), np.float32)
        self.num_samples = self.channels = self.rate_hz = self.num_errors = 0
        self.first_error = ""
        self.layout = ""
        self.timeline: Timeline | None = None
        self.filter: _KWeighting | None = None
        self.run: list[np.ndarray] = []
        self.run_start = self.run_samples = 0

    def add(self, packet: DecodedPacket) -> None:
        if packet.seconds >= self.start_seconds and packet.error:
            self._note_damage(packet)
            return
        for frame in packet.frames:
            self._add_frame(frame)

    def _note_damage(self, packet: DecodedPacket) -> None:
        self.num_errors += 1
        self.first_error = self.first_error or f"{packet.seconds:.2f} s: {packet.error}"
        cell = int((packet.seconds - self.start_seconds) * CELLS_PER_SECOND)
        num_damaged = max(1, math.ceil(1024 / (self.rate_hz or 48_000) * CELLS_PER_SECOND))
        self.energies_N2[cell : cell + num_damaged] = np.nan

    def _add_frame(self, frame: Any) -> None:
        if self.timeline is None or (frame.sample_rate, frame.layout.name) != (self.rate_hz, self.layout):
            self.finish()
            self.rate_hz, self.layout, self.channels = frame.sample_rate, frame.layout.name, frame.layout.nb_channels
            self.timeline = Timeline(self.start_seconds, self.rate_hz)
            self.filter = _KWeighting(self.rate_hz, frame.layout)
        seconds = None if frame.pts is None else float(frame.pts * frame.time_base)
        position = self.timeline.place(seconds, frame.samples)
        if position != self.run_start + self.run_samples or self.run_samples >= MAX_RUN_SAMPLES:
            self.finish()
            self.run_start = position
        self.run.append(samples_of(frame))
        self.run_samples += frame.samples

    def finish(self) -> None:
        """Measure the frames collected so far."""
        if not self.run or self.filter is None:
            return
        samples_CN = np.concatenate(self.run, axis=1)
        weighted_N = self.filter(samples_CN)
        positions = self.run_start + np.arange(samples_CN.shape[1])
        self.run, self.run_start, self.run_samples = [], self.run_start + self.run_samples, 0
        cells = positions * CELLS_PER_SECOND // self.rate_hz
        inside = slice(*np.searchsorted(cells, [0, len(self.energies_N2)]))
        cells = cells[inside]
        if not len(cells):
            return
        self.num_samples += len(cells)
        starts = np.flatnonzero(np.diff(cells, prepend=cells[0] - 1))
        per_cell = CELLS_PER_SECOND / self.rate_hz
        squares_CN = np.square(samples_CN[:, inside])
        for column, sums in enumerate(
            (np.add.reduceat(weighted_N[inside], starts), np.add.reduceat(squares_CN, starts, axis=1).max(axis=0))
        ):
            self.energies_N2[cells[starts], column] += sums * per_cell


class _KWeighting:
    """The weighted sum over channels of the squared K-weighted samples; its filters remember the samples before."""

    def __init__(self, rate_hz: int, layout: Any) -> None:
        names = [channel.name for channel in named_layout(layout).channels]
        self.weights_C = [_channel_weight(name) for name in names]
        if not any(self.weights_C):
            self.weights_C = [1.0] * len(names)
        self.filters = [_ChannelFilter(rate_hz) for _ in names]

    def __call__(self, samples_CN: np.ndarray) -> np.ndarray:
        weighted_N = np.zeros(samples_CN.shape[1], np.float32)
        for weight, channel_filter, samples_N in zip(self.weights_C, self.filters, samples_CN, strict=True):
            if weight:
                weighted_N += weight * np.square(channel_filter(samples_N))
        return weighted_N


class _ChannelFilter:
    """K-weighting of one channel by libavfilter's `biquad`."""

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz, self.time_base, self.num_pushed = rate_hz, Fraction(1, rate_hz), 0
        self.graph = av.filter.Graph()
        last = self.graph.add_abuffer(sample_rate=rate_hz, format="fltp", layout="mono", time_base=self.time_base)
        for coefficients in k_weighting(rate_hz):
            arguments = ":".join(f"{name}={value!r}" for name, value in coefficients.items())
            following = self.graph.add("biquad", arguments)
            last.link_to(following)
            last = following
        last.link_to(self.graph.add("abuffersink"))
        self.graph.configure()

    def __call__(self, samples_N: np.ndarray) -> np.ndarray:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples_N[None]), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = self.rate_hz, self.num_pushed, self.time_base
        self.num_pushed += len(samples_N)
        self.graph.push(frame)
        filtered_N: np.ndarray = self.graph.pull().to_ndarray()[0]
        return filtered_N


def _channel_weight(name: str) -> float:
    if name in LOW_FREQUENCY_CHANNELS:
        return 0.0
    return SURROUND_WEIGHT if name in SURROUND_CHANNELS else 1.0


def k_weighting(rate_hz: int) -> tuple[dict[str, float], dict[str, float]]:
    """Coefficients of the two filters of BS.1770, high shelf and high pass, at any sample rate; a0 is 1."""
    k, q = math.tan(math.pi * 1681.974450955533 / rate_hz), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    norm = 1 + k / q + k * k
    shelf = {
        "b0": (high + band * k / q + k * k) / norm,
        "b1": 2 * (k * k - high) / norm,
        "b2": (high - band * k / q + k * k) / norm,
        "a0": 1.0,
        "a1": 2 * (k * k - 1) / norm,
        "a2": (1 - k / q + k * k) / norm,
    }
    k, q = math.tan(math.pi * 38.13547087602444 / rate_hz), 0.5003270373238773
    norm = 1 + k / q + k * k
    high_pass = {
        "b0": 1.0,
        "b1": -2.0,
        "b2": 1.0,
        "a0": 1.0,
        "a1": 2 * (k * k - 1) / norm,
        "a2": (1 - k / q + k * k) / norm,
    }
    return shelf, high_pass
