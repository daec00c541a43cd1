"""Quality scores have the documented unit and scale."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from recaption.quality.scores import ScoreSettings, blockiness, flicker, letterbox_fraction, score_clip, text_fraction
from recaption.records import ClipScores
from recaption.scenes.captions import ATTRIBUTE_VALUES
from recaption.scenes.renderer import render
from recaption.video_io.frames import Frames


def as_frames(pixels_THWC: np.ndarray, fps: float) -> Frames:
    return Frames(pixels_THWC, np.arange(len(pixels_THWC)) / fps, np.arange(len(pixels_THWC)))


def downscaled(pixels_THWC: np.ndarray, px: int = 48) -> np.ndarray:
    height, width = pixels_THWC.shape[1:3]
    size = (round(width * px / min(height, width)), round(height * px / min(height, width)))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in pixels_THWC])


def scores_of(pixels_THWC: np.ndarray, fps: float = 8) -> ClipScores:
    every = max(1, round(fps / 2))
    return score_clip("clip", as_frames(downscaled(pixels_THWC), fps), as_frames(pixels_THWC[::every], fps / every))


def scene(seed: int, *, fps: int = 8, **constraints) -> np.ndarray:
    calm = {"weather": "clear", "style": "flat"} | constraints
    return render(seed, num_frames=2 * fps + 1, height_px=120, width_px=200, fps=fps, **calm).frames_THWC


@pytest.mark.parametrize("fps", [8, 24, 30])
def test_pan_is_measured_in_frame_heights_per_second_at_any_frame_rate(fps):
    pixels = scene(3, fps=fps, camera="pans left", action="stays still", text="")
    seconds = (len(pixels) - 1) / fps
    expected = min(0.45 * 200, 120) / seconds / 120
    scores = scores_of(pixels, fps)
    assert scores.motion == pytest.approx(expected, rel=0.25)
    assert scores.camera_motion == pytest.approx(expected, rel=0.25)


def test_moving_object_is_motion_but_no_camera_motion():
    for seed in range(4):
        scores = scores_of(scene(seed, action="moves left", camera="fixed", size="large", texture="striped"))
        assert scores.motion > 0.01
        assert scores.camera_motion < 0.4 * scores.motion


def test_still_clip_has_zero_motion_and_a_single_frame_none():
    pixels = scene(2, action="stays still", camera="fixed")
    assert scores_of(pixels).motion == pytest.approx(0.0, abs=1e-3)
    assert scores_of(pixels[:1]).motion is None
    assert scores_of(pixels[:1]).sharpness > 0
    nothing = score_clip("clip", as_frames(pixels[:0], 8), as_frames(pixels[:0], 8))
    assert nothing == ClipScores(clip_id="clip")


def test_number_of_flow_pairs_is_limited():
    pixels = np.zeros((900, 48, 48, 3), np.uint8)
    frames = as_frames(pixels, 30)
    few = score_clip("clip", frames, as_frames(pixels[::15], 2), ScoreSettings(max_flow_pairs=5))
    assert few.motion == 0.0


def test_sharpness_falls_with_blur():
    pixels = scene(1)
    values = [scores_of(pixels).sharpness]
    for sigma in (1, 2, 4):
        values.append(scores_of(np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in pixels])).sharpness)
    assert values == sorted(values, reverse=True)
    assert values[0] > 50 * values[-1]


@pytest.mark.parametrize("level", [0, 128, 255])
def test_luma_is_a_fraction_of_white(level):
    assert scores_of(np.full((4, 64, 64, 3), level, np.uint8)).luma == pytest.approx(level / 255, abs=1e-3)


def test_letterbox_counts_only_bars_that_are_dark_in_every_frame():
    pixels = np.maximum(scene(1), 60)
    pixels[:, :15] = pixels[:, -15:] = 4
    assert scores_of(pixels).letterbox == pytest.approx(0.25, abs=0.02)
    pixels[3, :15] = 200
    luma_NHW = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pixels])
    assert letterbox_fraction(luma_NHW, 24.0) == pytest.approx(0.125, abs=0.02)
    assert scores_of(np.zeros((4, 64, 64, 3), np.uint8)).letterbox == 0.0


def test_text_score_separates_scenes_with_and_without_text():
    limit, hits, false, missed = 0.03, 0, 0, 0
    for seed in range(40):
        has_text = seed % 2 == 0
        pixels = render(
            seed + 500, num_frames=6, height_px=180, width_px=240, text=ATTRIBUTE_VALUES["text"] if has_text else ""
        ).frames_THWC
        fraction = np.mean([text_fraction(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in pixels[::3]])
        hits += has_text and fraction > limit
        missed += has_text and fraction <= limit
        false += not has_text and fraction > limit
    assert hits / (hits + missed) >= 0.9
    assert hits / max(hits + false, 1) >= 0.8


def lit(lumas: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.asarray(lumas)[:, None, None] * 255, (len(lumas), 8, 8)).round().astype(np.uint8)


def test_flicker_is_light_that_reverts_not_light_that_changes():
    times = np.arange(60) / 30
    for lumas in (np.full(60, 0.5), np.linspace(0.1, 0.9, 60), np.where(times < 1, 0.2, 0.8)):
        assert flicker(lit(lumas), times) == pytest.approx(0.0, abs=1e-6)
    alternating = flicker(lit(0.5 + 0.05 * (-1.0) ** np.arange(60)), times)
    assert alternating == pytest.approx(0.05, abs=0.005)
    flash = np.full(60, 0.2)
    flash[[20, 41]] = 1.0
    assert 0.01 < flicker(lit(flash), times) < alternating
    assert flicker(lit(np.zeros(2)), times[:2]) is None


def test_flicker_is_the_same_at_any_frame_rate():
    values = []
    for fps in (24, 60):
        times = np.arange(2 * fps) / fps
        values.append(flicker(lit(0.5 + 0.1 * np.sin(2 * np.pi * 5 * times)), times))
    assert values[0] == pytest.approx(values[1], rel=0.2)
    assert values[0] == pytest.approx(0.1, rel=0.1)


def compressed(pixels_THWC: np.ndarray, quality: int) -> np.ndarray:
    encoded = [cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1] for frame in pixels_THWC]
    return np.stack([cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE) for jpeg in encoded])


def test_blockiness_rises_with_compression_also_after_downscaling():
    rng = np.random.default_rng(1)
    noise = cv2.resize(rng.integers(0, 256, (23, 31, 3)).astype(np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    pixels = np.stack([noise, noise[::-1]])
    for size in ((480, 640), (256, 341), (480, 341)):
        shrunk_by_quality = []
        for quality in (100, 20, 5):
            small = [cv2.resize(f, size[::-1], interpolation=cv2.INTER_AREA) for f in compressed(pixels, quality)]
            shrunk_by_quality.append(blockiness(np.stack(small), (480, 640)))
        assert shrunk_by_quality == sorted(shrunk_by_quality)
        assert shrunk_by_quality[0] < 0.1
        assert shrunk_by_quality[2] > 0.3


def test_blocks_too_small_to_see_give_none():
    luma_NHW = np.zeros((2, 256, 455), np.uint8)
    assert blockiness(luma_NHW, (1080, 1920)) is None
    assert blockiness(luma_NHW, (480, 853)) == 0.0
    assert blockiness(luma_NHW[:, :12, :12]) is None


def test_all_scores_but_those_of_models_are_filled():
    scores = scores_of(scene(3, fps=24, camera="pans left", text=""), fps=24)
    empty = {name for name in scores.__dataclass_fields__ if getattr(scores, name) is None}
    assert empty == {"nsfw", "aesthetic", "text_area_ocr", "static_text_ocr", "loudness_lufs", "silence_fraction"}
