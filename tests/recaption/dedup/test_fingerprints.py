"""What a fingerprint does not see: encoding, size, bars, frame rate. What it does: everything else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from recaption.dedup.fingerprints import (
    HASH_CROPS,
    HASH_TYPE,
    LUMA_VALUES,
    NO_HASH,
    PICTURE_VALUES,
    ClipFingerprint,
    fingerprint_clip,
    lit_box,
    samples_of,
)
from recaption.records import Clip, from_table, to_table
from recaption.scenes.renderer import render
from recaption.video_io.frames import Frames


def small_of(pixels_THWC: np.ndarray) -> np.ndarray:
    """Short side 48 px, as `scan` hands them out."""
    height, width = pixels_THWC.shape[1:3]
    scale = 48 / min(height, width)
    size = (round(width * scale), round(height * scale))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in pixels_THWC])


def fingerprint_of(
    pixels_THWC: np.ndarray, fps: float = 8.0, *, clip_id: str = "clip", starts_at: float = 0.0
) -> ClipFingerprint:
    num_frames, height_px, width_px = pixels_THWC.shape[:3]
    frames = Frames(small_of(pixels_THWC), starts_at + np.arange(num_frames) / fps, np.arange(num_frames))
    end_seconds = starts_at + num_frames / fps
    place = {"video_id": "0", "uri": "", "shot_index": 0, "start_frame": 0, "end_frame": num_frames, "fps": fps}
    clip = Clip(
        clip_id=clip_id,
        start_seconds=starts_at,
        end_seconds=end_seconds,
        width_px=width_px,
        height_px=height_px,
        **place,
    )
    return fingerprint_clip(clip, frames, bytes_per_second=1000.0)


def hashes_of(made: ClipFingerprint) -> np.ndarray:
    return np.frombuffer(made.hashes, HASH_TYPE).reshape(made.num_samples, len(HASH_CROPS))


def difference(a: ClipFingerprint, b: ClipFingerprint) -> float:
    """Mean of the luma, 0..255, over all samples."""
    values = (samples_of(one.pictures)[:, :LUMA_VALUES].astype(float) for one in (a, b))
    return float(np.abs(np.subtract(*values)).mean())


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return render(11, num_frames=24, height_px=144, width_px=192, fps=8).frames_THWC


def test_four_samples_a_second_and_they_come_back_from_a_table(scene):
    made = fingerprint_of(scene)
    assert made.num_samples == 12
    assert made.seconds == 3.0
    assert samples_of(made.pictures).shape == (12, PICTURE_VALUES)
    assert from_table(to_table([made], ClipFingerprint), ClipFingerprint) == [made]


def test_where_in_its_video_a_clip_lies_changes_nothing(scene):
    assert fingerprint_of(scene) == fingerprint_of(scene, starts_at=512.0)


def test_size_and_frame_rate_change_little(scene):
    whole = fingerprint_of(scene)
    half = np.stack([cv2.resize(frame, (96, 72), interpolation=cv2.INTER_AREA) for frame in scene])
    assert difference(whole, fingerprint_of(half)) < 2
    assert difference(whole, fingerprint_of(scene[::2], fps=4.0)) < 6
    other = render(12, num_frames=24, height_px=144, width_px=192, fps=8).frames_THWC
    assert difference(whole, fingerprint_of(other)) > 12


def test_bars_are_cut_off_and_do_not_count_as_pixels(scene):
    framed = np.pad(scene, ((0, 0), (24, 24), (0, 0), (0, 0)))
    whole, boxed = fingerprint_of(scene), fingerprint_of(framed)
    assert difference(whole, boxed) < 6
    assert 0.92 * whole.num_pixels < boxed.num_pixels < whole.num_pixels == 144 * 192


def test_a_night_sky_is_no_bar_and_a_black_clip_has_no_box():
    rng = np.random.default_rng(0)
    luma_THW = rng.integers(120, 200, (5, 48, 64)).astype(np.uint8)
    luma_THW[:, :12] = rng.integers(0, 30, (5, 12, 64))
    assert lit_box(luma_THW) == (0, 48, 0, 64)
    luma_THW[:, :12] = 16
    assert lit_box(luma_THW) == (12, 48, 0, 64)
    assert lit_box(np.zeros((5, 48, 64), np.uint8)) == (0, 48, 0, 64)


def test_plain_blue_around_a_word_is_no_bar():
    word = np.zeros((8, 96, 96, 3), np.uint8)
    word[..., 2] = 255
    word[:, 40:50, 20:70] = 255
    assert fingerprint_of(word).num_pixels == 96 * 96


@pytest.mark.parametrize("luma", [0, 90, 255])
def test_flat_clips_have_no_hashes(luma, scene):
    rng = np.random.default_rng(1)
    noisy = np.clip(luma + rng.normal(0, 2, scene.shape), 0, 255).astype(np.uint8)
    assert (hashes_of(fingerprint_of(noisy)) == NO_HASH).all()
    assert (hashes_of(fingerprint_of(scene)) != NO_HASH).all()


def test_a_cropped_copy_has_nearly_the_hash_of_the_same_crop_of_the_original(scene):
    height, width = scene.shape[1:3]
    top, left = round(0.04 * height), round(0.04 * width)
    original, cropped = (
        hashes_of(fingerprint_of(x)) for x in (scene, scene[:, top : height - top, left : width - left])
    )
    plain = np.bitwise_count(original[:, 0] ^ cropped[:, 0])
    best = np.bitwise_count(original[:, :, None] ^ cropped[:, None, :]).min(axis=(1, 2))
    assert best.mean() < plain.mean()
    assert best.max() <= 12


def test_one_frame_is_one_sample(scene):
    assert fingerprint_of(scene[:1]).num_samples == 1
