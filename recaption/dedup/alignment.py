"""Alignment of two thumbnails: the scale, shift and crop under which one is a copy of the other."""

from __future__ import annotations

from functools import cache

import numpy as np

from recaption.dedup.fingerprints import COLOUR_PX, LUMA_PX, LUMA_VALUES

MAX_SCALE, MAX_SHIFT = 0.16, 0.16
"""Largest crop looked for: how much one picture is larger than the other, and how far its centre lies off, in halves of
the frame. A crop of 7 % on each side has 0.16, as has one of 15 % on one side."""


REGISTERED_SAMPLES = 12


BLURRED_STEPS, SHARP_STEPS = 3, 3


FINE_SHIFTS = (0.0, -0.25, 0.25, -0.5, 0.5)
"""Of a sample, tried around each whole shift."""


# --- where ------------------------------------------------------------------------------------------------------------


def _register(
    a_PNX: np.ndarray, num_a: np.ndarray, b_PMX: np.ndarray, num_b: np.ndarray, shift_P: np.ndarray
) -> np.ndarray:
    """(P, 4): scale - 1 and shift of rows, then of columns, of the place in B that shows what a place in A shows.

    Gauss-Newton on the difference of the luma of some samples in common; a gain and an offset go along.
    """
    first, last = _common(num_a, num_b, shift_P)
    spread = np.linspace(0, 1, REGISTERED_SAMPLES + 2)[1:-1]
    at_PK = np.floor(first[:, None] + spread * np.maximum(last - first, 1)[:, None]).astype(np.int64)
    a_PKX = _taken(a_PNX[..., :LUMA_VALUES], at_PK)
    b_PKX = _taken(b_PMX[..., :LUMA_VALUES], at_PK + shift_P[:, None].astype(np.int64))
    weights_PK = _likeness(a_PKX, b_PKX)
    registration = np.zeros((len(a_PKX), 4))
    for is_blurred, num_steps in ((True, BLURRED_STEPS), (False, SHARP_STEPS)):
        a_level, b_level = (_blurred(x) if is_blurred else x for x in (a_PKX, b_PKX))
        registration = _refine(a_level, b_level, weights_PK, registration, num_steps)
    return registration


def _likeness(a_PKX: np.ndarray, b_PKX: np.ndarray) -> np.ndarray:
    """(P, K): how much each sample says about the crop, near 0 where the two show something else."""
    a, b = (x - x.mean(-1, keepdims=True) for x in (a_PKX, b_PKX))
    correlation = (a * b).sum(-1) / np.sqrt(((a * a).sum(-1) + 1.0) * ((b * b).sum(-1) + 1.0))
    return np.maximum(correlation, 0.05) ** 4


def _blurred(x_PKX: np.ndarray) -> np.ndarray:
    """Details smaller than the crop pull the steps the wrong way."""
    square = x_PKX.reshape(*x_PKX.shape[:-1], LUMA_PX, LUMA_PX)
    return (_blur_matrix() @ square @ _blur_matrix().T).reshape(x_PKX.shape)


@cache
def _blur_matrix() -> np.ndarray:
    """Weights 1 4 6 4 1, those beyond the edge left out."""
    distance = np.abs(np.subtract.outer(np.arange(LUMA_PX), np.arange(LUMA_PX)))
    weights = np.select([distance == 0, distance == 1, distance == 2], [6.0, 4.0, 1.0], 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _refine(
    a_PKX: np.ndarray, b_PKX: np.ndarray, weights_PK: np.ndarray, registration: np.ndarray, num_steps: int
) -> np.ndarray:
    """Of all steps the registration of the least difference, the first one included."""
    num_pairs = len(a_PKX)
    place = _places(LUMA_PX)
    rows, columns = np.repeat(place, LUMA_PX), np.tile(place, LUMA_PX)
    gain = np.ones((num_pairs, 1, 1), np.float32)
    offset = np.zeros((num_pairs, 1, 1), np.float32)
    best, least = registration.copy(), np.full(num_pairs, np.inf)
    for number in range(num_steps + 1):
        warped_PKX, inside_PX = _warp(b_PKX, registration, LUMA_PX)
        weights = inside_PX[:, None] * weights_PK[..., None]
        wanted = a_PKX - gain * warped_PKX - offset
        error = (wanted**2 * weights).sum((1, 2)) / np.maximum(weights.sum((1, 2)), 1e-9)
        if number:  # before the first step neither gain nor offset is known
            best[error < least], least = registration[error < least], np.minimum(error, least)
        if number == num_steps:
            break
        down, across = _slopes(warped_PKX)
        unknowns = [gain * down * rows, gain * down, gain * across * columns, gain * across, warped_PKX]
        jacobian = np.stack([*unknowns, np.ones_like(warped_PKX)], axis=-1).reshape(num_pairs, -1, 6)
        weighted = (jacobian * weights.reshape(num_pairs, -1, 1)).swapaxes(1, 2).astype(np.float64)
        normal = weighted @ jacobian
        ridge = 1e-3 * np.einsum("pii->pi", normal) + 1e-3 * weights.sum((1, 2))[:, None]
        step = np.linalg.solve(normal + np.eye(6) * ridge[:, None], weighted @ wanted.reshape(num_pairs, -1, 1))[..., 0]
        registration = registration + np.clip(step[:, :4], -0.08, 0.08)
        registration[:, 0::2] = np.clip(registration[:, 0::2], -MAX_SCALE, MAX_SCALE)
        registration[:, 1::2] = np.clip(registration[:, 1::2], -MAX_SHIFT, MAX_SHIFT)
        gain = np.clip(gain + step[:, 4, None, None].astype(np.float32), 0.5, 2.0)
        offset = offset + step[:, 5, None, None].astype(np.float32)
    return best


def _common(num_a: np.ndarray, num_b: np.ndarray, shift_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, last) sample of A, half-open, that has a partner in B."""
    first = np.maximum(0, np.ceil(-shift_P - 1e-9)).astype(np.int64)
    last = np.minimum(num_a, np.floor(num_b - 1 - shift_P + 1e-9).astype(np.int64) + 1)
    return first, np.maximum(last, first)


def _taken(x_PNX: np.ndarray, at_PK: np.ndarray) -> np.ndarray:
    return np.take_along_axis(x_PNX, np.clip(at_PK, 0, x_PNX.shape[1] - 1)[..., None], axis=1)


def _places(size: int) -> np.ndarray:
    """Centres of pixels, the frame being -1 .. 1."""
    return ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)


def _slopes(luma_PKX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Change per half frame down and across."""
    square = luma_PKX.reshape(*luma_PKX.shape[:-1], LUMA_PX, LUMA_PX)
    down, across = np.gradient(square, axis=(-2, -1))
    per_pixel = 2.0 / LUMA_PX
    return (down / per_pixel).reshape(luma_PKX.shape), (across / per_pixel).reshape(luma_PKX.shape)


def _warp(x_PKX: np.ndarray, registration_P4: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """B as A sees it, and which places, (P, X), lie inside B. Rows and columns go one after the other."""
    rows, rows_inside = _interpolation(registration_P4[:, 0], registration_P4[:, 1], size)
    columns, columns_inside = _interpolation(registration_P4[:, 2], registration_P4[:, 3], size)
    square = x_PKX.reshape(*x_PKX.shape[:-1], size, size)
    warped = (rows[:, None] @ square) @ columns[:, None].swapaxes(2, 3)
    inside = (rows_inside[:, :, None] & columns_inside[:, None, :]).reshape(len(x_PKX), -1)
    return warped.reshape(x_PKX.shape), inside.astype(np.float32)


def _interpolation(scale: np.ndarray, shift: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(P, size, size) weights of linear interpolation, and (P, size) whether the place is inside."""
    places = _places(size) * (1 + scale[:, None]) + shift[:, None]
    pixel = (places + 1) * size / 2 - 0.5
    inside = (pixel > -0.6) & (pixel < size - 0.4)
    weights = np.maximum(0.0, 1 - np.abs(np.clip(pixel, 0, size - 1)[..., None] - np.arange(size)))
    return weights.astype(np.float32), inside


def _warp_samples(b_PMX: np.ndarray, registration_P4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All samples of B as A sees them, and the places, (P, X) of 0 and 1, that A has, too."""
    parts, insides = [], []
    colours = np.split(b_PMX[..., LUMA_VALUES:], 2, axis=-1)
    for values, size in ((b_PMX[..., :LUMA_VALUES], LUMA_PX), (colours[0], COLOUR_PX), (colours[1], COLOUR_PX)):
        warped, inside = _warp(values, registration_P4, size)
        parts.append(warped)
        insides.append(inside)
    return np.concatenate(parts, axis=-1), np.concatenate(insides, axis=-1)
