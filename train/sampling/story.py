"""The shots of a film on a model: what each is sampled from, and how they are joined.

    film = Film([FilmShot(text="a red circle moves left", num_frames=16), FilmShot(...), FilmShot(...)], sampler)
    request = film.request(1, before_THWC)                       # continues the last frames of shot 0
    (sampled,) = sampler.sample_requests([request])
    frames = list(film.frames(shots, dissolves))                 # exactly the frames of all shots

A shot that cuts is sampled from noise of its own. One that continues is an extension of the last frames of the shot before.
A dissolve takes the last half of its frames from the shot before and the first half from the shot after: the model samples
them anew between the two where it was trained to connect videos, otherwise they are a cross-fade of pixels, for which both
shots are sampled a little longer than they are shown. So every shot has its exact length in the film.

Shape suffixes: T frames, H, W, C. Frames are uint8 RGB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from packing.buckets import Bucket
from recaption.errors import UsageError
from train.diffusion.frame_conditioning import check_trained_for, is_trained_for
from train.sampling.conditioning_frames import connect, extend, prefix_length, segment_length, text_to_video
from train.sampling.request import Request
from train.sampling.sampler import Sampler
from train.sampling.sizes import supported_length

DISSOLVE_SECONDS = 0.5
CONNECTED, CROSS_FADE = "connected by the model", "cross-fade of pixels"
"""How dissolves are made."""


@dataclass(frozen=True, kw_only=True)
class FilmShot:
    """One shot of a film."""

    text: str
    """The prompt for the model."""
    num_frames: int
    transition: str = "cut"
    """From the shot before: cut, continue or dissolve."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """How shots that are longer than a window are sampled, as of `Sampler.sample_requests`."""

    long: str = "windows"
    window_frames: int = 0
    overlap_frames: int = 0


def transitions_of(sampler: Sampler) -> tuple[str, ...]:
    """Transitions that the model can make."""
    return ("cut", *(("continue",) if is_trained_for("extend", sampler.conditions) else ()), "dissolve")


class Film:
    """The shots of a film, at one size, on one model."""

    def __init__(
        self,
        shots: Sequence[FilmShot],
        sampler: Sampler,
        *,
        size: Bucket | None = None,
        windows: WindowSettings | None = None,
    ) -> None:
        """
        Args:
            size: height and width of the film; default: as in training.

        Raises:
            UsageError: a transition that the model was not trained for, or a shot that is too short for its dissolves.
        """
        self.shots, self.sampler, self.grid = tuple(shots), sampler, sampler.grid
        self.size = size or sampler.size(None, None, None)
        self.windows = windows or WindowSettings()
        self.dissolve, self.half = self._dissolve()
        for number, shot in enumerate(self.shots):
            if shot.transition == "continue":
                check_trained_for("extend", sampler.conditions, sampler.name)
            needed = self.half * (self._dissolves_at(number) + self._dissolves_at(number + 1))
            least = sampler.tokenizer.frames_per_token if self.dissolve == CONNECTED else 1
            if needed and shot.num_frames < needed + least:
                raise UsageError(
                    f"shot {number + 1} has {shot.num_frames} frames, which is too short for its dissolves: "
                    f"{needed + least} are enough, or let it cut"
                )

    def _dissolve(self) -> tuple[str, int]:
        """How dissolves are made, and the half of their frames."""
        half = max(1, round(DISSOLVE_SECONDS * self.sampler.fps / 2))
        if not is_trained_for("connect", self.sampler.conditions):
            return CROSS_FADE, half
        unit = self.sampler.tokenizer.frames_per_token
        room = (self._window_tokens() - 2) * unit // 2
        step = unit // 2 if unit % 2 == 0 else unit
        whole = min(max(step, half // step * step), room // step * step)
        return (CONNECTED, whole) if whole else (CROSS_FADE, half)

    def _window_tokens(self) -> int:
        return self.grid.token_shape(self.sampler.window_frames(self.windows.window_frames), *self._size_px)[0]

    @property
    def _size_px(self) -> tuple[int, int]:
        return self.size.height_px, self.size.width_px

    def _dissolves_at(self, number: int) -> bool:
        """Whether there is a dissolve before shot `number`."""
        return number < len(self.shots) and self.shots[number].transition == "dissolve"

    def extra_frames(self, number: int) -> tuple[int, int]:
        """Frames that a shot has before and after those that are its own, for cross-fades."""
        half = self.half if self.dissolve == CROSS_FADE else 0
        return half * self._dissolves_at(number), half * self._dissolves_at(number + 1)

    def request(self, number: int, before_THWC: np.ndarray | None = None) -> Request:
        """What a shot is sampled from.

        Args:
            before_THWC: all frames of the shot before, for a shot that continues it.
        """
        shot = self.shots[number]
        num_frames = shot.num_frames + sum(self.extra_frames(number))
        if shot.transition == "continue":
            assert before_THWC is not None, "a shot that continues needs the shot before"
            unit = self.sampler.tokenizer.frames_per_token
            context = prefix_length(min(len(before_THWC), self._overlap_frames), self.grid)
            conditioning = extend(before_THWC[-max(context, 1) :], -(-num_frames // unit) * unit, self.grid)
            start = conditioning.num_frames - (-(-num_frames // unit) * unit)
            conditioning = dataclasses.replace(conditioning, start=start, end=start + num_frames)
            return Request(text=shot.text, conditioning=conditioning, seed=shot.seed)
        conditioning = text_to_video(supported_length(num_frames, self.grid), *self._size_px)
        conditioning = dataclasses.replace(conditioning, end=num_frames)
        return Request(text=shot.text, conditioning=conditioning, seed=shot.seed, long=self.windows.long)

    @property
    def _overlap_frames(self) -> int:
        return self.windows.overlap_frames or self.sampler.overlap_frames

    def dissolve_request(self, number: int, before_THWC: np.ndarray, after_THWC: np.ndarray) -> Request:
        """What the frames between shot `number` - 1 and shot `number` are sampled from, where the model connects them.

        Args:
            before_THWC, after_THWC: all frames of the two shots.
        """
        unit = self.sampler.tokenizer.frames_per_token
        num_tokens = max(1, (self._window_tokens() - 2 * self.half // unit) // 2)
        known = min(self._overlap_frames, num_tokens * unit)
        before, after = before_THWC[: len(before_THWC) - self.half], after_THWC[self.half :]
        before = before[-max(1, prefix_length(min(len(before), known), self.grid)) :]
        after = after[: segment_length(min(len(after), known), self.grid)]
        conditioning = connect([before, after], 2 * self.half, self.grid)
        start = int(np.argmin(conditioning.condition_mask_T))
        shot = self.shots[number]
        return Request(
            text=shot.text,
            conditioning=dataclasses.replace(conditioning, start=start, end=start + 2 * self.half),
            seed=shot.seed,
            noise_words=("dissolve",),
        )

    def cross_fade(self, number: int, before_THWC: np.ndarray, after_THWC: np.ndarray) -> np.ndarray:
        """The frames between shot `number` - 1 and shot `number` as a mix of both that changes evenly."""
        last = before_THWC[-2 * self.half :].astype(np.float32)
        first = after_THWC[: 2 * self.half].astype(np.float32)
        share_T = (np.arange(2 * self.half, dtype=np.float32) + 0.5) / (2 * self.half)
        share_T111 = share_T[:, None, None, None]
        return (last * (1 - share_T111) + first * share_T111).round().astype(np.uint8)

    def shown(self, number: int, sampled_THWC: np.ndarray, dissolves: Mapping[int, np.ndarray]) -> np.ndarray:
        """The frames of a shot as the film has them.

        Args:
            sampled_THWC: all frames of the shot.
            dissolves: number of the shot after -> frames of the dissolve.
        """
        start = self.extra_frames(number)[0]
        frames_THWC = sampled_THWC[start : start + self.shots[number].num_frames].copy()
        if self._dissolves_at(number):
            frames_THWC[: self.half] = dissolves[number][self.half :]
        if self._dissolves_at(number + 1):
            frames_THWC[len(frames_THWC) - self.half :] = dissolves[number + 1][: self.half]
        return frames_THWC

    def undissolved(self, number: int, shown_THWC: np.ndarray) -> np.ndarray:
        """The frames of a shot as the film has them without those of its dissolves, which belong to two shots."""
        start = self.half * self._dissolves_at(number)
        return shown_THWC[start : len(shown_THWC) - self.half * self._dissolves_at(number + 1)]

    def frames(self, sampled: Iterator[np.ndarray], dissolves: Mapping[int, np.ndarray]) -> Iterator[np.ndarray]:
        """The film, frame by frame."""
        for number, sampled_THWC in enumerate(sampled):
            yield from self.shown(number, sampled_THWC, dissolves)
