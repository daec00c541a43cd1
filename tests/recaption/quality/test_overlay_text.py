"""Overlays on a moving picture are found; where the picture is too still to tell, the score is None and not 0."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from recaption.quality.overlay_text import overlay_text_fraction
from recaption.scenes.renderer import render

RNG = np.random.default_rng(4)
TEXTURE = cv2.GaussianBlur(RNG.integers(0, 256, (400, 800)).astype(np.uint8), (0, 0), 3)
TEXTURE = cv2.normalize(TEXTURE, None, 30, 200, cv2.NORM_MINMAX)


def panning(num_frames: int = 10, step_px: int = 17) -> np.ndarray:
    return np.stack([TEXTURE[60:240, 20 + step_px * i : 340 + step_px * i] for i in range(num_frames)])


def watermarked(luma_NHW: np.ndarray, text: str, position: tuple[int, int], opacity: float = 0.8) -> np.ndarray:
    drawn_HW = np.zeros(luma_NHW.shape[1:], np.uint8)
    cv2.putText(drawn_HW, text, position, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2, cv2.LINE_AA)
    alpha_HW = drawn_HW / 255.0 * opacity
    return (luma_NHW * (1 - alpha_HW) + 255 * alpha_HW).astype(np.uint8)


@pytest.mark.parametrize("position", [(10, 170), (180, 25), (100, 95)])
def test_watermark_on_a_panning_picture_is_found_at_any_position(position):
    fraction = overlay_text_fraction(watermarked(panning(), "example.org", position))
    assert fraction is not None
    assert 0.01 < fraction < 0.12


def test_panning_picture_without_overlay_scores_zero():
    assert overlay_text_fraction(panning()) == 0.0


def test_text_that_moves_with_the_scene_is_not_a_watermark():
    plain = panning()
    frames = [watermarked(plain[i : i + 1], "example.org", (200 - 17 * i, 95))[0] for i in range(len(plain))]
    assert overlay_text_fraction(np.stack(frames)) == 0.0


def test_letterbox_bars_are_no_overlay():
    barred = panning()
    barred[:, :, :30] = barred[:, :, -30:] = 5
    barred[:, :20] = barred[:, -20:] = 5
    assert overlay_text_fraction(barred) == 0.0


def test_still_pictures_and_few_frames_give_none():
    assert overlay_text_fraction(np.repeat(panning(1), 10, axis=0)) is None
    assert overlay_text_fraction(panning(3)) is None
    still = render(3, num_frames=16, height_px=180, width_px=320, fps=8, camera="fixed", action="stays still")
    luma_NHW = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in still.frames_THWC])
    assert overlay_text_fraction(luma_NHW) is None


@pytest.mark.parametrize("shape", [(6, 2, 2), (6, 1, 40), (6, 40, 3)])
def test_tiny_frames_are_accepted(shape):
    assert overlay_text_fraction(RNG.integers(0, 256, shape).astype(np.uint8)) in (None, 0.0)
