from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.buckets import Bucket, BucketTable, assign_bucket, bucket_name, crop_fraction, num_frames_in, parse_bucket
from recaption.errors import UsageError

sides = st.integers(min_value=1, max_value=4500)


@given(st.builds(Bucket, *[st.integers(min_value=1, max_value=10_000)] * 4))
def test_name_parses_back(bucket: Bucket) -> None:
    assert parse_bucket(bucket_name(bucket)) == bucket


@pytest.mark.parametrize("name", ["17f-144x256", "17f-144x256-8fps/..", "017f-1x1-1fps", "", "17f-0x16-8fps"])
def test_malformed_bucket_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="bucket"):
        parse_bucket(name)


@pytest.mark.parametrize("wrong", [0, 2, 8, 16, 18, -3])
def test_frame_count_that_is_not_4k_plus_1_is_named(wrong: int) -> None:
    with pytest.raises(UsageError, match=f"num_frames={wrong} is not 4k"):
        BucketTable(num_frames=(9, wrong))


def test_suggested_frame_counts_are_valid() -> None:
    with pytest.raises(UsageError, match="use 13 or 17"):
        BucketTable(num_frames=(16,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_frames": ()},
        {"num_frames": (9, 9)},
        {"max_areas_px": ()},
        {"max_areas_px": (100,)},
        {"size_multiple_px": 15},
        {"max_crop_fraction": 1.0},
        {"max_crop_fraction": -0.1},
        {"fps": 0},
        {"max_samples_per_shard": 0},
    ],
)
def test_invalid_table_names_the_field(wrong: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        BucketTable(**wrong)


def possible(width: int, height: int, target_px: int, max_crop: float) -> bool:
    """Whether any multiple of 16 fits, by exhaustive search."""
    for h in range(16, min(height, target_px // 16) + 1, 16):
        for w in range(16, min(width, target_px // h) + 1, 16):
            scale = max(h / height, w / width)
            cut_px = max(height * scale - h, width * scale - w)
            if cut_px < 16 - 1e-9 and crop_fraction(height, width, h, w) <= max_crop:
                return True
    return False


@settings(max_examples=200)
@given(width=st.integers(1, 700), height=st.integers(1, 700), area=st.integers(256, 60_000))
def test_no_bucket_only_where_none_is_possible(width: int, height: int, area: int) -> None:
    table = BucketTable(max_areas_px=(area,))
    found = assign_bucket(10.0, width, height, table) is not None
    assert found == possible(width, height, min(area, width * height), table.max_crop_fraction)


@settings(max_examples=300)
@given(width=sides, height=sides, areas=st.sets(st.integers(256, 600_000), min_size=1, max_size=3))
def test_bucket_keeps_ratio_never_upscales_and_stays_within_area(width: int, height: int, areas: set[int]) -> None:
    table = BucketTable(max_areas_px=tuple(areas))
    bucket = assign_bucket(10.0, width, height, table)
    if bucket is None:
        return
    assert bucket.height_px % 16 == 0
    assert bucket.width_px % 16 == 0
    assert bucket.height_px <= height
    assert bucket.width_px <= width
    target = max((a for a in areas if a <= width * height), default=width * height)
    assert bucket.height_px * bucket.width_px <= target
    assert crop_fraction(height, width, bucket.height_px, bucket.width_px) <= table.max_crop_fraction
    scale = max(bucket.height_px / height, bucket.width_px / width)
    cut = max(height * scale - bucket.height_px, width * scale - bucket.width_px)
    assert cut < 16


@given(width=st.integers(320, 4500), height=st.integers(320, 4500))
def test_mirrored_shape_gets_the_mirrored_bucket(width: int, height: int) -> None:
    table = BucketTable(max_areas_px=(480 * 480,))
    one, other = assign_bucket(2, width, height, table), assign_bucket(2, height, width, table)
    assert (one is None) == (other is None)
    if one and other and width != height:
        assert (one.height_px, one.width_px) == (other.width_px, other.height_px)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1920, 1080, (352, 624)),  # 0.3 % cropped; the exact 288x512 would crop a third of the pixels
        (1080, 1920, (624, 352)),
        (640, 480, (416, 544)),
        (1000, 1000, (480, 480)),
        (480, 480, (480, 480)),
    ],
)
def test_common_shapes_at_230_thousand_pixels(width: int, height: int, expected: tuple[int, int]) -> None:
    bucket = assign_bucket(5.0, width, height, BucketTable(max_areas_px=(480 * 480,)))
    assert bucket is not None
    assert (bucket.height_px, bucket.width_px) == expected


def test_small_clip_keeps_its_own_size() -> None:
    bucket = assign_bucket(5.0, 80, 64, BucketTable(max_areas_px=(96 * 96, 480 * 480)))
    assert bucket == Bucket(33, 64, 80, 8)


def test_large_clip_goes_to_the_largest_area_below_its_own() -> None:
    table = BucketTable(max_areas_px=(480 * 480, 96 * 96, 256 * 256))
    assert assign_bucket(5.0, 256, 256, table) == Bucket(33, 256, 256, 8)
    assert assign_bucket(5.0, 255, 255, table) == Bucket(33, 96, 96, 8)


@pytest.mark.parametrize("size", [(8, 8), (1000, 15), (15, 1000), (4000, 17)])
def test_too_small_or_too_elongated_has_no_bucket(size: tuple[int, int]) -> None:
    assert assign_bucket(5.0, *size, BucketTable()) is None


@pytest.mark.parametrize(
    ("seconds", "num_frames"),
    [(4.125, 33), (4.11, 17), (2.125, 17), (2.124, 17), (2.0, 9), (1.125, 9), (1.1, None), (0.0, None)],
)
def test_longest_frame_count_that_the_clip_fills(seconds: float, num_frames: int | None) -> None:
    bucket = assign_bucket(seconds, 96, 96, BucketTable(fps=8, num_frames=(33, 9, 17)))
    assert (bucket.num_frames if bucket else None) == num_frames


def test_image_is_a_video_of_one_frame() -> None:
    assert num_frames_in(0.0, 8) == 1
    assert assign_bucket(0.0, 96, 96, BucketTable(num_frames=(1, 9))) == Bucket(1, 96, 96, 8)
