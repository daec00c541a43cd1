"""Frame rules and sizes of the models that exports are fitted to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.export.video_models import VIDEO_MODELS, video_model
from recaption.errors import UsageError


@pytest.mark.parametrize(
    ("name", "num_frames", "longest"),
    [("wan2.1", 81, 81), ("wan2.1", 500, 81), ("wan2.1", 80, 77), ("wan2.1", 5, 5), ("wan2.1", 4, 0), ("wan2.1", 0, 0),
     ("ltx", 120, 113), ("ltx", 8, 0), ("ltx", 9, 9), ("cosmos-predict2", 94, 93)],
)  # fmt: skip
def test_longest_frame_count_that_the_model_takes(name, num_frames, longest):
    assert video_model(name).longest(num_frames) == longest


def test_an_image_is_one_frame():
    assert video_model("wan2.1").longest(1, is_image=True) == 1
    assert video_model("wan2.1").longest(1) == 0


@given(st.sampled_from(sorted(VIDEO_MODELS)), st.integers(64, 2200), st.integers(64, 4000))
def test_sizes_are_multiples_within_the_area_and_never_enlarged(name, height_px, width_px):
    model = video_model(name)
    size = model.size_of(height_px, width_px)
    if size is not None:
        height, width = size
        assert height % model.size_multiple_px == width % model.size_multiple_px == 0
        assert height * width <= model.area_px
        assert height <= height_px
        assert width <= width_px


def test_published_sizes_come_out_for_full_hd():
    assert video_model("wan2.1").size_of(1080, 1920) == (464, 832)
    assert video_model("wan2.2-5b").size_of(1080, 1920) == (704, 1248)


def test_other_numbers_than_the_models():
    assert video_model("ltx", fps=30, max_frames=97).longest(100) == 97
    with pytest.raises(UsageError, match="use 97 or 105"):
        video_model("ltx", max_frames=100)
    with pytest.raises(UsageError, match="at least"):
        video_model("ltx", area_px=100)
