"""Scaling of RGB frames: as the scaler of decoded frames does it, up to rounding."""

from __future__ import annotations

import av
import numpy as np
import pytest
from coded_files import scene_frames

from recaption.decoding.backends.rgb_scaler import RgbScaler
from recaption.decoding.orientation import Orientation
from recaption.decoding.picture.scaler import Scaler

TURNED = Orientation(is_transposed=True, flips_rows=True)


@pytest.fixture(scope="module")
def pixels_HWC():
    return scene_frames(1, height_px=128, width_px=192)[0]


@pytest.mark.parametrize("orientation", [Orientation(), TURNED], ids=["upright", "turned"])
@pytest.mark.parametrize("size", [(64, 96), (48, 72), (37, 61), (200, 300), (128, 192)], ids=str)
def test_planar_rgb_is_scaled_as_decoded_frames_are(pixels_HWC, orientation, size):
    """Of Y'CbCr 4:4:4 nothing but rounding is left of the difference."""
    frame = av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24").reformat(format="yuv444p")
    size = orientation.size(*size)
    expected = Scaler(orientation, *size)(frame)
    got = RgbScaler(orientation, *size)(frame.to_ndarray(format="rgb24"))
    assert got.shape == expected.shape == (*size, 3)
    difference = np.abs(got.astype(int) - expected)
    assert difference.mean() < 1.5
    assert np.percentile(difference, 99) <= 4


def test_each_channel_is_scaled_alone(pixels_HWC):
    scaler = RgbScaler(Orientation(), 50, 70)
    red = pixels_HWC * np.array([1, 0, 0], np.uint8)
    got = scaler(red)
    assert not got[..., 1:].any()
    assert np.array_equal(got[..., 0], scaler(pixels_HWC)[..., 0])


def test_the_same_size_is_the_same_bytes(pixels_HWC):
    assert np.array_equal(RgbScaler(Orientation(), 128, 192)(pixels_HWC), pixels_HWC)
