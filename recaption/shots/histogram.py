"""Hard cuts from colour histograms, dissolves and fades from linear blends of their end frames: the tests on frame features.

    histograms, thumbnails = frame_histograms(small_THWC), frame_thumbnails(small_THWC)
    hard_cuts(jump, change, 24.0, settings)                    candidates; `is_flash` decides
    gradual_transitions(histograms, thumbnails, starts, 12, 24.0, settings)

A hard cut is a jump of the colour histograms that stands out from its neighbours and does not jump back (a flash does).
A gradual transition is a span whose frames are blends of its first and last frame; it gives one boundary, in its middle.
Camera and object motion change frames too, but not into blends: each pixel then shows the one or the other.
boundary_search.py runs these tests over a video of any length.

Array names: N frames, C candidate spans, P values of a thumbnail, S frames of a span.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from recaption.shots.settings import ShotSettings


@dataclass(frozen=True, slots=True)
class GradualTransition:
    """A span of frames that blend its first and last frame, and the part of it in which both are visible."""

    start: int
    end: int
    blend_start: int
    blend_end: int
    score: float

    @property
    def frame(self) -> int:
        return (self.blend_start + self.blend_end) // 2

    def moved(self, num_frames: int) -> GradualTransition:
        """The same transition with frames counted from another start."""
        start, end = self.start + num_frames, self.end + num_frames
        return GradualTransition(start, end, self.blend_start + num_frames, self.blend_end + num_frames, self.score)


_HISTOGRAM_BINS = 16
"""Bins per colour channel."""
_THUMBNAIL_PX = 12
"""Short side of the thumbnails on which blends are tested: small enough to hide motion of a few percent of the frame."""


# --- hard cuts --------------------------------------------------------------------------------------------------------


def frame_histograms(small_THWC: np.ndarray) -> np.ndarray:
    """(N, quadrants x channels x bins) float32, each histogram sums to 1; linear interpolation between bin centres."""
    num_frames, height, width, _ = small_THWC.shape
    rows = (slice(0, max(height // 2, 1)), slice(height // 2, height))
    columns = (slice(0, max(width // 2, 1)), slice(width // 2, width))
    parts = [_bin_counts(small_THWC[:, r, c].reshape(num_frames, -1, 3)) for r in rows for c in columns]
    return np.concatenate(parts, axis=1)


def _bin_counts(values_NP3: np.ndarray) -> np.ndarray:
    """(N, 3 * bins) fraction of the pixels per bin; in blocks of frames to bound memory."""
    bins = _HISTOGRAM_BINS
    out = np.empty((len(values_NP3), 3 * bins), np.float32)
    for first in range(0, len(values_NP3), 256):
        block = values_NP3[first : first + 256].astype(np.float32) * ((bins - 1) / 255.0)
        low = block.astype(np.int64)
        upper_weight = block - low
        offsets = (np.arange(len(block))[:, None, None] * 3 + np.arange(3)) * (bins + 1)
        size = len(block) * 3 * (bins + 1)
        counts = np.bincount((low + offsets).ravel(), weights=(1 - upper_weight).ravel(), minlength=size)
        counts += np.bincount((low + offsets + 1).ravel(), weights=upper_weight.ravel(), minlength=size)
        fractions = counts.reshape(len(block), 3, bins + 1)[:, :, :bins] / values_NP3.shape[1]
        out[first : first + 256] = fractions.reshape(len(block), -1)
    return out


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Histogram distance: fraction of pixels (0..1) that would have to change bins, mean over quadrants and channels."""
    return np.abs(a - b).sum(-1) * (_HISTOGRAM_BINS / 2.0 / a.shape[-1])


def jumps(histograms: np.ndarray) -> np.ndarray:
    """(N - 1,) float64 histogram distance of every frame but the first to the one before it."""
    return _distance(histograms[1:], histograms[:-1]).astype(np.float64)


def changes(thumbnails_NP: np.ndarray) -> np.ndarray:
    """(N - 1,) float64 mean change of the pixels from the frame before, 0..1."""
    return np.abs(np.diff(thumbnails_NP, axis=0)).mean(1).astype(np.float64)


def cut_radius(fps: float) -> int:
    """Frames on either side with which a jump is compared."""
    return max(3, round(0.35 * fps))


def cut_candidates(
    jump: np.ndarray, change: np.ndarray, first: int, end: int, fps: float, settings: ShotSettings
) -> np.ndarray:
    """Frames in [first, end) at which a hard cut may be: jumps that stand out from their neighbours.

    Args:
        jump, change: (N,) of all frames known so far; exact while `end + cut_radius(fps) < N`, or where N is all of them.
    """
    radius, num_frames = cut_radius(fps), len(jump)
    padded = np.pad(
        jump[max(first - radius, 0) : end + radius], (max(radius - first, 0), max(end + radius - num_frames, 0))
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1)
    jump, change = jump[first:end], change[first:end]
    frames = np.arange(first, end)
    counts = np.minimum(frames + radius, num_frames - 1) - np.maximum(frames - radius, 0) + 1
    mean_nearby = (windows.sum(1) - jump) / np.maximum(counts - 1, 1)
    third, second = np.partition(windows, (-3, -2), axis=1)[:, -3:-1].T
    is_isolated = (jump >= settings.cut_distance) & (jump >= settings.cut_ratio * (mean_nearby + 0.01))
    is_isolated &= (jump >= 1.5 * second) | (jump >= 3.0 * settings.cut_distance)
    # two cuts close together: each is far above everything but the other
    is_pair = (jump >= 2.5 * settings.cut_distance) & (jump >= 2.0 * settings.cut_ratio * (third + 0.01))
    return first + np.flatnonzero((is_isolated | is_pair) & (change >= settings.min_change))


def max_flash_frames(fps: float, settings: ShotSettings) -> int:
    """Longest flash in frames."""
    return max(2, round(settings.flash_seconds * fps))


def is_flash(histograms: np.ndarray, start: int, end: int, distance: float, flash_frames: int) -> bool:
    """Whether frame `start` reappears within `flash_frames` after `end`, or frame `end` was shown shortly before `start`.

    `distance` is the histogram distance between the two frames.
    """
    after = histograms[end + 1 : end + 1 + flash_frames]
    before = histograms[max(start - flash_frames, 0) : start]
    start_reappears = len(after) and _distance(after, histograms[start]).min() < 0.4 * distance
    end_was_before = len(before) and _distance(before, histograms[end]).min() < 0.4 * distance
    return bool(start_reappears or end_was_before)


# --- gradual transitions ----------------------------------------------------------------------------------------------


def frame_thumbnails(small_THWC: np.ndarray) -> np.ndarray:
    """(N, P) uint8: flattened RGB thumbnails with a short side of 12 px."""
    _, height, width, _ = small_THWC.shape
    scale = _THUMBNAIL_PX / min(height, width)
    size = (min(max(_THUMBNAIL_PX, round(width * scale)), 48), min(max(_THUMBNAIL_PX, round(height * scale)), 48))
    thumbnails = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in small_THWC]
    return np.asarray(thumbnails, np.uint8).reshape(len(thumbnails), -1)


def as_floats(thumbnails_NP: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in 0..1."""
    return thumbnails_NP.astype(np.float32) / 255.0


def gradual_lengths(max_frames: int) -> list[int]:
    """Lengths of the spans that are tested, the longest of at most `max_frames`."""
    return sorted({round(x) for x in np.geomspace(4, max(max_frames, 4), 8)})


def start_step(length: int) -> int:
    """Distance between the starts of tested spans of one length."""
    return max(1, length // 8)


def static_margin(length: int) -> int:
    """Frames outside of a span of this length that are looked at too."""
    return max(1, length // 4)


def gradual_transitions(
    histograms: np.ndarray, thumbnails_NP: np.ndarray, starts: np.ndarray, length: int, settings: ShotSettings
) -> list[GradualTransition]:
    """Which of the spans [start, start + length] are gradual transitions."""
    found: list[GradualTransition] = []
    distances = _distance(histograms[starts], histograms[starts + length])
    starts = starts[distances >= settings.gradual_distance]
    for first in range(0, len(starts), 64):
        batch = starts[first : first + 64]
        distance_C = _distance(histograms[batch], histograms[batch + length])
        found += _blend_spans(thumbnails_NP, batch, length, distance_C, settings)
        found += _blend_spans(1.0 - thumbnails_NP, batch, length, distance_C, settings, negative=True)
    return found


def reverts(histograms: np.ndarray, found: GradualTransition, fps: float, settings: ShotSettings) -> bool:
    """Whether a gradual change is a flash: what was before it comes back."""
    distance = float(_distance(histograms[found.start], histograms[found.end]))
    return is_flash(histograms, found.start, found.end, distance, max_flash_frames(fps, settings))


def _blend_spans(
    thumbnails_NP: np.ndarray,
    starts: np.ndarray,
    length: int,
    distance_C: np.ndarray,
    settings: ShotSettings,
    *,
    negative: bool = False,
) -> list[GradualTransition]:
    """Spans [start, start + length] that are blends `a * first + b * last` with a falling and b rising.

    A fade through black is one with a + b < 1 in its middle; a fade through white is the same in the `negative` images.
    """
    span_CSP = thumbnails_NP[starts[:, None] + np.arange(length + 1)]
    first_CP, last_CP = span_CSP[:, 0], span_CSP[:, -1]
    a_CS, b_CS = _blend_weights(span_CSP, first_CP, last_CP)
    change_CP = np.abs(last_CP - first_CP)
    error_CSP = np.abs(span_CSP - a_CS[..., None] * first_CP[:, None] - b_CS[..., None] * last_CP[:, None])
    changed_CP = change_CP > 0.06
    fits_CSP = (error_CSP < 0.2 * change_CP[:, None] + 0.015) & changed_CP[:, None]
    fit_fraction_CS = fits_CSP.sum(-1) / np.maximum(changed_CP.sum(-1), 1)[:, None]
    is_blended_CS = np.maximum(a_CS, b_CS) < 0.85
    fit_C = np.where(is_blended_CS, fit_fraction_CS, 0).sum(1) / np.maximum(is_blended_CS.sum(1), 1)
    is_monotonic_C = (np.diff(a_CS, axis=1).max(1) < 0.12) & (np.diff(b_CS, axis=1).min(1) > -0.12)
    is_transition_C = (fit_C >= settings.min_blend_fraction) & is_monotonic_C & (is_blended_CS.sum(1) >= 2)
    is_transition_C &= (changed_CP.mean(1) > 0.3) & (change_CP.mean(1) >= 2 * settings.min_change)
    first_positive_CP, last_positive_CP = (1.0 - first_CP, 1.0 - last_CP) if negative else (first_CP, last_CP)
    is_transition_C &= (
        _lighting_fraction(first_positive_CP, last_positive_CP, changed_CP) < settings.max_lighting_fraction
    )
    is_transition_C &= _is_static_outside(thumbnails_NP, starts, length, change_CP, changed_CP)
    is_uniform_C = np.minimum(first_CP.std(1), last_CP.std(1)) < 0.05
    found = []
    for index in np.flatnonzero(is_transition_C):
        blended = np.flatnonzero(is_blended_CS[index])
        start = int(starts[index])
        # part of a transition is a blend of its own ends too: the whole one has the largest distance, except for halves of
        # a fade, which end in black or white
        score = float(fit_C[index] * distance_C[index] * (0.5 if is_uniform_C[index] else 1.0))
        found.append(
            GradualTransition(start, start + length, start + int(blended[0]), start + int(blended[-1]) + 1, score)
        )
    return found


def _is_static_outside(
    thumbnails_NP: np.ndarray, starts: np.ndarray, length: int, change_CP: np.ndarray, changed_CP: np.ndarray
) -> np.ndarray:
    """(C,) bool: whether most of the picture changes more slowly just before and after the span than within it.

    Rejects parts of a transition, steady motion and gradual changes of light.
    """
    margin = static_margin(length)
    limit_CP = 0.5 * (margin / length) * change_CP + 0.01
    num_changed_C = np.maximum(changed_CP.sum(1), 1)
    is_static_C = np.ones(len(starts), bool)
    for edges, step in ((starts, -1), (starts + length, 1)):
        for distance in range(1, margin + 1):
            outside = np.clip(edges + step * distance, 0, len(thumbnails_NP) - 1)
            still_CP = np.abs(thumbnails_NP[outside] - thumbnails_NP[edges]) <= limit_CP
            is_static_C &= (still_CP & changed_CP).sum(1) >= 0.5 * num_changed_C
    return is_static_C


def _lighting_fraction(first_CP: np.ndarray, last_CP: np.ndarray, changed_CP: np.ndarray) -> np.ndarray:
    """(C,) fraction of the changed pixels that one common gain explains: high where only the light changes."""
    ratio_CP = (last_CP + 0.02) / (first_CP + 0.02)
    gain_C = np.median(ratio_CP, axis=1)[:, None]
    explained_CP = np.abs(last_CP - gain_C * first_CP) < 0.25 * np.abs(last_CP - first_CP) + 0.02
    return (explained_CP & changed_CP).sum(1) / np.maximum(changed_CP.sum(1), 1)


def _blend_weights(span_CSP: np.ndarray, first_CP: np.ndarray, last_CP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares weights (a, b), each (C, S), of the first and the last frame in every frame of the span."""
    ff, ll, fl = ((x * y).sum(-1) for x, y in ((first_CP, first_CP), (last_CP, last_CP), (first_CP, last_CP)))
    fs = np.einsum("cp,csp->cs", first_CP, span_CSP)
    ls = np.einsum("cp,csp->cs", last_CP, span_CSP)
    ridge = 1e-4 * (ff + ll) + 1e-6
    determinant = ((ff + ridge) * (ll + ridge) - fl * fl)[:, None]
    a = ((ll + ridge)[:, None] * fs - fl[:, None] * ls) / determinant
    b = ((ff + ridge)[:, None] * ls - fl[:, None] * fs) / determinant
    return a, b
