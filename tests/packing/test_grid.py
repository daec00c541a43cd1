from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packing.grid import Grid, positions, sample_flops
from recaption.errors import UsageError


def test_sizes_on_the_way_from_pixels_to_tokens() -> None:
    grid = Grid(frame_stride=4, spatial_stride=8, patch=(1, 2, 2))
    assert grid.latent_shape(17, 144, 256) == (5, 18, 32)
    assert grid.token_shape(17, 144, 256) == (5, 9, 16)
    assert grid.num_tokens(17, 144, 256) == 720
    assert grid.num_tokens(1, 144, 256) == 144  # an image


@given(st.integers(0, 40), st.integers(1, 8), st.integers(1, 8), st.sampled_from([(1, 1, 1), (1, 2, 2), (1, 1, 4)]))
def test_every_pixel_belongs_to_one_token(k: int, rows: int, columns: int, patch: tuple[int, int, int]) -> None:
    grid = Grid(patch=patch)
    num_frames, height, width = 4 * k + 1, rows * 8 * patch[1], columns * 8 * patch[2]
    assert grid.num_tokens(num_frames, height, width) * patch[1] * patch[2] * 64 == (1 + k) * height * width


@pytest.mark.parametrize(
    ("size", "named"), [((16, 96, 96), "16 frames"), ((17, 100, 96), "height 100"), ((17, 96, 97), "width 97")]
)
def test_sizes_that_would_lose_frames_or_pixels_are_named(size: tuple[int, int, int], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Grid().num_tokens(*size)


def test_latent_that_does_not_divide_into_patches_is_named() -> None:
    with pytest.raises(UsageError, match=r"\(5, 9, 16\).* does not divide into patches \(1, 2, 2\): choose a patch"):
        Grid(patch=(1, 2, 2)).num_tokens(17, 72, 128)


@pytest.mark.parametrize("wrong", [{"patch": (1, 0, 1)}, {"patch": (2, 2)}, {"spatial_stride": 0}])
def test_impossible_grid_is_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Grid(**wrong)


def test_positions_count_columns_fastest() -> None:
    table = positions((2, 3, 4))
    assert table.shape == (24, 3)
    assert table.dtype == np.int64
    assert [tuple(p) for p in table] == [(f, r, c) for f in range(2) for r in range(3) for c in range(4)]


def test_attention_cost_grows_with_the_square() -> None:
    long, short = sample_flops(np.array([16_384, 1024]), width=1152)
    assert long == 24 * 1152**2 * 16_384 + 4 * 1152 * 16_384**2
    assert long > 16 * short * 1.5
