"""What thresholds cost, as charts, tables and pictures: a section of the report, and all of the what-if page.

seen = ask_run(run, recipe)                       # clips, their scores, seconds and training tokens
waterfall_rows(seen, recipe.filters)              # what is left after each filter
threshold_figures(seen, recipe.filters, link)     # a retention curve each, and the clips beside the threshold
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.recipe.settings import Recipe, grid_of
from jobs.report.charts import Marker, Segment, Series, number, shares, stacked_bar
from jobs.report.distributions import SCORE_TITLES
from jobs.report.gallery import previews
from jobs.report.tables import clock
from packing.buckets import FRAME_TOLERANCE, BucketTable, assign_bucket
from packing.grid import Grid
from recaption.dedup.near_duplicates import read_pairs
from recaption.ledger.ledger import read_clips
from recaption.quality.filters import FILTERS, FilterThresholds, drop_reasons, score_column
from recaption.quality.threshold_analysis import (
    Evaluate,
    FunnelStep,
    RetentionCurve,
    ThresholdColumn,
    ThresholdNeighbours,
    clips_near_threshold,
    filter_funnel,
    missing_scores,
    retention_curve,
    threshold_columns,
)
from recaption.run_folder import RunFolder

Link = Callable[[bytes], str]
"""Bytes of a JPEG -> what the page's `src` says."""


def fields_of(reason: str) -> list[str]:
    """Names of the thresholds that can give this verdict."""
    if reason == "duplicate":
        return ["drop_duplicates", "max_duplicate_similarity", "max_semantic_similarity"]
    filters = [one for one in FILTERS if one.reason == reason]
    return [name for one in filters for name in (one.min_field, one.max_field) if name]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What thresholds are asked of: every clip of a run, and what it would be worth."""

    run: RunFolder
    clips: pa.Table
    """Columns of `Clip` and `ClipScores`."""
    seconds: np.ndarray
    tokens: np.ndarray
    """(N,) training tokens of the bucket that each clip would take; 0 where it has none."""
    ask: Evaluate
    """Verdicts of the filters and, for what they keep, `no_bucket`."""
    filters_only: Evaluate

    def steps(self, thresholds: FilterThresholds) -> list[FunnelStep]:
        weights = {"seconds": self.seconds, "tokens": self.tokens}
        return filter_funnel(
            self.ask(thresholds), weights, extra_reasons=() if self.ask is self.filters_only else ("no_bucket",)
        )


def ask_run(run: RunFolder, recipe: Recipe | None) -> Seen:
    """Read the scores of a run once; every question after that is arithmetic.

    Args:
        recipe: says which bucket a clip would take; without it nothing is known of tokens and buckets.
    """
    clips = read_clips(run)
    filters_only = partial(drop_reasons, clips, pairs=read_pairs(run))
    seconds = score_column(clips, "seconds")
    if recipe is None:
        none = np.zeros(len(seconds))
        return Seen(run=run, clips=clips, seconds=seconds, tokens=none, ask=filters_only, filters_only=filters_only)
    tokens = clip_tokens(clips, recipe.shard.buckets, grid_of(recipe))

    def ask(thresholds: FilterThresholds) -> list[str | None]:
        return [r or ("no_bucket" if none else None) for r, none in zip(filters_only(thresholds), tokens == 0)]

    return Seen(run=run, clips=clips, seconds=seconds, tokens=tokens, ask=ask, filters_only=filters_only)


def clip_tokens(clips: pa.Table, table: BucketTable, grid: Grid) -> np.ndarray:
    """(N,) float64: tokens of the sample that each clip would become. One bucket is looked up per size and length."""
    seconds = score_column(clips, "seconds")
    frames = np.floor(seconds * table.fps + FRAME_TOLERANCE)
    frames = np.minimum(frames, max(table.num_frames))  # what is beyond the longest bucket makes no difference
    sizes = [np.asarray(clips[name].to_numpy(), np.float64) for name in ("width_px", "height_px")]
    if not len(seconds):
        return np.zeros(0)
    kinds, first, which = np.unique(np.stack([frames, *sizes]), axis=1, return_index=True, return_inverse=True)
    of_kind = np.zeros(kinds.shape[1])
    for i, row in enumerate(first):
        bucket = assign_bucket(float(seconds[row]), int(sizes[0][row]), int(sizes[1][row]), table)
        if bucket is not None:
            of_kind[i] = grid.num_tokens(bucket.num_frames, bucket.height_px, bucket.width_px)
    return of_kind[which.reshape(-1)]


# --- waterfall --------------------------------------------------------------------------------------------------------


def threshold_text(value: float | bool | None) -> str:
    return "off" if value is None or value is False else "on" if value is True else number(float(value))


def setting_text(reason: str, thresholds: FilterThresholds) -> str:
    """The thresholds that give this verdict, as a person reads them; those that are off only where all are."""
    values = {name: threshold_text(getattr(thresholds, name)) for name in fields_of(reason)}
    shown = {name: text for name, text in values.items() if text != "off"} or dict([*values.items()][:1])
    return ", ".join(f"{name} = {text}" for name, text in shown.items())


def waterfall_rows(seen: Seen, thresholds: FilterThresholds) -> list[dict[str, Any]]:
    """One row per filter: bar, what it dropped, what is left."""
    steps = seen.steps(thresholds)
    total = steps[0].clips
    rows = []
    for i, step in enumerate(steps):
        lost = steps[i - 1].clips - step.clips if i else 0
        segments = [Segment("left", "kept", step.clips), Segment(f"dropped: {number(lost)}", "dropped", lost)]
        said = f"{step.reason or 'all clips'}: {step.clips} clips left, {lost} dropped"
        rows.append(
            {
                "reason": step.reason.replace("_", " ") or "all clips",
                "setting": setting_text(step.reason, thresholds),
                "bar": stacked_bar(segments, total=total, label=said, height_px=12),
                "lost": lost,
                "clips": step.clips,
                "seconds": step.left["seconds"],
                "tokens": step.left["tokens"],
            }
        )
    return rows


# --- curves and pictures ----------------------------------------------------------------------------------------------


def title_of(score: str) -> tuple[str, str]:
    """(title, unit) of a score."""
    if score == "seconds":
        return "Clip length", "s"
    return SCORE_TITLES.get(score, (score.replace("_", " ").capitalize(), ""))


def curve_chart(column: ThresholdColumn, curve: RetentionCurve, markers: Sequence[Marker]) -> Any:
    """The share of clips kept as one threshold moves."""
    finite = column.values[np.isfinite(column.values)]
    # A few sharp clips must not squeeze all others into the first pixels.
    wide = bool((finite > 0).all()) and float(np.quantile(finite, 0.95)) > 30 * float(np.quantile(finite, 0.05))
    places = curve.thresholds.tolist()
    series = [
        Series("kept by all filters", "accent", places, curve.kept_fraction.tolist()),
        Series("by this one alone", "second", places, curve.passing_fraction.tolist()),
    ]
    return shares(places, series, label=column.field, markers=markers, logarithmic=wide)


def picture_rows(seen: Seen, found: ThresholdNeighbours) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The clips on both sides of a threshold, without their pictures yet."""
    columns = ["clip_id", "uri", "start_seconds", "end_seconds"]
    sides = []
    for side in (found.inside, found.outside):
        rows = seen.clips.select(columns).take([row for row, _ in side]).to_pylist() if side else []
        sides.append([{**row, "value": value} for row, (_, value) in zip(rows, side)])
    return sides[0], sides[1]


def add_pictures(seen: Seen, rows: Sequence[dict[str, Any]], link: Link) -> None:
    """Give each row its picture (empty where none was kept), its name and its place in the video."""
    pictures = previews(seen.run, {row["clip_id"] for row in rows})
    links = {clip_id: link(jpeg) for clip_id, jpeg in sorted(pictures.items())}
    for row in rows:
        row["picture"] = links.get(row["clip_id"], "")
        row["source"] = row["uri"].rpartition("/")[2]
        row["span"] = f"{clock(row['start_seconds'])} – {clock(row['end_seconds'])}"
        row["shown"] = number(row["value"])


def threshold_figures(
    seen: Seen, thresholds: FilterThresholds, link: Link, *, count: int = 4
) -> tuple[list[dict[str, Any]], list[str]]:
    """(figures in the order of the filters, scores that no clip has)."""
    if not seen.clips.num_rows:
        return [], []
    figures: list[dict[str, Any]] = []
    for field, column in threshold_columns(seen.clips, thresholds, seen.filters_only).items():
        title, unit = title_of(column.clip_filter.score)
        value = column.threshold
        markers = [] if value is None else [Marker(value, f"{field} = {number(value)}")]
        is_outside = column.is_violation(value)
        inside, outside = picture_rows(seen, clips_near_threshold(column, count=count))
        figures.append(
            {
                "title": f"{title}, {'at least' if column.is_minimum else 'at most'}",
                "field": field,
                "unit": unit,
                "setting": f"{field} = {threshold_text(value)}",
                "is_on": value is not None,
                "num_outside": int(is_outside.sum()),
                "num_only": int((is_outside & column.passes_others).sum()),
                "num_missing": int(np.isnan(column.values).sum()),
                "svg": curve_chart(column, retention_curve(column), markers),
                "inside": inside,
                "outside": outside,
            }
        )
    add_pictures(seen, [row for f in figures for row in (*f["inside"], *f["outside"])], link)
    return figures, missing_scores(seen.clips)


def amount(value: float) -> str:
    """A number of tokens: exact below a million, then three digits and a unit."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{math.trunc(value):,}"
