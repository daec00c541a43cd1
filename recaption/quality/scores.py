"""Quality scores of a clip: raw numbers over the whole clip; filters.py applies thresholds to them later.

    score_clip(clip_id, small, detail)                  # ClipScores(motion=0.31, sharpness=412.0, ...)

Motion and luma are computed on small frames, all of them or eight a second; sharpness, text and letterbox on larger frames,
two a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from recaption.quality.overlay_text import overlay_text_fraction
from recaption.records import ClipScores
from recaption.video_io.frames import Frames


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Which frames are scored, and by which models."""

    motion_fps: float = 8.0
    """Optical flow is computed between frames about 1 / motion_fps apart."""
    max_flow_pairs: int = 40
    """Pairs of frames per clip, spread evenly: flow is the costliest score."""
    dark_bar_luma: float = 24.0
    """A border row or column whose luma (0..255) never exceeds this is part of a letterbox bar."""
    models: tuple[str, ...] = ()
    """Model scorers by name: `nsfw`, `ocr` (extra `recaption[scores]`), `aesthetic` (needs weight files). One that is
    unavailable leaves its columns empty and is reported."""
    plugins: tuple[str, ...] = ()
    """Own scorers by the names of their entry points (docs/plugins.md). Their scores are tables of their own: one that is
    added later scores the clips that are there."""
    num_model_frames: int = 8
    """Frames per clip that model scorers see, spread evenly."""
    aesthetic_weights: str = ""
    """File with the weights of the linear head, such as LAION's sac+logos+ava1-l14-linearMSE.pth."""
    aesthetic_tower: str = ""
    """open_clip MODEL/PATH of the CLIP model under the head, such as `ViT-L-14-quickgelu//models/ViT-L-14.safetensors`."""


def score_clip(
    clip_id: str,
    small: Frames,
    detail: Frames,
    settings: ScoreSettings = ScoreSettings(),
    *,
    source_size_px: tuple[int, int] | None = None,
) -> ClipScores:
    """Compute all scores that need no model; `model_scorers.py` adds those of `settings.models`.

    Args:
        small: every frame of the clip, short side about 48 px.
        detail: about two frames a second, short side up to 256 px; may be empty for very short clips.
        source_size_px: (height, width) of the video before downscaling; None = the size of `detail`.
    """
    if len(small) == 0:
        return ClipScores(clip_id=clip_id)
    luma_NHW = _luma(small.pixels_THWC)
    motion, camera_motion = _motion(luma_NHW, small.pts_seconds, settings)
    large_NHW = _luma(detail.pixels_THWC) if len(detail) else luma_NHW
    return ClipScores(
        clip_id=clip_id,
        motion=motion,
        camera_motion=camera_motion,
        sharpness=float(np.median([cv2.Laplacian(frame, cv2.CV_32F).var() for frame in large_NHW])),
        luma=float(luma_NHW.mean(dtype=np.float64) / 255.0),
        text_area=float(np.mean([text_fraction(frame) for frame in large_NHW])),
        letterbox=letterbox_fraction(large_NHW, settings.dark_bar_luma),
        flicker=flicker(luma_NHW, small.pts_seconds),
        blockiness=blockiness(large_NHW, source_size_px),
        static_text=overlay_text_fraction(large_NHW) if len(detail) else None,
    )


def _luma(pixels_THWC: np.ndarray) -> np.ndarray:
    return np.stack([cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in pixels_THWC])


def _motion(
    luma_NHW: np.ndarray, pts_seconds: np.ndarray, settings: ScoreSettings
) -> tuple[float | None, float | None]:
    """(motion, camera_motion): mean length of the optical flow and of its global affine part, in frame heights per second.

    (None, None) for a clip too short to hold two frames `1 / motion_fps` apart.
    """
    pairs = _frame_pairs(pts_seconds, settings)
    if not pairs:
        return None, None
    height = luma_NHW.shape[1]
    lengths, camera_lengths = [], []
    for first, second in pairs:
        flow_HW2 = cv2.calcOpticalFlowFarneback(
            luma_NHW[first],
            luma_NHW[second],
            None,
            0.5,
            3,
            11,
            3,
            5,
            1.1,
            0,  # type: ignore[call-overload]
        )
        per_second = height * max(float(pts_seconds[second] - pts_seconds[first]), 1e-3)
        lengths.append(float(np.linalg.norm(flow_HW2, axis=2).mean()) / per_second)
        camera_lengths.append(float(np.linalg.norm(_affine_part(flow_HW2), axis=2).mean()) / per_second)
    return float(np.mean(lengths)), float(np.mean(camera_lengths))


def _frame_pairs(pts_seconds: np.ndarray, settings: ScoreSettings) -> list[tuple[int, int]]:
    """Index pairs of frames about 1 / motion_fps apart, at most `max_flow_pairs` of them, spread evenly."""
    chosen = [0]
    for number in range(1, len(pts_seconds)):
        if pts_seconds[number] - pts_seconds[chosen[-1]] >= 1.0 / settings.motion_fps - 1e-3:
            chosen.append(number)
    pairs = list(pairwise(chosen))
    if len(pairs) > settings.max_flow_pairs:
        indices = np.linspace(0, len(pairs) - 1, settings.max_flow_pairs).round().astype(int)
        pairs = [pairs[i] for i in indices]
    return pairs


def _affine_part(flow_HW2: np.ndarray) -> np.ndarray:
    """Flow of the best-fitting global affine motion: least squares, refitted twice on the half of the pixels that fits best
    so that a moving object does not bias it."""
    height, width = flow_HW2.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width].reshape(2, -1).astype(np.float32)
    basis = np.stack([np.ones_like(rows), rows, columns], axis=1)
    flow = flow_HW2.reshape(-1, 2)
    is_inlier = np.ones(len(flow), bool)
    for _ in range(3):
        solution = np.linalg.lstsq(basis[is_inlier], flow[is_inlier], rcond=None)[0]
        error = np.linalg.norm(flow - basis @ solution, axis=1)
        is_inlier = error <= np.median(error)
    return (basis @ solution).reshape(height, width, 2)


MIN_LETTER_EDGE = 120
"""Minimum gradient (luma 0..255) of the edge of an overlaid letter; outlined captions and title cards have 150 and more."""
MAX_LETTER_GAP = 0.1
"""Gaps between letters up to this are closed, in short sides of the frame."""
MIN_EDGE_FRACTION = 0.25
"""Minimum fraction of the pixels of a text line that are on an edge."""
MIN_STROKE_DENSITY = 0.9
"""Minimum number of strokes that a row of a text line crosses, per line height of its width."""


def text_fraction(luma_HW: np.ndarray) -> float:
    """Fraction of the frame inside boxes that look like overlaid text lines: strong edges, densely crossed along rows.

    The constants were chosen on 130 rendered scenes of 256x400 px: at a fraction of 0.01, all of 50 scenes with a word are
    found, 5 of 80 without one too, and none of 24 clips of real footage. Text with little contrast to its surroundings
    (thin white letters on a daylight picture) is missed.
    """
    height, width = luma_HW.shape
    gap_px = max(3, int(min(height, width) * MAX_LETTER_GAP))
    edges_HW = cv2.morphologyEx(luma_HW, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    strong_HW = ((edges_HW > MIN_LETTER_EDGE) * 255).astype(np.uint8)
    lines_HW = cv2.morphologyEx(strong_HW, cv2.MORPH_CLOSE, np.ones((1, gap_px), np.uint8))
    lines_HW = cv2.morphologyEx(lines_HW, cv2.MORPH_OPEN, np.ones((max(3, height // 50), gap_px), np.uint8))
    num_boxes, _, boxes, _ = cv2.connectedComponentsWithStats(lines_HW, connectivity=8)
    covered_HW = np.zeros((height, width), bool)
    for left, top, box_width, box_height, area in boxes[1:num_boxes]:
        if box_height < max(6, height // 40) or box_height > 0.3 * height or box_width < 1.5 * box_height:
            continue
        inside = strong_HW[top : top + box_height, left : left + box_width] > 0
        crossings = np.abs(np.diff(inside.astype(np.int8), axis=1)).sum(axis=1)
        stroke_density = float(np.median(crossings)) / 2 * box_height / box_width
        is_solid = area >= 0.5 * box_width * box_height
        if is_solid and MIN_EDGE_FRACTION <= inside.mean() <= 0.95 and stroke_density >= MIN_STROKE_DENSITY:
            covered_HW[top : top + box_height, left : left + box_width] = True
    return float(covered_HW.mean())


def letterbox_fraction(luma_NHW: np.ndarray, max_bar_luma: float) -> float:
    """Fraction of the frame in letterbox or pillarbox bars, dark in every frame; 0 where the whole frame is dark."""
    brightest_HW = luma_NHW.max(axis=0)
    is_lit_row = brightest_HW.max(axis=1) > max_bar_luma
    is_lit_column = brightest_HW.max(axis=0) > max_bar_luma
    if not is_lit_row.any():
        return 0.0
    lit_rows = len(is_lit_row) - int(is_lit_row.argmax()) - int(is_lit_row[::-1].argmax())
    lit_columns = len(is_lit_column) - int(is_lit_column.argmax()) - int(is_lit_column[::-1].argmax())
    return 1.0 - lit_rows * lit_columns / brightest_HW.size


FLICKER_SECONDS = 0.5
"""Peaks and dips of luma shorter than this are flicker."""


def flicker(luma_NHW: np.ndarray, pts_seconds: np.ndarray) -> float | None:
    """Mean amplitude of the changes of mean luma (0..1) that revert within 0.5 s: half the height of such peaks and dips.

    A fade, a light switched once or a camera adjusting its exposure has none. None for fewer than 3 frames.
    """
    if len(luma_NHW) < 3:
        return None
    frame_seconds = float(pts_seconds[-1] - pts_seconds[0]) / (len(pts_seconds) - 1)
    radius = int(np.clip(round(FLICKER_SECONDS / 2 / max(frame_seconds, 1e-3)), 1, (len(luma_NHW) - 1) // 2))
    lumas_N1 = luma_NHW.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)[:, None] / 255.0
    window = np.ones((2 * radius + 1, 1), np.uint8)
    without_dips, without_peaks = (cv2.morphologyEx(lumas_N1, op, window) for op in (cv2.MORPH_CLOSE, cv2.MORPH_OPEN))
    # at the ends of a clip it is unknown whether a change reverts
    return float((without_dips - without_peaks)[radius:-radius].mean() / 2)


BLOCK_PX = 8
"""Side of the coding blocks of JPEG, MPEG-2 and MPEG-4, and of most transforms of H.264."""
MIN_BLOCK_PX = 3.5
"""Blocks downscaled below this leave no measurable edge: sources above 585 lines, scored at 256."""


def blockiness(luma_NHW: np.ndarray, source_size_px: tuple[int, int] | None = None) -> float | None:
    """Excess luma gradient across the edges of 8x8 coding blocks over that inside them; 0 = none, 1 = twice as much.

    None where the frames were downscaled too far to see blocks.
    """
    size_px = luma_NHW.shape[1:]
    excess = []
    for axis, (frame_px, source_px) in enumerate(zip(size_px, source_size_px or size_px, strict=True), start=1):
        block_px = BLOCK_PX * frame_px / max(source_px, 1)
        num_blocks = int((frame_px - 2) / block_px)
        if block_px < MIN_BLOCK_PX or num_blocks < 3:
            return None
        steps = np.abs(np.diff(luma_NHW.astype(np.int16), axis=axis)).mean(axis=(0, 3 - axis))
        # steps[i] is between pixels i and i + 1: at coordinate i + 1, where block k ends at k * block_px
        positions = np.arange(len(steps)) + 1.0
        edges = np.arange(1, num_blocks) * block_px
        on_edges = float(np.interp(edges, positions, steps).mean())
        inside = float(np.interp(edges + block_px / 2, positions, steps).mean())
        excess.append((on_edges - inside) / (inside + 1.0))
    return max(0.0, float(np.mean(excess)))
