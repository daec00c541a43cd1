"""Animated WebP decoding with Pillow: FFmpeg's decoder supports still images only. Runs in the decoder child."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image, WebPImagePlugin

from recaption.decoding.messages import limit_text
from recaption.errors import VideoError

TIME_BASE = Fraction(1, 1000)
"""WebP timestamps are milliseconds."""
FALLBACK_DURATION = 40
"""Ticks for frames with a duration of zero: 25 frames per second, FFmpeg's default."""


def import_plugins() -> None:
    """Import what Pillow imports before it opens its first file."""
    Image.preinit()
    assert WebPImagePlugin.SUPPORTED, "this Pillow was built without WebP"


def is_animated_webp(file: Any) -> bool:
    """Whether the animation flag, bit 1 of the VP8X flags, is set (RFC 9649, 2.7.1)."""
    head = os.pread(file.fileno(), 21, 0)
    return len(head) == 21 and head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def _open_animation(file: Any, max_pixels: int) -> Any:
    file.seek(0)
    try:
        image = Image.open(file, formats=["WEBP"])
    except Image.DecompressionBombError as error:
        raise VideoError("too_large", str(error)) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise VideoError("unreadable", f"not a WebP file: {error}") from None
    width_px, height_px = image.size
    if width_px * height_px > max_pixels:
        raise VideoError(
            "too_large", f"{width_px}x{height_px} pixels, more than {limit_text('max_pixels', max_pixels)}"
        )
    return image


def count_frames(file: Any, max_pixels: int) -> int:
    return int(_open_animation(file, max_pixels).n_frames)


def decode_frames(file: Any, max_pixels: int) -> Iterator[Any]:
    """All frames in order, as `av.VideoFrame`: RGB, with alpha where the animation has it.

    Raises:
        VideoError: unreadable, too_large, or truncated where a later frame does not decode.
    """
    animation = _open_animation(file, max_pixels)
    milliseconds = 0
    for number in range(animation.n_frames):
        try:
            animation.seek(number)
            is_rgba = "A" in animation.getbands()
            pixels_HWC = np.asarray(animation.convert("RGBA" if is_rgba else "RGB"))
        except (OSError, EOFError, SyntaxError, ValueError) as error:
            raise VideoError("truncated" if number else "unreadable", f"frame {number}: {error}") from None
        duration = int(animation.info.get("duration") or FALLBACK_DURATION)
        frame = av.VideoFrame.from_ndarray(pixels_HWC, format="rgba" if is_rgba else "rgb24")
        frame.pts, frame.duration, frame.time_base = milliseconds, duration, TIME_BASE
        yield frame
        milliseconds += duration
