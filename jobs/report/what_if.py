"""`recaption prepare --out RUN --what-if motion=0.02,text_area=0.1`: how many clips other thresholds would drop.

Evaluated on the stored scores: no video is decoded, no stage runs, run.yaml stays unchanged. The only file written is
the page RUN/report/what-if.html, with its images inlined.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.recipe.settings import Recipe
from jobs.report.charts import Marker, number
from jobs.report.render import render_page
from jobs.report.tables import duration
from jobs.report.thresholds import (
    ScoredClips,
    add_pictures,
    amount,
    fields_of,
    load_scores,
    picture_rows,
    setting_text,
    step_bar,
    threshold_figure,
    threshold_text,
)
from recaption.errors import UsageError
from recaption.quality.filters import FilterThresholds, plugin_scores
from recaption.quality.threshold_analysis import (
    ThresholdColumn,
    changed_thresholds,
    clips_near_threshold,
    missing_scores,
    parse_threshold_changes,
    retention_curve,
    threshold_columns,
)
from recaption.run_folder import RunFolder

PAGE = "report/what-if.html"
NUM_PICTURES = 6
"""On each side of a threshold."""


def what_if(run: RunFolder, recipe: Recipe, change_texts: Sequence[str]) -> dict[str, Any]:
    """Summary of changed thresholds against the recipe's; writes the page.

    Raises:
        UsageError: no clips, no such score, or a score that no clip has.
    """
    scored = load_scores(run, recipe)
    before = recipe.filters
    after = parse_threshold_changes(change_texts, before, plugin_scores(scored.clips))
    if not scored.clips.num_rows:
        raise UsageError(f"{run.uri} holds no clips yet: run `recaption prepare --videos ... --out {run.uri}` first")
    fields = changed_thresholds(before, after)
    columns = threshold_columns(scored.clips, after, scored.filters_only)
    _check_computed(change_texts, run, columns, scored)
    summary: dict[str, Any] = {
        "changes": {f: {"before": before.value_of(f), "after": after.value_of(f)} for f in fields},
        **_totals(scored, before, after),
        "thresholds": {f: _one_change(scored, before, after, f, columns.get(f)) for f in fields},
        "waterfall": _waterfall(scored, before, after),
        "curves": {f: _curve_json(column, _current_threshold(before, f)) for f, column in columns.items()},
        "not_computed": missing_scores(scored.clips),
    }
    run.write_bytes(PAGE, _page(scored, before, after, summary, columns, change_texts).encode())
    return {**summary, "page": run.path(*PAGE.split("/")) if run.is_local else f"{run.uri}/{PAGE}"}


def _check_computed(
    change_texts: Sequence[str], run: RunFolder, columns: dict[str, ThresholdColumn], scored: ScoredClips
) -> None:
    """Raise UsageError for a threshold on a score that no clip has: it would seem to drop nothing."""
    for text in change_texts:
        for part in text.split(","):
            name = part.partition("=")[0].strip().removeprefix("min_").removeprefix("max_")
            if name in missing_scores(scored.clips):
                raise UsageError(f"--what-if {name}: not computed, no clip of {run.uri} has this score")


def _current_threshold(before: FilterThresholds, field: str) -> tuple[float, ...]:
    value = before.value_of(field)
    return () if value is None else (float(value),)


# --- numbers ----------------------------------------------------------------------------------------------------------


def _sums(scored: ScoredClips, chosen: np.ndarray) -> dict[str, float]:
    return {
        "clips": int(chosen.sum()),
        "seconds": float(scored.seconds[chosen].sum()),
        "tokens": int(scored.tokens[chosen].sum()),
    }


def _kept(scored: ScoredClips, thresholds: FilterThresholds) -> np.ndarray:
    return np.array([reason is None for reason in scored.evaluate(thresholds)], bool)


def _compared(scored: ScoredClips, kept_before: np.ndarray, kept_after: np.ndarray) -> dict[str, Any]:
    """Sums of the clips kept before and after, lost and gained; before - lost + gained = after."""
    return {
        "before": _sums(scored, kept_before),
        "after": _sums(scored, kept_after),
        "lost": _sums(scored, kept_before & ~kept_after),
        "gained": _sums(scored, kept_after & ~kept_before),
    }


def _totals(scored: ScoredClips, before: FilterThresholds, after: FilterThresholds) -> dict[str, Any]:
    everything = _sums(scored, np.ones(len(scored.seconds), bool))
    return {"total": everything, "kept": _compared(scored, _kept(scored, before), _kept(scored, after))}


def _one_change(
    scored: ScoredClips, before: FilterThresholds, after: FilterThresholds, field: str, column: ThresholdColumn | None
) -> dict[str, Any]:
    """Effect of one change alone, and the clips next to its threshold."""
    alone = before.changed({field: after.value_of(field)})
    cost = _compared(scored, _kept(scored, before), _kept(scored, alone))
    if column is None:
        return {"alone": cost, "just_kept": [], "just_dropped": []}
    # For a filter that is switched off, show the clips next to its old threshold.
    threshold = column.threshold if column.threshold is not None else before.value_of(field)
    inside, outside = picture_rows(scored, clips_near_threshold(column, at=threshold, count=NUM_PICTURES))
    return {"alone": cost, "at": threshold, "just_kept": inside, "just_dropped": outside}


def _waterfall(scored: ScoredClips, before: FilterThresholds, after: FilterThresholds) -> list[dict[str, Any]]:
    rows = []
    for old, new in zip(scored.steps(before), scored.steps(after), strict=True):
        rows.append(
            {
                "reason": old.reason,
                "setting": setting_text(old.reason, after),
                "before": {"clips": old.clips, **old.left},
                "after": {"clips": new.clips, **new.left},
            }
        )
    return rows


def _curve_json(column: ThresholdColumn, extra_thresholds: tuple[float, ...]) -> dict[str, Any]:
    curve = retention_curve(column, extra_thresholds=extra_thresholds)
    return {
        "score": column.clip_filter.score,
        "threshold": column.threshold,
        "thresholds": [float(x) for x in curve.thresholds],
        "kept_fraction": [float(x) for x in curve.kept_fraction],
        "passing_fraction": [float(x) for x in curve.passing_fraction],
        "num_missing": int(np.isnan(column.values).sum()),
    }


# --- text -------------------------------------------------------------------------------------------------------------


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 36_000 else duration(seconds)


def cost_text(compared: dict[str, Any]) -> str:
    """`-12 clips (-21.8 %), -26.0 s, -812 tokens`, or `+...`; both if a change loses some clips and gains others."""
    parts = []
    for sign, key in (("-", "lost"), ("+", "gained")):
        sums = compared[key]
        if sums["clips"]:
            percent = f"{sign}{sums['clips'] / max(compared['before']['clips'], 1):.1%}"
            words = "clip" if sums["clips"] == 1 else "clips"
            parts.append(
                f"{sign}{number(sums['clips'])} {words} ({percent}), {sign}{_hours(sums['seconds'])}, "
                f"{sign}{amount(sums['tokens'])} tokens"
            )
    return "; ".join(parts) or "no clip changes"


def as_text(summary: dict[str, Any]) -> str:
    """The summary as text for the terminal."""
    kept = summary["kept"]
    named = [
        f"{f} {threshold_text(c['before'])} -> {threshold_text(c['after'])}" for f, c in summary["changes"].items()
    ]
    lines = [f"what if: {', '.join(named) or 'nothing changes'}", f"together: {cost_text(kept)}"]
    for state in ("before", "after"):
        sums = kept[state]
        lines.append(
            f"{state:<7} {number(sums['clips'])} of {number(summary['total']['clips'])} clips, "
            f"{_hours(sums['seconds'])}, {amount(sums['tokens'])} training tokens"
        )
    for field, one in summary["thresholds"].items():
        lines.append(f"{field} alone: {cost_text(one['alone'])}")
        for key in ("just_kept", "just_dropped"):
            shown = ", ".join(f"{row['clip_id']} {number(row['value'])}" for row in one[key][:3])
            lines.append(f"  {key.replace('_', ' ') + ':':<13} {shown or 'none'}")
    heads = [("filter", "left"), ("threshold", "left"), ("clips", "right"), ("footage", "right"), ("tokens", "right")]
    table = [[name for name, _ in heads]]
    for row in summary["waterfall"]:
        old, new = row["before"], row["after"]
        table.append(
            [
                row["reason"] or "all clips",
                row["setting"],
                _arrow(number(old["clips"]), number(new["clips"])),
                _arrow(_hours(old["seconds"]), _hours(new["seconds"])),
                _arrow(amount(old["tokens"]), amount(new["tokens"])),
            ]
        )
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    lines.append("left after each filter:")
    for row in table:
        cells = [c.rjust(w) if side == "right" else c.ljust(w) for c, w, (_, side) in zip(row, widths, heads)]
        lines.append("  " + "  ".join(cells).rstrip())
    if summary["not_computed"]:
        lines.append(f"not computed: {', '.join(summary['not_computed'])}")
    lines.append(f"curves and pictures: {summary['page']}")
    return "\n".join(lines)


def _arrow(old: str, new: str) -> str:
    return old if old == new else f"{old} -> {new}"


# --- page -------------------------------------------------------------------------------------------------------------


def _page(
    scored: ScoredClips,
    before: FilterThresholds,
    after: FilterThresholds,
    summary: dict[str, Any],
    columns: dict[str, ThresholdColumn],
    change_texts: Sequence[str],
) -> str:
    figures, others = [], []
    for field, column in columns.items():
        old, new = before.value_of(field), after.value_of(field)
        markers = [Marker(old, f"now {number(old)}", "was")] if old is not None and old != new else []
        markers += [Marker(new, f"{field} = {number(new)}")] if new is not None else []
        figure = threshold_figure(column, markers, extra_thresholds=_current_threshold(before, field))
        if field in summary["thresholds"]:
            one = summary["thresholds"][field]
            threshold = "" if one["at"] is None else number(one["at"])
            texts = {"before": threshold_text(old), "after": threshold_text(new), "threshold": threshold}
            pictures = {"inside": one["just_kept"], "outside": one["just_dropped"]}
            figures.append({**figure, **texts, **pictures, "cost": cost_text(one["alone"])})
        else:
            others.append(figure)
    # The rows are those of the summary; fields for the page are added to copies.
    for figure in figures:
        for side in ("inside", "outside"):
            figure[side] = [dict(row) for row in figure[side]]
    add_pictures(scored, [row for f in figures for row in (*f["inside"], *f["outside"])], _as_data)
    return render_page(
        "what_if.html.j2",
        title=scored.run.root.rstrip("/").rpartition("/")[2],
        changes=[
            {"field": f, "before": threshold_text(c["before"]), "after": threshold_text(c["after"])}
            for f, c in summary["changes"].items()
        ],
        total=summary["total"]["clips"],
        tiles=_tiles(summary),
        figures=figures,
        others=others,
        rows=_page_rows(summary, before, after),
        not_computed=summary["not_computed"],
        command=f"recaption prepare --out RUN --what-if {shlex.quote(','.join(change_texts))}",
    )


def _as_data(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _tiles(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, difference, before and after)."""
    tiles = []
    kept = summary["kept"]
    for key, name, form in (("clips", "Clips", number), ("seconds", "Footage", _hours), ("tokens", "Tokens", amount)):
        old, new = kept["before"][key], kept["after"][key]
        sign = "+" if new > old else "−" if new < old else "±"
        percent = f" ({sign}{abs(new - old) / old:.1%})" if old and new != old else ""
        tiles.append((f"{name} kept{percent}", f"{sign}{form(abs(new - old))}", f"{form(old)} now, {form(new)} then"))
    return tiles


def _page_rows(summary: dict[str, Any], before: FilterThresholds, after: FilterThresholds) -> list[dict[str, Any]]:
    rows = []
    total = summary["total"]["clips"]
    for i, row in enumerate(summary["waterfall"]):
        out: dict[str, Any] = {"reason": row["reason"].replace("_", " ") or "all clips", "setting": row["setting"]}
        for state in ("before", "after"):
            left, left_before = row[state]["clips"], summary["waterfall"][max(i - 1, 0)][state]["clips"]
            out |= {f"{key}_{state}": row[state][key] for key in ("clips", "seconds", "tokens")}
            name = f"{out['reason']}, {state}"
            out[f"bar_{state}"] = step_bar(name, left, left_before, total=total, height_px=10)
        fields = [*fields_of(row["reason"], before), *fields_of(row["reason"], after)]
        out["is_changed"] = any(field in summary["changes"] for field in fields)
        rows.append(out)
    return rows
