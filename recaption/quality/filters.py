"""Verdicts over scores: a query over what is stored, asked anew each time. Changing a threshold re-computes nothing.

verdicts(clips_table, FilterThresholds(min_motion=0.01))     # [None, "low_motion", None, ...]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recaption.dedup.near_duplicates import copies_of


@dataclass(frozen=True, kw_only=True)
class FilterThresholds:
    """A clip outside any of these is dropped. None = this filter is off; a score not computed drops nothing."""

    min_seconds: float | None = 1.0
    max_seconds: float | None = None
    min_motion: float | None = None
    """Frame heights per second. Off: a still clip trains a model too. Measured: stills 0.000, hand-held signing 0.02 to
    0.05, action 0.1 to 0.3; 0.005 drops stills alone."""
    min_sharpness: float | None = 2.0
    """Variance of the Laplacian. Measured: a flat colour has 0, scenes blurred by 4 px 1 to 4, 40 real clips 34 to 5600."""
    min_luma: float | None = 0.03
    max_luma: float | None = 0.98
    max_text_area: float | None = 0.3
    """Share of the frame; 0.3 drops title cards and slides. One drawn word takes 0.035 to 0.24: to drop any drawn text
    set 0.03 (precision 0.92, recall 0.99 on 400 rendered scenes, half of them with a word)."""
    max_letterbox: float | None = 0.35
    """Share of the frame. 21:9 inside 4:3 has 0.43, 2.39:1 inside 16:9 has 0.26."""
    max_text_area_ocr: float | None = None
    """Share of the frame; needs the scorer `ocr`. Measured at 0.005: 3 of 37 real clips (one wears a printed word), of those
    with a line of 4 to 6 % of the height drawn on them 110 of 111."""
    max_static_text: float | None = None
    """Share of the frame; 0.005 drops watermarks. Measured on 74 real clips and the same with six kinds of marks drawn on
    them: two thirds cannot be told (camera or scene too still: None, kept); of the other 25 without a mark 1 is dropped, of
    156 with one 153. Its constants were chosen on these clips; on 40 rendered scenes 5 of 32 and 160 of 172."""
    max_static_text_ocr: float | None = None
    """Share of the frame; needs the scorer `ocr`. Measured at 0.002: 1 of 34 (the printed word), 186 of 204 with a mark.
    Signs before a fixed camera count, too."""
    max_nsfw: float | None = None
    """0.8, as its authors advise; needs the scorer `nsfw`. Measured: 78 of 84 harmless real clips below 0.3, the highest
    (a pink toy on a brown table) 0.71."""
    min_aesthetic: float | None = None
    """Needs the scorer `aesthetic`."""
    max_blockiness: float | None = None
    """0.3 drops what is compressed to visible blocks. Measured: 14 clean clips 0 to 0.07, a bad one 0.25, the same ones as
    MPEG-4 or JPEG at the lowest quality 0.36 to 2.2."""
    max_flicker: float | None = None
    """Luma, 0..1. Measured: median of 84 real clips 0.001, gunfire and explosions 0.01 to 0.03; luma that alternates between
    0.45 and 0.55 has 0.05."""
    drop_duplicates: bool = True
    """Keep the first of clips with the same id: the same bytes given twice."""
    max_copy_similarity: float | None = 0.86
    """To a better clip that is kept (duplicates.py says which is better). Copies of real clips, encoded, scaled, framed,
    cropped by 5 % or cut anew: recall 0.991, precision 0.995 (bench_duplicates.py); 0.84 gives
    0.994 and 0.993. Distinct scenes of the demo reach 0.838."""
    max_semantic_similarity: float | None = None
    """Cosine of the captioner's embeddings, to a better clip that is kept. Off: a second dog in the snow is no copy."""
    min_copy_share: float = 0.5
    """Of a clip that better copies must show, together, for it to be dropped."""
    max_clips_per_caption: int | None = 100
    """A caption said of more clips of different footage than this is bad for all of them (repeated.py)."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One question about one score."""

    reason: str
    """Of `errors.DROP_REASONS`."""
    score: str
    """Column of `ClipScores`, or `seconds`."""
    lowest: str | None = None
    """Field of `FilterThresholds`: a clip below it is dropped."""
    highest: str | None = None
    """Field of `FilterThresholds`: a clip above it is dropped."""


FILTERS = (
    Filter("too_short", "seconds", lowest="min_seconds"),
    Filter("too_long", "seconds", highest="max_seconds"),
    Filter("low_motion", "motion", lowest="min_motion"),
    Filter("blurry", "sharpness", lowest="min_sharpness"),
    Filter("dark", "luma", lowest="min_luma"),
    Filter("bright", "luma", highest="max_luma"),
    Filter("text", "text_area", highest="max_text_area"),
    Filter("text", "text_area_ocr", highest="max_text_area_ocr"),
    Filter("text", "static_text", highest="max_static_text"),
    Filter("text", "static_text_ocr", highest="max_static_text_ocr"),
    Filter("letterbox", "letterbox", highest="max_letterbox"),
    Filter("nsfw", "nsfw", highest="max_nsfw"),
    Filter("low_aesthetic", "aesthetic", lowest="min_aesthetic"),
    Filter("low_quality", "blockiness", highest="max_blockiness"),
    Filter("low_quality", "flicker", highest="max_flicker"),
)
"""In the order in which verdicts are reached."""


SLACK = {"seconds": 1e-6}
"""Times are sums of frame durations; a clip cut at exactly one second must not fall to rounding."""


def score_column(clips: pa.Table, score: str) -> np.ndarray:
    """(N,) float64 of one score, NaN where it was not computed.

    Args:
        clips: columns of `Clip` and `ClipScores`.
    """
    if score == "seconds":
        return score_column(clips, "end_seconds") - score_column(clips, "start_seconds")
    values: Any = clips[score].to_pylist()
    return np.array([math.nan if value is None else value for value in values], np.float64)


def outside(values: np.ndarray, one: Filter, thresholds: FilterThresholds) -> np.ndarray:
    """Which clips, (N,) bool, this filter drops. A score not computed (NaN) drops nothing."""
    slack = SLACK.get(one.score, 0.0)
    is_outside = np.zeros(len(values), bool)
    if one.lowest and (lowest := getattr(thresholds, one.lowest)) is not None:
        is_outside |= values < lowest - slack
    if one.highest and (highest := getattr(thresholds, one.highest)) is not None:
        is_outside |= values > highest + slack
    return is_outside


@dataclass(frozen=True, slots=True)
class Verdicts:
    """One value per clip."""

    reasons: list[str | None]
    """Of `errors.DROP_REASONS`; None for a clip that is kept."""
    duplicate_of: list[str | None]
    """Where the reason is `duplicate`, the clip that is kept in its place."""


def verdicts(clips: pa.Table, thresholds: FilterThresholds, pairs: pa.Table | None = None) -> list[str | None]:
    """The first reason of `errors.DROP_REASONS` that applies to each clip, or None for a clip that is kept.

    Args:
        clips: columns of `Clip` and `ClipScores`; of clips with the same id the first row is the original.
        pairs: near copies, as `duplicates.read_pairs` gives them.
    """
    return judge(clips, thresholds, pairs).reasons


def judge(clips: pa.Table, thresholds: FilterThresholds, pairs: pa.Table | None = None) -> Verdicts:
    """`verdicts`, and of which clip each duplicate is one."""
    reasons: list[str | None] = [None] * clips.num_rows
    for one in FILTERS:
        for row in np.flatnonzero(outside(score_column(clips, one.score), one, thresholds)):
            reasons[row] = reasons[row] or one.reason
    clip_ids: list[str] = clips["clip_id"].to_pylist()
    duplicate_of: list[str | None] = [None] * clips.num_rows
    if thresholds.drop_duplicates:
        _mark_same_bytes(clip_ids, reasons, duplicate_of)
    if pairs is not None and pairs.num_rows:
        _mark_near_copies(clip_ids, reasons, duplicate_of, thresholds, pairs)
    return Verdicts(reasons, duplicate_of)


def _mark_same_bytes(clip_ids: list[str], reasons: list[str | None], duplicate_of: list[str | None]) -> None:
    seen: set[str] = set()
    for row, clip_id in enumerate(clip_ids):
        if clip_id in seen and reasons[row] is None:
            reasons[row], duplicate_of[row] = "duplicate", clip_id
        seen.add(clip_id)


def _mark_near_copies(
    clip_ids: list[str],
    reasons: list[str | None],
    duplicate_of: list[str | None],
    thresholds: FilterThresholds,
    pairs: pa.Table,
) -> None:
    """A copy of the same bytes stays a duplicate of its own id, also where that one goes as a near copy of another."""
    replaced = copies_of(
        {clip_id for clip_id, reason in zip(clip_ids, reasons, strict=True) if reason is None},
        pairs,
        max_copy_similarity=thresholds.max_copy_similarity,
        max_semantic_similarity=thresholds.max_semantic_similarity,
        min_copy_share=thresholds.min_copy_share,
    )
    for row, clip_id in enumerate(clip_ids):
        if reasons[row] is None and clip_id in replaced:
            reasons[row], duplicate_of[row] = "duplicate", replaced[clip_id]
