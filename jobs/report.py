"""The page people look at: RUN/report/index.html, with media files beside it. No network, no server, one function.

    write_report(run, recipe.filters)        # -> ".../RUN/report/index.html"

Every section reads what its stage left in the run folder; where that stage has not run, the section says which command
runs it. The same run folder gives the same page, byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jobs.report_charts import (
    FunnelRow,
    Group,
    Marker,
    Segment,
    Series,
    frame_outline,
    funnel,
    histogram,
    line,
    number,
    pack_columns,
    smooth,
    stacked_bar,
)
from jobs.report_gallery import SCORES, Card, Media, cards, filter_buttons, sampled
from jobs.report_tables import RunTables, duration, read_run
from packing.buckets import parse_bucket
from recaption.filters import FilterThresholds
from recaption.ledger import ClipState
from recaption.run_folder import RunFolder

MAX_FAILURES_SHOWN = 200
MAX_BARS = 8
COMMANDS = {
    "prepare": "recaption prepare --videos PATH --out RUN",
    "caption": "recaption caption --run RUN --set NAME",
    "shard": "recaption shard --run RUN --captions NAME",
    "plan": "recaption plan --run RUN",
    "train": "recaption train dit --run RUN --name NAME",
    "sample": "recaption sample --checkpoint RUN/train/NAME --prompt TEXT",
}
LATER_REASONS = ("bad_caption", "no_bucket")
"""Drop reasons that later stages reach; all others are verdicts of the filters."""
SCORE_TITLES = {
    "motion": ("Motion", "frame heights / s"),
    "sharpness": ("Sharpness", "variance of the Laplacian"),
    "luma": ("Brightness", "mean luma"),
    "text_area": ("Drawn text", "share of the frame"),
    "letterbox": ("Letterbox", "share of the frame"),
    "aesthetic": ("Aesthetic", ""),
    "nsfw": ("NSFW", ""),
}


def write_report(
    run: RunFolder, thresholds: FilterThresholds, *, set_name: str | None = None, max_clips: int = 48
) -> str:
    """Write the page for whatever stages have run.

    Args:
        thresholds: give the verdicts.
        set_name: caption set to show as "after"; default: the one in the shards.
        max_clips: cards in the gallery; the page says how many clips it does not show.

    Returns:
        Path or URI of the page.
    """
    tables = read_run(run, thresholds, set_name)
    media = Media(run)
    shown = cards(run, tables, media, max_clips=max_clips)
    galleries = sampled(run, media)
    plan = json.loads(run.read_bytes("plan.json")) if run.exists("plan.json") else None
    trainings = [_training(run, name) for name in run.list("train/*/metrics.jsonl")]
    context = {
        "title": run.root.rstrip("/").rpartition("/")[2],
        "summary": tables.ledger.summary(),
        "tables": tables,
        "tiles": _tiles(run, tables, plan, trainings, galleries),
        "funnel": _funnel(tables),
        "failures": [
            {"uri": tables.short_uri(v.uri), "reason": v.reason, "detail": v.detail, "seconds": v.duration_seconds}
            for v in tables.ledger.videos
            if v.status == "failed"
        ],
        "max_failures": MAX_FAILURES_SHOWN,
        "cards": shown,
        "buttons": filter_buttons(shown),
        "charts": _distributions(tables),
        "score_charts": _score_charts(tables),
        "buckets": _buckets(tables),
        "plan": _plan(plan),
        "trainings": [training for training in trainings if training["steps"]],
        "galleries": galleries,
        "recipe": run.read_bytes("run.yaml").decode(errors="replace") if run.exists("run.yaml") else "",
        "versions": _versions(run),
        "timings": _timings(run),
        "commands": COMMANDS,
        "max_seconds_off": 1e-3,
    }
    run.write_bytes("report/index.html", _render(context).encode())
    media.remove_others()
    return run.path("report", "index.html") if run.is_local else f"{run.uri}/report/index.html"


def _render(context: dict[str, Any]) -> str:
    here = Path(__file__).parent
    files = {kind: (here / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")}
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "duration": duration, "percent": lambda share: f"{share:.0%}"}
    template = environment.get_template("report.html.j2")
    return template.render(
        **context,
        css=Markup(files["css"]),
        js=Markup(files["js"]),
        css_hash=_csp_hash(files["css"]),
        js_hash=_csp_hash(files["js"]),
    )


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# --- headline and funnel ----------------------------------------------------------------------------------------------


def _tiles(
    run: RunFolder,
    tables: RunTables,
    plan: dict[str, Any] | None,
    trainings: list[dict[str, Any]],
    galleries: list[Any],
) -> list[tuple[str, str, str]]:
    """(name, number, what it is made of)."""
    sums = tables.ledger.summary()
    videos, clips, seconds = sums["videos"], sums["clips"], sums["seconds"]
    tiles = [
        ("Videos", number(videos["total"]), f"{number(videos['ok'])} readable, {number(videos['failed'])} failed"),
        ("Footage", duration(seconds["total"]), f"{duration(seconds['kept'])} kept"),
        (
            "Clips",
            number(clips["total"]),
            f"{number(clips['kept'])} kept, {number(clips['total'] - clips['kept'])} left out",
        ),
    ]
    good = [row for row in tables.captions.values() if row["reason"] is None]
    if good:
        words = float(np.mean([len(row["text"].split()) for row in good]))
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
    """Seconds of footage after each step, and where the others went. Each row's left + lost is the row before's left."""
    videos, clips = tables.ledger.videos, tables.ledger.clips
    by_step: dict[str, list[ClipState]] = defaultdict(list)
    for clip in clips:
        by_step[_lost_in(tables, clip)].append(clip)
    failed = [v for v in videos if v.status == "failed"]
    total = math.fsum(v.duration_seconds for v in videos)
    losses = [
        ("Read", "videos", len(videos) - len(failed), _lost((v.reason, "failed", v.duration_seconds) for v in failed)),
        ("Kept by the filters", "clips", 0, _lost_clips(by_step["filters"])),
        ("Captioned", "clips", 0, _lost_clips(by_step["caption"])),
        ("In shards", "clips", 0, _lost_clips(by_step["shard"])),
    ]
    rows = [{"title": "Given", "count": len(videos), "unit": "videos", "seconds": total, "lost": []}]
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
    bars = funnel(
        [
            FunnelRow(
                row["seconds"],
                [Segment(f"{x['label']}: {duration(x['seconds'])}", x["style"], x["seconds"]) for x in row["lost"]],
            )
            for row in rows
        ],
        total=total,
    )
    for row, bar in zip(rows, bars):
        row |= {"bar": bar, "share": row["seconds"] / total if total else 0.0}
    return rows


def _lost_in(tables: RunTables, clip: ClipState) -> str:
    """The step of the funnel that a clip did not pass; empty where it passed them all."""
    if clip.state == "in_shard":
        return ""
    if clip.state == "waiting":
        return str(clip.reason)
    if clip.state == "dropped" and clip.reason not in LATER_REASONS:
        return "filters"
    caption = tables.captions.get(clip.clip_id)
    return "caption" if caption is not None and caption["reason"] == clip.reason else "shard"


def _seconds_used(tables: RunTables, clip: ClipState) -> float:
    """Footage of a clip that its sample shows: the sample's length, never more than the clip has."""
    row = tables.index.get(clip.clip_id)
    return min(clip.seconds, row.num_frames / row.fps) if row else 0.0


def _lost_clips(clips: Iterable[ClipState]) -> list[dict[str, Any]]:
    return _lost((c.reason if c.state != "waiting" else "not done yet", c.state, c.seconds) for c in clips)


def _lost(rows: Iterable[tuple[str | None, str, float]]) -> list[dict[str, Any]]:
    """(reason, style, seconds) -> one entry per reason, the longest first."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for reason, style, length in rows:
        seconds[str(reason).replace("_", " "), style].append(length)
    entries = [
        {"label": label, "style": style, "count": len(lengths), "seconds": math.fsum(lengths)}
        for (label, style), lengths in seconds.items()
    ]
    return sorted(entries, key=lambda entry: (-entry["seconds"], entry["label"]))


# --- distributions ----------------------------------------------------------------------------------------------------


def _groups(tables: RunTables, values: Sequence[float | None]) -> list[Group]:
    """`values` (one per clip) divided into those of kept clips and the others."""
    is_kept = [clip.state in ("in_shard", "waiting") for clip in tables.ledger.clips]
    kept = [v for v, k in zip(values, is_kept) if k and v is not None]
    return [
        Group("kept", "kept", kept),
        Group("left out", "dropped", [v for v, k in zip(values, is_kept) if not k and v is not None]),
    ]


def _spread(values: Iterable[float | None], unit: str = "") -> str:
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return ""
    low, middle, high = (number(float(q)) for q in np.quantile(finite, [0, 0.5, 1]))
    return f"median {middle}{unit}, from {low} to {high}{unit}"


def _limits(thresholds: FilterThresholds, name: str) -> list[Marker]:
    """Markers for `min_<name>` and `max_<name>`, where such thresholds exist and are on."""
    markers = []
    for side in ("min", "max"):
        value = getattr(thresholds, f"{side}_{name}", None)
        if value is not None:
            markers.append(Marker(float(value), f"{side}_{name} = {number(float(value))}"))
    return markers


def _distributions(tables: RunTables) -> list[dict[str, Any]]:
    if not tables.clips.num_rows:
        return []
    columns = {name: tables.clips[name].to_pylist() for name in ("width_px", "height_px", "fps")}
    seconds = [clip.seconds for clip in tables.ledger.clips]
    aspects = [w / h if h else None for w, h in zip(columns["width_px"], columns["height_px"])]
    sizes = [f"{w} × {h}" for w, h in zip(columns["width_px"], columns["height_px"])]
    rates = [f"{number(round(fps, 2))} fps" for fps in columns["fps"]]
    limits = _limits(tables.thresholds, "seconds")
    charts = [
        {
            "title": "Clip length",
            "note": _spread(seconds, " s"),
            "svg": histogram(_groups(tables, seconds), label="Clip length", unit="s", markers=limits),
            "markers": limits,
        },
        {"title": "Size", "note": f"{len(set(sizes))} different", "bars": _bars(tables, sizes)},
        {"title": "Frame rate", "note": f"{len(set(rates))} different", "bars": _bars(tables, rates)},
        {
            "title": "Aspect ratio",
            "note": f"{_spread(aspects)} (width / height)",
            "svg": histogram(_groups(tables, aspects), label="Aspect ratio"),
        },
    ]
    after = [float(len(row["text"].split())) for row in tables.captions.values() if row["reason"] is None]
    before = [float(len(text.split())) for text in tables.originals.values()]
    if after:
        groups = [Group("captions", "kept", after), Group("texts that came with the video", "waiting", before)]
        groups = groups if before else groups[:1]
        svg = histogram(groups, label="Caption length", unit="words")
        charts.append({"title": "Caption length", "note": _spread(after, " words"), "svg": svg, "legend": groups})
    return charts


def _bars(tables: RunTables, labels: Sequence[str]) -> list[tuple[str, Markup, int]]:
    """(label, bar, clips) of the most frequent labels; the rest in one row."""
    counts = Counter(labels)
    kept = Counter(label for label, clip in zip(labels, tables.ledger.clips) if clip.state in ("in_shard", "waiting"))
    most = sorted(counts, key=lambda label: (-counts[label], label))
    named = most[:MAX_BARS] if len(most) <= MAX_BARS else most[: MAX_BARS - 1]
    rest = most[len(named) :]
    rows = [(label, kept[label], counts[label]) for label in named]
    if rest:
        rows.append((f"{len(rest)} others", sum(kept[x] for x in rest), sum(counts[x] for x in rest)))
    largest = max(count for _, _, count in rows)
    bars = []
    for label, num_kept, count in rows:
        segments = [Segment("kept", "kept", num_kept), Segment("left out", "dropped", count - num_kept)]
        said = f"{label}: {count} clips, {num_kept} kept"
        bars.append((label, stacked_bar(segments, total=largest, label=said, height_px=12), count))
    return bars


def _score_charts(tables: RunTables) -> list[dict[str, Any]]:
    charts = []
    for name in SCORES:
        values = tables.clips[name].to_pylist()
        if all(value is None for value in values):
            continue
        title, unit = SCORE_TITLES[name]
        markers = _limits(tables.thresholds, name)
        svg = histogram(_groups(tables, values), label=title, markers=markers, logarithmic=name == "sharpness")
        note = f"{unit}; {_spread(values)}" if unit else _spread(values)
        charts.append({"title": title, "note": note, "svg": svg, "markers": markers})
    return charts


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


def _plan(plan: dict[str, Any] | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    named = [
        ("Fill", f"{plan['fill']:.1%}"),
        ("Packs", number(plan["num_packs"])),
        ("Samples", number(plan["num_samples"])),
        ("Steps per epoch", number(plan["num_steps"])),
        ("Rank efficiency", f"{plan['rank_efficiency']:.1%}"),
        ("Capacity", f"{number(plan['capacity'])} tokens" if plan.get("capacity") else "–"),
        ("Policy", str(plan["policy"]).replace("_", " ")),
    ]
    columns = pack_columns(plan.get("pack_tokens", []), plan["capacity"]) if plan.get("capacity") else ""
    shown = len(plan.get("pack_tokens", []))
    return {"named": named, "columns": columns, "rejected": plan.get("rejected") or {}, "num_shown": shown}


def _training(run: RunFolder, name: str) -> dict[str, Any]:
    """Curves of one metrics.jsonl; a last line that was cut short is left out."""
    rows = []
    for text in run.read_bytes(name).decode(errors="replace").splitlines():
        try:
            row = json.loads(text)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    losses = _series(rows, "loss")
    smoothed = smooth(losses[1])
    lines = [Series("each logged step", "faint", *losses), Series("running mean", "accent", losses[0], smoothed)]
    others = sorted({key for row in rows for key in row if key.startswith("val/")})
    lines += [Series(key, "second", *_series(rows, key)) for key in others if key.endswith("loss")]
    charts = [{"title": "Loss", "svg": line(lines, label="Loss"), "legend": lines}]
    for key in [key for key in others if not key.endswith("loss")][:5]:
        one = [Series(key, "accent", *_series(rows, key))]
        charts.append(
            {
                "title": key.removeprefix("val/").replace("_", " ") + " (held out)",
                "svg": line(one, label=key),
                "legend": [],
            }
        )
    named = []
    for key, title, form in (
        ("tokens_per_second", "tokens / s", number),
        ("fill", "fill of packs", "{:.1%}".format),
        ("data_wait_share", "waiting for data", "{:.1%}".format),
    ):
        values = _series(rows, key)[1]
        if values:
            named.append((title, form(float(np.median(values)))))
    return {
        "name": name.split("/")[1],
        "steps": rows[-1]["step"] if rows else 0,
        "loss": smoothed[-1] if smoothed else None,
        "first_loss": losses[1][0] if losses[1] else None,
        "charts": charts,
        "named": named,
    }


def _series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have a finite number under `key`."""
    found = [
        (float(row["step"]), float(row[key]))
        for row in rows
        if isinstance(row.get(key), int | float) and math.isfinite(row[key])
    ]
    return [step for step, _ in found], [value for _, value in found]


# --- recipe and timings -----------------------------------------------------------------------------------------------


def _versions(run: RunFolder) -> dict[str, str]:
    try:
        document = run.read_yaml("run.yaml") if run.exists("run.yaml") else {}
    except yaml.YAMLError:
        return {}
    versions = document.get("versions") if isinstance(document, dict) else None
    return {str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {}


def _timings(run: RunFolder) -> list[tuple[str, Markup, str]]:
    """(stage, bar, length) from RUN/report/timings.json: {stage: seconds}."""
    if not run.exists("report/timings.json"):
        return []
    timings = {stage: float(seconds) for stage, seconds in json.loads(run.read_bytes("report/timings.json")).items()}
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
        rows.append((stage, bar, duration(seconds)))
        start += seconds
    return rows


__all__ = ["Card", "write_report"]
