"""Fingerprints are invariant to encoding, size, bars and frame rate, and to little else."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest

from recaption.dedup.fingerprints import (
    LUMA_VALUES,
    MAX_THUMBNAILS,
    NO_HASH,
    THUMBNAIL_VALUES,
    ClipFingerprint,
    content_box,
    thumbnails_from_bytes,
)
from recaption.records import from_table, to_table
from recaption.scenes.renderer import render
from tests.stand_ins.fingerprints import fingerprint_of, hashes_of


def difference(a: ClipFingerprint, b: ClipFingerprint) -> float:
    """Mean absolute luma difference, 0..255, over all thumbnails."""
    values = (thumbnails_from_bytes(one.pictures)[:, :LUMA_VALUES].astype(float) for one in (a, b))
    return float(np.abs(np.subtract(*values)).mean())


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return render(11, num_frames=24, height_px=144, width_px=192, fps=8).frames_THWC


def test_four_thumbnails_a_second_survive_a_table_round_trip(scene):
    fingerprint = fingerprint_of(scene)
    assert fingerprint.num_samples == 12
    assert fingerprint.seconds == 3.0
    assert thumbnails_from_bytes(fingerprint.pictures).shape == (12, THUMBNAIL_VALUES)
    assert from_table(to_table([fingerprint], ClipFingerprint), ClipFingerprint) == [fingerprint]


def test_start_time_in_the_video_does_not_matter(scene):
    assert fingerprint_of(scene) == fingerprint_of(scene, start_seconds=512.0)


def test_size_and_frame_rate_change_little(scene):
    whole = fingerprint_of(scene)
    half = np.stack([cv2.resize(frame, (96, 72), interpolation=cv2.INTER_AREA) for frame in scene])
    assert difference(whole, fingerprint_of(half)) < 2
    assert difference(whole, fingerprint_of(scene[::2], fps=4.0)) < 6
    other = render(12, num_frames=24, height_px=144, width_px=192, fps=8).frames_THWC
    assert difference(whole, fingerprint_of(other)) > 12


def test_letterbox_bars_are_removed_and_not_counted_as_pixels(scene):
    framed = np.pad(scene, ((0, 0), (24, 24), (0, 0), (0, 0)))
    whole, boxed = fingerprint_of(scene), fingerprint_of(framed)
    assert difference(whole, boxed) < 6
    assert 0.92 * whole.num_pixels < boxed.num_pixels < whole.num_pixels == 144 * 192


def test_night_sky_is_no_bar_and_a_black_clip_is_not_cropped():
    rng = np.random.default_rng(0)
    luma_THW = rng.integers(120, 200, (5, 48, 64)).astype(np.uint8)
    luma_THW[:, :12] = rng.integers(0, 30, (5, 12, 64))
    assert content_box(luma_THW) == (0, 48, 0, 64)
    luma_THW[:, :12] = 16
    assert content_box(luma_THW) == (12, 48, 0, 64)
    assert content_box(np.zeros((5, 48, 64), np.uint8)) == (0, 48, 0, 64)


def test_saturated_blue_border_is_no_bar():
    word = np.zeros((8, 96, 96, 3), np.uint8)
    word[..., 2] = 255
    word[:, 40:50, 20:70] = 255
    assert fingerprint_of(word).num_pixels == 96 * 96


@pytest.mark.parametrize("luma", [0, 90, 255])
def test_uniform_clips_have_no_hashes(luma, scene):
    rng = np.random.default_rng(1)
    noisy = np.clip(luma + rng.normal(0, 2, scene.shape), 0, 255).astype(np.uint8)
    assert (hashes_of(fingerprint_of(noisy)) == NO_HASH).all()
    assert (hashes_of(fingerprint_of(scene)) != NO_HASH).all()


def test_cropped_copy_has_nearly_the_hash_of_that_crop_of_the_original(scene):
    height, width = scene.shape[1:3]
    top, left = round(0.04 * height), round(0.04 * width)
    original, cropped = (
        hashes_of(fingerprint_of(x)) for x in (scene, scene[:, top : height - top, left : width - left])
    )
    plain = np.bitwise_count(original[:, 0] ^ cropped[:, 0])
    best = np.bitwise_count(original[:, :, None] ^ cropped[:, None, :]).min(axis=(1, 2))
    assert best.mean() < plain.mean()
    assert best.max() <= 12


def test_one_frame_gives_one_thumbnail(scene):
    assert fingerprint_of(scene[:1]).num_samples == 1


def test_two_frames_ten_hours_apart_have_a_fingerprint_of_bounded_size(scene):
    tracemalloc.start()
    fingerprint = fingerprint_of(scene[:2], fps=1 / 18_000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fingerprint.seconds == 36_000.0
    assert fingerprint.num_samples == MAX_THUMBNAILS
    assert peak_bytes < 150e6
