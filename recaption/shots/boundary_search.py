"""Shot boundaries of a video of any length, from blocks of its small frames, in memory for a few seconds of them.

    search = BoundarySearch(fps, settings)
    for block_THWC in blocks:
        search.add(block_THWC)
    search.finish()                                     # [Boundary(frame=48, score=inf), ...]
    search.thumbnails[47], search.thumbnails[48]        # of the frames around every boundary: stitching compares them

Kept are two numbers per frame, the features of the frames that are not decided yet, and what was found. A frame is decided
once so much of what follows is known that nothing later can change its verdict; the blocks do not change the result.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from recaption.shots import histogram
from recaption.shots.histogram import GradualTransition
from recaption.shots.settings import Boundary, ShotSettings

CHUNK_FRAMES = 4096
"""Frames per step: 25 MB of features and their copies at 16:9."""


def stitch_offsets(fps: float) -> list[int]:
    """How far from a boundary the frames on its two sides are compared."""
    return sorted({0, round(0.25 * fps), round(0.5 * fps)})


@dataclass
class FrameFeatures:
    """Histograms and thumbnails of consecutive frames; the oldest can be forgotten."""

    first: int = 0
    """Number of the first frame that is still here."""
    end: int = 0
    """One past the last frame."""
    _histograms: list[np.ndarray] = field(default_factory=list)
    _thumbnails: list[np.ndarray] = field(default_factory=list)

    def add(self, small_THWC: np.ndarray) -> None:
        self._histograms.append(histogram.frame_histograms(small_THWC))
        self._thumbnails.append(histogram.frame_thumbnails(small_THWC))
        self.end += len(small_THWC)

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """(histograms, thumbnails uint8) of the frames [first, end)."""
        self._histograms = [np.concatenate(self._histograms)]
        self._thumbnails = [np.concatenate(self._thumbnails)]
        return self._histograms[0], self._thumbnails[0]

    def forget_before(self, frame: int) -> None:
        if frame > self.first:
            histograms, thumbnails = self.joined()
            self._histograms = [histograms[frame - self.first :].copy()]
            self._thumbnails = [thumbnails[frame - self.first :].copy()]
            self.first = frame


class _SpanSearch:
    """Gradual transitions in a span without hard cuts, whose end may not be known yet."""

    def __init__(self, start: int, fps: float, settings: ShotSettings) -> None:
        self.start, self.fps, self.settings = start, fps, settings
        self.max_length = round(settings.max_gradual_seconds * fps)
        self.lookahead = max(
            histogram.static_margin(max(self.max_length, 4)),
            histogram.max_flash_frames(fps, settings) + 1,
            max(stitch_offsets(fps)) + 1,
        )
        self.next_start: dict[int, int] = {}
        """By length: the first start that is not tested yet."""
        self.found: list[GradualTransition] = []

    def search(self, features: FrameFeatures, known: int, *, is_whole: bool) -> list[GradualTransition]:
        """Test all spans that lie so far before frame `known` that what follows does not matter; all where it is the end.

        Returns:
            What was found now; frames counted from the start of the video.
        """
        num_frames = known - self.start
        if self.settings.max_gradual_seconds <= 0 or (
            not is_whole and num_frames <= self.max_length + 1 + self.lookahead
        ):
            return []
        base = max(self.start, features.first)
        histograms, thumbnails = (one[base - features.first : known - features.first] for one in features.joined())
        floats_NP = histogram.as_floats(thumbnails)
        new: list[GradualTransition] = []
        for length in histogram.gradual_lengths(min(self.max_length, num_frames - 1)):
            if length >= num_frames:
                continue
            step, first = histogram.start_step(length), self.next_start.get(length, self.start)
            end = known - length if is_whole else known - length - self.lookahead
            starts = np.arange(first, end, step)
            if len(starts):
                self.next_start[length] = int(starts[-1]) + step
                new += histogram.gradual_transitions(histograms, floats_NP, starts - base, length, self.settings)
        lasting = [one.moved(base) for one in new if not histogram.reverts(histograms, one, self.fps, self.settings)]
        self.found += lasting
        return lasting

    def first_needed_frame(self) -> int:
        """The first frame that a later `search` looks at."""
        return max(self.start, min(self.next_start.values(), default=self.start) - self.lookahead)

    def boundaries(self) -> list[Boundary]:
        """The best of those that overlap or are close together."""
        min_gap_frames = 0.25 * self.settings.max_gradual_seconds * self.fps
        reach = max(min_gap_frames, 2 * max(self.max_length, 4)) + 2
        selected: list[GradualTransition] = []
        frames: list[int] = []
        for one in sorted(self.found, key=lambda f: (-f.score, f.end - f.start, f.start)):
            near = slice(bisect.bisect_left(frames, one.frame - reach), bisect.bisect_right(frames, one.frame + reach))
            if all(
                abs(one.frame - other.frame) > min_gap_frames
                and (one.start >= other.blend_end or other.blend_start >= one.end)
                for other in selected[near]
            ):
                position = bisect.bisect(frames, one.frame)
                frames.insert(position, one.frame)
                selected.insert(position, one)
        return [Boundary(one.frame, one.score) for one in selected]


class BoundarySearch:
    """Hard cuts (infinite score) and gradual transitions between them; may be closer together than `min_shot_seconds`."""

    def __init__(self, fps: float, settings: ShotSettings) -> None:
        self.fps, self.settings = fps, settings
        self.features = FrameFeatures()
        self.thumbnails: dict[int, np.ndarray] = {}
        """uint8, by frame: of the first and the last frame, and those around every boundary."""
        self._jump = [np.zeros(1)]
        self._change = [np.zeros(1)]
        self._num_compared = 0
        """Frames up to here have their `_jump` and `_change`."""
        self._decided = 0
        """Cuts before this frame are found."""
        self._span = _SpanSearch(0, fps, settings)
        self._boundaries: list[Boundary] = []
        flash_frames = histogram.max_flash_frames(fps, settings)
        self._delay = max(histogram.cut_radius(fps), flash_frames + 1, max(stitch_offsets(fps)) + 1)
        self._lookback = max(flash_frames, max(stitch_offsets(fps))) + 2

    @property
    def num_frames(self) -> int:
        return self.features.end

    def add(self, small_THWC: np.ndarray) -> None:
        """The next frames, short side about 48 px, uint8 RGB."""
        for start in range(0, len(small_THWC), CHUNK_FRAMES):
            self.features.add(small_THWC[start : start + CHUNK_FRAMES])
            if self.features.end - self._decided >= CHUNK_FRAMES + self._delay:
                self._advance(self.features.end - self._delay, is_end=False)

    def finish(self) -> list[Boundary]:
        """All boundaries, once the last frame was added."""
        if self.num_frames:
            self._advance(self.num_frames, is_end=True)
            self._keep_thumbnails([0, self.num_frames - 1])
            self._boundaries += self._span.boundaries()
        return self._boundaries

    def _advance(self, decided: int, *, is_end: bool) -> None:
        """Find the cuts before frame `decided` and the gradual transitions that can be told by then."""
        self._compare_neighbours()
        if not self._decided:
            self._keep_thumbnails([0])
        for cut in self._cuts(self._decided, decided):
            self._boundaries.append(Boundary(cut, np.inf))
            self._keep_around([cut])
            self._keep_around(one.frame for one in self._span.search(self.features, cut, is_whole=True))
            self._boundaries += self._span.boundaries()
            self._span = _SpanSearch(cut, self.fps, self.settings)
        self._decided = decided
        self._keep_around(one.frame for one in self._span.search(self.features, decided, is_whole=is_end))
        if not is_end:
            needed = min(self._span.first_needed_frame(), decided)
            self.features.forget_before(max(needed - self._lookback, 0))

    def _compare_neighbours(self) -> None:
        """Jumps and changes of the frames added since the last time."""
        first = max(self._num_compared - 1, 0) - self.features.first
        histograms, thumbnails = (one[first:] for one in self.features.joined())
        self._jump.append(histogram.jumps(histograms))
        self._change.append(histogram.changes(histogram.as_floats(thumbnails)))
        self._num_compared = self.features.end

    def _cuts(self, first: int, end: int) -> list[int]:
        """First frames of new shots in [first, end)."""
        self._jump, self._change = [np.concatenate(self._jump)], [np.concatenate(self._change)]
        jump, change = self._jump[0], self._change[0]
        histograms, _ = self.features.joined()
        flash_frames = histogram.max_flash_frames(self.fps, self.settings)
        offset = self.features.first
        candidates = histogram.cut_candidates(jump, change, first, end, self.fps, self.settings).tolist()
        return [
            cut
            for cut in candidates
            if not histogram.is_flash(histograms, cut - 1 - offset, cut - offset, float(jump[cut]), flash_frames)
        ]

    def _keep_around(self, boundaries: Iterable[int]) -> None:
        for frame in boundaries:
            for offset in stitch_offsets(self.fps):
                self._keep_thumbnails([frame - 1 - offset, frame + offset])

    def _keep_thumbnails(self, frames: Iterable[int]) -> None:
        _, thumbnails = self.features.joined()
        for frame in frames:
            if self.features.first <= frame < self.features.end and frame not in self.thumbnails:
                self.thumbnails[frame] = thumbnails[frame - self.features.first].copy()
