"""Settings of shot detection, and the record of one boundary."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Boundary:
    """A shot boundary: the first frame of the new shot, and the confidence of the detector."""

    frame: int
    score: float


@dataclass(frozen=True, kw_only=True)
class ShotSettings:
    """Settings of shot detection. Defaults were tuned on rendered scenes and a dozen real clips (see bench_shots.py)."""

    detector: str = "histogram"
    """`histogram` (built in), or `scenedetect-content`, `scenedetect-adaptive`, `transnetv2` (extra `recaption[shots]`)."""
    stitch_distance: float = 0.15
    """Shots are joined if the frames on both sides of a boundary are closer than this: 1 - correlation of their pixels,
    0..1, invariant to lighting. 0 = off. Applies to every detector. Measured: true boundaries have at least 0.25 in 150
    rendered scenes and 0.49 in a film, false ones from a change of exposure 0.04 to 0.29."""
    cut_distance: float = 0.1
    """Minimum histogram distance (0..1) between neighbouring frames at a hard cut."""
    cut_ratio: float = 3.0
    """Minimum ratio of that distance to the mean of the nearby frames."""
    min_change: float = 0.04
    """Minimum mean change of the pixels (0..1) across a hard cut, and twice that across a gradual transition: a plain wall
    in changing light changes its histogram much, its pixels little."""
    flash_seconds: float = 0.35
    """A change that reverts within this time is a flash, not a cut."""
    gradual_distance: float = 0.45
    """Minimum histogram distance between the two sides of a gradual transition."""
    max_gradual_seconds: float = 2.0
    """Longest dissolve or fade searched for; 0 = hard cuts only."""
    min_blend_fraction: float = 0.7
    """Minimum fraction of the changed pixels that must be a blend of the two sides."""
    max_lighting_fraction: float = 0.7
    """A gradual change is lighting, not a new shot, if one common gain explains more than this fraction of its pixels."""
    min_shot_seconds: float = 0.25
    """Of boundaries closer than this, only the one with the highest score is kept."""
