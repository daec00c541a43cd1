"""Shot detection, and cutting shots into clips."""

from recaption.shots.clips import cut_to_clips
from recaption.shots.scan import find_shots
from recaption.shots.settings import ShotSettings

__all__ = ["ShotSettings", "cut_to_clips", "find_shots"]
