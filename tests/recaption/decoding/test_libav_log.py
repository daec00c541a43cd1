"""Damage that libav does not report is noticed all the same."""

from __future__ import annotations

import av
import numpy as np
import pytest

from recaption.decoding.libav_log import undecoded_share


def frame(pixel_format: str, *, num_empty_rows: int) -> av.VideoFrame:
    """A grey picture whose lowest rows were never decoded: zero in all planes."""
    picture = av.VideoFrame(64, 64, pixel_format)
    for index, plane in enumerate(picture.planes):
        kind = np.uint16 if "10" in pixel_format else np.uint8
        rows = np.full((plane.height, plane.line_size // np.dtype(kind).itemsize), 100 + index, kind)
        rows[plane.height - num_empty_rows * plane.height // 64 :] = 0
        plane.update(rows)
    return picture


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_the_share_without_any_colour_is_what_was_not_decoded(pixel_format):
    assert undecoded_share(frame(pixel_format, num_empty_rows=0)) == 0.0
    assert undecoded_share(frame(pixel_format, num_empty_rows=32)) == pytest.approx(0.5, abs=0.1)


def test_grey_pictures_and_dark_ones_are_no_damage():
    black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
    assert undecoded_share(black.reformat(format="yuv420p")) == 0.0
    assert undecoded_share(black.reformat(format="gray")) == 0.0
    assert undecoded_share(black) == 0.0
