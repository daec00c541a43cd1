"""A video longer than what the model was trained on, made window by window.

    canvas = Canvas(timeline, grid, longest=5, overlap=2)          # both in token frames
    for window in canvas.windows:
        frames_THWC, given_T = canvas.before(window)               # what the window starts from
        canvas.take(window, decoded_THWC)
    canvas.frames_THWC

Each window is a video of its own for the compressor and the model, conditioned on the frames that are given or were made
by a window before: those at its start, its end, or both. Memory is that of one window, beside the pixels.

A model that was not trained with conditions gets `overlapping` instead: windows over the latents of the whole video, all
denoised together, averaged where they overlap after every model call (MultiDiffusion, arXiv 2302.08113, along time).

Shape suffixes: T frames of the video or of a window, K token frames of the video.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from packing.grid import Grid
from train.sampling.conditioning_frames import Timeline


@dataclass(frozen=True)
class Window:
    """Token frames [start, start + length) of a video."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    def frames(self, grid: Grid) -> slice:
        """Its frames in the video. A window that does not start the video starts with the last frame of a group: for
        itself that frame is the first one, which a causal compressor keeps alone."""
        start = self.start * grid.patch[0] * grid.frame_stride
        return slice(start, start + 1 + (self.length * grid.patch[0] - 1) * grid.frame_stride)


def plan_windows(given_K: np.ndarray, longest: int, overlap: int) -> list[Window]:
    """Windows that, one after the other, leave no token frame open.

    From given frames onwards; backwards where only the end is given; where both sides of a gap are and it fits, one window
    around it.

    Args:
        longest: token frames of a window, at least 3.
        overlap: how many of them a window takes over from the one before; at least 2 fewer.
    """
    known_K, windows = given_K.copy(), []
    while not known_K.all():
        window = _next_window(known_K, longest, overlap)
        windows.append(window)
        # The first token frame of a later window shows one frame of its group only: not done where it was open.
        first = window.start + (window.start > 0 and not known_K[window.start])
        known_K[first : window.end] = True
    return windows


def _next_window(known_K: np.ndarray, longest: int, overlap: int) -> Window:
    num_frames = len(known_K)
    if num_frames <= longest:
        return Window(0, num_frames)
    start = int(np.argmin(known_K))  # of the first gap
    end = start + int(np.argmax(np.append(known_K[start:], True)))
    last_start = num_frames - longest
    if start == 0:
        first = 0 if end == num_frames else max(0, min(end + overlap - longest, last_start))
        return _with_its_end_in_view(Window(first, longest), known_K, end)
    if end < num_frames and end - start <= longest - 2:
        before = (longest - (end - start)) // 2
        return _with_its_end_in_view(Window(max(0, min(start - before, last_start)), longest), known_K, end)
    return _with_its_end_in_view(Window(max(0, min(start - overlap, last_start)), longest), known_K, start + 1)


def _with_its_end_in_view(window: Window, known_K: np.ndarray, needed_end: int) -> Window:
    """A window must not fill a gap up to given frames that it does not see: one token frame is left for the next."""
    end = window.end
    if end < len(known_K) and known_K[end] and not known_K[end - 1] and end > needed_end:
        return Window(window.start, window.length - 1)
    return window


def overlapping(num_frames: int, longest: int, overlap: int) -> list[Window]:
    """Windows of one length over all token frames, each sharing `overlap` or more with the next."""
    if num_frames <= longest:
        return [Window(0, num_frames)]
    count = -(-(num_frames - overlap) // (longest - overlap))
    starts = np.linspace(0, num_frames - longest, count).round().astype(int)
    return [Window(int(start), longest) for start in starts]


def ramp(window: Window) -> np.ndarray:
    """Weight of each token frame of an overlapping window: most in its middle, where it sees both sides.

    None at the first one of a later window: the model takes it for the start of a video, which is a latent of one frame.
    """
    place = np.arange(window.length)
    weight = np.minimum(place + 1, window.length - place).astype(np.float32)
    return weight * (place >= (window.start > 0))


class Canvas:
    """The frames of one video on their way from given to done."""

    def __init__(self, timeline: Timeline, grid: Grid, *, longest: int, overlap: int) -> None:
        """
        Args:
            longest, overlap: of a window, in token frames.
        """
        self.timeline, self.grid = timeline, grid
        num_token_frames = grid.token_shape(timeline.num_frames, *timeline.frames_THWC.shape[1:3])[0]
        self.given_K = self._whole_tokens(timeline.given_T, num_token_frames)
        self.windows = plan_windows(self.given_K, longest, overlap)
        self.frames_THWC = timeline.frames_THWC.copy()
        self._source_THWC = timeline.frames_THWC.copy()
        self._known_K = self.given_K.copy()
        self._shown_T = np.zeros(timeline.num_frames, bool)

    def _whole_tokens(self, given_T: np.ndarray, num_token_frames: int) -> np.ndarray:
        groups = np.concatenate([given_T[:1].repeat(self.grid.frame_stride - 1), given_T])
        return np.all(groups.reshape(num_token_frames, -1), axis=1)

    def before(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """(frames_THWC, given_K) that a window starts from.

        Open frames show the nearest given one, as if the video stood still there: what a causal compressor makes of given
        frames further on depends a little on the frames before them. In an edit they show what is edited.
        """
        given_K = self._known_K[window.start : window.end]
        frames_THWC = self._source_THWC[window.frames(self.grid)]
        if self.timeline.noise_share < 1 or not given_K.any():
            return frames_THWC, given_K
        places = np.flatnonzero(self._frames_of(given_K))
        every = np.arange(len(frames_THWC))
        after = places[np.searchsorted(places, every).clip(max=len(places) - 1)]
        before = places[(np.searchsorted(places, every, side="right") - 1).clip(min=0)]
        return frames_THWC[np.where(abs(after - every) < abs(every - before), after, before)], given_K

    def take(self, window: Window, decoded_THWC: np.ndarray) -> None:
        """The window's frames, decoded. What an earlier window showed stays as it was."""
        span = window.frames(self.grid)
        new_T = ~self._shown_T[span]
        self.frames_THWC[span][new_T] = decoded_THWC[new_T]
        open_T = ~self._frames_of(self._known_K[window.start : window.end])
        self._source_THWC[span][open_T] = decoded_THWC[open_T]
        self._shown_T[span] = True
        unfinished = window.start > 0 and not self._known_K[window.start]
        self._known_K[window.start + unfinished : window.end] = True
        if unfinished:  # the rest of its group comes with the window before
            self._shown_T[span][: 1 + (self.grid.patch[0] - 1) * self.grid.frame_stride] = False

    def unshown(self, longest: int) -> Iterator[Window]:
        """Windows over the given frames that no window has shown: they only go through the compressor."""
        unit = self.grid.frame_stride * self.grid.patch[0]
        while not self._shown_T.all():
            start = int(np.argmin(self._shown_T)) // unit
            yield Window(start, min(longest, len(self.given_K) - start))

    def _frames_of(self, given_K: np.ndarray) -> np.ndarray:
        """Token frames of a window to its frames."""
        unit = self.grid.frame_stride * self.grid.patch[0]
        return given_K.repeat(unit)[self.grid.frame_stride - 1 :]
