"""Settings of shot detection, and the record of one boundary."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Boundary:
    """The first frame of a new shot, and how sure the detector is."""

    frame: int
    score: float


@dataclass(frozen=True, kw_only=True)
class ShotSettings:
    """Defaults were set on rendered scenes and a dozen real clips, and measured on other scenes (test_shots.py)."""

    detector: str = "histogram"
    """`histogram` (ours), or `scenedetect-content`, `scenedetect-adaptive`, `transnetv2` (extra `recaption[shots]`)."""
    stitch_distance: float = 0.15
    """Shots are joined where the pictures on both sides of a boundary are nearer than this, whatever their light:
    1 - correlation of their pixels, 0..1. 0 = off. For every detector. Measured: boundaries of 150 rendered scenes lie at
    0.25 and more, of a film at 0.49 and more, false ones from a change of exposure at 0.04 to 0.29."""
    cut_distance: float = 0.1
    """Histogram distance (0..1) between neighbouring frames from which they may be a hard cut."""
    cut_ratio: float = 3.0
    """How many times that distance must exceed the mean of the frames around it."""
    min_change: float = 0.04
    """Mean change of the pixels (0..1) across a hard cut, and twice that across a gradual transition: an even wall in
    changing light moves its histogram far, its pixels little."""
    flash_seconds: float = 0.35
    """A change that goes back within this time is a flash, not a cut."""
    gradual_distance: float = 0.45
    """Histogram distance between the two sides of a gradual transition."""
    max_gradual_seconds: float = 2.0
    """Longest dissolve or fade looked for; 0 = look for hard cuts only."""
    blend_share: float = 0.7
    """Share of the changed picture that must be a blend of the two sides."""
    max_light_share: float = 0.7
    """A gradual change of which one common gain explains more than this share is light, not a new shot."""
    min_shot_seconds: float = 0.25
    """Boundaries closer than this are one."""
