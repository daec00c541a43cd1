"""Watermarks, logos, burnt-in lines: marks that stay where they are while the picture under them moves.

    static_text(luma_NHW)          0.03: three per cent of the frame; None where nothing moves, so that nobody can tell

What is drawn over a video keeps its edges, in place and direction, in every frame; the edges of what was filmed come and
go. Under a fixed camera the scene keeps its edges too: there a mark counts only where the picture around it changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

LEAST_FRAMES = 4


GAIN = 4.0
"""Of OpenCV's 3x3 Sobel operator over half of what luma changes across two pixels."""


STATIC_EDGE = 10.0
"""Least mean gradient (luma 0..255 per pixel) of an edge that stays: white letters at an opacity of 0.3 have 15."""


WEAKEST_EDGE = 3.0
"""Least gradient of such an edge, in its own direction, in every single frame: scenes uncover and hide their edges."""


MOVING_LUMA = 6.0
"""Standard deviation of a pixel's luma over time from which it moves."""


LEAST_MOVING = 0.2
"""Share of the frame that must move at all."""


MOST_KEPT = 0.06
"""Share of a frame's edges outside the marks that stay in all frames, above which camera and scene are too still to tell
what is drawn over them: handheld and panning shots have 0.00 to 0.06, fixed cameras 0.1 to 0.8."""


@dataclass(frozen=True, slots=True)
class _Edges:
    kept_HW: np.ndarray
    """Pixels on an edge that stays, bool."""
    sideways_HW: np.ndarray
    """Mean gradient along rows."""
    moving_HW: np.ndarray
    """Pixels whose luma changes, bool."""
    edges_share: float
    """Mean share of the frame on an edge, staying or not."""


def static_text(luma_NHW: np.ndarray) -> float | None:
    """Share of the frame (0..1) in boxes of letters or marks that stay while the picture around them changes.

    Args:
        luma_NHW: frames over the whole clip, some tenths of a second apart; uint8.
    """
    if len(luma_NHW) < LEAST_FRAMES:
        return None
    edges = _kept_edges(luma_NHW)
    kept_HW, moving_HW = edges.kept_HW, edges.moving_HW
    if moving_HW.mean() < LEAST_MOVING:
        return None
    height, width = kept_HW.shape
    reach = max(3, round(min(height, width) * 0.02))
    letters = cv2.morphologyEx(kept_HW.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((max(3, reach // 2), 2 * reach + 1)))
    num_boxes, labels_HW, boxes, _ = cv2.connectedComponentsWithStats(letters, connectivity=8)
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
        own_HW = kept_HW[inside] & (labels_HW[inside] == number)
        margin = max(4, box_height // 2)
        rows = slice(max(top - margin, 0), top + box_height + margin)
        columns = slice(max(left - margin, 0), left + box_width + margin)
        if _is_mark(own_HW, edges.sideways_HW[inside]) and _moves_between(
            moving_HW[rows, columns], kept_HW[rows, columns]
        ):
            covered_HW[inside] = True
    if (kept_HW & ~covered_HW).mean() > MOST_KEPT * edges.edges_share:
        return None
    return float(covered_HW.mean())


def _kept_edges(luma_NHW: np.ndarray) -> _Edges:
    num_frames, *shape = luma_NHW.shape
    x_HW, y_HW, total_HW, squares_HW = (np.zeros(shape, np.float32) for _ in range(4))
    gradients, num_edges = [], 0
    for frame_HW in luma_NHW:
        across, down = (gradient.astype(np.float32) for gradient in cv2.spatialGradient(np.ascontiguousarray(frame_HW)))
        cv2.accumulate(across, x_HW)
        cv2.accumulate(down, y_HW)
        cv2.accumulate(frame_HW, total_HW)
        cv2.accumulateSquare(frame_HW, squares_HW)
        num_edges += int(
            (cv2.magnitude(across.astype(np.float32), down.astype(np.float32)) >= GAIN * STATIC_EDGE).sum()
        )
        gradients.append((across, down))
    x_HW, y_HW = x_HW / (GAIN * num_frames), y_HW / (GAIN * num_frames)
    length_HW = np.hypot(x_HW, y_HW)
    # only few pixels have such an edge: the look at every single frame is kept to them
    strong = np.nonzero(length_HW >= STATIC_EDGE)
    x_K, y_K = x_HW[strong] / length_HW[strong], y_HW[strong] / length_HW[strong]
    along_NK = np.stack([across[strong] * x_K + down[strong] * y_K for across, down in gradients]) / GAIN
    kept_HW = np.zeros(shape, bool)
    kept_HW[strong] = along_NK.min(axis=0) >= WEAKEST_EDGE
    spread_HW = np.sqrt(np.maximum(squares_HW / num_frames - (total_HW / num_frames) ** 2, 0))
    edges_share = num_edges / luma_NHW.size
    return _Edges(kept_HW & ~_long_lines(kept_HW), x_HW, spread_HW >= MOVING_LUMA, edges_share)


def _long_lines(kept_HW: np.ndarray) -> np.ndarray:
    """Borders of dark bars and of pictures inside the picture: straight edges longer than any letter's."""
    height, width = kept_HW.shape
    lines_HW = np.zeros((height, width), np.uint8)
    for shape in ((max(5, round(0.15 * height)), 1), (1, max(5, round(0.15 * width)))):
        lines_HW |= cv2.morphologyEx(kept_HW.astype(np.uint8), cv2.MORPH_OPEN, np.ones(shape, np.uint8))
    return cv2.dilate(lines_HW, np.ones((3, 3))).astype(bool)


def _is_mark(kept_HW: np.ndarray, sideways_HW: np.ndarray) -> bool:
    """Letters are dense in edges, and every stroke has a left edge and a right one."""
    rising = int((kept_HW & (sideways_HW > STATIC_EDGE / 2)).sum())
    falling = int((kept_HW & (sideways_HW < -STATIC_EDGE / 2)).sum())
    return bool(kept_HW.mean() >= 0.15 and min(rising, falling) >= 0.5 * max(rising, falling))


def _moves_between(moving_HW: np.ndarray, kept_HW: np.ndarray) -> bool:
    free_HW = ~cv2.dilate(kept_HW.astype(np.uint8), np.ones((3, 3))).astype(bool)
    return bool(free_HW.any() and moving_HW[free_HW].mean() >= 0.5)
