"""Verification of candidate pairs: whether two clips show the same footage, and how much of it.

    match_pairs(thumbnails_a, thumbnails_b)     # Matches: similarity 0..1, overlap_seconds, where it starts in A and B

Three steps per pair, on the thumbnails of the fingerprints, for a batch of pairs at once. Temporal alignment: the time
shift at which picture and motion agree best. Spatial alignment: the crop that maps one onto the other (alignment.py).
Similarity: the minimum of picture, motion and colour similarity. Motion distinguishes two takes in front of the same wall,
or two spans of the same shot; where nothing moves it is 1.

Array names: P pairs, N thumbnails of A, M thumbnails of B, L time shifts, X values of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from recaption.dedup.alignment import FINE_SHIFTS, align, overlap_range, take_thumbnails, warp_thumbnails
from recaption.dedup.fingerprints import LUMA_PX, LUMA_VALUES, THUMBNAILS_PER_SECOND

MIN_OVERLAP = 3
"""Minimum overlap in thumbnails: below this, 0.75 s, a match could be chance."""
CODEC_NOISE_LUMA = 1.5
"""Motion (deviation from the mean picture, 0..255) below about this is codec noise."""
MIN_MOTION_LUMA = 3.0
"""Motion below this may be a change of light or wind: not enough evidence for a copy."""
MIN_STILL_OVERLAP, MIN_STILL_OVERLAP_OF_SHORTER = 0.92, 0.75
"""With less motion than that, the matching part must be this fraction of the possible overlap at that shift, and of the
shorter clip. An empty street looks the same before one car and after the next; a still picture does so all the time."""
UNIFORM_LUMA = 2.0
"""Contrast below about this is a uniform frame."""
GREY_CHROMA = 5.0
"""Chroma deviations below about this are grey."""
MIN_CORRELATION = 0.8
"""Minimum correlation of two matching thumbnails; clips may have only a part in common."""
OVERLAP_WEIGHTS = (0.1, 1.0)
"""Weights of the overlap in the choice of the time shift; both choices are tried: in a slow zoom a cropped copy looks most
like a later moment."""
MAX_BATCH_VALUES = 3_000_000
"""Maximum size of one array; bounds how many pairs are compared at a time."""


@dataclass(frozen=True)
class Matches:
    """Columns with one value per pair; all (P,) float64."""

    similarity: np.ndarray
    """Minimum of the three similarities below, 0..1; 0 where the overlap is too short."""
    overlap_seconds: np.ndarray
    start_seconds_a: np.ndarray
    """Where the overlap starts, from the start of A."""
    start_seconds_b: np.ndarray
    picture_similarity: np.ndarray
    motion_similarity: np.ndarray
    colour_similarity: np.ndarray


COLUMNS = tuple(field.name for field in fields(Matches))


def match_pairs(thumbnails_a: Sequence[np.ndarray], thumbnails_b: Sequence[np.ndarray]) -> Matches:
    """Compare pairs of clips.

    Args:
        thumbnails_a: for each pair those of its first clip, (N, THUMBNAIL_VALUES) uint8.
        thumbnails_b: those of its second clip, (M, THUMBNAIL_VALUES) uint8.
    """
    num_pairs = len(thumbnails_a)
    columns = np.zeros((len(COLUMNS), num_pairs))
    for rows in _length_batches([len(s) for s in thumbnails_a], [len(s) for s in thumbnails_b]):
        a_PNX, num_a = _padded([thumbnails_a[row] for row in rows])
        b_PMX, num_b = _padded([thumbnails_b[row] for row in rows])
        columns[:, rows] = _match_batch(a_PNX, num_a, b_PMX, num_b)
    return Matches(*columns)


def _length_batches(num_a: Sequence[int], num_b: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield indices of pairs in batches of similar lengths, so that little is padding."""
    a, b = np.asarray(num_a, np.int64), np.asarray(num_b, np.int64)
    order = np.lexsort((b, a))
    start = 0
    while start < len(order):
        end, longest = start, 0
        while end < len(order):
            longest = max(longest, int(a[order[end]]) + int(b[order[end]]))
            if end > start and (end - start + 1) * longest * 2 * LUMA_VALUES > MAX_BATCH_VALUES:
                break
            end += 1
        yield order[start:end]
        start = end


def _padded(thumbnails: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Stack clips of different lengths: (P, N, X) float32 padded with zeros, and (P,) lengths."""
    lengths = np.array([len(s) for s in thumbnails])
    padded = np.zeros((len(thumbnails), int(lengths.max()), thumbnails[0].shape[1]), np.float32)
    for row, values in enumerate(thumbnails):
        padded[row, : len(values)] = values
    return padded, lengths


def _match_batch(a_PNX: np.ndarray, num_a: np.ndarray, b_PMX: np.ndarray, num_b: np.ndarray) -> np.ndarray:
    """(7, P): the columns of `Matches` at the time shift with the highest similarity, weighted by the overlap."""
    best = np.zeros((len(COLUMNS), len(num_a)))
    best_score = np.full(len(num_a), -1.0)
    for shift_P in _best_shifts(a_PNX[..., :LUMA_VALUES], num_a, b_PMX[..., :LUMA_VALUES], num_b):
        alignment_P4 = align(a_PNX, num_a, b_PMX, num_b, shift_P)
        warped_PMX, weights_PX = warp_thumbnails(b_PMX, alignment_P4)
        for fine in FINE_SHIFTS:
            compared = _compare(a_PNX, num_a, warped_PMX, num_b, weights_PX, shift_P + fine)
            score = compared[0] * (0.5 + 0.5 * compared[1] * THUMBNAILS_PER_SECOND / np.minimum(num_a, num_b))
            better = score > best_score + 1e-9
            best_score[better] = score[better]
            best[:, better] = compared[:, better]
    return best


# --- temporal alignment -----------------------------------------------------------------------------------------------


def _best_shifts(a_PNX: np.ndarray, num_a: np.ndarray, b_PMX: np.ndarray, num_b: np.ndarray) -> Iterator[np.ndarray]:
    """Yield (P,) time shifts, one per overlap weight: thumbnail i of A matches i + shift of B; negative if A starts earlier.

    Computed on 8x8 luma, in which a crop of a few percent changes little. Sums over a span of thumbnails are differences
    of cumulative sums, so that all shifts together cost one matrix product of the two clips.
    """
    a_PNX, b_PMX = _downsampled(a_PNX), _downsampled(b_PMX)
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
    noise = num_values * CODEC_NOISE_LUMA**2
    motion_a = np.maximum(square_a / safe_PL - (sum_a**2).sum(-1) / safe_PL**2, 0.0)
    motion_b = np.maximum(square_b / safe_PL - (sum_b**2).sum(-1) / safe_PL**2, 0.0)
    covariance = product_PL / safe_PL - (sum_a * sum_b).sum(-1) / safe_PL**2
    motion_PL = (covariance + noise) / np.sqrt((motion_a + noise) * (motion_b + noise))
    mean_a, mean_b = (s - s.mean(-1, keepdims=True) for s in (sum_a, sum_b))
    length = np.sqrt((mean_a**2).sum(-1) * (mean_b**2).sum(-1)) + 1e-6
    picture_PL = (mean_a * mean_b).sum(-1) / length
    # where nothing moves all shifts score the same: then the one with the longest overlap
    overlap_PL = count_PL / np.minimum(num_a, num_b)[:, None]
    min_overlap = np.minimum(MIN_OVERLAP, np.minimum(num_a, num_b))[:, None]
    for weight in OVERLAP_WEIGHTS:
        score_PL = np.where(count_PL >= min_overlap, picture_PL + motion_PL + weight * overlap_PL, -np.inf)
        yield shifts_L[score_PL.argmax(axis=1)].astype(np.float64)


def _downsampled(luma_PNX: np.ndarray) -> np.ndarray:
    """Luma thumbnails at half resolution: (P, N, LUMA_PX**2) -> (P, N, (LUMA_PX // 2)**2)."""
    half = LUMA_PX // 2
    shape = (*luma_PNX.shape[:2], half, 2, half, 2)
    return luma_PNX.reshape(shape).mean(axis=(3, 5)).reshape(*luma_PNX.shape[:2], half * half)


def _span_sums(x_PNX: np.ndarray, first_PL: np.ndarray, last_PL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the thumbnails in [first, last), and sum of their squares over all pixels, by cumulative sums."""
    x_PNX = x_PNX.astype(np.float64)
    leading_zero = ((0, 0), (1, 0), (0, 0))
    cumulative = np.pad(x_PNX.cumsum(axis=1), leading_zero)
    squares = np.pad((x_PNX**2).sum(-1, keepdims=True).cumsum(axis=1), leading_zero)
    ends = [np.clip(p, 0, x_PNX.shape[1])[..., None] for p in (first_PL, last_PL)]
    total, square = (
        np.take_along_axis(r, ends[1], axis=1) - np.take_along_axis(r, ends[0], axis=1) for r in (cumulative, squares)
    )
    return total, square[..., 0]


# --- similarity -------------------------------------------------------------------------------------------------------


def _compare(
    a_PNX: np.ndarray,
    num_a: np.ndarray,
    b_PMX: np.ndarray,
    num_b: np.ndarray,
    weights_PX: np.ndarray,
    shift_P: np.ndarray,
) -> np.ndarray:
    """(7, P): the columns of `Matches` at one time shift; fractional shifts interpolate between thumbnails of B."""
    first, last = overlap_range(num_a, num_b, shift_P)
    index_N = np.arange(a_PNX.shape[1])
    in_overlap_PN = (index_N >= first[:, None]) & (index_N < last[:, None])
    whole_shift_P = np.floor(shift_P + 1e-9)
    fraction = (shift_P - whole_shift_P).astype(np.float32)[:, None, None]
    index_b_PN = index_N + whole_shift_P[:, None].astype(np.int64)
    next_b_PN = np.minimum(index_b_PN + 1, num_b[:, None] - 1)
    b_PNX = (1 - fraction) * take_thumbnails(b_PMX, index_b_PN) + fraction * take_thumbnails(b_PMX, next_b_PN)

    luma_weights = weights_PX[:, None, :LUMA_VALUES]
    a_luma, b_luma = a_PNX[..., :LUMA_VALUES], b_PNX[..., :LUMA_VALUES]
    area = luma_weights.sum(-1)
    a_mean, b_mean = (a_luma * luma_weights).sum(-1) / area, (b_luma * luma_weights).sum(-1) / area
    a_centred, b_centred = (a_luma - a_mean[..., None]) * luma_weights, (b_luma - b_mean[..., None]) * luma_weights
    aa, bb, ab = ((x * y).sum(-1) / area for x, y in ((a_centred,) * 2, (b_centred,) * 2, (a_centred, b_centred)))
    noise = UNIFORM_LUMA**2
    match_PN = _longest_run(in_overlap_PN & (ab >= MIN_CORRELATION * np.sqrt((aa + noise) * (bb + noise))))
    count_P = np.maximum(match_PN.sum(1), 1)

    def mean_over_match(values_PN: np.ndarray) -> np.ndarray:
        return (values_PN * match_PN).sum(1) / count_P

    picture = mean_over_match(ab) / np.sqrt((mean_over_match(aa) + noise) * (mean_over_match(bb) + noise))
    motion, is_still = _motion_similarity(a_centred, b_centred, match_PN, count_P, area[:, 0])
    colour = _colour_similarity(a_PNX, b_PNX, weights_PX, match_PN, count_P)
    num_matching = match_PN.sum(1)
    min_count_P = np.maximum(
        MIN_STILL_OVERLAP * (last - first), MIN_STILL_OVERLAP_OF_SHORTER * np.minimum(num_a, num_b)
    )
    is_whole = num_matching >= min_count_P - 0.5  # ends of clips rarely fall on whole thumbnails
    is_valid = (num_matching >= MIN_OVERLAP) & (is_whole | ~is_still)
    similarity = np.where(is_valid, np.minimum(np.minimum(picture, motion), colour), 0.0)
    seconds = num_matching / THUMBNAILS_PER_SECOND
    start_a = match_PN.argmax(1) / THUMBNAILS_PER_SECOND
    start_b = start_a + shift_P / THUMBNAILS_PER_SECOND
    return np.stack([np.maximum(similarity, 0.0), seconds, start_a, start_b, picture, motion, colour])


def _longest_run(match_PN: np.ndarray) -> np.ndarray:
    """(P, N) bool: the longest run of True in each row, the first if several; a single False inside it counts as True.

    Without this, two spans of the same street would match at all moments at which no car passes.
    """
    closed_PN = match_PN.copy()
    closed_PN[:, 1:-1] |= match_PN[:, :-2] & match_PN[:, 2:]
    length_PN = np.zeros(closed_PN.shape, np.int64)
    running = np.zeros(len(closed_PN), np.int64)
    for index in range(closed_PN.shape[1]):
        running = (running + 1) * closed_PN[:, index]
        length_PN[:, index] = running
    end = length_PN.argmax(1)
    start = end + 1 - length_PN.max(1)
    index_N = np.arange(closed_PN.shape[1])
    return (index_N >= start[:, None]) & (index_N <= end[:, None]) & closed_PN


def _motion_similarity(
    a_PNX: np.ndarray, b_PNX: np.ndarray, match_PN: np.ndarray, count_P: np.ndarray, area_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) correlation of the deviations from the mean picture, 1 where nothing moves; and (P,) whether little moves."""
    chosen = match_PN[..., None] / count_P[:, None, None]
    a_deviation = a_PNX - (a_PNX * chosen).sum(1, keepdims=True)
    b_deviation = b_PNX - (b_PNX * chosen).sum(1, keepdims=True)
    aa, bb, ab = (
        (x * y * chosen).sum((1, 2)) / area_P
        for x, y in ((a_deviation,) * 2, (b_deviation,) * 2, (a_deviation, b_deviation))
    )
    noise = CODEC_NOISE_LUMA**2
    return (ab + noise) / np.sqrt((aa + noise) * (bb + noise)), np.minimum(aa, bb) < MIN_MOTION_LUMA**2


def _colour_similarity(
    a_PNX: np.ndarray, b_PNX: np.ndarray, weights_PX: np.ndarray, match_PN: np.ndarray, count_P: np.ndarray
) -> np.ndarray:
    """(P,) cosine of the mean chroma, its mean not removed: a red scene does not match a blue one."""
    weights = weights_PX[:, LUMA_VALUES:]
    chosen = match_PN[..., None] / count_P[:, None, None]
    a_PX, b_PX = (((x[..., LUMA_VALUES:] - 128.0) * chosen).sum(1) * weights for x in (a_PNX, b_PNX))
    area = weights.sum(-1)
    aa, bb, ab = ((x * y).sum(-1) / area for x, y in ((a_PX, a_PX), (b_PX, b_PX), (a_PX, b_PX)))
    grey = GREY_CHROMA**2
    return (ab + grey) / np.sqrt((aa + grey) * (bb + grey))
