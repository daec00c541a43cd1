"""Scores of a clip: raw numbers over the whole of it, stored beside it. What to keep is asked of them later (filters.py).

    score_clip(clip_id, small, detail)                  # ClipScores(motion=0.31, sharpness=412.0, ...)

Motion and brightness look at small frames, every one or eight a second; sharpness, text and bars at larger frames, two a
second.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from recaption.quality.overlay_text import static_text
from recaption.records import ClipScores
from recaption.video_io.frames import Frames


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """What the scores look at."""

    motion_fps: float = 8.0
    """Optical flow is measured between frames about this far apart."""
    max_flow_pairs: int = 40
    """Pairs of frames per clip, spread evenly: flow is the dearest score."""
    dark_bar_luma: float = 24.0
    """A row or column whose luma (0..255) never exceeds this is a bar."""
    models: tuple[str, ...] = ()
    """Scorers that need a model, by name: `nsfw`, `ocr` (extra `recaption[scores]`), `aesthetic` (weights of one's own). One
    that is not there leaves its columns empty and is reported."""
    model_frames: int = 8
    """Frames per clip that models look at, spread evenly."""
    aesthetic_weights: str = ""
    """File of the head, such as LAION's sac+logos+ava1-l14-linearMSE.pth."""
    aesthetic_tower: str = ""
    """open_clip's MODEL/PATH of the CLIP under it, such as `ViT-L-14-quickgelu//models/ViT-L-14.safetensors`."""


def score_clip(
    clip_id: str,
    small: Frames,
    detail: Frames,
    settings: ScoreSettings = ScoreSettings(),
    *,
    source_size_px: tuple[int, int] | None = None,
) -> ClipScores:
    """All scores that need no model; those of `settings.models` are added by `recaption.scorers`.

    Args:
        small: every frame of the clip, short side about 48 px.
        detail: about two frames a second, short side up to 256 px; may be empty for very short clips.
        source_size_px: (height, width) of the video that these frames were made smaller from; None = it was no larger.
    """
    if len(small) == 0:
        return ClipScores(clip_id=clip_id)
    luma_NHW = _luma(small.pixels_THWC)
    motion, camera = _motion(luma_NHW, small.pts_seconds, settings)
    large_NHW = _luma(detail.pixels_THWC) if len(detail) else luma_NHW
    return ClipScores(
        clip_id=clip_id,
        motion=motion,
        camera_motion=camera,
        sharpness=float(np.median([cv2.Laplacian(frame, cv2.CV_32F).var() for frame in large_NHW])),
        luma=float(luma_NHW.mean(dtype=np.float64) / 255.0),
        text_area=float(np.mean([text_share(frame) for frame in large_NHW])),
        letterbox=bar_share(large_NHW, settings.dark_bar_luma),
        flicker=flicker(luma_NHW, small.pts_seconds),
        blockiness=blockiness(large_NHW, source_size_px),
        static_text=static_text(large_NHW) if len(detail) else None,
    )


def _luma(pixels_THWC: np.ndarray) -> np.ndarray:
    return np.stack([cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in pixels_THWC])


def _motion(
    luma_NHW: np.ndarray, pts_seconds: np.ndarray, settings: ScoreSettings
) -> tuple[float | None, float | None]:
    """(motion, camera_motion): mean flow length and mean length of its global affine part, frame heights per second.

    None for a clip too short to hold two frames `1 / motion_fps` apart.
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
    """Neighbours about 1 / motion_fps apart, at most `max_flow_pairs` of them, spread evenly."""
    chosen = [0]
    for number in range(1, len(pts_seconds)):
        if pts_seconds[number] - pts_seconds[chosen[-1]] >= 1.0 / settings.motion_fps - 1e-3:
            chosen.append(number)
    pairs = list(pairwise(chosen))
    if len(pairs) > settings.max_flow_pairs:
        places = np.linspace(0, len(pairs) - 1, settings.max_flow_pairs).round().astype(int)
        pairs = [pairs[i] for i in places]
    return pairs


def _affine_part(flow_HW2: np.ndarray) -> np.ndarray:
    """The flow that one affine map of the whole picture explains: least squares, refitted on the nearer half so that a
    moving object does not pull it along."""
    height, width = flow_HW2.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width].reshape(2, -1).astype(np.float32)
    basis = np.stack([np.ones_like(rows), rows, columns], axis=1)
    flow = flow_HW2.reshape(-1, 2)
    near = np.ones(len(flow), bool)
    for _ in range(3):
        solution = np.linalg.lstsq(basis[near], flow[near], rcond=None)[0]
        error = np.linalg.norm(flow - basis @ solution, axis=1)
        near = error <= np.median(error)
    return (basis @ solution).reshape(height, width, 2)


LETTER_EDGE = 120
"""Least gradient (0..255) of a drawn letter's edge; outlined captions and title cards have 150 and more."""


LETTER_REACH = 0.1
"""Gap between letters that is closed, in short sides of the frame."""


LEAST_EDGE_SHARE = 0.25
"""Of the pixels of a line of text, those on an edge."""


LEAST_LETTERS = 0.9
"""Strokes per square of a line of text along its rows."""


def text_share(luma_HW: np.ndarray) -> float:
    """Share of the frame inside boxes that look like lines of drawn text: strong edges, densely crossed along rows.

    The constants were chosen on 130 rendered scenes of 256x400 px: at a share of 0.01, all of 50 scenes with a drawn word
    are found, 5 of 80 without are too, and none of 24 clips of real footage. Text without contrast to its surroundings
    (thin white letters on a picture in daylight) is missed.
    """
    height, width = luma_HW.shape
    reach = max(3, int(min(height, width) * LETTER_REACH))
    edges_HW = cv2.morphologyEx(luma_HW, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    strong_HW = ((edges_HW > LETTER_EDGE) * 255).astype(np.uint8)
    lines_HW = cv2.morphologyEx(strong_HW, cv2.MORPH_CLOSE, np.ones((1, reach), np.uint8))
    lines_HW = cv2.morphologyEx(lines_HW, cv2.MORPH_OPEN, np.ones((max(3, height // 50), reach), np.uint8))
    num_boxes, _, boxes, _ = cv2.connectedComponentsWithStats(lines_HW, connectivity=8)
    covered_HW = np.zeros((height, width), bool)
    for left, top, box_width, box_height, area in boxes[1:num_boxes]:
        if box_height < max(6, height // 40) or box_height > 0.3 * height or box_width < 1.5 * box_height:
            continue
        inside = strong_HW[top : top + box_height, left : left + box_width] > 0
        crossings = np.abs(np.diff(inside.astype(np.int8), axis=1)).sum(axis=1)
        letters = float(np.median(crossings)) / 2 * box_height / box_width
        is_solid = area >= 0.5 * box_width * box_height
        if is_solid and LEAST_EDGE_SHARE <= inside.mean() <= 0.95 and letters >= LEAST_LETTERS:
            covered_HW[top : top + box_height, left : left + box_width] = True
    return float(covered_HW.mean())


def bar_share(luma_NHW: np.ndarray, dark: float) -> float:
    """Share of the frame in border rows and columns that stay dark in every frame; 0 where all of it is dark."""
    brightest_HW = luma_NHW.max(axis=0)
    rows = brightest_HW.max(axis=1) > dark
    columns = brightest_HW.max(axis=0) > dark
    if not rows.any():
        return 0.0
    lit_rows = len(rows) - int(rows.argmax()) - int(rows[::-1].argmax())
    lit_columns = len(columns) - int(columns.argmax()) - int(columns[::-1].argmax())
    return 1.0 - lit_rows * lit_columns / brightest_HW.size


FLICKER_SECONDS = 0.5


def flicker(luma_NHW: np.ndarray, pts_seconds: np.ndarray) -> float | None:
    """Amplitude of mean luma (0..1) that goes back within 0.5 s, mean over the clip: half of what the peaks and dips
    narrower than that rise and fall.

    A fade, a light switched once, a camera that adjusts its exposure have none.
    """
    if len(luma_NHW) < 3:
        return None
    seconds = float(pts_seconds[-1] - pts_seconds[0]) / (len(pts_seconds) - 1)
    reach = int(np.clip(round(FLICKER_SECONDS / 2 / max(seconds, 1e-3)), 1, (len(luma_NHW) - 1) // 2))
    lumas_N1 = luma_NHW.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)[:, None] / 255.0
    window = np.ones((2 * reach + 1, 1), np.uint8)
    without_dips, without_peaks = (cv2.morphologyEx(lumas_N1, op, window) for op in (cv2.MORPH_CLOSE, cv2.MORPH_OPEN))
    # at its ends a clip does not show whether a change goes back
    return float((without_dips - without_peaks)[reach:-reach].mean() / 2)


BLOCK_PX = 8
"""Side of the blocks of JPEG, MPEG-2 and MPEG-4, and of most transforms of H.264."""


LEAST_BLOCK_PX = 3.5
"""Blocks that have become smaller than this leave no measurable edge: sources above 585 lines, seen at 256."""


def blockiness(luma_NHW: np.ndarray, source_size_px: tuple[int, int] | None = None) -> float | None:
    """How much more luma changes across the edges of 8x8 coding blocks than inside them; 0 = no more, 1 = twice as much.

    None where the frames were shrunk so far that blocks can no longer be told.
    """
    size_px = luma_NHW.shape[1:]
    excess = []
    for axis, (shown_px, source_px) in enumerate(zip(size_px, source_size_px or size_px, strict=True), start=1):
        block_px = BLOCK_PX * shown_px / max(source_px, 1)
        num_blocks = int((shown_px - 2) / block_px)
        if block_px < LEAST_BLOCK_PX or num_blocks < 3:
            return None
        steps = np.abs(np.diff(luma_NHW.astype(np.int16), axis=axis)).mean(axis=(0, 3 - axis))
        # steps[i] lies between pixels i and i + 1: at coordinate i + 1, where block k ends at k * block_px
        places = np.arange(len(steps)) + 1.0
        edges = np.arange(1, num_blocks) * block_px
        on_edges = float(np.interp(edges, places, steps).mean())
        inside = float(np.interp(edges + block_px / 2, places, steps).mean())
        excess.append((on_edges - inside) / (inside + 1.0))
    return max(0.0, float(np.mean(excess)))
