"""Sync of the audio of clips with their sources, and what audio costs, over the videos of a folder.

    python tests/benchmarks/recaption/bench_audio.py FOLDER [--clips 20]

Clips are cut at odd places, as shards have them, read back, and compared with the source decoded as a whole, its frames
at their times: the shift of the highest correlation. Then the CPU time of the decoder child for a scan with and without
audio, in turn, medians of `--rounds`.
"""

from __future__ import annotations

import argparse
import io
import resource
import statistics
from pathlib import Path
from typing import Any

import av
import numpy as np

from recaption.decoding.messages import ScanRequest
from recaption.errors import VideoError
from recaption.video_io import process
from recaption.video_io.client import DecodeResponse
from recaption.video_io.opened_video import OpenedVideo, open_video
from recaption.video_io.writer import encode_video

CLIP_SECONDS = 1.5
MAX_SHIFT_SECONDS = 0.5
MAX_ROUNDING_SECONDS = 0.002


def placed_sound(file: Any) -> tuple[float, np.ndarray, int, int]:
    """(time of the first sample, samples of the first channel in their times, samples per second, samples of a frame)."""
    parts = []
    with av.open(file) as container:
        stream = container.streams.audio[0]
        for frame in container.decode(stream):
            values = frame.to_ndarray()
            channels_CN = values if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels).T
            scale = np.iinfo(values.dtype).max if values.dtype.kind == "i" else 1
            parts.append((float(frame.pts * frame.time_base), channels_CN[0].astype(np.float32) / scale))
        rate_hz = frame.sample_rate
    start = parts[0][0]
    sound_N = np.zeros(round((parts[-1][0] - start) * rate_hz) + len(parts[-1][1]) + 1, np.float32)
    position = 0
    for seconds, samples_N in parts:
        stated = round((seconds - start) * rate_hz)
        position = position if abs(stated - position) <= MAX_ROUNDING_SECONDS * rate_hz else stated
        sound_N[position : position + len(samples_N)] = samples_N[: len(sound_N) - position]
        position += len(samples_N)
    return start, sound_N, rate_hz, max(len(samples_N) for _, samples_N in parts)


def shift_seconds(path: str, opened: OpenedVideo, start: float) -> tuple[float, float, str] | None:
    """(shift, seconds of an audio frame, what became of it) of a clip; None where there is nothing to hear."""
    first = float(opened.frame_seconds(0, 1)[0])
    audio = opened.read_audio(start, start + CLIP_SECONDS)
    if not audio.tracks:
        return None
    mp4 = encode_video(np.zeros((12, 16, 16, 3), np.uint8), fps=8, audio=audio.tracks[:1])
    source_start, source_N, rate_hz, frame_samples = placed_sound(path)
    clip_start, clip_N, clip_rate_hz, _ = placed_sound(io.BytesIO(mp4))
    if clip_rate_hz != rate_hz or not first <= start:
        return None
    clip_N = clip_N[rate_hz // 5 : rate_hz]
    reach = round(MAX_SHIFT_SECONDS * rate_hz)
    expected = round((start - source_start + clip_start) * rate_hz) + rate_hz // 5
    window_N = source_N[max(0, expected - reach) : expected + reach + len(clip_N)]
    if np.square(clip_N).mean() < 1e-7 or len(window_N) <= len(clip_N):
        return None
    correlation = np.correlate(window_N, clip_N, "valid")
    energies = np.convolve(np.square(window_N), np.ones(len(clip_N)), "valid")
    found = int(np.argmax(correlation / np.sqrt(energies + 1e-9))) + max(0, expected - reach)
    return (found - expected) / rate_hz, frame_samples / rate_hz, audio.description


def child_cpu_seconds(path: str, measures_audio: bool) -> float:
    """CPU time that a decoder child uses for one scan; it is ended after it."""
    process.close()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open_video(path) as opened:
        request = ScanRequest(small_px=48, detail_px=256, detail_every_seconds=0.5, measures_audio=measures_audio)
        DecodeResponse(opened.input.file, opened.limits, request)
    process.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows, longest = [], (0.0, "")
    for path in sorted(map(str, arguments.folder.rglob("*"))):
        try:
            with open_video(path) as opened:
                video = opened.probe()
                if video.status != "ok" or video.duration_seconds < 2 * CLIP_SECONDS:
                    continue
                first = float(opened.frame_seconds(0, 1)[0])
                for part in (0.0, 0.137, 0.61803):
                    start = first + part * (video.duration_seconds - CLIP_SECONDS)
                    found = shift_seconds(path, opened, start)
                    if found is not None:
                        rows.append((Path(path).name, start, *found))
                        longest = max(longest, (video.duration_seconds, path))
        except (VideoError, OSError):
            continue
    rows = rows[:: max(1, len(rows) // arguments.clips)][: arguments.clips]
    for name, start, shift, frame, became in rows:
        print(f"{name:44s} {start:9.4f} s  {became:18s} {shift * 1000:8.3f} ms of a frame's {frame * 1000:.1f} ms")
    print(f"{len(rows)} clips, largest shift {max(abs(row[2]) for row in rows) * 1000:.3f} ms")
    seconds, path = longest
    times = [(child_cpu_seconds(path, True), child_cpu_seconds(path, False)) for _ in range(arguments.rounds)]
    with_audio, without = (statistics.median(side) for side in zip(*times))
    per_minute = (with_audio - without) / seconds * 60
    print(f"scan of {Path(path).name} ({seconds:.1f} s): {with_audio / without:.3f} of its CPU time without audio")
    print(f"audio: {per_minute:.2f} s of CPU per minute")


if __name__ == "__main__":
    main()
