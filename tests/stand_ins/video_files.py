"""Videos for tests: written by PyAV, or made and decoded by the `ffmpeg` program where that is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")


def ffmpeg(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = ["ffmpeg", "-hide_banner", "-nostdin", "-y", "-threads", "1", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True)


def ffmpeg_pixels(path: Path, filters: str, height_px: int, width_px: int) -> np.ndarray:
    """(N, height, width, 3) uint8: what ffmpeg decodes and filters."""
    output = ["-vf", filters, "-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = ffmpeg("-v", "error", "-i", path, *output).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height_px, width_px, 3)


def write_frames(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str,
    pixel_format: str,
    source_format: str = "rgb24",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    gop_size: int = 12,
    setup: Callable[[Any], None] = lambda context: None,
) -> Path:
    """Frames at 25 per second in one stream.

    Args:
        source_format: of the arrays, as `av.VideoFrame.from_ndarray` takes them.
        setup: called with the codec context before it is opened.
    """
    with av.open(str(path), "w", options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=Fraction(25))
        first = av.VideoFrame.from_ndarray(frames[0], format=source_format)
        stream.height, stream.width, stream.pix_fmt = first.height, first.width, pixel_format
        stream.codec_context.options = options or {}
        stream.codec_context.gop_size, stream.codec_context.thread_count = gop_size, 1
        setup(stream.codec_context)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format=source_format)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
