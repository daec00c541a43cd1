"""Drop reasons of clips, computed from stored scores: thresholds can change without re-scoring.

drop_reasons(clips_table, FilterThresholds(min_motion=0.01))     # [None, "low_motion", None, ...]
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recaption.dedup.near_duplicates import select_duplicates
from recaption.errors import UsageError

PLUGIN_PREFIX = "plugin."
"""Of the column of a plug-in's score in a table of clips: `plugin.brightness`."""
VERDICT_COLUMN = "verdict"
"""What a person decided on a clip, in a table of clips that has been joined with the verdicts: `keep`, `reject` or null."""


@dataclass(frozen=True, kw_only=True)
class FilterThresholds:
    """A clip outside any of these is dropped. None turns a filter off; a score that was not computed drops nothing."""

    min_seconds: float | None = 1.0
    """Length of the clip."""
    max_seconds: float | None = None
    """Length of the clip."""
    min_motion: float | None = None
    """Optical flow in frame heights per second. Off by default: still clips are useful for training too. Measured: stills
    0.000, hand-held signing 0.02 to 0.05, action 0.1 to 0.3; 0.005 drops only stills."""
    min_sharpness: float | None = 2.0
    """Sharpness as the variance of the Laplacian. Measured: a flat colour has 0, scenes blurred by 4 px 1 to 4, 40 real
    clips 34 to 5600."""
    min_luma: float | None = 0.03
    """Mean brightness, 0..1."""
    max_luma: float | None = 0.98
    """Mean brightness, 0..1."""
    max_text_area: float | None = 0.3
    """Text, as a fraction of the frame; 0.3 drops title cards and slides. A single overlaid word has 0.035 to 0.24: to drop
    any overlaid text set 0.03 (precision 0.92, recall 0.99 on 400 rendered scenes, half of them with a word)."""
    max_letterbox: float | None = 0.35
    """Black bars, as a fraction of the frame. 21:9 inside 4:3 has 0.43, 2.39:1 inside 16:9 has 0.26."""
    max_text_area_ocr: float | None = None
    """Fraction of the frame; needs the scorer `ocr`. Measured at 0.005: drops 3 of 37 real clips (one shows a printed word),
    and 110 of 111 with a text line of 4 to 6 % of the height overlaid."""
    max_static_text: float | None = None
    """Text that stands still (watermarks), as a fraction of the frame; 0.005 drops watermarks. Measured on 74 real clips, as
    they are and with six kinds of watermarks overlaid: two thirds have no score (camera or scene too still: None, kept); of
    the others 1 of 25 without a watermark and 153 of 156 with one are dropped. The constants of the score were chosen on
    these clips; on 40 rendered scenes 5 of 32 and 160 of 172 are."""
    max_static_text_ocr: float | None = None
    """Fraction of the frame; needs the scorer `ocr`. Measured at 0.002: drops 1 of 34 (the printed word) and 186 of 204
    with a watermark. Signs in front of a fixed camera count too."""
    max_nsfw: float | None = None
    """NSFW probability. Needs the scorer `nsfw`, whose authors advise 0.8. Measured: 78 of 84 harmless real clips below 0.3,
    the highest (a pink toy on a brown table) 0.71."""
    min_aesthetic: float | None = None
    """Needs the scorer `aesthetic`."""
    max_blockiness: float | None = None
    """0.3 drops clips with visible compression blocks. Measured: 14 clean clips 0 to 0.07, a bad one 0.25, the same clips
    encoded as MPEG-4 or JPEG at the lowest quality 0.36 to 2.2."""
    max_flicker: float | None = None
    """Amplitude of luma, 0..1. Measured: median of 84 real clips 0.001, gunfire and explosions 0.01 to 0.03; luma that
    alternates between 0.45 and 0.55 has 0.05."""
    max_silence_fraction: float | None = None
    """0.95 drops clips that are silent or have no audio (those have 1). Silence is what is below -60 dB of full scale."""
    drop_hdr: bool = False
    """Drop clips of HLG and PQ videos; they are read as SDR."""
    drop_interlaced: bool = False
    """Drop clips of videos of which a tenth of the frames or more is flagged interlaced; those are read deinterlaced."""
    drop_transparent: bool = False
    """Drop clips of videos with transparent pixels; these are read on white."""
    drop_duplicates: bool = True
    """Keep only the first of clips with the same id (identical bytes)."""
    max_duplicate_similarity: float | None = 0.86
    """Maximum perceptual similarity to a better clip that is kept (near_duplicates.py ranks clips). Real clips re-encoded,
    scaled, letterboxed, cropped by 5 % or trimmed: recall 0.991, precision 0.995 (bench_duplicates.py); 0.84 gives 0.994
    and 0.993. Distinct scenes of the demo reach 0.838."""
    max_semantic_similarity: float | None = None
    """Maximum cosine similarity of the captioner's embeddings to a better clip that is kept. Off by default: a second video
    of a dog in the snow is not a duplicate."""
    min_duplicate_fraction: float = 0.5
    """Minimum fraction of a clip that better duplicates must cover, together, for it to be dropped."""
    max_clips_per_caption: int | None = 100
    """A caption shared by more clips of different footage than this is marked bad for all of them (repeated.py)."""
    min_plugin_scores: tuple[str, ...] = ()
    """SCORE=NUMBER each: minima of the scores of own scorers (prepare.scores.plugins)."""
    max_plugin_scores: tuple[str, ...] = ()
    """SCORE=NUMBER each: maxima of the scores of own scorers."""

    def __post_init__(self) -> None:
        for name in PLUGIN_FIELDS.values():
            _numbers_by_score(name, getattr(self, name))

    def value_of(self, name: str) -> Any:
        """The threshold of this name: of a field, or of a plug-in's score with `min_` or `max_` before it; None = off."""
        if name in self.__dataclass_fields__:
            return getattr(self, name)
        group = PLUGIN_FIELDS[name[:4]]
        return _numbers_by_score(group, getattr(self, group)).get(name[4:])

    def changed(self, changes: Mapping[str, Any]) -> FilterThresholds:
        """A copy with other thresholds, by the names that `value_of` takes."""
        fields = {name: value for name, value in changes.items() if name in self.__dataclass_fields__}
        for side, group in PLUGIN_FIELDS.items():
            numbers = _numbers_by_score(group, getattr(self, group))
            numbers |= {name[4:]: value for name, value in changes.items() if name[:4] == side and name not in fields}
            if numbers.keys() & {name[4:] for name in changes.keys() - fields.keys()}:
                fields[group] = tuple(f"{score}={value!r}" for score, value in numbers.items() if value is not None)
        return dataclasses.replace(self, **fields)

    @property
    def plugin_names(self) -> list[str]:
        """Names of the thresholds of plug-ins that are set, for `value_of`."""
        sides = PLUGIN_FIELDS.items()
        return [side + score for side, group in sides for score in _numbers_by_score(group, getattr(self, group))]


PLUGIN_FIELDS = {"min_": "min_plugin_scores", "max_": "max_plugin_scores"}


def _numbers_by_score(field: str, texts: tuple[str, ...] | None) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for text in texts or ():
        match = re.fullmatch(r"\s*([a-z][a-z0-9_]*)\s*=\s*(\S+)\s*", text)
        try:
            value = float(match[2]) if match else math.nan
        except ValueError:
            value = math.nan
        if match is None or not math.isfinite(value):
            raise UsageError(f"filters.{field} {text!r}: it takes SCORE=NUMBER, such as brightness=0.5")
        numbers[match[1]] = value
    return numbers


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter on one score: drop reason, and the thresholds that apply it."""

    reason: str
    """One of `errors.DROP_REASONS`."""
    score: str
    """Column of `ClipScores` or of `VIDEO_FLAGS`, or `seconds`."""
    min_field: str | None = None
    """Name of a threshold (`FilterThresholds.value_of`): a clip below it is dropped."""
    max_field: str | None = None
    """Name of a threshold: a clip above it is dropped."""
    flag_field: str | None = None
    """Name of a threshold: where it is on, a clip whose score is not 0 is dropped."""

    @property
    def fields(self) -> list[str]:
        """Names of the thresholds that apply it."""
        return [name for name in (self.min_field, self.max_field, self.flag_field) if name]


FILTERS = (
    Filter("too_short", "seconds", min_field="min_seconds"),
    Filter("too_long", "seconds", max_field="max_seconds"),
    Filter("low_motion", "motion", min_field="min_motion"),
    Filter("blurry", "sharpness", min_field="min_sharpness"),
    Filter("dark", "luma", min_field="min_luma"),
    Filter("bright", "luma", max_field="max_luma"),
    Filter("text", "text_area", max_field="max_text_area"),
    Filter("text", "text_area_ocr", max_field="max_text_area_ocr"),
    Filter("text", "static_text", max_field="max_static_text"),
    Filter("text", "static_text_ocr", max_field="max_static_text_ocr"),
    Filter("letterbox", "letterbox", max_field="max_letterbox"),
    Filter("nsfw", "nsfw", max_field="max_nsfw"),
    Filter("low_aesthetic", "aesthetic", min_field="min_aesthetic"),
    Filter("low_quality", "blockiness", max_field="max_blockiness"),
    Filter("low_quality", "flicker", max_field="max_flicker"),
    Filter("silent", "silence_fraction", max_field="max_silence_fraction"),
    Filter("hdr", "hdr", flag_field="drop_hdr"),
    Filter("interlaced", "interlaced", flag_field="drop_interlaced"),
    Filter("transparent", "transparent", flag_field="drop_transparent"),
)
"""In the order of `errors.DROP_REASONS`: the first filter that a clip violates gives its drop reason."""
VIDEO_FLAGS = ("hdr", "interlaced", "transparent")
"""Columns that clips have from their videos: 1.0 or 0.0."""
VIDEO_FLAG_SOURCES = ("video_id", "transfer", "is_interlaced", "has_alpha")
"""Columns of `Video` that they are made of."""
HDR_TRANSFERS = ("arib-std-b67", "smpte2084")
"""HLG and PQ."""
TOLERANCE = {"seconds": 1e-6}
"""Times are sums of frame durations: a clip cut at exactly one second must not be dropped by rounding."""


def plugin_scores(clips: pa.Table) -> list[str]:
    """Names of the plug-ins' scores that a table of clips has been joined with."""
    return [name.removeprefix(PLUGIN_PREFIX) for name in clips.column_names if name.startswith(PLUGIN_PREFIX)]


def filters_of(clips: pa.Table) -> list[Filter]:
    """`FILTERS`, and one on each plug-in's score of a table of clips."""
    names = plugin_scores(clips)
    return [*FILTERS, *(Filter("plugin", PLUGIN_PREFIX + s, min_field=f"min_{s}", max_field=f"max_{s}") for s in names)]


def with_video_flags(clips: pa.Table, videos: pa.Table) -> pa.Table:
    """`clips` with the columns of `VIDEO_FLAGS`; null where the video is missing.

    Args:
        clips: columns of `Clip`.
        videos: columns of `VIDEO_FLAG_SOURCES`.
    """
    rows = pc.index_in(clips["video_id"].combine_chunks(), value_set=videos["video_id"].combine_chunks())
    flags = (
        pc.is_in(videos["transfer"], value_set=pa.array(HDR_TRANSFERS)),
        videos["is_interlaced"],
        videos["has_alpha"],
    )
    for name, flag in zip(VIDEO_FLAGS, flags, strict=True):
        clips = clips.append_column(name, flag.combine_chunks().cast(pa.uint8()).cast(pa.float64()).take(rows))
    return clips


def score_column(clips: pa.Table, score: str) -> np.ndarray:
    """(N,) float64 of one score, NaN where it was not computed.

    Args:
        clips: columns of `Clip`, `ClipScores` and `VIDEO_FLAGS`.
    """
    if score == "seconds":
        return score_column(clips, "end_seconds") - score_column(clips, "start_seconds")
    return np.asarray(clips[score].to_numpy(), np.float64)


def violates(values: np.ndarray, clip_filter: Filter, thresholds: FilterThresholds) -> np.ndarray:
    """(N,) bool: clips that this filter drops. A score that was not computed (NaN) drops nothing."""
    tolerance = TOLERANCE.get(clip_filter.score, 0.0)
    is_violation = np.zeros(len(values), bool)
    if clip_filter.min_field and (minimum := thresholds.value_of(clip_filter.min_field)) is not None:
        is_violation |= values < minimum - tolerance
    if clip_filter.max_field and (maximum := thresholds.value_of(clip_filter.max_field)) is not None:
        is_violation |= values > maximum + tolerance
    if clip_filter.flag_field and getattr(thresholds, clip_filter.flag_field):
        is_violation |= values > 0
    return is_violation


@dataclass(frozen=True, slots=True)
class FilterResults:
    """Columns with one value per clip."""

    reasons: list[str | None]
    """One of `errors.DROP_REASONS`; None for a clip that is kept."""
    duplicate_of: list[str | None]
    """Where the reason is `duplicate`: id of the clip that is kept instead."""


def drop_reasons(clips: pa.Table, thresholds: FilterThresholds, pairs: pa.Table | None = None) -> list[str | None]:
    """The first reason of `errors.DROP_REASONS` that applies to each clip; None for a clip that is kept.

    What a person decided stands above thresholds: a clip with the verdict `keep` is dropped only as a duplicate, one with
    `reject` is dropped in any case.

    Args:
        clips: columns of `Clip`, `ClipScores` and `VIDEO_FLAGS`, and those of plug-ins and verdicts that they have been
            joined with; of clips with the same id the first row is the original.
        pairs: near-duplicate pairs, from `near_duplicates.read_pairs`.
    """
    return evaluate_filters(clips, thresholds, pairs).reasons


def evaluate_filters(clips: pa.Table, thresholds: FilterThresholds, pairs: pa.Table | None = None) -> FilterResults:
    """`drop_reasons`, and for each duplicate the clip that is kept instead."""
    reasons: list[str | None] = [None] * clips.num_rows
    for clip_filter in filters_of(clips):
        for row in np.flatnonzero(violates(score_column(clips, clip_filter.score), clip_filter, thresholds)):
            reasons[row] = reasons[row] or clip_filter.reason
    if VERDICT_COLUMN in clips.column_names:
        for i, verdict in enumerate(clips[VERDICT_COLUMN].to_pylist()):
            if verdict:
                reasons[i] = None if verdict == "keep" else reasons[i] or "rejected"
    clip_ids: list[str] = clips["clip_id"].to_pylist()
    duplicate_of: list[str | None] = [None] * clips.num_rows
    if thresholds.drop_duplicates:
        _mark_exact_duplicates(clip_ids, reasons, duplicate_of)
    if pairs is not None and pairs.num_rows:
        _mark_near_duplicates(clip_ids, reasons, duplicate_of, thresholds, pairs)
    return FilterResults(reasons, duplicate_of)


def _mark_exact_duplicates(clip_ids: list[str], reasons: list[str | None], duplicate_of: list[str | None]) -> None:
    seen: set[str] = set()
    for row, clip_id in enumerate(clip_ids):
        if clip_id in seen and reasons[row] is None:
            reasons[row], duplicate_of[row] = "duplicate", clip_id
        seen.add(clip_id)


def _mark_near_duplicates(
    clip_ids: list[str],
    reasons: list[str | None],
    duplicate_of: list[str | None],
    thresholds: FilterThresholds,
    pairs: pa.Table,
) -> None:
    """An exact duplicate keeps its own id in `duplicate_of`, even if that clip is a near-duplicate of another."""
    kept_instead = select_duplicates(
        {clip_id for clip_id, reason in zip(clip_ids, reasons, strict=True) if reason is None},
        pairs,
        max_duplicate_similarity=thresholds.max_duplicate_similarity,
        max_semantic_similarity=thresholds.max_semantic_similarity,
        min_duplicate_fraction=thresholds.min_duplicate_fraction,
    )
    for row, clip_id in enumerate(clip_ids):
        if reasons[row] is None and clip_id in kept_instead:
            reasons[row], duplicate_of[row] = "duplicate", kept_instead[clip_id]
