"""Threshold analysis: how many clips each filter threshold drops, from stored scores; nothing is decoded or written.

    changed = parse_threshold_changes(["motion=0.02", "text_area=0.1"], thresholds)
    evaluate = partial(drop_reasons, clips)
    steps = filter_funnel(evaluate(changed), weights)                 # clips left after each filter
    columns = threshold_columns(clips, changed, evaluate)
    retention_curve(columns["min_motion"])                            # fraction kept as a function of one threshold
    clips_near_threshold(columns["min_motion"])                       # the clips just inside and just outside

Everything is one pass over columns: a few vectorised steps per filter, 8 bytes per clip and score.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recaption.errors import DROP_REASONS, UsageError
from recaption.quality.filters import (
    FILTERS,
    PLUGIN_FIELDS,
    PLUGIN_PREFIX,
    TOLERANCE,
    VERDICT_COLUMN,
    Filter,
    FilterThresholds,
    filters_of,
    score_column,
    violates,
)

NUM_POINTS = 160
"""Points of a curve; more would not be visible in a chart of the report."""


# --- changes ----------------------------------------------------------------------------------------------------------


def _thresholds_by_score(filters: Sequence[Filter] = FILTERS) -> dict[str, list[tuple[Filter, str]]]:
    """Score -> (filter, name of the threshold) pairs, in the order of the filters."""
    by_score: dict[str, list[tuple[Filter, str]]] = {}
    for clip_filter in filters:
        by_score.setdefault(clip_filter.score, []).extend((clip_filter, name) for name in clip_filter.fields)
    return by_score


CAPTION_THRESHOLD = "max_clips_per_caption"
"""Applies to captions, which do not exist yet when clips are filtered."""


def parse_threshold_changes(
    texts: Sequence[str], thresholds: FilterThresholds, plugin_scores: Sequence[str] = ()
) -> FilterThresholds:
    """Parse `NAME=VALUE` texts and return `thresholds` with these changes.

    A text may hold several, separated by commas. NAME is a score (`motion`) or the name of a threshold, required for a
    score that has a minimum and a maximum (`min_luma`, `max_luma`), as those of plug-ins have; VALUE is a number or `off`.

    Raises:
        UsageError: unknown score, not a number, or a score with two thresholds; the message lists what is available.
    """
    changes: dict[str, Any] = {}
    for text in ",".join(texts).split(","):
        match = re.fullmatch(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(\S+)\s*", text)
        if match is None:
            raise UsageError(f"--what-if {text.strip()!r}: expected NAME=NUMBER or NAME=off, such as motion=0.02")
        name = _threshold_name(match[1].replace("-", "_"), plugin_scores)
        if name in changes:
            raise UsageError(f"--what-if names {name} twice")
        changes[name] = _parse_value(name, match[2])
    return thresholds.changed(changes)


def _threshold_name(name: str, plugin_scores: Sequence[str]) -> str:
    """Resolve the name of a score or of a threshold to the name of the threshold."""
    by_score = _thresholds_by_score()
    by_score |= {s: [(FILTERS[0], f"min_{s}"), (FILTERS[0], f"max_{s}")] for s in plugin_scores}
    if name == CAPTION_THRESHOLD:
        raise UsageError(f"--what-if {name}: applies to captions, which exist only for clips that the filters keep")
    if name in {field.name for field in dataclasses.fields(FilterThresholds)} - {*PLUGIN_FIELDS.values()}:
        return name
    if name[:4] in PLUGIN_FIELDS and name[4:] in plugin_scores:
        return name
    if name not in by_score:
        listed = {field for pairs in by_score.values() for _, field in pairs} | {CAPTION_THRESHOLD}
        listed |= {*PLUGIN_FIELDS.values()}
        others = [field.name for field in dataclasses.fields(FilterThresholds) if field.name not in listed]
        raise UsageError(f"--what-if {name}: unknown score; available: {', '.join([*by_score, *others])}")
    fields = [field for _, field in by_score[name]]
    if len(fields) > 1:
        raise UsageError(f"--what-if {name}: it has a minimum and a maximum; use {' or '.join(fields)}")
    return fields[0]


def _parse_value(name: str, text: str) -> float | bool | None:
    """A number, on/off for a switch, or None for `off`."""
    hint = typing.get_type_hints(FilterThresholds).get(name, float | None)
    if hint is bool:
        if text not in ("on", "off"):
            raise UsageError(f"--what-if {name}={text}: expected on or off")
        return text == "on"
    if text == "off" and type(None) in typing.get_args(hint):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"--what-if {name}={text}: expected a number or off")
    return value


def changed_thresholds(before: FilterThresholds, after: FilterThresholds) -> list[str]:
    """Names of the thresholds that differ, in the order of the fields of `FilterThresholds`."""
    names = [field.name for field in dataclasses.fields(before) if field.name not in PLUGIN_FIELDS.values()]
    names += dict.fromkeys([*before.plugin_names, *after.plugin_names])
    return [name for name in names if before.value_of(name) != after.value_of(name)]


def missing_scores(clips: pa.Table) -> list[str]:
    """Scores that have a filter but were computed for no clip; a threshold on one of them drops nothing."""
    by_score = _thresholds_by_score(filters_of(clips))
    missing = [score for score in by_score if clips.num_rows and np.isnan(score_column(clips, score)).all()]
    return [score.removeprefix(PLUGIN_PREFIX) for score in missing]


# --- filter funnel ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FunnelStep:
    """Clips left after one filter."""

    reason: str
    """One of `errors.DROP_REASONS`; empty for the first step, before any filter."""
    clips: int
    """Number of clips left."""
    left: dict[str, float]
    """Name of a weight (`seconds`, `tokens`) -> its sum over the clips that are left."""


def filter_funnel(
    reasons: Sequence[str | None], weights: Mapping[str, np.ndarray], *, extra_reasons: Sequence[str] = ()
) -> list[FunnelStep]:
    """Clips left, and sums of their weights, after each filter in the order of `errors.DROP_REASONS`.

    Filters that are off are steps too, so that two funnels can be compared step by step.

    Args:
        reasons: from `filters.drop_reasons`.
        weights: name -> (N,) weight of each clip.
        extra_reasons: reasons other than those of the filters that are steps too.
    """
    reason_of_clip = np.array([reason or "" for reason in reasons], object)
    used = {clip_filter.reason for clip_filter in FILTERS} | {"duplicate", *extra_reasons}
    order = [reason for reason in DROP_REASONS if reason in used]
    is_left = np.ones(len(reason_of_clip), bool)
    steps = []
    for reason in ["", *order]:
        if reason:
            is_left &= reason_of_clip != reason
        left = {name: math.fsum(values[is_left]) for name, values in weights.items()}
        steps.append(FunnelStep(reason=reason, clips=int(is_left.sum()), left=left))
    return steps


# --- curves -----------------------------------------------------------------------------------------------------------

Evaluate = Callable[[FilterThresholds], Sequence[str | None]]
"""`filters.drop_reasons` with the clips bound: thresholds -> drop reason of each clip."""


@dataclass(frozen=True, kw_only=True)
class ThresholdColumn:
    """One threshold, the scores it applies to, and the clips that only it can drop."""

    field: str
    """Name of a field of `FilterThresholds`."""
    clip_filter: Filter
    """The filter with this threshold only."""
    thresholds: FilterThresholds
    values: np.ndarray
    """(N,) scores, NaN where not computed."""
    passes_others: np.ndarray
    """(N,) bool: clips that pass all other filters."""

    @property
    def is_minimum(self) -> bool:
        """Whether clips below the threshold are dropped; else those above it."""
        return self.clip_filter.min_field is not None

    @property
    def threshold(self) -> float | None:
        """The current value; None = off."""
        value: float | None = self.thresholds.value_of(self.field)
        return value

    def is_violation(self, at: float | None) -> np.ndarray:
        """(N,) bool: clips that a threshold of `at` drops."""
        return violates(self.values, self.clip_filter, self.thresholds.changed({self.field: at}))


def threshold_columns(clips: pa.Table, thresholds: FilterThresholds, evaluate: Evaluate) -> dict[str, ThresholdColumn]:
    """Name of a threshold -> its column, in the order of the filters; switches are left out, and thresholds whose score no
    clip has."""
    by_score = _thresholds_by_score(filters_of(clips))
    scores = {score: score_column(clips, score) for score in by_score}
    if VERDICT_COLUMN in clips.column_names:  # no threshold drops what a person keeps, as if it had no score
        is_kept = np.array([verdict == "keep" for verdict in clips[VERDICT_COLUMN].to_pylist()], bool)
        scores = {score: np.where(is_kept, np.nan, values) for score, values in scores.items()}
    single: list[tuple[str, Filter]] = []
    switches: list[Filter] = []
    for score, fields in by_score.items():
        if clips.num_rows and not np.isnan(scores[score]).all():
            for clip_filter, field in fields:
                if field == clip_filter.flag_field:
                    switches.append(clip_filter)
                    continue
                low, high = (field, None) if field == clip_filter.min_field else (None, field)
                single.append((field, Filter(clip_filter.reason, score, min_field=low, max_field=high)))
    is_violation = {field: violates(scores[f.score], f, thresholds) for field, f in single}
    switched = [violates(scores[f.score], f, thresholds) for f in switches]
    num_violations = np.sum([*is_violation.values(), *switched], axis=0, dtype=np.int32)
    # Duplicates are searched among all clips, whether or not another filter drops them.
    all_off: dict[str, Any] = dict.fromkeys(field for fields in by_score.values() for _, field in fields)
    is_original = np.fromiter((r is None for r in evaluate(thresholds.changed(all_off))), bool)
    return {
        field: ThresholdColumn(
            field=field,
            clip_filter=clip_filter,
            thresholds=thresholds,
            values=scores[clip_filter.score],
            passes_others=is_original & (num_violations - is_violation[field] == 0),
        )
        for field, clip_filter in single
    }


@dataclass(frozen=True, kw_only=True)
class RetentionCurve:
    """Fraction of all clips kept as a function of one threshold, the others fixed."""

    thresholds: np.ndarray
    """(P,) ascending values of the threshold."""
    kept_fraction: np.ndarray
    """(P,) fraction of the clips kept by all filters together."""
    passing_fraction: np.ndarray
    """(P,) fraction that passes this threshold, other filters ignored."""


def retention_curve(column: ThresholdColumn, *, extra_thresholds: Sequence[float] = ()) -> RetentionCurve:
    """The retention curve of one threshold.

    Args:
        extra_thresholds: evaluated in addition to the current threshold and to points chosen from the values.
    """
    current = () if column.threshold is None else (column.threshold,)
    points = _curve_points(column.values, [*current, *extra_thresholds])
    tolerance = TOLERANCE.get(column.clip_filter.score, 0.0)
    limits = points - tolerance if column.is_minimum else points + tolerance
    return RetentionCurve(
        thresholds=points,
        kept_fraction=_num_passing(column.values[column.passes_others], limits, column.is_minimum) / len(column.values),
        passing_fraction=_num_passing(column.values, limits, column.is_minimum) / len(column.values),
    )


def _curve_points(values: np.ndarray, extra_thresholds: Sequence[float]) -> np.ndarray:
    """Thresholds to evaluate: half evenly over the range of the values, half at their quantiles."""
    finite = values[np.isfinite(values)]
    fractions = np.linspace(0, 1, NUM_POINTS // 2)
    evenly = np.linspace(finite.min(), finite.max(), NUM_POINTS // 2)
    return np.unique(np.concatenate([np.quantile(finite, fractions), evenly, np.asarray(extra_thresholds, float)]))


def _num_passing(values: np.ndarray, points: np.ndarray, is_minimum: bool) -> np.ndarray:
    """(P,) number of values that pass each threshold; NaN always passes."""
    ordered = np.sort(values[~np.isnan(values)])
    num_missing = len(values) - len(ordered)
    if is_minimum:
        return num_missing + len(ordered) - np.searchsorted(ordered, points, "left")
    return num_missing + np.searchsorted(ordered, points, "right")


@dataclass(frozen=True, kw_only=True)
class ThresholdNeighbours:
    """The clips nearest to a threshold on either side, nearest first: (row of the clips table, value)."""

    inside: list[tuple[int, float]]
    outside: list[tuple[int, float]]


def clips_near_threshold(column: ThresholdColumn, *, at: float | None = None, count: int = 4) -> ThresholdNeighbours:
    """The clips nearest to a threshold on both sides, among those that pass all other filters.

    Args:
        at: value of the threshold; default: the current one. If that is off too, both lists are empty.
    """
    value = column.threshold if at is None else at
    if value is None:
        return ThresholdNeighbours(inside=[], outside=[])
    is_violation = column.is_violation(value)
    sides = []
    for side in (~is_violation, is_violation):
        rows = np.flatnonzero(side & column.passes_others & ~np.isnan(column.values))
        nearest = rows[np.argsort(np.abs(column.values[rows] - value), kind="stable")][:count]
        sides.append([(int(row), float(column.values[row])) for row in nearest])
    return ThresholdNeighbours(inside=sides[0], outside=sides[1])
