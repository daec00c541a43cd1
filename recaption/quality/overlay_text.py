"""Overlay text: watermarks, logos and burnt-in captions, found by edges that persist while the picture moves.

    overlay_text_fraction(luma_NHW)          0.03: three per cent of the frame; None where too little moves to tell

An overlay keeps its edges, in place and direction, in every frame; the edges of filmed content come and go. Under a fixed
camera the scene keeps its edges too: there an overlay counts only where the picture around it changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

MIN_FRAMES = 4
SOBEL_GAIN = 4.0
"""Output of OpenCV's 3x3 Sobel operator per luma change of 1 per pixel."""
MIN_MEAN_EDGE = 10.0
"""Minimum mean gradient (luma 0..255 per pixel) of a persistent edge: white letters at an opacity of 0.3 have 15."""
MIN_FRAME_EDGE = 3.0
"""Minimum gradient of a persistent edge, in its own direction, in every single frame: scene edges appear and vanish."""
MIN_LUMA_DEVIATION = 6.0
"""Minimum standard deviation over time of the luma of a moving pixel."""
MIN_MOVING_FRACTION = 0.2
"""Minimum fraction of the frame that must move."""
MAX_PERSISTENT_FRACTION = 0.06
"""Maximum fraction of a frame's edges outside the overlays that persist in all frames; above it, camera and scene are too
still to tell overlays from the scene: handheld and panning shots have 0.00 to 0.06, fixed cameras 0.1 to 0.8."""


@dataclass(frozen=True, slots=True)
class _EdgeMaps:
    persistent_HW: np.ndarray
    """bool: pixels on an edge that is in every frame."""
    horizontal_gradient_HW: np.ndarray
    """Mean luma gradient along rows."""
    moving_HW: np.ndarray
    """bool: pixels whose luma changes over time."""
    edge_fraction: float
    """Mean fraction of the frame on any edge, persistent or not."""


def overlay_text_fraction(luma_NHW: np.ndarray) -> float | None:
    """Fraction of the frame (0..1) in boxes of overlay text or logos; None where too little moves to tell.

    Args:
        luma_NHW: uint8, frames over the whole clip, some tenths of a second apart.
    """
    if len(luma_NHW) < MIN_FRAMES:
        return None
    edges = _edge_maps(luma_NHW)
    persistent_HW, moving_HW = edges.persistent_HW, edges.moving_HW
    if moving_HW.mean() < MIN_MOVING_FRACTION:
        return None
    height, width = persistent_HW.shape
    letter_gap_px = max(3, round(min(height, width) * 0.02))
    letters_HW = cv2.morphologyEx(
        persistent_HW.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((max(3, letter_gap_px // 2), 2 * letter_gap_px + 1))
    )
    num_boxes, labels_HW, boxes, _ = cv2.connectedComponentsWithStats(letters_HW, connectivity=8)
    covered_HW = np.zeros((height, width), bool)
    for number in range(1, num_boxes):
        left, top, box_width, box_height, _ = (int(x) for x in boxes[number])
        if (
            box_height < max(4, 0.02 * height)
            or box_height > 0.35 * height
            or box_width < max(0.04 * width, box_height)
        ):
            continue
        inside = (slice(top, top + box_height), slice(left, left + box_width))
        box_edges_HW = persistent_HW[inside] & (labels_HW[inside] == number)
        margin = max(4, box_height // 2)
        rows = slice(max(top - margin, 0), top + box_height + margin)
        columns = slice(max(left - margin, 0), left + box_width + margin)
        if _is_lettering(box_edges_HW, edges.horizontal_gradient_HW[inside]) and _background_moves(
            moving_HW[rows, columns], persistent_HW[rows, columns]
        ):
            covered_HW[inside] = True
    if (persistent_HW & ~covered_HW).mean() > MAX_PERSISTENT_FRACTION * edges.edge_fraction:
        return None
    return float(covered_HW.mean())


def _edge_maps(luma_NHW: np.ndarray) -> _EdgeMaps:
    num_frames, *shape = luma_NHW.shape
    x_HW, y_HW, sum_HW, squares_HW = (np.zeros(shape, np.float32) for _ in range(4))
    gradients, num_edges = [], 0
    for frame_HW in luma_NHW:
        across, down = (gradient.astype(np.float32) for gradient in cv2.spatialGradient(np.ascontiguousarray(frame_HW)))
        cv2.accumulate(across, x_HW)
        cv2.accumulate(down, y_HW)
        cv2.accumulate(frame_HW, sum_HW)
        cv2.accumulateSquare(frame_HW, squares_HW)
        num_edges += int(
            (cv2.magnitude(across.astype(np.float32), down.astype(np.float32)) >= SOBEL_GAIN * MIN_MEAN_EDGE).sum()
        )
        gradients.append((across, down))
    x_HW, y_HW = x_HW / (SOBEL_GAIN * num_frames), y_HW / (SOBEL_GAIN * num_frames)
    magnitude_HW = np.hypot(x_HW, y_HW)
    # few pixels have such an edge: only these are checked in every single frame
    strong = np.nonzero(magnitude_HW >= MIN_MEAN_EDGE)
    x_K, y_K = x_HW[strong] / magnitude_HW[strong], y_HW[strong] / magnitude_HW[strong]
    along_NK = np.stack([across[strong] * x_K + down[strong] * y_K for across, down in gradients]) / SOBEL_GAIN
    persistent_HW = np.zeros(shape, bool)
    persistent_HW[strong] = along_NK.min(axis=0) >= MIN_FRAME_EDGE
    deviation_HW = np.sqrt(np.maximum(squares_HW / num_frames - (sum_HW / num_frames) ** 2, 0))
    edge_fraction = num_edges / luma_NHW.size
    return _EdgeMaps(
        persistent_HW & ~_long_lines(persistent_HW), x_HW, deviation_HW >= MIN_LUMA_DEVIATION, edge_fraction
    )


def _long_lines(persistent_HW: np.ndarray) -> np.ndarray:
    """Straight edges longer than any letter's: borders of letterbox bars and of picture-in-picture."""
    height, width = persistent_HW.shape
    lines_HW = np.zeros((height, width), np.uint8)
    for shape in ((max(5, round(0.15 * height)), 1), (1, max(5, round(0.15 * width)))):
        lines_HW |= cv2.morphologyEx(persistent_HW.astype(np.uint8), cv2.MORPH_OPEN, np.ones(shape, np.uint8))
    return cv2.dilate(lines_HW, np.ones((3, 3))).astype(bool)


def _is_lettering(persistent_HW: np.ndarray, horizontal_gradient_HW: np.ndarray) -> bool:
    """Whether the edges of a box are those of letters: dense, and every stroke has a left and a right edge."""
    rising = int((persistent_HW & (horizontal_gradient_HW > MIN_MEAN_EDGE / 2)).sum())
    falling = int((persistent_HW & (horizontal_gradient_HW < -MIN_MEAN_EDGE / 2)).sum())
    return bool(persistent_HW.mean() >= 0.15 and min(rising, falling) >= 0.5 * max(rising, falling))


def _background_moves(moving_HW: np.ndarray, persistent_HW: np.ndarray) -> bool:
    """Whether at least half of the pixels between the letters move."""
    free_HW = ~cv2.dilate(persistent_HW.astype(np.uint8), np.ones((3, 3))).astype(bool)
    return bool(free_HW.any() and moving_HW[free_HW].mean() >= 0.5)
