"""`recaption prepare --out RUN --what-if motion=0.02,text_area=0.1`: what a threshold would cost, before it is set.

Asked of the scores that lie in the run folder: no video is opened, no stage runs, run.yaml stays as it is. The one file
that is written is the page, RUN/report/what-if.html, with its pictures inside.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.recipe.settings import Recipe
from jobs.report.charts import Marker, Segment, number, stacked_bar
from jobs.report.render import render_page
from jobs.report.tables import duration
from jobs.report.thresholds import (
    Seen,
    add_pictures,
    amount,
    ask_run,
    curve_chart,
    fields_of,
    picture_rows,
    setting_text,
    threshold_text,
    title_of,
)
from recaption.errors import UsageError
from recaption.quality.filters import FilterThresholds
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


def what_if(run: RunFolder, recipe: Recipe, asked: Sequence[str]) -> dict[str, Any]:
    """The summary that is printed; writes the page.

    Raises:
        UsageError: no clips, no such score, or a score that no clip has.
    """
    before, after = recipe.filters, parse_threshold_changes(asked, recipe.filters)
    seen = ask_run(run, recipe)
    if not seen.clips.num_rows:
        raise UsageError(f"{run.uri} holds no clips yet: run `recaption prepare --videos ... --out {run.uri}` first")
    fields = changed_thresholds(before, after)
    columns = threshold_columns(seen.clips, after, seen.filters_only)
    _check_computed(asked, run, columns, seen)
    summary: dict[str, Any] = {
        "changes": {f: {"before": getattr(before, f), "after": getattr(after, f)} for f in fields},
        **_totals(seen, before, after),
        "thresholds": {f: _one_change(seen, before, after, f, columns.get(f)) for f in fields},
        "waterfall": _waterfall(seen, before, after),
        "curves": {f: _curve_json(column, _other_place(before, f)) for f, column in columns.items()},
        "not_computed": missing_scores(seen.clips),
    }
    run.write_bytes(PAGE, _page(seen, before, after, summary, columns, asked).encode())
    return {**summary, "page": run.path(*PAGE.split("/")) if run.is_local else f"{run.uri}/{PAGE}"}


def _check_computed(asked: Sequence[str], run: RunFolder, columns: dict[str, ThresholdColumn], seen: Seen) -> None:
    """A threshold on a score that no clip has would seem to cost nothing."""
    for text in asked:
        for part in text.split(","):
            name = part.partition("=")[0].strip().removeprefix("min_").removeprefix("max_")
            if name in missing_scores(seen.clips):
                raise UsageError(f"--what-if {name}: not computed, no clip of {run.uri} has this score")


def _other_place(before: FilterThresholds, field: str) -> tuple[float, ...]:
    value = getattr(before, field)
    return () if value is None else (float(value),)


# --- numbers ----------------------------------------------------------------------------------------------------------


def _sums(seen: Seen, chosen: np.ndarray) -> dict[str, float]:
    return {
        "clips": int(chosen.sum()),
        "seconds": float(seen.seconds[chosen].sum()),
        "tokens": int(seen.tokens[chosen].sum()),
    }


def _kept(seen: Seen, thresholds: FilterThresholds) -> np.ndarray:
    return np.array([reason is None for reason in seen.ask(thresholds)], bool)


def _compared(seen: Seen, kept_before: np.ndarray, kept_after: np.ndarray) -> dict[str, Any]:
    """Sums of what is kept before and after, of what is lost and what is gained: before - lost + gained = after."""
    return {
        "before": _sums(seen, kept_before),
        "after": _sums(seen, kept_after),
        "lost": _sums(seen, kept_before & ~kept_after),
        "gained": _sums(seen, kept_after & ~kept_before),
    }


def _totals(seen: Seen, before: FilterThresholds, after: FilterThresholds) -> dict[str, Any]:
    everything = _sums(seen, np.ones(len(seen.seconds), bool))
    return {"total": everything, "kept": _compared(seen, _kept(seen, before), _kept(seen, after))}


def _one_change(
    seen: Seen, before: FilterThresholds, after: FilterThresholds, field: str, column: ThresholdColumn | None
) -> dict[str, Any]:
    """One change by itself: its cost where all others stay, and the clips on both sides of it."""
    alone = parse_threshold_changes([f"{field}={_flag_value(getattr(after, field))}"], before)
    cost = _compared(seen, _kept(seen, before), _kept(seen, alone))
    if column is None:
        return {"alone": cost, "just_kept": [], "just_dropped": []}
    # Where a filter is switched off, the clips in question are those beside the threshold that it had.
    place = column.threshold if column.threshold is not None else getattr(before, field)
    inside, outside = picture_rows(seen, clips_near_threshold(column, at=place, count=NUM_PICTURES))
    return {"alone": cost, "at": place, "just_kept": inside, "just_dropped": outside}


def _flag_value(value: float | bool | None) -> str:
    return "off" if value is None or value is False else "on" if value is True else repr(value)


def _waterfall(seen: Seen, before: FilterThresholds, after: FilterThresholds) -> list[dict[str, Any]]:
    rows = []
    for was, then in zip(seen.steps(before), seen.steps(after), strict=True):
        rows.append(
            {
                "reason": was.reason,
                "setting": setting_text(was.reason, after),
                "before": {"clips": was.clips, **was.left},
                "after": {"clips": then.clips, **then.left},
            }
        )
    return rows


def _curve_json(column: ThresholdColumn, extra_thresholds: tuple[float, ...]) -> dict[str, Any]:
    curve = retention_curve(column, extra_thresholds=extra_thresholds)
    return {
        "score": column.clip_filter.score,
        "threshold": column.threshold,
        "thresholds": [float(x) for x in curve.thresholds],
        "share_kept": [float(x) for x in curve.kept_fraction],
        "share_inside": [float(x) for x in curve.passing_fraction],
        "num_missing": int(np.isnan(column.values).sum()),
    }


# --- text -------------------------------------------------------------------------------------------------------------


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f} h" if seconds >= 360 else duration(seconds)


def cost_text(compared: dict[str, Any]) -> str:
    """`-12 clips (-21.8 %), -26.0 s, -812 tokens`, or `+...`; both where a change loses some and gains others."""
    parts = []
    for sign, key in (("-", "lost"), ("+", "gained")):
        sums = compared[key]
        if sums["clips"]:
            share = f"{sign}{sums['clips'] / max(compared['before']['clips'], 1):.1%}"
            words = "clip" if sums["clips"] == 1 else "clips"
            parts.append(
                f"{sign}{number(sums['clips'])} {words} ({share}), {sign}{_hours(sums['seconds'])}, "
                f"{sign}{amount(sums['tokens'])} tokens"
            )
    return "; ".join(parts) or "no clip changes"


def as_text(summary: dict[str, Any]) -> str:
    """What people read on the terminal."""
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
        was, then = row["before"], row["after"]
        table.append(
            [
                row["reason"] or "all clips",
                row["setting"],
                _arrow(number(was["clips"]), number(then["clips"])),
                _arrow(_hours(was["seconds"]), _hours(then["seconds"])),
                _arrow(amount(was["tokens"]), amount(then["tokens"])),
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


def _arrow(was: str, then: str) -> str:
    return was if was == then else f"{was} -> {then}"


# --- page -------------------------------------------------------------------------------------------------------------


def _page(
    seen: Seen,
    before: FilterThresholds,
    after: FilterThresholds,
    summary: dict[str, Any],
    columns: dict[str, ThresholdColumn],
    asked: Sequence[str],
) -> str:
    figures, others = [], []
    for field, column in columns.items():
        title, unit = title_of(column.clip_filter.score)
        was, then = getattr(before, field), getattr(after, field)
        markers = [Marker(was, f"now {number(was)}", "was")] if was is not None and was != then else []
        markers += [Marker(then, f"{field} = {number(then)}")] if then is not None else []
        figure: dict[str, Any] = {
            "title": f"{title}, {'at least' if column.is_minimum else 'at most'}",
            "unit": unit,
            "field": field,
            "setting": f"{field} = {threshold_text(then)}",
            "svg": curve_chart(column, retention_curve(column, extra_thresholds=_other_place(before, field)), markers),
            "num_missing": int(np.isnan(column.values).sum()),
        }
        if field in summary["thresholds"]:
            one = summary["thresholds"][field]
            place = "" if one["at"] is None else number(one["at"])
            texts = {"before": threshold_text(was), "after": threshold_text(then), "place": place}
            pictures = {"inside": one["just_kept"], "outside": one["just_dropped"]}
            figures.append({**figure, **texts, **pictures, "cost": cost_text(one["alone"])})
        else:
            others.append(figure)
    # Rows are shared with the summary; what only the page needs is added to copies.
    for figure in figures:
        for side in ("inside", "outside"):
            figure[side] = [dict(row) for row in figure[side]]
    add_pictures(seen, [row for f in figures for row in (*f["inside"], *f["outside"])], _as_data)
    return render_page(
        "what_if.html.j2",
        title=seen.run.root.rstrip("/").rpartition("/")[2],
        changes=[
            {"field": f, "before": threshold_text(c["before"]), "after": threshold_text(c["after"])}
            for f, c in summary["changes"].items()
        ],
        total=summary["total"]["clips"],
        tiles=_tiles(summary),
        figures=figures,
        others=others,
        rows=_page_rows(summary),
        not_computed=summary["not_computed"],
        command=f"recaption prepare --out RUN --what-if {shlex.quote(','.join(asked))}",
    )


def _as_data(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _tiles(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, difference, before and after)."""
    tiles = []
    kept = summary["kept"]
    for key, name, form in (("clips", "Clips", number), ("seconds", "Footage", _hours), ("tokens", "Tokens", amount)):
        was, then = kept["before"][key], kept["after"][key]
        sign = "+" if then > was else "−" if then < was else "±"
        share = f" ({sign}{abs(then - was) / was:.1%})" if was and then != was else ""
        tiles.append((f"{name} kept{share}", f"{sign}{form(abs(then - was))}", f"{form(was)} now, {form(then)} then"))
    return tiles


def _page_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    total = summary["total"]["clips"]
    for i, row in enumerate(summary["waterfall"]):
        out: dict[str, Any] = {"reason": row["reason"].replace("_", " ") or "all clips", "setting": row["setting"]}
        for state in ("before", "after"):
            left = row[state]["clips"]
            lost = summary["waterfall"][i - 1][state]["clips"] - left if i else 0
            segments = [Segment("left", "kept", left), Segment(f"dropped: {number(lost)}", "dropped", lost)]
            said = f"{out['reason']}, {state}: {left} clips left, {lost} dropped"
            out |= {f"{key}_{state}": row[state][key] for key in ("clips", "seconds", "tokens")}
            out[f"bar_{state}"] = stacked_bar(segments, total=total, label=said, height_px=10)
        out["is_changed"] = any(field in summary["changes"] for field in fields_of(row["reason"]))
        rows.append(out)
    return rows
