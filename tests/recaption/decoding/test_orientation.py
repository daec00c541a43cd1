"""Display matrices turn frames as players do; sizes keep the aspect ratio."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recaption.decoding import orientation
from recaption.decoding.orientation import Orientation

ONE = 1 << 16
FRAME = np.array([[1, 2], [3, 4], [5, 6]], np.uint8)[..., None]


def matrix(a: int, b: int, c: int, d: int) -> tuple[int, ...]:
    """MP4 display matrix of x' = a x + c y, y' = b x + d y."""
    return (a, b, 0, c, d, 0, 0, 0, 1 << 30)


@pytest.mark.parametrize(
    ("abcd", "degrees", "displayed"),
    [
        ((ONE, 0, 0, ONE), 0, [[1, 2], [3, 4], [5, 6]]),
        ((0, ONE, -ONE, 0), 90, [[5, 3, 1], [6, 4, 2]]),
        ((-ONE, 0, 0, -ONE), 180, [[6, 5], [4, 3], [2, 1]]),
        ((0, -ONE, ONE, 0), 270, [[2, 4, 6], [1, 3, 5]]),
        ((-ONE, 0, 0, ONE), 0, [[2, 1], [4, 3], [6, 5]]),
        ((0, 0, 0, 0), 0, [[1, 2], [3, 4], [5, 6]]),
        ((46341, 46341, -46341, 46341), 0, [[1, 2], [3, 4], [5, 6]]),
    ],
    ids=["upright", "90", "180", "270", "mirrored", "all zero", "45"],
)
def test_a_display_matrix_turns_the_frame_clockwise(abcd, degrees, displayed):
    found = orientation.from_display_matrix(matrix(*abcd))
    np.testing.assert_array_equal(found.apply(FRAME)[..., 0], displayed)
    assert found.rotation_degrees == degrees
    assert found.size(3, 2) == (len(displayed), len(displayed[0]))


@pytest.mark.parametrize(("counterclockwise", "clockwise"), [(0, 0), (90, 270), (-90, 90), (180, 180), (450, 270)])
def test_an_angle_alone_gives_the_same_orientation_as_the_matrix(counterclockwise, clockwise):
    assert orientation.from_counterclockwise_degrees(counterclockwise).rotation_degrees == clockwise


def test_an_odd_angle_leaves_the_frame_as_stored():
    assert orientation.from_counterclockwise_degrees(45) == Orientation()


@given(st.booleans(), st.booleans(), st.booleans())
def test_matrix_and_pixels_agree(is_transposed: bool, flips_rows: bool, flips_columns: bool) -> None:
    expected = Orientation(is_transposed, flips_rows, flips_columns)
    x, y = (-1 if flips_columns else 1), (-1 if flips_rows else 1)
    abcd = (0, y, x, 0) if is_transposed else (x, 0, 0, y)
    assert orientation.from_display_matrix(matrix(*abcd)) == expected
    pixels_HWC = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert expected.apply(pixels_HWC).shape[:2] == expected.size(2, 3)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1080, 1920, (224, 398)), (1920, 1080, (398, 224)), (100, 100, (224, 224)), (2, 3000, (224, 336_000))],
)
def test_the_short_side_sets_the_size(height, width, expected):
    assert orientation.size_with_short_side(height, width, 224) == expected


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1080, 1920, (256, 455)), (1920, 1080, (455, 256)), (64, 64, (256, 256))],
)
def test_the_covering_size_of_a_square(height, width, expected):
    assert orientation.size_to_cover(height, width, 256, 256) == expected


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(16, 512), st.integers(16, 512))
def test_covering_sizes_cover_and_touch(height: int, width: int, cover_height: int, cover_width: int) -> None:
    scaled_height, scaled_width = orientation.size_to_cover(height, width, cover_height, cover_width)
    assert scaled_height >= cover_height
    assert scaled_width >= cover_width
    assert scaled_height == cover_height or scaled_width == cover_width


def test_the_center_crop_is_the_middle():
    pixels_HWC = np.arange(24).reshape(4, 6, 1)
    assert orientation.center_crop(pixels_HWC, 2, 2)[..., 0].tolist() == [[8, 9], [14, 15]]
