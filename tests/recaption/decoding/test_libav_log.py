"""Damage that libav does not report is detected."""

from __future__ import annotations

import av
import numpy as np
import pytest

from recaption.decoding.libav_log import undecoded_fraction


def frame(pixel_format: str, *, num_empty_rows: int) -> av.VideoFrame:
    """A grey frame whose lowest rows were never decoded: zero in all planes."""
    grey = av.VideoFrame(64, 64, pixel_format)
    for index, plane in enumerate(grey.planes):
        kind = np.uint16 if "10" in pixel_format else np.uint8
        rows = np.full((plane.height, plane.line_size // np.dtype(kind).itemsize), 100 + index, kind)
        rows[plane.height - num_empty_rows * plane.height // 64 :] = 0
        plane.update(rows)
    return grey


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_the_fraction_without_chroma_is_what_was_not_decoded(pixel_format):
    assert undecoded_fraction(frame(pixel_format, num_empty_rows=0)) == 0.0
    assert undecoded_fraction(frame(pixel_format, num_empty_rows=32)) == pytest.approx(0.5, abs=0.1)


def test_grey_and_black_frames_are_not_damage():
    black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
    assert undecoded_fraction(black.reformat(format="yuv420p")) == 0.0
    assert undecoded_fraction(black.reformat(format="gray")) == 0.0
    assert undecoded_fraction(black) == 0.0
