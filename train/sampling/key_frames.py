"""Long takes by key frames: frames spread over the whole take first, then those between them, as often as needed.

    KeyFramePlan.of(100, 17, grid)                       # 15 key frames, 7 apart with a frame stride of 1
    take = KeyFrameTake(request, 0, 17, grid)
    while requests := take.next_requests():              # the key frames, then the windows of each level
        take.commit([sample(one) for one in requests])
    take.result().video_THWC                             # 100 frames

Windows that continue each other drift: each starts from the last frames of the one before, with all of its errors. Here the
model makes the key frames at once, and every other frame lies between two of them (Video LDM, arXiv 2304.08818, 3.3).
The model is not told how far apart the key frames are: it makes them as frames that follow each other, so in a take of k
windows everything moves k times as slowly.

A key frame keeps its pixels. Where the compressor encodes groups of frames (frame stride above 1), it is decoded, then
encoded again as a group of still frames: the picture stands still for a group at each key frame.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from packing.grid import Grid
from recaption.errors import UsageError
from train.sampling.conditioning_frames import ConditioningFrames, keyframe_interpolation
from train.sampling.request import Request, SampledVideo
from train.sampling.sizes import supported_length

KEY_FRAME_MODES = ("text", "image")
"""Modes whose videos can be sampled by key frames: those that begin with the first frame and know nothing later."""
MAX_TOKENS_APART = 4
"""Token frames from a known frame to the next one in a window, at most: Video LDM goes T -> 4T -> 16T."""


@dataclass(frozen=True, kw_only=True)
class KeyFramePlan:
    """Which frames of a take are sampled first, and how the others are filled in, level by level."""

    num_frames: int
    """Of the take."""
    window_frames: int
    """The most frames that the model gets at once."""
    factors: tuple[int, ...]
    """Per level, frames from a known frame to the next one, in a video whose other frames the level fills in. Their product
    is the distance of key frames in the take."""
    num_key_frames: int

    @classmethod
    def of(cls, num_frames: int, window_frames: int, grid: Grid) -> KeyFramePlan:
        """The plan with the fewest levels, and then the smallest factors.

        Args:
            window_frames: a length that the grid supports, of three token frames or more.

        Raises:
            UsageError: the model's tokens span several latent frames.
        """
        if grid.patch[0] > 1:
            raise UsageError(
                f"this model's tokens span {grid.patch[0]} latent frames, so a single key frame fills none: leave out "
                "--long keyframes"
            )
        stride = grid.frame_stride
        max_factor = stride * min(MAX_TOKENS_APART, (window_frames - 1) // stride)
        apart = -(-(num_frames - 1) // (window_frames - 1))
        factors: list[int] = []
        while apart > 1:
            num_levels = next(levels for levels in range(1, 64) if max_factor**levels >= apart)
            root = next(factor for factor in range(2, max_factor + 1) if factor**num_levels >= apart)
            factors.append(stride * max(2, -(-root // stride)))
            apart = -(-apart // factors[-1])
        num_key_frames = supported_length(1 + -(-(num_frames - 1) // math.prod(factors)), grid)
        return cls(
            num_frames=num_frames,
            window_frames=window_frames,
            factors=tuple(factors),
            num_key_frames=num_key_frames,
        )

    def windows(self, level: int) -> list[range]:
        """The known frames of each window of a level, by their numbers among all known ones; neighbours share one."""
        num_gaps = -(-(self.num_frames - 1) // math.prod(self.factors[level:]))
        max_gaps = (self.window_frames - 1) // self.factors[level]
        edges = np.linspace(0, num_gaps, 1 + -(-num_gaps // max_gaps)).round().astype(int).tolist()
        return [range(start, end + 1) for start, end in itertools.pairwise(edges)]

    @property
    def num_windows(self) -> int:
        """Model inputs that the take needs: the key frames, and the windows of all levels."""
        return 1 + sum(len(self.windows(level)) for level in range(len(self.factors)))


class SingleTake:
    """A video that is one request; the other kind of take beside `KeyFrameTake`."""

    num_later_windows = 0

    def __init__(self, request: Request, repetition: int) -> None:
        self.repetition = repetition
        self._requests: list[Request] = [request]
        self._sampled: list[SampledVideo] = []

    def next_requests(self) -> list[Request]:
        return self._requests

    def commit(self, sampled: Sequence[SampledVideo]) -> None:
        self._requests, self._sampled = [], list(sampled)

    def result(self) -> SampledVideo:
        return self._sampled[0]


class KeyFrameTake:
    """A video that is sampled by key frames."""

    def __init__(self, request: Request, repetition: int, window_frames: int, grid: Grid) -> None:
        """
        Args:
            repetition: as of `number_repeats`.

        Raises:
            UsageError: a mode without key frames, or as `KeyFramePlan.of`.
        """
        mode = "loop" if request.loop_frames else request.conditioning.mode
        if mode not in KEY_FRAME_MODES or request.long != "keyframes":
            raise UsageError(
                f"long = {request.long} in mode {mode}: it is `windows`, or `keyframes` in the modes "
                f"{' and '.join(KEY_FRAME_MODES)}"
            )
        num_frames = request.conditioning.end or request.conditioning.num_frames
        self.request, self.repetition, self.grid = request, repetition, grid
        self.plan = KeyFramePlan.of(num_frames, window_frames, grid)
        self._level = -1
        """-1: the key frames are to be sampled."""
        self._known_THWC = request.conditioning.frames_THWC[:0]

    @property
    def num_later_windows(self) -> int:
        """Windows of all requests but the first."""
        return self.plan.num_windows - 1

    def next_requests(self) -> list[Request]:
        """What can be sampled now, together; none once the take is complete."""
        if self._level < 0:
            return [self._part(_first_frames(self.request.conditioning, self.plan.num_key_frames))]
        if self._level == len(self.plan.factors):
            return []
        factor = self.plan.factors[self._level]
        return [
            self._part(
                keyframe_interpolation(
                    list(self._known_THWC[known.start : known.stop]),
                    range(0, factor * len(known), factor),
                    1 + factor * (len(known) - 1),
                    self.grid,
                ),
                "between",
                self._level,
                known.start,
            )
            for known in self.plan.windows(self._level)
        ]

    def _part(self, conditioning: ConditioningFrames, *noise_words: str | int) -> Request:
        return dataclasses.replace(self.request, conditioning=conditioning, noise_words=noise_words, long="windows")

    def commit(self, sampled: Sequence[SampledVideo]) -> None:
        """Take in the videos of `next_requests`, in their order; frames that are known already stay as they are."""
        if self._level < 0:
            self._known_THWC = sampled[0].video_THWC
        else:
            factor = self.plan.factors[self._level]
            windows = self.plan.windows(self._level)
            filled_THWC = np.empty((1 + factor * (windows[-1].stop - 1), *self._known_THWC.shape[1:]), np.uint8)
            for known, one in zip(windows, sampled, strict=True):
                filled_THWC[known.start * factor : (known.stop - 1) * factor + 1] = one.video_THWC
            filled_THWC[::factor] = self._known_THWC[: windows[-1].stop]
            self._known_THWC = filled_THWC
        self._level += 1

    def result(self) -> SampledVideo:
        condition_mask_T = self.request.conditioning.condition_mask_T[: self.plan.num_frames]
        return SampledVideo(video_THWC=self._known_THWC[: self.plan.num_frames], condition_mask_T=condition_mask_T)


def _first_frames(conditioning: ConditioningFrames, num_frames: int) -> ConditioningFrames:
    return dataclasses.replace(
        conditioning,
        frames_THWC=conditioning.frames_THWC[:num_frames],
        condition_mask_T=conditioning.condition_mask_T[:num_frames],
        end=None,
    )
