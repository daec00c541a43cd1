"""Shot detection: hard cuts, dissolves and fades, found on the downscaled frames of one decoding pass.

    find_shots("film.mp4")                     [(0, 48), (48, 131), ...]   half-open; covers every frame
    find_shots_in(scan.small.pixels_THWC, scan.pts_seconds)

Post-processing is the same for every detector (histogram.py, or those of other packages in packaged.py): of boundaries too
close together only the best is kept, and shots split by a change of light are stitched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from recaption.errors import UsageError
from recaption.shots.histogram import detect_boundaries, frame_thumbnails
from recaption.shots.packaged import PACKAGED_DETECTORS
from recaption.shots.settings import Boundary, ShotSettings


def find_shots(uri: str, settings: ShotSettings = ShotSettings()) -> list[tuple[int, int]]:
    """Detect the shots of a video: half-open frame spans that tile it.

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
    """Detect shots in the downscaled frames of a video (short side about 48 px, uint8 RGB): half-open spans that tile it."""
    detector = PACKAGED_DETECTORS.get(settings.detector)
    if detector is None and settings.detector != "histogram":
        names = ", ".join(["histogram", *PACKAGED_DETECTORS])
        raise UsageError(f"{settings.detector = } is not a shot detector; available: {names}")
    num_frames = len(small_THWC)
    if num_frames < 2:
        return [(0, 1)] if num_frames else []
    steps = np.diff(pts_seconds)
    fps = 1.0 / max(float(np.median(steps[steps > 0], axis=0)) if (steps > 0).any() else 0.04, 1e-3)
    if detector is None:
        found = detect_boundaries(small_THWC, fps, settings)
    else:
        found = detector(small_THWC, fps, settings.min_shot_seconds)
    frames = _suppress_neighbours(found, max(1, round(settings.min_shot_seconds * fps)), num_frames)
    if settings.stitch_distance > 0 and frames:
        frames = _stitch(frames, frame_thumbnails(small_THWC), fps, settings.stitch_distance)
    return list(pairwise([0, *frames, num_frames]))


def _suppress_neighbours(found: Iterable[Boundary], min_frames: int, num_frames: int) -> list[int]:
    """Sorted boundary frames after non-maximum suppression: none closer than `min_frames` to one with a higher score."""
    boundaries: list[int] = []
    for candidate in sorted(found, key=lambda f: (-f.score, f.frame)):
        frame = candidate.frame
        if 0 < frame < num_frames and all(abs(frame - other) >= min_frames for other in boundaries):
            boundaries.append(frame)
    return sorted(boundaries)


def _stitch(boundary_frames: Sequence[int], thumbnails_NP: np.ndarray, fps: float, distance: float) -> list[int]:
    """Boundary frames whose two sides differ by at least `distance`; the others are false splits and are removed.

    Both the frames next to a boundary and those further away must look the same for it to be removed: the middle frames of
    a dissolve resemble each other, the first frames after a flash do not.
    """
    offsets = sorted({0, round(0.25 * fps), round(0.5 * fps)})
    boundaries: list[int] = []
    for index, frame in enumerate(boundary_frames):
        start = boundaries[-1] if boundaries else 0
        end = boundary_frames[index + 1] if index + 1 < len(boundary_frames) else len(thumbnails_NP)
        sides = [(max(frame - 1 - offset, start), min(frame + offset, end - 1)) for offset in offsets]
        distances = [_correlation_distance(thumbnails_NP[before], thumbnails_NP[after]) for before, after in sides]
        if max(distances) >= distance:
            boundaries.append(frame)
    return boundaries


def _correlation_distance(a_P: np.ndarray, b_P: np.ndarray) -> float:
    """1 - correlation, clipped to 0..1: invariant to gain and offset of the luma; 1 if either picture is uniform."""
    deviations = float(a_P.std() * b_P.std())
    if deviations < 1e-3:
        return 1.0
    return float(np.clip(1.0 - ((a_P - a_P.mean()) * (b_P - b_P.mean())).mean() / deviations, 0.0, 1.0))
