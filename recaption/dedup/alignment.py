"""Spatial alignment of two clips' thumbnails: the scale and shift that map one onto a cropped copy of it.

    alignment_P4 = align(a_PNX, num_a, b_PMX, num_b, shift_P)       # scale - 1 and shift of rows, then of columns
    warped_PMX, weights_PX = warp_thumbnails(b_PMX, alignment_P4)   # B resampled to the frame of A

Array names: P pairs, N thumbnails of A, M thumbnails of B, K thumbnails used for the fit, X values of a thumbnail.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from recaption.dedup.fingerprints import CHROMA_PX, LUMA_PX, LUMA_VALUES

MAX_SCALE, MAX_SHIFT = 0.16, 0.16
"""Largest crop searched: relative scale of the two pictures, and offset of their centres in half frames. A crop of 7 % on
each side has 0.16, as has one of 15 % on one side."""
NUM_FIT_THUMBNAILS = 12
"""Thumbnails of the overlap that an alignment is fitted to."""
BLURRED_STEPS, SHARP_STEPS = 3, 3
"""Gauss-Newton steps on blurred thumbnails, then on the original ones."""
FINE_SHIFTS = (0.0, -0.25, 0.25, -0.5, 0.5)
"""Fractional time shifts, in thumbnails, tried around each whole shift."""


def align(
    a_PNX: np.ndarray, num_a: np.ndarray, b_PMX: np.ndarray, num_b: np.ndarray, shift_P: np.ndarray
) -> np.ndarray:
    """(P, 4): scale - 1 and shift of rows, then of columns, that map positions in A to positions in B.

    Gauss-Newton on the luma difference of up to NUM_FIT_THUMBNAILS overlapping thumbnails, with a gain and an offset as
    further unknowns.

    Args:
        num_a: (P,) thumbnails of each A that are not padding.
        num_b: the same for B.
        shift_P: time shift: thumbnail i of A is compared with thumbnail i + shift of B.
    """
    first, last = overlap_range(num_a, num_b, shift_P)
    positions = np.linspace(0, 1, NUM_FIT_THUMBNAILS + 2)[1:-1]
    index_PK = np.floor(first[:, None] + positions * np.maximum(last - first, 1)[:, None]).astype(np.int64)
    a_PKX = take_thumbnails(a_PNX[..., :LUMA_VALUES], index_PK)
    b_PKX = take_thumbnails(b_PMX[..., :LUMA_VALUES], index_PK + shift_P[:, None].astype(np.int64))
    weights_PK = _fit_weights(a_PKX, b_PKX)
    alignment_P4 = np.zeros((len(a_PKX), 4))
    for is_blurred, num_steps in ((True, BLURRED_STEPS), (False, SHARP_STEPS)):
        a_level, b_level = (_blurred(x) if is_blurred else x for x in (a_PKX, b_PKX))
        alignment_P4 = _refine(a_level, b_level, weights_PK, alignment_P4, num_steps)
    return alignment_P4


def _fit_weights(a_PKX: np.ndarray, b_PKX: np.ndarray) -> np.ndarray:
    """(P, K): weight of each thumbnail pair in the fit, near 0 where the two show different content."""
    a, b = (x - x.mean(-1, keepdims=True) for x in (a_PKX, b_PKX))
    correlation = (a * b).sum(-1) / np.sqrt(((a * a).sum(-1) + 1.0) * ((b * b).sum(-1) + 1.0))
    return np.maximum(correlation, 0.05) ** 4


def _blurred(x_PKX: np.ndarray) -> np.ndarray:
    """Blur thumbnails: details smaller than the crop offset would lead the first steps astray."""
    square = x_PKX.reshape(*x_PKX.shape[:-1], LUMA_PX, LUMA_PX)
    return (_blur_matrix() @ square @ _blur_matrix().T).reshape(x_PKX.shape)


@cache
def _blur_matrix() -> np.ndarray:
    """Binomial kernel 1 4 6 4 1, truncated and renormalised at the edges."""
    distance = np.abs(np.subtract.outer(np.arange(LUMA_PX), np.arange(LUMA_PX)))
    weights = np.select([distance == 0, distance == 1, distance == 2], [6.0, 4.0, 1.0], 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _refine(
    a_PKX: np.ndarray, b_PKX: np.ndarray, weights_PK: np.ndarray, alignment_P4: np.ndarray, num_steps: int
) -> np.ndarray:
    """Gauss-Newton steps from `alignment_P4`; returns the alignment with the smallest error, the initial one included."""
    num_pairs = len(a_PKX)
    centres = _pixel_centres(LUMA_PX)
    rows, columns = np.repeat(centres, LUMA_PX), np.tile(centres, LUMA_PX)
    gain = np.ones((num_pairs, 1, 1), np.float32)
    offset = np.zeros((num_pairs, 1, 1), np.float32)
    best, min_error = alignment_P4.copy(), np.full(num_pairs, np.inf)
    for number in range(num_steps + 1):
        warped_PKX, inside_PX = _warp(b_PKX, alignment_P4, LUMA_PX)
        weights = inside_PX[:, None] * weights_PK[..., None]
        residual = a_PKX - gain * warped_PKX - offset
        error = (residual**2 * weights).sum((1, 2)) / np.maximum(weights.sum((1, 2)), 1e-9)
        if number:  # before the first step neither gain nor offset is known
            best[error < min_error], min_error = alignment_P4[error < min_error], np.minimum(error, min_error)
        if number == num_steps:
            break
        down, across = _gradients(warped_PKX)
        derivatives = [gain * down * rows, gain * down, gain * across * columns, gain * across, warped_PKX]
        jacobian = np.stack([*derivatives, np.ones_like(warped_PKX)], axis=-1).reshape(num_pairs, -1, 6)
        weighted = (jacobian * weights.reshape(num_pairs, -1, 1)).swapaxes(1, 2).astype(np.float64)
        normal = weighted @ jacobian
        ridge = 1e-3 * np.einsum("pii->pi", normal) + 1e-3 * weights.sum((1, 2))[:, None]
        step = np.linalg.solve(normal + np.eye(6) * ridge[:, None], weighted @ residual.reshape(num_pairs, -1, 1))[
            ..., 0
        ]
        alignment_P4 = alignment_P4 + np.clip(step[:, :4], -0.08, 0.08)
        alignment_P4[:, 0::2] = np.clip(alignment_P4[:, 0::2], -MAX_SCALE, MAX_SCALE)
        alignment_P4[:, 1::2] = np.clip(alignment_P4[:, 1::2], -MAX_SHIFT, MAX_SHIFT)
        gain = np.clip(gain + step[:, 4, None, None].astype(np.float32), 0.5, 2.0)
        offset = offset + step[:, 5, None, None].astype(np.float32)
    return best


def overlap_range(num_a: np.ndarray, num_b: np.ndarray, shift_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, last) index in A, half-open, of the thumbnails that overlap with B."""
    first = np.maximum(0, np.ceil(-shift_P - 1e-9)).astype(np.int64)
    last = np.minimum(num_a, np.floor(num_b - 1 - shift_P + 1e-9).astype(np.int64) + 1)
    return first, np.maximum(last, first)


def take_thumbnails(x_PNX: np.ndarray, index_PK: np.ndarray) -> np.ndarray:
    """(P, K, X): thumbnails at these indices, clipped to the valid range."""
    return np.take_along_axis(x_PNX, np.clip(index_PK, 0, x_PNX.shape[1] - 1)[..., None], axis=1)


def _pixel_centres(size: int) -> np.ndarray:
    """Pixel centres in normalised coordinates, -1 to 1 over the frame."""
    return ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)


def _gradients(luma_PKX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Luma gradients (down, across) in normalised coordinates, per half frame."""
    square = luma_PKX.reshape(*luma_PKX.shape[:-1], LUMA_PX, LUMA_PX)
    down, across = np.gradient(square, axis=(-2, -1))
    per_pixel = 2.0 / LUMA_PX
    return (down / per_pixel).reshape(luma_PKX.shape), (across / per_pixel).reshape(luma_PKX.shape)


def _warp(x_PKX: np.ndarray, alignment_P4: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """B resampled to the frame of A, and (P, X) 1 where the position is inside B. Separable: rows, then columns."""
    rows, rows_inside = _interpolation(alignment_P4[:, 0], alignment_P4[:, 1], size)
    columns, columns_inside = _interpolation(alignment_P4[:, 2], alignment_P4[:, 3], size)
    square = x_PKX.reshape(*x_PKX.shape[:-1], size, size)
    warped = (rows[:, None] @ square) @ columns[:, None].swapaxes(2, 3)
    inside = (rows_inside[:, :, None] & columns_inside[:, None, :]).reshape(len(x_PKX), -1)
    return warped.reshape(x_PKX.shape), inside.astype(np.float32)


def _interpolation(scale: np.ndarray, shift: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(P, size, size) weights of linear interpolation, and (P, size) whether the position is inside."""
    positions = _pixel_centres(size) * (1 + scale[:, None]) + shift[:, None]
    pixel = (positions + 1) * size / 2 - 0.5
    inside = (pixel > -0.6) & (pixel < size - 0.4)
    weights = np.maximum(0.0, 1 - np.abs(np.clip(pixel, 0, size - 1)[..., None] - np.arange(size)))
    return weights.astype(np.float32), inside


def warp_thumbnails(b_PMX: np.ndarray, alignment_P4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All thumbnails of B resampled to the frame of A, and (P, X) 1 where the position is inside B."""
    warped_parts, inside_parts = [], []
    chroma = np.split(b_PMX[..., LUMA_VALUES:], 2, axis=-1)
    for values, size in ((b_PMX[..., :LUMA_VALUES], LUMA_PX), (chroma[0], CHROMA_PX), (chroma[1], CHROMA_PX)):
        warped, inside = _warp(values, alignment_P4, size)
        warped_parts.append(warped)
        inside_parts.append(inside)
    return np.concatenate(warped_parts, axis=-1), np.concatenate(inside_parts, axis=-1)
