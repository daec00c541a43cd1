"""Threshold analysis for the report and the what-if page: filter funnel, retention curves, clips near a threshold.

scored = load_scores(run, recipe)                   # clips, their scores, seconds and training tokens
waterfall_rows(scored, recipe.filters)              # clips left after each filter
threshold_figures(scored, recipe.filters, link)     # a retention curve each, and the clips next to the threshold
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from jobs.recipe.settings import Recipe, grid_of
from jobs.report.charts import Marker, Segment, Series, line, number, stacked_bar
from jobs.report.distributions import SCORE_TITLES
from jobs.report.gallery import previews
from jobs.report.tables import clock
from packing.buckets import FRAME_TOLERANCE, BucketTable, assign_bucket
from packing.grid import Grid
from recaption.dedup.near_duplicates import read_pairs
from recaption.ledger.ledger import read_clips
from recaption.quality.filters import (
    FILTERS,
    PLUGIN_PREFIX,
    VERDICT_COLUMN,
    FilterThresholds,
    drop_reasons,
    plugin_scores,
    score_column,
)
from recaption.quality.threshold_analysis import (
    Evaluate,
    FunnelStep,
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
"""Bytes of a JPEG -> URL for the `src` attribute."""


def fields_of(reason: str, thresholds: FilterThresholds) -> list[str]:
    """Names of the thresholds that can drop a clip for this reason."""
    if reason == "plugin":
        return thresholds.plugin_names
    if reason == "duplicate":
        return ["drop_duplicates", "max_duplicate_similarity", "max_semantic_similarity"]
    filters = [one for one in FILTERS if one.reason == reason]
    return [name for one in filters for name in one.fields]


@dataclass(frozen=True, kw_only=True)
class ScoredClips:
    """Scores, seconds and training tokens of every clip of a run."""

    run: RunFolder
    clips: pa.Table
    """Columns of `Clip` and `ClipScores`."""
    seconds: np.ndarray
    tokens: np.ndarray
    """(N,) training tokens of each clip in its bucket; 0 without a bucket."""
    evaluate: Evaluate
    """Drop reason per clip: of the filters, else `no_bucket`, else None."""
    filters_only: Evaluate

    def steps(self, thresholds: FilterThresholds) -> list[FunnelStep]:
        weights = {"seconds": self.seconds, "tokens": self.tokens}
        extra_reasons = [] if self.evaluate is self.filters_only else ["no_bucket"]
        extra_reasons += ["plugin"] if plugin_scores(self.clips) else []
        extra_reasons += ["rejected"] if VERDICT_COLUMN in self.clips.column_names else []
        return filter_funnel(self.evaluate(thresholds), weights, extra_reasons=extra_reasons)


def load_scores(run: RunFolder, recipe: Recipe | None) -> ScoredClips:
    """Read the scores of a run; evaluating thresholds on them needs no more I/O.

    Args:
        recipe: for the bucket and tokens of each clip; without it all tokens are 0.
    """
    clips = read_clips(run)
    filters_only = partial(drop_reasons, clips, pairs=read_pairs(run))
    seconds = score_column(clips, "seconds")
    if recipe is None:
        none = np.zeros(len(seconds))
        return ScoredClips(
            run=run, clips=clips, seconds=seconds, tokens=none, evaluate=filters_only, filters_only=filters_only
        )
    tokens = clip_tokens(clips, recipe.shard.buckets, grid_of(recipe))

    def evaluate(thresholds: FilterThresholds) -> list[str | None]:
        return [r or ("no_bucket" if none else None) for r, none in zip(filters_only(thresholds), tokens == 0)]

    return ScoredClips(
        run=run, clips=clips, seconds=seconds, tokens=tokens, evaluate=evaluate, filters_only=filters_only
    )


def clip_tokens(clips: pa.Table, table: BucketTable, grid: Grid) -> np.ndarray:
    """(N,) float64: training tokens of each clip in its bucket, computed once per distinct size and length."""
    seconds = score_column(clips, "seconds")
    frames = np.floor(seconds * table.fps + FRAME_TOLERANCE)
    frames = np.minimum(frames, max(table.num_frames))  # longer clips get the longest bucket too
    sizes = [np.asarray(clips[name].to_numpy(), np.float64) for name in ("width_px", "height_px")]
    if not len(seconds):
        return np.zeros(0)
    kinds, first, which = np.unique(np.stack([frames, *sizes]), axis=1, return_index=True, return_inverse=True)
    tokens_of_kind = np.zeros(kinds.shape[1])
    for i, row in enumerate(first):
        bucket = assign_bucket(float(seconds[row]), int(sizes[0][row]), int(sizes[1][row]), table)
        if bucket is not None:
            tokens_of_kind[i] = grid.num_tokens(bucket.num_frames, bucket.height_px, bucket.width_px)
    return tokens_of_kind[which.reshape(-1)]


# --- waterfall --------------------------------------------------------------------------------------------------------


def threshold_text(value: float | bool | None) -> str:
    """A threshold as text: a number, on or off."""
    return "off" if value is None or value is False else "on" if value is True else number(float(value))


def setting_text(reason: str, thresholds: FilterThresholds) -> str:
    """The thresholds of a drop reason as text; those that are off only if all are."""
    values = {name: threshold_text(thresholds.value_of(name)) for name in fields_of(reason, thresholds)}
    shown = {name: text for name, text in values.items() if text != "off"} or dict([*values.items()][:1])
    return ", ".join(f"{name} = {text}" for name, text in shown.items())


def step_bar(name: str, left: int, left_before: int, *, total: int, height_px: int = 12) -> Markup:
    """Bar of the clips left after a filter and dropped by it."""
    lost = left_before - left
    segments = [Segment("left", "kept", left), Segment(f"dropped: {number(lost)}", "dropped", lost)]
    label = f"{name}: {left} clips left, {lost} dropped"
    return stacked_bar(segments, total=total, label=label, height_px=height_px)


def waterfall_rows(scored: ScoredClips, thresholds: FilterThresholds) -> list[dict[str, Any]]:
    """One row per filter: bar, number dropped, number left."""
    steps = scored.steps(thresholds)
    rows = []
    for before, step in zip([steps[0], *steps], steps):
        name = step.reason.replace("_", " ") or "all clips"
        rows.append(
            {
                "reason": name,
                "setting": setting_text(step.reason, thresholds),
                "bar": step_bar(name, step.clips, before.clips, total=steps[0].clips),
                "lost": before.clips - step.clips,
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
    return SCORE_TITLES.get(score, (score.removeprefix(PLUGIN_PREFIX).replace("_", " ").capitalize(), ""))


def threshold_figure(
    column: ThresholdColumn, markers: Sequence[Marker], *, extra_thresholds: Sequence[float] = ()
) -> dict[str, Any]:
    """Title, setting and curve (fraction of clips kept against its value) of one threshold."""
    title, unit = title_of(column.clip_filter.score)
    finite = column.values[np.isfinite(column.values)]
    low, high = np.quantile(finite, [0.05, 0.95])
    is_heavy_tailed = bool((finite > 0).all() and high > 30 * low)  # such as sharpness: logarithmic axis
    curve = retention_curve(column, extra_thresholds=extra_thresholds)
    series = [
        Series("by this one alone", "second", curve.thresholds, curve.passing_fraction),
        Series("kept by all filters", "accent", curve.thresholds, curve.kept_fraction, is_filled=True),
    ]
    return {
        "title": f"{title}, {'at least' if column.is_minimum else 'at most'}",
        "field": column.field,
        "unit": unit,
        "setting": f"{column.field} = {threshold_text(column.threshold)}",
        "num_missing": int(np.isnan(column.values).sum()),
        "svg": line(series, label=column.field, markers=markers, logarithmic=is_heavy_tailed, as_fraction=True),
    }


def picture_rows(scored: ScoredClips, found: ThresholdNeighbours) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(kept, dropped) clips next to a threshold, without previews."""
    columns = ["clip_id", "uri", "start_seconds", "end_seconds"]
    sides = []
    for side in (found.inside, found.outside):
        rows = scored.clips.select(columns).take([row for row, _ in side]).to_pylist() if side else []
        sides.append([{**row, "value": value} for row, (_, value) in zip(rows, side)])
    return sides[0], sides[1]


def add_pictures(scored: ScoredClips, rows: Sequence[dict[str, Any]], link: Link) -> None:
    """Add preview link (empty without a preview), file name and time span to each row."""
    pictures = previews(scored.run, {row["clip_id"] for row in rows})
    links = {clip_id: link(jpeg) for clip_id, jpeg in sorted(pictures.items())}
    for row in rows:
        row["picture"] = links.get(row["clip_id"], "")
        row["source"] = row["uri"].rpartition("/")[2]
        row["span"] = f"{clock(row['start_seconds'])} – {clock(row['end_seconds'])}"
        row["shown"] = number(row["value"])


def threshold_figures(
    scored: ScoredClips, thresholds: FilterThresholds, link: Link, *, count: int = 4
) -> tuple[list[dict[str, Any]], list[str]]:
    """(figures in the order of the filters, names of scores that no clip has)."""
    if not scored.clips.num_rows:
        return [], []
    figures: list[dict[str, Any]] = []
    for field, column in threshold_columns(scored.clips, thresholds, scored.filters_only).items():
        value = column.threshold
        markers = [] if value is None else [Marker(value, f"{field} = {number(value)}")]
        is_outside = column.is_violation(value)
        inside, outside = picture_rows(scored, clips_near_threshold(column, count=count))
        figures.append(
            {
                **threshold_figure(column, markers),
                "is_on": value is not None,
                "num_outside": int(is_outside.sum()),
                "num_only": int((is_outside & column.passes_others).sum()),
                "inside": inside,
                "outside": outside,
            }
        )
    add_pictures(scored, [row for f in figures for row in (*f["inside"], *f["outside"])], link)
    return figures, missing_scores(scored.clips)


def amount(value: float) -> str:
    """Token count as text: exact below a million, then three digits and a unit."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{math.trunc(value):,}"
