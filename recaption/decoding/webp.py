"""Animated WebP through Pillow: FFmpeg's decoder knows still pictures only. Used inside the decoder child."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from recaption.errors import VideoError

TIME_BASE = Fraction(1, 1000)
"""WebP counts milliseconds."""


FALLBACK_DURATION = 40
"""Ticks for pictures that claim to last no time at all: FFmpeg's 25 pictures per second."""


class Picture(NamedTuple):
    pixels_HWC: np.ndarray
    pts: int
    duration: int


def is_animated_webp(file: Any) -> bool:
    """Whether bit 1 of the VP8X flags says animation (RFC 9649, 2.7.1)."""
    head = os.pread(file.fileno(), 21, 0)
    return len(head) == 21 and head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def _opened(file: Any, max_pixels: int) -> Any:
    from PIL import Image

    file.seek(0)
    try:
        picture = Image.open(file, formats=["WEBP"])
    except Image.DecompressionBombError as error:
        raise VideoError("too_large", str(error)) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise VideoError("unreadable", f"not a WebP file: {error}") from None
    width_px, height_px = picture.size
    if width_px * height_px > max_pixels:
        raise VideoError("too_large", f"{width_px}x{height_px} pixels, more than {max_pixels = }")
    return picture


def num_pictures(file: Any, max_pixels: int) -> int:
    return int(_opened(file, max_pixels).n_frames)


def pictures(file: Any, max_pixels: int) -> Iterator[Picture]:
    """All pictures in order, RGB.

    Raises:
        VideoError: unreadable, too_large, or truncated where a later picture does not decode.
    """
    animation = _opened(file, max_pixels)
    milliseconds = 0
    for number in range(animation.n_frames):
        try:
            animation.seek(number)
            pixels_HWC = np.asarray(animation.convert("RGB"))
        except (OSError, EOFError, SyntaxError, ValueError) as error:
            raise VideoError("truncated" if number else "unreadable", f"picture {number}: {error}") from None
        duration = int(animation.info.get("duration") or FALLBACK_DURATION)
        yield Picture(pixels_HWC, milliseconds, duration)
        milliseconds += duration
