"""Videos longer than the model was trained on, sampled window by window.

    video = WindowedVideo(conditioning, grid, window_length=5, overlap=2)          # both in latent frames
    for window in video.windows:
        frames_THWC, condition_mask_K = video.window_inputs(window)
        video.commit(window, decoded_THWC)
    video.frames_THWC

Each window is a video of its own for the compressor and the model, conditioned on the known frames (conditioning frames, or
sampled by a window before) at its start, its end, or both. Memory is that of one window, plus the pixels.

A model that was not trained with frame conditioning uses `overlapping_windows` instead: windows over the latents of the
whole video, denoised together and averaged where they overlap after every model call (MultiDiffusion, arXiv 2302.08113,
along time).

Shape suffixes: T frames of the video or of a window, K token frames of the video or of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from packing.grid import Grid
from train.sampling.conditioning_frames import ConditioningFrames


@dataclass(frozen=True)
class Window:
    """Token frames [start, start + length) of a video."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    def frames(self, grid: Grid) -> slice:
        """The window's frames in the video.

        A window that does not start the video starts with the last frame of a group: as the window's first frame it is
        alone in its group, as a causal compressor wants it.
        """
        start = self.start * grid.patch[0] * grid.frame_stride
        return slice(start, start + 1 + (self.length * grid.patch[0] - 1) * grid.frame_stride)


def plan_windows(condition_mask_K: np.ndarray, window_length: int, overlap: int) -> list[Window]:
    """Windows that, sampled in this order, leave no token frame unknown.

    Forward from known frames; backward where only the end is known; a gap that fits into one window is sampled at once.

    Args:
        window_length: token frames of a window, at least 3.
        overlap: token frames that a window shares with the one before; at most window_length - 2.
    """
    known_K, windows = condition_mask_K.copy(), []
    while not known_K.all():
        window = _next_window(known_K, window_length, overlap)
        windows.append(window)
        # The first token frame of a later window decodes to one frame of its group only: still unknown if it was.
        first = window.start + (window.start > 0 and not known_K[window.start])
        known_K[first : window.end] = True
    return windows


def _next_window(known_K: np.ndarray, window_length: int, overlap: int) -> Window:
    num_frames = len(known_K)
    if num_frames <= window_length:
        return Window(0, num_frames)
    gap_start = int(np.argmin(known_K))
    gap_end = gap_start + int(np.argmax(np.append(known_K[gap_start:], True)))
    last_start = num_frames - window_length
    if gap_start == 0:
        first = 0 if gap_end == num_frames else max(0, min(gap_end + overlap - window_length, last_start))
        return _leave_gap_frame(Window(first, window_length), known_K, gap_end)
    if gap_end < num_frames and gap_end - gap_start <= window_length - 2:
        before = (window_length - (gap_end - gap_start)) // 2
        first = max(0, min(gap_start - before, last_start))
        return _leave_gap_frame(Window(first, window_length), known_K, gap_end)
    first = max(0, min(gap_start - overlap, last_start))
    return _leave_gap_frame(Window(first, window_length), known_K, gap_start + 1)


def _leave_gap_frame(window: Window, known_K: np.ndarray, min_end: int) -> Window:
    """If known frames start right after the window, shorten it by one token frame, so that the next window can be
    conditioned on them and blend into them."""
    end = window.end
    if end < len(known_K) and known_K[end] and not known_K[end - 1] and end > min_end:
        return Window(window.start, window.length - 1)
    return window


def overlapping_windows(num_frames: int, window_length: int, overlap: int) -> list[Window]:
    """Windows of one length that cover all token frames; neighbours share at least `overlap`."""
    if num_frames <= window_length:
        return [Window(0, num_frames)]
    count = -(-(num_frames - overlap) // (window_length - overlap))
    starts = np.linspace(0, num_frames - window_length, count).round().astype(int)
    return [Window(int(start), window_length) for start in starts]


def blend_weights(window: Window) -> np.ndarray:
    """(K,) float32 weights for averaging overlapping windows: highest in the middle, where there is context on both sides.

    0 for the first token frame of a later window: the model takes it for the start of a video, a latent of one frame.
    """
    index = np.arange(window.length)
    weight = np.minimum(index + 1, window.length - index).astype(np.float32)
    return weight * (index >= (window.start > 0))


class WindowedVideo:
    """The frames of a video that is sampled window by window."""

    def __init__(self, conditioning: ConditioningFrames, grid: Grid, *, window_length: int, overlap: int) -> None:
        """
        Args:
            window_length, overlap: of windows, in token frames.
        """
        self.conditioning, self.grid = conditioning, grid
        num_token_frames = grid.token_shape(conditioning.num_frames, *conditioning.frames_THWC.shape[1:3])[0]
        self.condition_mask_K = self._per_token_frame(conditioning.condition_mask_T, num_token_frames)
        self.windows = plan_windows(self.condition_mask_K, window_length, overlap)
        self.frames_THWC = conditioning.frames_THWC.copy()
        """The result: conditioning frames, and decoded ones once they are committed."""
        self._source_THWC = conditioning.frames_THWC.copy()
        """What windows are conditioned on: conditioning frames as pixels, sampled frames as decoded."""
        self._known_K = self.condition_mask_K.copy()
        self._is_decoded_T = np.zeros(conditioning.num_frames, bool)

    def _per_token_frame(self, condition_mask_T: np.ndarray, num_token_frames: int) -> np.ndarray:
        """True where all frames of a token frame are conditioning frames."""
        groups = np.concatenate([condition_mask_T[:1].repeat(self.grid.frame_stride - 1), condition_mask_T])
        return np.all(groups.reshape(num_token_frames, -1), axis=1)

    def window_inputs(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """(frames_THWC, condition_mask_K) to encode and condition the window on.

        Unknown frames repeat the nearest known one, as a still: a causal compressor's latents of known frames depend a
        little on the frames before them. In an edit they are the source video.
        """
        known_K = self._known_K[window.start : window.end]
        frames_THWC = self._source_THWC[window.frames(self.grid)]
        if self.conditioning.starts_from_frames or not known_K.any():
            return frames_THWC, known_K
        known = np.flatnonzero(self._per_frame(known_K))
        every = np.arange(len(frames_THWC))
        after = known[np.searchsorted(known, every).clip(max=len(known) - 1)]
        before = known[(np.searchsorted(known, every, side="right") - 1).clip(min=0)]
        return frames_THWC[np.where(abs(after - every) < abs(every - before), after, before)], known_K

    def commit(self, window: Window, decoded_THWC: np.ndarray) -> None:
        """Store the decoded frames of a window; frames that an earlier window has decoded stay as they are."""
        span = window.frames(self.grid)
        new_T = ~self._is_decoded_T[span]
        self.frames_THWC[span][new_T] = decoded_THWC[new_T]
        unknown_T = ~self._per_frame(self._known_K[window.start : window.end])
        self._source_THWC[span][unknown_T] = decoded_THWC[unknown_T]
        self._is_decoded_T[span] = True
        is_first_partial = window.start > 0 and not self._known_K[window.start]
        self._known_K[window.start + is_first_partial : window.end] = True
        if is_first_partial:  # the rest of its group is decoded by the window before
            self._is_decoded_T[span][: 1 + (self.grid.patch[0] - 1) * self.grid.frame_stride] = False

    def undecoded(self, window_length: int) -> Iterator[Window]:
        """Windows over conditioning frames that no window has decoded; for `commit` after the compressor alone."""
        unit = self.grid.frame_stride * self.grid.patch[0]
        while not self._is_decoded_T.all():
            start = int(np.argmin(self._is_decoded_T)) // unit
            yield Window(start, min(window_length, len(self.condition_mask_K) - start))

    def _per_frame(self, mask_K: np.ndarray) -> np.ndarray:
        """Mask of a window's token frames -> mask of its frames."""
        unit = self.grid.frame_stride * self.grid.patch[0]
        return mask_K.repeat(unit)[self.grid.frame_stride - 1 :]
