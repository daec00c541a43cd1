"""Shot detection: hard cuts, dissolves and fades, found on the downscaled frames of one decoding pass.

    find_shots_in(scan.small.pixels_THWC, scan.pts_seconds)      [(0, 48), (48, 131), ...]   half-open; covers every frame

Post-processing is the same for every detector (histogram.py, or those of other packages in packaged.py): of boundaries too
close together only the best is kept, and shots split by a change of light are stitched.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from recaption.errors import UsageError
from recaption.shots.boundary_search import BoundarySearch, stitch_offsets
from recaption.shots.histogram import as_floats, frame_thumbnails
from recaption.shots.packaged import PACKAGED_DETECTORS
from recaption.shots.settings import Boundary, ShotSettings


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
    fps = frames_per_second(pts_seconds)
    if detector is not None:
        found = detector(small_THWC, fps, settings.min_shot_seconds)
        thumbnails = dict(enumerate(frame_thumbnails(small_THWC)))
        return _shots(found, thumbnails, num_frames, fps, settings)
    search = BoundarySearch(fps, settings)
    search.add(small_THWC)
    return shots_of(search)


def frames_per_second(pts_seconds: np.ndarray) -> float:
    """From the median step between presentation times; 25 where there is none."""
    steps = np.diff(pts_seconds)
    return 1.0 / max(float(np.median(steps[steps > 0], axis=0)) if (steps > 0).any() else 0.04, 1e-3)


def shots_of(search: BoundarySearch) -> list[tuple[int, int]]:
    """The shots of a video of which all frames were added to a search."""
    if search.num_frames < 2:
        return [(0, 1)] if search.num_frames else []
    return _shots(search.finish(), search.thumbnails, search.num_frames, search.fps, search.settings)


def _shots(
    found: Iterable[Boundary], thumbnails: Mapping[int, np.ndarray], num_frames: int, fps: float, settings: ShotSettings
) -> list[tuple[int, int]]:
    """Shots between the best boundaries, stitched where both sides look the same."""
    frames = _suppress_neighbours(found, max(1, round(settings.min_shot_seconds * fps)), num_frames)
    if settings.stitch_distance > 0 and frames:
        frames = _stitch(frames, thumbnails, num_frames, fps, settings.stitch_distance)
    return list(pairwise([0, *frames, num_frames]))


def _suppress_neighbours(found: Iterable[Boundary], min_frames: int, num_frames: int) -> list[int]:
    """Sorted boundary frames after non-maximum suppression: none closer than `min_frames` to one with a higher score."""
    boundaries: list[int] = []
    for candidate in sorted(found, key=lambda f: (-f.score, f.frame)):
        frame = candidate.frame
        position = bisect.bisect(boundaries, frame)
        near = boundaries[max(position - 1, 0) : position + 1]
        if 0 < frame < num_frames and all(abs(frame - other) >= min_frames for other in near):
            boundaries.insert(position, frame)
    return boundaries


def _stitch(
    boundary_frames: Sequence[int], thumbnails: Mapping[int, np.ndarray], num_frames: int, fps: float, distance: float
) -> list[int]:
    """Boundary frames whose two sides differ by at least `distance`; the others are false splits and are removed.

    Both the frames next to a boundary and those further away must look the same for it to be removed: the middle frames of
    a dissolve resemble each other, the first frames after a flash do not.
    """
    offsets = stitch_offsets(fps)
    boundaries: list[int] = []
    for index, frame in enumerate(boundary_frames):
        start = boundaries[-1] if boundaries else 0
        end = boundary_frames[index + 1] if index + 1 < len(boundary_frames) else num_frames
        sides = [(max(frame - 1 - offset, start), min(frame + offset, end - 1)) for offset in offsets]
        distances = [
            _correlation_distance(as_floats(thumbnails[before]), as_floats(thumbnails[after]))
            for before, after in sides
        ]
        if max(distances) >= distance:
            boundaries.append(frame)
    return boundaries


def _correlation_distance(a_P: np.ndarray, b_P: np.ndarray) -> float:
    """1 - correlation, clipped to 0..1: invariant to gain and offset of the luma; 1 if either picture is uniform."""
    deviations = float(a_P.std() * b_P.std())
    if deviations < 1e-3:
        return 1.0
    return float(np.clip(1.0 - ((a_P - a_P.mean()) * (b_P - b_P.mean())).mean() / deviations, 0.0, 1.0))
