"""Writes the report page RUN/report/index.html and its media files; it needs no network and no server.

    write_report(run, recipe.filters)        # -> ".../RUN/report/index.html"

Every section reads the outputs of its stage from the run folder, or shows the command of a stage that has not run. The
same run folder gives the same page, byte for byte.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from jobs.recipe.settings import Recipe
from jobs.report.charts import Segment, frame_outline, number, stacked_bar
from jobs.report.distributions import distributions, score_charts
from jobs.report.evaluations import evaluations
from jobs.report.gallery import Media, cards, filter_buttons, sample_galleries
from jobs.report.packs import plan_figures
from jobs.report.render import render_page
from jobs.report.tables import RunTables, duration, read_run
from jobs.report.thresholds import load_scores, threshold_figures, waterfall_rows
from jobs.report.trainings import read_training
from packing.buckets import parse_bucket
from recaption.captions.words import count_words
from recaption.ledger.ledger import ClipState
from recaption.quality.filters import FilterThresholds
from recaption.run_folder import RunFolder

MAX_FAILURES_SHOWN = 200
COMMANDS = {
    "prepare": "recaption prepare --videos PATH --out RUN",
    "caption": "recaption caption --run RUN --set NAME",
    "shard": "recaption shard --run RUN --captions NAME",
    "plan": "recaption plan --run RUN",
    "train": "recaption train dit --run RUN --name NAME",
    "evaluate": "recaption train dit --eval --run RUN --name NAME",
    "sample": "recaption sample --checkpoint RUN/train/NAME --prompt TEXT",
}
LATER_REASONS = ("bad_caption", "no_bucket")
"""Drop reasons of later stages; all others are reasons of the filters."""


def write_report(
    run: RunFolder,
    thresholds: FilterThresholds,
    *,
    recipe: Recipe | None = None,
    set_name: str | None = None,
    max_clips: int = 48,
) -> str:
    """Write the page for the stages that have run.

    Args:
        thresholds: filters that decide which clips are kept.
        recipe: for the training tokens per clip; without it the page has no token counts.
        set_name: caption set to show as "after"; default: the one in the shards.
        max_clips: maximum number of clips in the gallery.

    Returns:
        Path or URI of the page.
    """
    tables = read_run(run, thresholds, set_name)
    media = Media(run)
    shown = cards(run, tables, media, max_clips=max_clips)
    scored = load_scores(run, recipe)
    thresholds_shown, not_computed = threshold_figures(scored, thresholds, lambda jpeg: media.add(jpeg, "jpg"))
    galleries = sample_galleries(run, media)
    plan = json.loads(run.read_bytes("plan.json")) if run.exists("plan.json") else None
    trainings = [read_training(run, name, media) for name in run.list("train/*/metrics.jsonl")]
    context = {
        "title": run.root.rstrip("/").rpartition("/")[2],
        "summary": tables.ledger.summary(),
        "tables": tables,
        "tiles": _tiles(tables, plan, trainings, galleries),
        "funnel": _funnel(tables),
        "failures": [
            {"uri": tables.short_uri(v.uri), "reason": v.reason, "detail": v.detail, "seconds": v.duration_seconds}
            for v in tables.ledger.videos
            if v.status == "failed"
        ],
        "max_failures": MAX_FAILURES_SHOWN,
        "cards": shown,
        "buttons": filter_buttons(shown),
        "faults": tables.faults,
        "charts": distributions(tables),
        "score_charts": score_charts(tables),
        "waterfall": waterfall_rows(scored, thresholds),
        "has_tokens": recipe is not None,
        "threshold_figures": thresholds_shown,
        "not_computed": not_computed,
        "buckets": _buckets(tables),
        "plan": plan_figures(plan),
        "trainings": [training for training in trainings if training["steps"]],
        "evaluations": evaluations(run, media),
        "galleries": galleries,
        "recipe": run.read_bytes("run.yaml").decode(errors="replace") if run.exists("run.yaml") else "",
        "versions": _versions(run),
        "timings": _timings(run),
        "commands": COMMANDS,
    }
    run.write_bytes("report/index.html", render_page("report.html.j2", **context).encode())
    media.remove_others()
    return run.path("report", "index.html") if run.is_local else f"{run.uri}/report/index.html"


# --- headline and funnel ----------------------------------------------------------------------------------------------


def _tiles(
    tables: RunTables, plan: dict[str, Any] | None, trainings: list[dict[str, Any]], galleries: list[Any]
) -> list[tuple[str, str, str]]:
    """(name, value, details)."""
    sums = tables.ledger.summary()
    videos, clips, seconds = sums["videos"], sums["clips"], sums["seconds"]
    taken = f", {number(videos['removed'])} removed" if "removed" in videos else ""
    tiles = [
        (
            "Videos",
            number(videos["total"]),
            f"{number(videos['ok'])} readable, {number(videos['failed'])} failed{taken}",
        ),
        ("Footage", duration(seconds["total"]), f"{duration(seconds['kept'])} kept"),
        (
            "Clips",
            number(clips["total"]),
            f"{number(clips['kept'])} kept, {number(clips['total'] - clips['kept'])} left out",
        ),
    ]
    good = [row for row in tables.captions.values() if row["reason"] is None]
    if good:
        words = float(np.mean([count_words(row["text"]) for row in good]))
        tiles.append(("Captions", number(len(good)), f"{words:.1f} words on average"))
    if tables.index:
        num_shards = len({row.shard for row in tables.index.values()})
        num_bytes = sum(row.num_bytes for row in tables.index.values())
        tiles.append(
            ("Samples", number(len(tables.index)), f"in {number(num_shards)} shards, {num_bytes / 1e6:,.1f} MB")
        )
    if plan:
        tiles.append(("Pack fill", f"{plan['fill']:.1%}", f"{number(plan['num_packs'])} packs"))
    for training in trainings:
        if training["steps"] and training["loss"] is not None:
            tiles.append(
                (f"Loss of {training['name']}", number(training["loss"]), f"after {number(training['steps'])} steps")
            )
    num_sampled = sum(len(gallery["videos"]) for gallery in galleries)
    if num_sampled:
        tiles.append(("Sampled videos", number(num_sampled), f"from {number(len(galleries))} checkpoint(s)"))
    return tiles


def _funnel(tables: RunTables) -> list[dict[str, Any]]:
    """Seconds of footage left after each step, and lost in it by reason; left + lost = left in the row before."""
    videos, clips = tables.ledger.videos, tables.ledger.clips
    by_step: dict[str, list[ClipState]] = defaultdict(list)
    for clip in clips:
        by_step[_lost_in(tables, clip)].append(clip)
    unread = [(v.reason, "failed", v.duration_seconds) for v in videos if v.status == "failed"]
    removed = [("removed", "dropped", v.duration_seconds) for v in videos if v.status == "removed"]
    removed += [("removed", "dropped", seconds) for seconds in tables.ledger.removed["duration_seconds"].to_pylist()]
    num_videos = len(videos) + tables.ledger.removed.num_rows
    num_read = num_videos - len(unread) - len(removed)
    unread += [("truncated", "failed", v.truncated_seconds) for v in videos if v.truncated_seconds]
    total = math.fsum([*(v.duration_seconds for v in videos if v.status == "ok"), *(x[2] for x in unread + removed)])
    losses = [
        ("Read", "videos", num_read, _lost([*unread, *removed])),
        ("Kept by the filters", "clips", 0, _lost_clips(by_step["filters"])),
        ("Captioned", "clips", 0, _lost_clips(by_step["caption"])),
        ("In shards", "clips", 0, _lost_clips(by_step["shard"])),
    ]
    rows: list[dict[str, Any]] = [
        {"title": "Input", "count": num_videos, "unit": "videos", "seconds": total, "lost": []}
    ]
    left, num_left = total, len(clips)
    for title, unit, count, lost in losses:
        left -= math.fsum(loss["seconds"] for loss in lost)
        if unit == "clips":
            num_left -= sum(loss["count"] for loss in lost)
            count = num_left
        rows.append({"title": title, "count": count, "unit": unit, "seconds": max(left, 0.0), "lost": lost})
    if tables.index:
        used = math.fsum(_seconds_used(tables, clip) for clip in by_step[""])
        cut = {"label": "beyond the bucket's length", "style": "trimmed", "count": 0, "seconds": max(left - used, 0.0)}
        rows.append({"title": "Inside samples", "count": num_left, "unit": "samples", "seconds": used, "lost": [cut]})
    for row in rows:
        fraction = row["seconds"] / total if total else 0.0
        segments = [Segment("left", "kept", row["seconds"])]
        segments += [Segment(f"{x['label']}: {duration(x['seconds'])}", x["style"], x["seconds"]) for x in row["lost"]]
        bar = stacked_bar(segments, total=total, label=f"{fraction:.1%} of the input is left")
        row |= {"bar": bar, "fraction": fraction}
    return rows


def _lost_in(tables: RunTables, clip: ClipState) -> str:
    """The step of the funnel that lost a clip; empty if it passed all steps."""
    if clip.state == "in_shard":
        return ""
    if clip.state == "waiting":
        return str(clip.reason)
    if clip.state == "dropped" and clip.reason not in LATER_REASONS:
        return "filters"
    caption = tables.captions.get(clip.clip_id)
    return "caption" if caption is not None and caption["reason"] == clip.reason else "shard"


def _seconds_used(tables: RunTables, clip: ClipState) -> float:
    """Seconds of a clip that are in its sample; at most the length of the clip."""
    row = tables.index.get(clip.clip_id)
    return min(clip.seconds, row.num_frames / row.fps) if row else 0.0


def _lost_clips(clips: Iterable[ClipState]) -> list[dict[str, Any]]:
    return _lost((c.reason if c.state != "waiting" else "not done yet", c.state, c.seconds) for c in clips)


def _lost(rows: Iterable[tuple[str | None, str, float]]) -> list[dict[str, Any]]:
    """(reason, style, seconds) -> one entry per reason, the longest first."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for reason, style, length in rows:
        seconds[str(reason).replace("_", " "), style].append(length)
    entries: list[dict[str, Any]] = [
        {"label": label, "style": style, "count": len(lengths), "seconds": math.fsum(lengths)}
        for (label, style), lengths in seconds.items()
    ]
    return sorted(entries, key=lambda entry: (-entry["seconds"], entry["label"]))


# --- buckets, packs, training -----------------------------------------------------------------------------------------


def _buckets(tables: RunTables) -> list[dict[str, Any]]:
    by_name = defaultdict(list)
    for row in tables.index.values():
        by_name[row.bucket].append(row)
    buckets = {name: parse_bucket(name) for name in by_name}
    largest = max((max(b.width_px, b.height_px) for b in buckets.values()), default=1)
    most = max((len(rows) for rows in by_name.values()), default=1)
    order = sorted(buckets, key=lambda n: (buckets[n].width_px * buckets[n].height_px, buckets[n].num_frames, n))
    listed = []
    for name in order:
        bucket, rows = buckets[name], by_name[name]
        segments = [Segment("samples", "accent", len(rows))]
        listed.append(
            {
                "outline": frame_outline(bucket.width_px, bucket.height_px, largest),
                "size": f"{bucket.width_px} × {bucket.height_px}",
                "length": f"{bucket.num_frames} frames at {bucket.fps} fps",
                "samples": len(rows),
                "bar": stacked_bar(segments, total=most, label=f"{len(rows)} samples", height_px=12),
                "seconds": len(rows) * bucket.num_frames / bucket.fps,
                "tokens": rows[0].num_latent_tokens,
                "all_tokens": sum(row.num_latent_tokens for row in rows),
            }
        )
    return listed


# --- recipe and timings -----------------------------------------------------------------------------------------------


def _versions(run: RunFolder) -> dict[str, str]:
    try:
        document = run.read_yaml("run.yaml") if run.exists("run.yaml") else {}
    except yaml.YAMLError:
        return {}
    versions = document.get("versions") if isinstance(document, dict) else None
    return {str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {}


def _timings(run: RunFolder) -> list[tuple[str, Markup, str, str]]:
    """(stage, bar, length, work) from RUN/report/timings.json: {stage: seconds, "throughput": {stage: {...}}}."""
    if not run.exists("report/timings.json"):
        return []
    document = json.loads(run.read_bytes("report/timings.json"))
    throughput = document.pop("throughput", {})
    timings = {stage: float(seconds) for stage, seconds in document.items()}
    total = math.fsum(timings.values())
    rows, start = [], 0.0
    for stage, seconds in timings.items():
        before = Segment("earlier stages", "nothing", start)
        bar = stacked_bar(
            [before, Segment(stage, "accent", seconds)],
            total=total,
            label=f"{stage}: {duration(seconds)}",
            height_px=12,
        )
        rows.append((stage, bar, duration(seconds), _work(throughput.get(stage, {}))))
        start += seconds
    return rows


def _work(found: dict[str, Any]) -> str:
    """What the workers of a stage did: `412 clips, 3.1/s, 0.58 CPU-s each, 2 workers busy 91 %`."""
    if not found:
        return ""
    work = (
        f"{found['units']:,} {found['unit']}, {found['per_second']:.3g}/s, {found['cpu_seconds_each']:.3g} CPU-s each"
    )
    workers = f"{found['workers']} worker{'s' if found['workers'] != 1 else ''} busy {found['utilisation']:.0%}"
    return f"{work}, {workers}"
