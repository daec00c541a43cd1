"""Shots of a video of any length from one decode; its frames are kept where they fit into memory.

with open_video("film.mp4") as opened:
    found = scan_shots(opened, ShotSettings())
found.shots, found.kept                             # [(0, 48), ...], None: more than max_kept_bytes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recaption.decoding.messages import limit_text
from recaption.errors import VideoError
from recaption.records import Video
from recaption.shots.boundary_search import BoundarySearch
from recaption.shots.detect import find_shots_in, frames_per_second, shots_of
from recaption.shots.packaged import PACKAGED_DETECTORS
from recaption.shots.settings import ShotSettings
from recaption.video_io.frame_blocks import FrameBlocks
from recaption.video_io.opened_video import OpenedVideo, open_video

SAME_RATE = 1e-3
"""A frame rate estimated before all frames are known, this close (relative) to the true one, gives the same shots."""
FALLBACK_FPS = 25.0


@dataclass(frozen=True)
class ScannedShots:
    """What one decode found. Where `video.status` is "failed", there is nothing else."""

    video: Video
    pts_seconds: np.ndarray
    """(N,) float64, presentation time of every frame."""
    shots: list[tuple[int, int]]
    """Half-open frame spans that tile the video."""
    kept: dict[str, FrameBlocks] | None
    """The frames of the streams `small` and `detail`, unless they are too many."""


class _ShotSink:
    """Keeps the frames of a scan while they fit; once they do not, it only searches shots in them."""

    def __init__(
        self, settings: ShotSettings, max_kept_bytes: int, progress: Callable[[], None], fps: float | None
    ) -> None:
        self.settings, self.max_kept_bytes, self.progress, self.fps = settings, max_kept_bytes, progress, fps
        self.kept: dict[str, FrameBlocks] | None = None
        self.search: BoundarySearch | None = None

    def begin(self, sizes: dict[str, tuple[int, int, int]], pts_seconds: np.ndarray, seconds: float) -> None:
        estimate = sizes["small"][0] / seconds if seconds > 0 else FALLBACK_FPS
        known = frames_per_second(pts_seconds) if len(pts_seconds) > 1 else estimate
        self.search_fps = self.fps or known
        self.kept, self.search = {name: FrameBlocks() for name in sizes}, None
        if sum(count * height * width * 3 for count, height, width in sizes.values()) > self.max_kept_bytes:
            self._stop_keeping()

    def add(self, stream: str, numbers: np.ndarray, pixels_THWC: np.ndarray) -> None:
        self.progress()
        if self.kept is not None:
            self.kept[stream].add(numbers, pixels_THWC)
            if sum(blocks.num_bytes for blocks in self.kept.values()) > self.max_kept_bytes:
                self._stop_keeping()
        elif self.search is not None and stream == "small":
            self.search.add(pixels_THWC)

    def _stop_keeping(self) -> None:
        if self.settings.detector in PACKAGED_DETECTORS:
            needed = f"the detector {self.settings.detector} needs all frames at once"
            raise VideoError("too_large", f"{needed}, more than {limit_text('max_kept_bytes', self.max_kept_bytes)}")
        kept, self.kept = self.kept or {}, None
        self.search = BoundarySearch(self.search_fps, self.settings)
        for block_THWC in kept["small"].blocks:
            self.search.add(block_THWC)

    def shots(self, pts_seconds: np.ndarray) -> list[tuple[int, int]]:
        """The shots, once all frames were added."""
        if self.search is not None:
            return shots_of(self.search)
        assert self.kept is not None
        if self.settings.detector != "histogram":  # one of a package, or none at all
            small_THWC, _ = self.kept["small"].window(0, len(pts_seconds))
            return find_shots_in(small_THWC, pts_seconds, self.settings)
        search = BoundarySearch(frames_per_second(pts_seconds), self.settings)
        for block_THWC in self.kept["small"].blocks:
            search.add(block_THWC)
        return shots_of(search)


def scan_shots(
    opened: OpenedVideo, settings: ShotSettings, *, progress: Callable[[], None] = lambda: None
) -> ScannedShots:
    """Decode a video once, and find its shots.

    Args:
        progress: called with every few frames.
    """
    sink = _ShotSink(settings, opened.limits.max_kept_bytes, progress, None)
    video, pts_seconds = opened.scan_into(sink)
    if video.status == "ok" and sink.search is not None:
        fps = frames_per_second(pts_seconds)
        if abs(sink.search.fps / fps - 1) > SAME_RATE:  # what the header says of the rate is not what the frames say
            sink = _ShotSink(settings, opened.limits.max_kept_bytes, progress, fps)
            video, pts_seconds = opened.scan_into(sink)
    if video.status != "ok":
        return ScannedShots(video, pts_seconds, [], None)
    return ScannedShots(video, pts_seconds, sink.shots(pts_seconds), sink.kept)


def find_shots(uri: str, settings: ShotSettings = ShotSettings()) -> list[tuple[int, int]]:
    """Detect the shots of a video: half-open frame spans that tile it.

    Raises:
        VideoError: the video cannot be decoded.
    """
    with open_video(uri) as opened:
        found = scan_shots(opened, settings)
    if found.video.status != "ok":
        raise VideoError(found.video.reason or "unreadable", found.video.detail, uri=uri)
    return found.shots
