"""Our own shot detector: cuts from colour histograms, dissolves and fades from blends of their two sides.

    boundaries(small_THWC, fps, ShotSettings())         [Boundary(frame=48, score=inf), ...]

A hard cut is a jump of the colour histograms that stands out from its neighbours and does not jump back (a flash does).
A gradual transition is a span whose frames are blends of its first and last frame; it counts as one boundary, in its
middle. Moving cameras and objects change frames too, but not into blends: each pixel then shows the one or the other.

Array names: N frames, C candidate spans, P values of a tiny picture, S frames of a span.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import cv2
import numpy as np

from recaption.shots.settings import Boundary

if TYPE_CHECKING:
    from recaption.shots.settings import ShotSettings


@dataclass(frozen=True, slots=True)
class _Blend:
    """A span of frames that are blends of its first and last one, and the part of it that is neither of the two."""

    start: int
    end: int
    mixed_start: int
    mixed_end: int
    score: float

    @property
    def frame(self) -> int:
        return (self.mixed_start + self.mixed_end) // 2


_HISTOGRAM_BINS = 16


_TINY_PX = 12
"""Short side of the pictures on which blends are tested: motion of a few percent of the frame disappears in it."""


def boundaries(small_THWC: np.ndarray, fps: float, settings: ShotSettings) -> list[Boundary]:
    """Cuts first (score infinite), then what lies between them; may be closer together than `min_shot_seconds`."""
    histograms = _histograms(small_THWC)
    tiny_NP = tiny_pictures(small_THWC)
    cuts = _hard_cuts(histograms, tiny_NP, fps, settings)
    found = [Boundary(frame, np.inf) for frame in cuts]
    if settings.max_gradual_seconds > 0:
        for start, end in pairwise([0, *cuts, len(small_THWC)]):
            found += _gradual(histograms[start:end], tiny_NP[start:end], start, fps, settings)
    return found


# --- hard cuts --------------------------------------------------------------------------------------------------------


def _histograms(small_THWC: np.ndarray) -> np.ndarray:
    """(N, quadrants x channels x bins) float32, each histogram of sum 1; values between two centres count for both."""
    num_frames, height, width, _ = small_THWC.shape
    rows = (slice(0, max(height // 2, 1)), slice(height // 2, height))
    columns = (slice(0, max(width // 2, 1)), slice(width // 2, width))
    parts = [_bin_counts(small_THWC[:, r, c].reshape(num_frames, -1, 3)) for r in rows for c in columns]
    return np.concatenate(parts, axis=1)


def _bin_counts(values_NP3: np.ndarray) -> np.ndarray:
    """(N, 3 * bins) shares; in blocks of frames, so that long videos stay small in memory."""
    bins = _HISTOGRAM_BINS
    out = np.empty((len(values_NP3), 3 * bins), np.float32)
    for first in range(0, len(values_NP3), 256):
        block = values_NP3[first : first + 256].astype(np.float32) * ((bins - 1) / 255.0)
        low = block.astype(np.int64)
        upper_share = block - low
        offsets = (np.arange(len(block))[:, None, None] * 3 + np.arange(3)) * (bins + 1)
        size = len(block) * 3 * (bins + 1)
        counts = np.bincount((low + offsets).ravel(), weights=(1 - upper_share).ravel(), minlength=size)
        counts += np.bincount((low + offsets + 1).ravel(), weights=upper_share.ravel(), minlength=size)
        shares = counts.reshape(len(block), 3, bins + 1)[:, :, :bins] / values_NP3.shape[1]
        out[first : first + 256] = shares.reshape(len(block), -1)
    return out


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of pixels (0..1) that would have to change their bin, mean over quadrants and channels."""
    return np.abs(a - b).sum(-1) * (_HISTOGRAM_BINS / 2.0 / a.shape[-1])


def _hard_cuts(histograms: np.ndarray, tiny_NP: np.ndarray, fps: float, settings: ShotSettings) -> list[int]:
    num_frames = len(histograms)
    jump = np.zeros(num_frames)
    jump[1:] = _distance(histograms[1:], histograms[:-1])
    around = max(3, round(0.35 * fps))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(jump, around), 2 * around + 1)
    frames = np.arange(num_frames)
    counts = np.minimum(frames + around, num_frames - 1) - np.maximum(frames - around, 0) + 1
    mean_around = (windows.sum(1) - jump) / np.maximum(counts - 1, 1)
    third, second = np.partition(windows, (-3, -2), axis=1)[:, -3:-1].T
    alone = (jump >= settings.cut_distance) & (jump >= settings.cut_ratio * (mean_around + 0.01))
    alone &= (jump >= 1.5 * second) | (jump >= 3.0 * settings.cut_distance)
    # two cuts close together: each stands far above everything but the other
    paired = (jump >= 2.5 * settings.cut_distance) & (jump >= 2.0 * settings.cut_ratio * (third + 0.01))
    change = np.zeros(num_frames)
    change[1:] = np.abs(np.diff(tiny_NP, axis=0)).mean(1)
    strong = (alone | paired) & (change >= settings.min_change)
    back = _flash_frames(fps, settings)
    cuts = (int(frame) for frame in np.flatnonzero(strong))
    return [cut for cut in cuts if not _is_flash(histograms, cut - 1, cut, float(jump[cut]), back)]


def _flash_frames(fps: float, settings: ShotSettings) -> int:
    return max(2, round(settings.flash_seconds * fps))


def _is_flash(histograms: np.ndarray, start: int, end: int, apart: float, back: int) -> bool:
    """Whether the picture of `start` is there again soon after `end`, or that of `end` was there shortly before `start`.

    `apart` is the distance between the two.
    """
    after = histograms[end + 1 : end + 1 + back]
    before = histograms[max(start - back, 0) : start]
    returns = len(after) and _distance(after, histograms[start]).min() < 0.4 * apart
    returned = len(before) and _distance(before, histograms[end]).min() < 0.4 * apart
    return bool(returns or returned)


# --- gradual transitions ----------------------------------------------------------------------------------------------


def tiny_pictures(small_THWC: np.ndarray) -> np.ndarray:
    """(N, P) float32 in 0..1, short side 12 px."""
    _, height, width, _ = small_THWC.shape
    scale = _TINY_PX / min(height, width)
    size = (min(max(_TINY_PX, round(width * scale)), 48), min(max(_TINY_PX, round(height * scale)), 48))
    tiny = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in small_THWC]
    return np.asarray(tiny, np.float32).reshape(len(tiny), -1) / 255.0


def _gradual(
    histograms: np.ndarray, tiny_NP: np.ndarray, offset: int, fps: float, settings: ShotSettings
) -> list[Boundary]:
    """Gradual transitions inside one span without hard cuts; frames counted from `offset`."""
    longest = min(round(settings.max_gradual_seconds * fps), len(tiny_NP) - 1)
    lengths = sorted({round(x) for x in np.geomspace(4, max(longest, 4), 8)})
    found: list[_Blend] = []
    for length in (n for n in lengths if n < len(tiny_NP)):
        starts = np.arange(0, len(tiny_NP) - length, max(1, length // 8))
        apart = _distance(histograms[starts], histograms[starts + length])
        starts = starts[apart >= settings.gradual_distance]
        for first in range(0, len(starts), 64):
            some = starts[first : first + 64]
            apart = _distance(histograms[some], histograms[some + length])
            found += _blends(tiny_NP, some, length, apart, settings)
            found += _blends(1.0 - tiny_NP, some, length, apart, settings, negative=True)
    apart_frames = 0.25 * settings.max_gradual_seconds * fps
    best: list[_Blend] = []
    for candidate in sorted(found, key=lambda f: (-f.score, f.end - f.start, f.start)):
        apart_by = float(_distance(histograms[candidate.start], histograms[candidate.end]))
        if _is_flash(histograms, candidate.start, candidate.end, apart_by, _flash_frames(fps, settings)):
            continue
        if all(
            abs(candidate.frame - other.frame) > apart_frames
            and (candidate.start >= other.mixed_end or other.mixed_start >= candidate.end)
            for other in best
        ):
            best.append(candidate)
    return [Boundary(f.frame + offset, f.score) for f in best]


def _blends(
    tiny_NP: np.ndarray,
    starts: np.ndarray,
    length: int,
    apart_C: np.ndarray,
    settings: ShotSettings,
    *,
    negative: bool = False,
) -> list[_Blend]:
    """Which spans [start, start + length] are blends `a * first + b * last` with a falling and b rising.

    A fade through black is one with a + b < 1 in its middle; one through white is that in the `negative`.
    """
    span_CSP = tiny_NP[starts[:, None] + np.arange(length + 1)]
    first_CP, last_CP = span_CSP[:, 0], span_CSP[:, -1]
    a_CS, b_CS = _mixture(span_CSP, first_CP, last_CP)
    change_CP = np.abs(last_CP - first_CP)
    error_CSP = np.abs(span_CSP - a_CS[..., None] * first_CP[:, None] - b_CS[..., None] * last_CP[:, None])
    changed_CP = change_CP > 0.06
    fits_CSP = (error_CSP < 0.2 * change_CP[:, None] + 0.015) & changed_CP[:, None]
    share_CS = fits_CSP.sum(-1) / np.maximum(changed_CP.sum(-1), 1)[:, None]
    mixed_CS = np.maximum(a_CS, b_CS) < 0.85
    blended_C = np.where(mixed_CS, share_CS, 0).sum(1) / np.maximum(mixed_CS.sum(1), 1)
    falling_C = (np.diff(a_CS, axis=1).max(1) < 0.12) & (np.diff(b_CS, axis=1).min(1) > -0.12)
    good_C = (blended_C >= settings.blend_share) & falling_C & (mixed_CS.sum(1) >= 2)
    good_C &= (changed_CP.mean(1) > 0.3) & (change_CP.mean(1) >= 2 * settings.min_change)
    first_light_CP, last_light_CP = (1.0 - first_CP, 1.0 - last_CP) if negative else (first_CP, last_CP)
    good_C &= _share_in_other_light(first_light_CP, last_light_CP, changed_CP) < settings.max_light_share
    good_C &= _is_quiet_outside(tiny_NP, starts, length, change_CP, changed_CP)
    is_flat_C = np.minimum(first_CP.std(1), last_CP.std(1)) < 0.05
    found = []
    for index in np.flatnonzero(good_C):
        mixed = np.flatnonzero(mixed_CS[index])
        start = int(starts[index])
        # part of a transition is a blend of its own ends, too: the whole one changes most, but for the black or white
        # in the middle of a fade, which is no shot
        score = float(blended_C[index] * apart_C[index] * (0.5 if is_flat_C[index] else 1.0))
        found.append(_Blend(start, start + length, start + int(mixed[0]), start + int(mixed[-1]) + 1, score))
    return found


def _is_quiet_outside(
    tiny_NP: np.ndarray, starts: np.ndarray, length: int, change_CP: np.ndarray, changed_CP: np.ndarray
) -> np.ndarray:
    """Whether most of the picture changes more slowly just before and just after the span than within it, (C,) bool.

    So a part of a transition is not taken for the whole, nor is a steady motion or a change of light.
    """
    beside = max(1, length // 4)
    limit_CP = 0.5 * (beside / length) * change_CP + 0.01
    num_changed_C = np.maximum(changed_CP.sum(1), 1)
    quiet_C = np.ones(len(starts), bool)
    for edges, step in ((starts, -1), (starts + length, 1)):
        for distance in range(1, beside + 1):
            outside = np.clip(edges + step * distance, 0, len(tiny_NP) - 1)
            still_CP = np.abs(tiny_NP[outside] - tiny_NP[edges]) <= limit_CP
            quiet_C &= (still_CP & changed_CP).sum(1) >= 0.5 * num_changed_C
    return quiet_C


def _share_in_other_light(first_CP: np.ndarray, last_CP: np.ndarray, changed_CP: np.ndarray) -> np.ndarray:
    """Share of the changed picture, (C,), that one common gain explains: high where only the light changes."""
    ratio_CP = (last_CP + 0.02) / (first_CP + 0.02)
    gain_C = np.median(ratio_CP, axis=1)[:, None]
    explained_CP = np.abs(last_CP - gain_C * first_CP) < 0.25 * np.abs(last_CP - first_CP) + 0.02
    return (explained_CP & changed_CP).sum(1) / np.maximum(changed_CP.sum(1), 1)


def _mixture(span_CSP: np.ndarray, first_CP: np.ndarray, last_CP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares shares (a, b), each (C, S), of the first and the last picture in every picture of the span."""
    ff, ll, fl = ((x * y).sum(-1) for x, y in ((first_CP, first_CP), (last_CP, last_CP), (first_CP, last_CP)))
    fs = np.einsum("cp,csp->cs", first_CP, span_CSP)
    ls = np.einsum("cp,csp->cs", last_CP, span_CSP)
    ridge = 1e-4 * (ff + ll) + 1e-6
    determinant = ((ff + ridge) * (ll + ridge) - fl * fl)[:, None]
    a = ((ll + ridge)[:, None] * fs - fl[:, None] * ls) / determinant
    b = ((ff + ridge)[:, None] * ls - fl[:, None] * fs) / determinant
    return a, b
