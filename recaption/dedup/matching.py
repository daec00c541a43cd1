"""Do two clips show the same footage, and how much of it? The slow and exact half of the search for near copies.

    match(samples_a, samples_b)     # one row per pair: similarity 0..1, samples in common, where B starts within A

Three questions for each pair, all asked of the fingerprints' samples, for many pairs at once:
when: of all shifts in time the one at which pictures and motion agree best; where: by which crop the one turns into the
other (four numbers, refined by Gauss-Newton steps); and then: how alike are they in picture, in motion and in colour.
The lowest of the three is the similarity. Motion is what differs between two takes before the same wall, or between
two spans of the same shot; where nothing moves it has no say.

Array names: P pairs, N samples of A, M samples of B, L shifts, K samples in common, X pixels of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from recaption.dedup.alignment import FINE_SHIFTS, _common, _register, _taken, _warp_samples
from recaption.dedup.fingerprints import LUMA_PX, LUMA_VALUES, SAMPLES_PER_SECOND

MIN_SAMPLES = 3
"""Of common footage: under this, 0.75 s, a match would be luck."""


STILL_LUMA = 1.5
"""Motion (deviation from the mean picture, 0..255) below about this is noise of the codec."""


QUIET_LUMA = 3.0
"""Motion below this may be a change of light or the wind: not enough to tell a copy by."""


STILL_OF_COMMON, STILL_OF_SHORTER = 0.92, 0.75
"""Where as little moves in what two clips share it must be this much of all they could share at that shift, and of the
shorter one. An empty street looks the same before one car and after the next; a still picture does so all the time."""


FLAT_LUMA = 2.0
"""Contrast below about this is no picture."""


GREY_COLOUR = 5.0
"""Colour differences below about this are grey."""


ALIKE_SAMPLE = 0.8
"""Correlation from which two samples count as showing the same: clips may have only a part in common."""


OVERLAP_WEIGHTS = (0.1, 1.0)
"""Whole shifts tried: the best when a long overlap counts little, and the best when it counts as much as the picture. In
a slow zoom a cropped copy looks most like a later moment."""


MAX_VALUES = 3_000_000
"""Of one array, which bounds how many pairs are compared at a time."""


@dataclass(frozen=True)
class Matches:
    """Columns, one value per pair."""

    similarity: np.ndarray
    overlap_seconds: np.ndarray
    start_seconds_a: np.ndarray
    """Where the common footage starts, from the start of A."""
    start_seconds_b: np.ndarray
    picture: np.ndarray
    motion: np.ndarray
    colour: np.ndarray


COLUMNS = tuple(field.name for field in fields(Matches))


def match(samples_a: Sequence[np.ndarray], samples_b: Sequence[np.ndarray]) -> Matches:
    """Compare pairs of clips.

    Args:
        samples_a: per pair the samples of its first clip, (N, PICTURE_VALUES) uint8.
        samples_b: those of its second.
    """
    num_pairs = len(samples_a)
    columns = np.zeros((len(COLUMNS), num_pairs))
    for rows in _chunks([len(s) for s in samples_a], [len(s) for s in samples_b]):
        a_PNX, num_a = _padded([samples_a[row] for row in rows])
        b_PMX, num_b = _padded([samples_b[row] for row in rows])
        columns[:, rows] = _match_chunk(a_PNX, num_a, b_PMX, num_b)
    return Matches(*columns)


def _chunks(num_a: Sequence[int], num_b: Sequence[int]) -> Iterator[np.ndarray]:
    """Pairs of like lengths together, so that little is padding."""
    a, b = np.asarray(num_a, np.int64), np.asarray(num_b, np.int64)
    order = np.lexsort((b, a))
    start = 0
    while start < len(order):
        end, longest = start, 0
        while end < len(order):
            longest = max(longest, int(a[order[end]]) + int(b[order[end]]))
            if end > start and (end - start + 1) * longest * 2 * LUMA_VALUES > MAX_VALUES:
                break
            end += 1
        yield order[start:end]
        start = end


def _padded(samples: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(s) for s in samples])
    padded = np.zeros((len(samples), int(lengths.max()), samples[0].shape[1]), np.float32)
    for row, values in enumerate(samples):
        padded[row, : len(values)] = values
    return padded, lengths


def _match_chunk(a_PNX: np.ndarray, num_a: np.ndarray, b_PMX: np.ndarray, num_b: np.ndarray) -> np.ndarray:
    """(7, P): the columns of `Matches`; of all shifts that of the greatest similarity, weighted by what is in common."""
    best = np.zeros((len(COLUMNS), len(num_a)))
    best_score = np.full(len(num_a), -1.0)
    for shift_P in _best_shifts(a_PNX[..., :LUMA_VALUES], num_a, b_PMX[..., :LUMA_VALUES], num_b):
        registration_P4 = _register(a_PNX, num_a, b_PMX, num_b, shift_P)
        warped_PMX, weights_PX = _warp_samples(b_PMX, registration_P4)
        for fine in FINE_SHIFTS:
            compared = _compare(a_PNX, num_a, warped_PMX, num_b, weights_PX, shift_P + fine)
            score = compared[0] * (0.5 + 0.5 * compared[1] * SAMPLES_PER_SECOND / np.minimum(num_a, num_b))
            better = score > best_score + 1e-9
            best_score[better] = score[better]
            best[:, better] = compared[:, better]
    return best


# --- when -------------------------------------------------------------------------------------------------------------


def _best_shifts(a_PNX: np.ndarray, num_a: np.ndarray, b_PMX: np.ndarray, num_b: np.ndarray) -> Iterator[np.ndarray]:
    """One (P,) per weight: sample of B that shows what sample 0 of A shows; negative where A starts earlier.

    Asked of 8x8 pictures, in which a crop of a few percent moves little. Sums over a span of samples are differences of
    running sums, so that all shifts together cost one product of the two clips.
    """
    a_PNX, b_PMX = _halved(a_PNX), _halved(b_PMX)
    num_pairs, longest_a, num_values = a_PNX.shape
    longest_b = b_PMX.shape[1]
    shifts_L = np.arange(-(longest_a - 1), longest_b)
    first_PL = np.maximum(0, -shifts_L)[None] * np.ones((num_pairs, 1), np.int64)
    last_PL = np.minimum(num_a[:, None], num_b[:, None] - shifts_L)
    count_PL = last_PL - first_PL
    last_PL, safe_PL = np.maximum(last_PL, first_PL), np.maximum(count_PL, 1)

    product_PNM = a_PNX @ b_PMX.swapaxes(1, 2)
    column_NL = np.arange(longest_a)[:, None] + shifts_L
    inside_NL = (column_NL >= 0) & (column_NL < longest_b)
    diagonal_PNL = np.take_along_axis(product_PNM, np.clip(column_NL, 0, longest_b - 1)[None], axis=2) * inside_NL
    product_PL = diagonal_PNL.sum(axis=1)  # padding is zero and adds nothing

    sum_a, square_a = _span_sums(a_PNX, first_PL, last_PL)
    sum_b, square_b = _span_sums(b_PMX, first_PL + shifts_L, last_PL + shifts_L)
    noise = num_values * STILL_LUMA**2
    motion_a = np.maximum(square_a / safe_PL - (sum_a**2).sum(-1) / safe_PL**2, 0.0)
    motion_b = np.maximum(square_b / safe_PL - (sum_b**2).sum(-1) / safe_PL**2, 0.0)
    shared = product_PL / safe_PL - (sum_a * sum_b).sum(-1) / safe_PL**2
    motion_PL = (shared + noise) / np.sqrt((motion_a + noise) * (motion_b + noise))
    mean_a, mean_b = (s - s.mean(-1, keepdims=True) for s in (sum_a, sum_b))
    length = np.sqrt((mean_a**2).sum(-1) * (mean_b**2).sum(-1)) + 1e-6
    picture_PL = (mean_a * mean_b).sum(-1) / length
    # where nothing moves all shifts are as good: then the longest span in common
    share_PL = count_PL / np.minimum(num_a, num_b)[:, None]
    fewest = np.minimum(MIN_SAMPLES, np.minimum(num_a, num_b))[:, None]
    for weight in OVERLAP_WEIGHTS:
        score_PL = np.where(count_PL >= fewest, picture_PL + motion_PL + weight * share_PL, -np.inf)
        yield shifts_L[score_PL.argmax(axis=1)].astype(np.float64)


def _halved(luma_PNX: np.ndarray) -> np.ndarray:
    half = LUMA_PX // 2
    shape = (*luma_PNX.shape[:2], half, 2, half, 2)
    return luma_PNX.reshape(shape).mean(axis=(3, 5)).reshape(*luma_PNX.shape[:2], half * half)


def _span_sums(x_PNX: np.ndarray, first_PL: np.ndarray, last_PL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the samples in [first, last), and sum of their squares over all pixels, by running sums."""
    x_PNX = x_PNX.astype(np.float64)
    nothing = ((0, 0), (1, 0), (0, 0))
    running = np.pad(x_PNX.cumsum(axis=1), nothing)
    squares = np.pad((x_PNX**2).sum(-1, keepdims=True).cumsum(axis=1), nothing)
    ends = [np.clip(p, 0, x_PNX.shape[1])[..., None] for p in (first_PL, last_PL)]
    total, square = (
        np.take_along_axis(r, ends[1], axis=1) - np.take_along_axis(r, ends[0], axis=1) for r in (running, squares)
    )
    return total, square[..., 0]


# --- how alike --------------------------------------------------------------------------------------------------------


def _compare(
    a_PNX: np.ndarray,
    num_a: np.ndarray,
    b_PMX: np.ndarray,
    num_b: np.ndarray,
    weights_PX: np.ndarray,
    shift_P: np.ndarray,
) -> np.ndarray:
    """(7, P): the columns of `Matches` at one shift; samples between two of B are their mean, weighted."""
    first, last = _common(num_a, num_b, shift_P)
    at_N = np.arange(a_PNX.shape[1])
    in_both_PN = (at_N >= first[:, None]) & (at_N < last[:, None])
    whole_P = np.floor(shift_P + 1e-9)
    part = (shift_P - whole_P).astype(np.float32)[:, None, None]
    place_PN = at_N + whole_P[:, None].astype(np.int64)
    b_PNX = (1 - part) * _taken(b_PMX, place_PN) + part * _taken(b_PMX, np.minimum(place_PN + 1, num_b[:, None] - 1))

    luma_w = weights_PX[:, None, :LUMA_VALUES]
    a_luma, b_luma = a_PNX[..., :LUMA_VALUES], b_PNX[..., :LUMA_VALUES]
    area = luma_w.sum(-1)
    a_mean, b_mean = (a_luma * luma_w).sum(-1) / area, (b_luma * luma_w).sum(-1) / area
    a_centred, b_centred = (a_luma - a_mean[..., None]) * luma_w, (b_luma - b_mean[..., None]) * luma_w
    aa, bb, ab = ((x * y).sum(-1) / area for x, y in ((a_centred,) * 2, (b_centred,) * 2, (a_centred, b_centred)))
    flat = FLAT_LUMA**2
    alike_PN = _longest_run(in_both_PN & (ab >= ALIKE_SAMPLE * np.sqrt((aa + flat) * (bb + flat))))
    count_P = np.maximum(alike_PN.sum(1), 1)

    def over(values_PN: np.ndarray) -> np.ndarray:
        return (values_PN * alike_PN).sum(1) / count_P

    picture = over(ab) / np.sqrt((over(aa) + flat) * (over(bb) + flat))
    motion, is_quiet = _motion_alike(a_centred, b_centred, alike_PN, count_P, area[:, 0])
    colour = _colour_alike(a_PNX, b_PNX, weights_PX, alike_PN, count_P)
    num_alike = alike_PN.sum(1)
    least_P = np.maximum(STILL_OF_COMMON * (last - first), STILL_OF_SHORTER * np.minimum(num_a, num_b))
    is_whole = num_alike >= least_P - 0.5  # ends of clips seldom fall on whole samples
    counts = (num_alike >= MIN_SAMPLES) & (is_whole | ~is_quiet)
    similarity = np.where(counts, np.minimum(np.minimum(picture, motion), colour), 0.0)
    seconds = num_alike / SAMPLES_PER_SECOND
    start_a = alike_PN.argmax(1) / SAMPLES_PER_SECOND
    start_b = start_a + shift_P / SAMPLES_PER_SECOND
    return np.stack([np.maximum(similarity, 0.0), seconds, start_a, start_b, picture, motion, colour])


def _longest_run(alike_PN: np.ndarray) -> np.ndarray:
    """The longest stretch of True of each row, the first of equals; a single False inside it counts as True.

    Without this, two spans of one street would have all moments in common in which no car passes.
    """
    closed_PN = alike_PN.copy()
    closed_PN[:, 1:-1] |= alike_PN[:, :-2] & alike_PN[:, 2:]
    length_PN = np.zeros(closed_PN.shape, np.int64)
    running = np.zeros(len(closed_PN), np.int64)
    for number in range(closed_PN.shape[1]):
        running = (running + 1) * closed_PN[:, number]
        length_PN[:, number] = running
    end = length_PN.argmax(1)
    start = end + 1 - length_PN.max(1)
    at_N = np.arange(closed_PN.shape[1])
    return (at_N >= start[:, None]) & (at_N <= end[:, None]) & closed_PN


def _motion_alike(
    a_PNX: np.ndarray, b_PNX: np.ndarray, alike_PN: np.ndarray, count_P: np.ndarray, area_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of what differs from the clips' mean pictures, 1 where nothing moves; and whether it is little."""
    chosen = alike_PN[..., None] / count_P[:, None, None]
    a_moving = a_PNX - (a_PNX * chosen).sum(1, keepdims=True)
    b_moving = b_PNX - (b_PNX * chosen).sum(1, keepdims=True)
    aa, bb, ab = (
        (x * y * chosen).sum((1, 2)) / area_P for x, y in ((a_moving,) * 2, (b_moving,) * 2, (a_moving, b_moving))
    )
    noise = STILL_LUMA**2
    return (ab + noise) / np.sqrt((aa + noise) * (bb + noise)), np.minimum(aa, bb) < QUIET_LUMA**2


def _colour_alike(
    a_PNX: np.ndarray, b_PNX: np.ndarray, weights_PX: np.ndarray, alike_PN: np.ndarray, count_P: np.ndarray
) -> np.ndarray:
    """Cosine of the mean colour differences, their own mean included: a red scene is not the blue one."""
    weights = weights_PX[:, LUMA_VALUES:]
    chosen = alike_PN[..., None] / count_P[:, None, None]
    a_PX, b_PX = (((x[..., LUMA_VALUES:] - 128.0) * chosen).sum(1) * weights for x in (a_PNX, b_PNX))
    area = weights.sum(-1)
    aa, bb, ab = ((x * y).sum(-1) / area for x, y in ((a_PX, a_PX), (b_PX, b_PX), (a_PX, b_PX)))
    grey = GREY_COLOUR**2
    return (ab + grey) / np.sqrt((aa + grey) * (bb + grey))
