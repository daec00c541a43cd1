"""Videos to shots: hard cuts, dissolves, fades through black or white, found on the small frames of one decoding pass.

    find_shots("film.mp4")                     [(0, 48), (48, 131), ...]   half-open, together every frame
    find_shots_in(scan.small.pixels_THWC, scan.pts_seconds)

Whichever detector finds the boundaries (histogram.py is ours, packaged.py holds those of packages), what
follows is the same: over-split shots are stitched, boundaries too close together are one, and shots are cut to clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from recaption.errors import UsageError
from recaption.shots.histogram import boundaries as histogram_boundaries
from recaption.shots.histogram import tiny_pictures
from recaption.shots.packaged import PACKAGED_DETECTORS
from recaption.shots.settings import Boundary, ShotSettings


def find_shots(uri: str, settings: ShotSettings = ShotSettings()) -> list[tuple[int, int]]:
    """Shots of a video as half-open frame spans that tile it.

    Raises:
        VideoError: the video cannot be decoded.
    """
    from recaption.errors import VideoError
    from recaption.video_io.reader import scan

    scanned = scan(uri)
    if scanned.video.status != "ok":
        raise VideoError(scanned.video.reason or "unreadable", scanned.video.detail, uri=uri)
    return find_shots_in(scanned.small.pixels_THWC, scanned.pts_seconds, settings)


def find_shots_in(
    small_THWC: np.ndarray, pts_seconds: np.ndarray, settings: ShotSettings = ShotSettings()
) -> list[tuple[int, int]]:
    """Shots of all frames of a video, given small (short side about 48 px, uint8 RGB): half-open spans that tile it."""
    detector = PACKAGED_DETECTORS.get(settings.detector)
    if detector is None and settings.detector != "histogram":
        names = ", ".join(["histogram", *PACKAGED_DETECTORS])
        raise UsageError(f"{settings.detector = } is not a shot detector; there are: {names}")
    num_frames = len(small_THWC)
    if num_frames < 2:
        return [(0, 1)] if num_frames else []
    steps = np.diff(pts_seconds)
    fps = 1.0 / max(float(np.median(steps[steps > 0], axis=0)) if (steps > 0).any() else 0.04, 1e-3)
    if detector is None:
        found = histogram_boundaries(small_THWC, fps, settings)
    else:
        found = detector(small_THWC, fps, settings.min_shot_seconds)
    frames = _spread(found, max(1, round(settings.min_shot_seconds * fps)), num_frames)
    if settings.stitch_distance > 0 and frames:
        frames = _stitched(frames, tiny_pictures(small_THWC), fps, settings.stitch_distance)
    return list(pairwise([0, *frames, num_frames]))


def _spread(found: Iterable[Boundary], min_frames: int, num_frames: int) -> list[int]:
    """Boundary frames, the surest first, none closer than `min_frames` to another."""
    kept: list[int] = []
    for candidate in sorted(found, key=lambda f: (-f.score, f.frame)):
        frame = candidate.frame
        if 0 < frame < num_frames and all(abs(frame - other) >= min_frames for other in kept):
            kept.append(frame)
    return sorted(kept)


def _stitched(boundary_frames: Sequence[int], tiny_NP: np.ndarray, fps: float, distance: float) -> list[int]:
    """The boundaries whose two sides differ. Both the frames right beside one and those further off must look the same
    for a boundary to go: the middle frames of a dissolve resemble each other, the first frames after a flash do not.
    """
    reach = sorted({0, round(0.25 * fps), round(0.5 * fps)})
    kept: list[int] = []
    for index, frame in enumerate(boundary_frames):
        start = kept[-1] if kept else 0
        end = boundary_frames[index + 1] if index + 1 < len(boundary_frames) else len(tiny_NP)
        sides = [(max(frame - 1 - step, start), min(frame + step, end - 1)) for step in reach]
        if max(_apart(tiny_NP[before], tiny_NP[after]) for before, after in sides) >= distance:
            kept.append(frame)
    return kept


def _apart(a_P: np.ndarray, b_P: np.ndarray) -> float:
    """1 - correlation, 0..1: other light (a gain, an offset) leaves it as it is. Even pictures are alike to nothing."""
    spread = float(a_P.std() * b_P.std())
    if spread < 1e-3:
        return 1.0
    return float(np.clip(1.0 - ((a_P - a_P.mean()) * (b_P - b_P.mean())).mean() / spread, 0.0, 1.0))
