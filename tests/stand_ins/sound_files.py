"""Videos whose sound tells the time: a chirp, whose every stretch differs from every other."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

FPS, HEIGHT_PX, WIDTH_PX = 25, 48, 64
BLOCK = 1024


def chirp(seconds: float, rate_hz: int, *, offset_seconds: float = 0.0) -> np.ndarray:
    """(N,) float32: a tone that rises by 250 Hz a second, from 200 Hz at 0 s."""
    times = offset_seconds + np.arange(round(seconds * rate_hz)) / rate_hz
    wave: np.ndarray = 0.3 * np.sin(2 * np.pi * (200 * times + 125 * times * times))
    return wave.astype(np.float32)


def write_sounding_video(
    path: Path,
    tracks: Sequence[dict[str, Any]] = ({},),
    *,
    seconds: float = 6.0,
    gop: int = 12,
    frame_seconds: Sequence[float] | np.ndarray | None = None,
    frames_THWC: np.ndarray | None = None,
) -> Path:
    """A video of `seconds`, grey that brightens, with audio tracks.

    Args:
        frames_THWC: other pictures.
        tracks: each with `codec` (aac), `rate_hz` (48000), `layout` (stereo), `samples_N` (a chirp that starts with the
            video), `start_seconds` (0), `silent_spans` (left out of the file) and `language`.
        frame_seconds: when frames are shown; None: evenly.
    """
    times = np.arange(round(seconds * FPS)) / FPS if frame_seconds is None else np.asarray(frame_seconds)
    frames = _grey_frames(len(times)) if frames_THWC is None else frames_THWC
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=FPS)
        video.height, video.width, video.pix_fmt = *frames[0].shape[:2], "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.thread_count = 1
        video.options = {"g": str(gop), "sc_threshold": "0", "preset": "ultrafast"}
        streams = []
        for track in tracks:
            rate_hz, layout = track.get("rate_hz", 48_000), track.get("layout", "stereo")
            stream = output.add_stream(track.get("codec", "aac"), rate=rate_hz, layout=layout)
            if "language" in track:
                stream.metadata["language"] = track["language"]
            stream.codec_context.options = {"strict": "-2"}
            streams.append((stream, track, rate_hz, layout))
        for stream, track, rate_hz, layout in streams:
            for frame in _sound_frames(stream, track, seconds, rate_hz, layout):
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        for pixels_HWC, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), format="rgb24")
            frame.pts, frame.time_base = round(float(time) * 1000), Fraction(1, 1000)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    return path


def _grey_frames(count: int) -> list[np.ndarray]:
    frames = []
    for number in range(count):
        grey = np.full((HEIGHT_PX, WIDTH_PX, 3), 20 + number % 200, np.uint8)
        grey[: HEIGHT_PX // 2, : number % WIDTH_PX] //= 2
        frames.append(grey)
    return frames


def _sound_frames(stream: Any, track: dict[str, Any], seconds: float, rate_hz: int, layout: str) -> Iterator[Any]:
    start = track.get("start_seconds", 0.0)
    samples_N = track.get("samples_N")
    if samples_N is None:
        samples_N = chirp(seconds - start, rate_hz, offset_seconds=start)
    num_channels = av.AudioLayout(layout).nb_channels
    size = stream.codec_context.frame_size or BLOCK
    for first in range(0, len(samples_N), size):
        block_N = samples_N[first : first + size]
        time = start + first / rate_hz
        if any(begin <= time < end for begin, end in track.get("silent_spans", ())):
            continue
        block_CN = np.stack([block_N * (1 - 0.1 * channel) for channel in range(num_channels)])
        planar = av.AudioFrame.from_ndarray(np.ascontiguousarray(block_CN), format="fltp", layout=layout)
        planar.sample_rate = rate_hz
        frame = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate_hz).resample(planar)[0]
        frame.pts, frame.time_base = round(time * rate_hz), Fraction(1, rate_hz)
        yield frame


def decoded_sound(mp4: bytes, stream: int = 0) -> tuple[float, np.ndarray, int]:
    """(time of the first sample, (channels, N) float32, samples per second) of an audio stream, as any reader sees it."""
    parts, start, rate_hz = [], 0.0, 0
    with av.open(io.BytesIO(mp4)) as container:
        for frame in container.decode(container.streams.audio[stream]):
            if not parts:
                start, rate_hz = float(frame.pts * frame.time_base), frame.sample_rate
            values = frame.to_ndarray()
            parts.append(values if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels).T)
    return start, np.concatenate(parts, axis=1).astype(np.float32), rate_hz


def chirp_time(samples_N: np.ndarray, rate_hz: int, seconds: float) -> float:
    """Second of the chirp at which these samples begin, by the peak of their correlation with it."""
    reference = chirp(seconds, rate_hz)
    size = 1 << int(np.ceil(np.log2(len(reference) + len(samples_N))))
    spectrum = np.fft.rfft(reference, size) * np.conj(np.fft.rfft(samples_N, size))
    return int(np.argmax(np.fft.irfft(spectrum, size))) / rate_hz
