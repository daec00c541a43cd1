"""Histograms and bar charts of clip properties, caption lengths and scores for the report page.

for chart in distributions(tables): chart["title"], chart["note"], chart["svg"] (or chart["bars"])
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from jobs.report.charts import Group, Marker, Segment, histogram, number, stacked_bar
from jobs.report.gallery import SCORES
from jobs.report.tables import RunTables
from recaption.captions.words import count_words
from recaption.quality.filters import PLUGIN_PREFIX, FilterThresholds, plugin_scores

MAX_BARS = 8
SCORE_TITLES = {
    "motion": ("Motion", "frame heights / s"),
    "sharpness": ("Sharpness", "variance of the Laplacian"),
    "luma": ("Brightness", "mean luma"),
    "text_area": ("Burnt-in text", "fraction of the frame"),
    "text_area_ocr": ("Text by OCR", "fraction of the frame"),
    "static_text": ("Static text", "fraction of the frame"),
    "static_text_ocr": ("Static text by OCR", "fraction of the frame"),
    "letterbox": ("Letterbox", "fraction of the frame"),
    "blockiness": ("Blockiness", "gradient at block edges / inside"),
    "flicker": ("Flicker", "luma"),
    "aesthetic": ("Aesthetic", ""),
    "nsfw": ("NSFW", ""),
    "loudness_lufs": ("Loudness", "LUFS"),
    "silence_fraction": ("Silence", "fraction of the clip"),
}


def _is_kept(tables: RunTables) -> list[bool]:
    return [clip.state in ("in_shard", "waiting") for clip in tables.ledger.clips]


def _groups(tables: RunTables, values: Sequence[float | None]) -> list[Group]:
    """`values` (one per clip) split into kept and dropped clips."""
    is_kept = _is_kept(tables)
    return [
        Group("kept", "kept", [v for v, k in zip(values, is_kept) if k]),
        Group("left out", "dropped", [v for v, k in zip(values, is_kept) if not k]),
    ]


def _range_text(values: Iterable[float | None], unit: str = "") -> str:
    """Median, minimum and maximum as text."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return ""
    low, middle, high = (number(float(q)) for q in np.quantile(finite, [0, 0.5, 1]))
    return f"median {middle}{unit}, from {low} to {high}{unit}"


def _limits(thresholds: FilterThresholds, name: str) -> list[Marker]:
    """Markers for the thresholds `min_<name>` and `max_<name>` that exist and are on."""
    markers = []
    for side in ("min", "max"):
        value = thresholds.value_of(f"{side}_{name}")
        if value is not None:
            markers.append(Marker(float(value), f"{side}_{name} = {number(float(value))}"))
    return markers


def distributions(tables: RunTables) -> list[dict[str, Any]]:
    """Charts of clip length, size, frame rate, aspect ratio and caption length."""
    if not tables.clips.num_rows:
        return []
    columns = {name: tables.clips[name].to_pylist() for name in ("width_px", "height_px", "fps")}
    seconds = [clip.seconds for clip in tables.ledger.clips]
    aspects = [w / h if h else None for w, h in zip(columns["width_px"], columns["height_px"])]
    sizes = [f"{w} × {h}" for w, h in zip(columns["width_px"], columns["height_px"])]
    rates = [f"{number(round(fps, 2))} fps" for fps in columns["fps"]]
    limits = _limits(tables.thresholds, "seconds")
    charts: list[dict[str, Any]] = [
        {
            "title": "Clip length",
            "note": _range_text(seconds, " s"),
            "svg": histogram(_groups(tables, seconds), label="Clip length", unit="s", markers=limits),
            "markers": limits,
        },
        {"title": "Size", "note": f"{len(set(sizes))} different", "bars": _bars(tables, sizes)},
        {"title": "Frame rate", "note": f"{len(set(rates))} different", "bars": _bars(tables, rates)},
        {
            "title": "Aspect ratio",
            "note": f"{_range_text(aspects)} (width / height)",
            "svg": histogram(_groups(tables, aspects), label="Aspect ratio"),
        },
    ]
    after = [float(count_words(row["text"])) for row in tables.captions.values() if row["reason"] is None]
    before = [float(count_words(text)) for text in tables.originals.values()]
    if after:
        groups = [Group("captions", "kept", after), Group("original texts", "waiting", before)]
        groups = groups if before else groups[:1]
        svg = histogram(groups, label="Caption length", unit="words")
        legend = [(group.label, group.style) for group in groups]
        charts.append({"title": "Caption length", "note": _range_text(after, " words"), "svg": svg, "legend": legend})
    return charts


def _bars(tables: RunTables, labels: Sequence[str]) -> list[tuple[str, Markup, int]]:
    """(label, bar, number of clips) of the most frequent labels; the others in one row."""
    counts = Counter(labels)
    kept = Counter(label for label, is_kept in zip(labels, _is_kept(tables)) if is_kept)
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
        bar_label = f"{label}: {count} clips, {num_kept} kept"
        bars.append((label, stacked_bar(segments, total=largest, label=bar_label, height_px=12), count))
    return bars


def score_charts(tables: RunTables) -> list[dict[str, Any]]:
    """Histograms of the scores, with markers for the thresholds that are on."""
    charts = []
    own = [PLUGIN_PREFIX + name for name in plugin_scores(tables.clips)]
    for column in [*SCORES, *own]:
        values = tables.clips[column].to_pylist()
        if all(value is None for value in values):
            continue
        name = column.removeprefix(PLUGIN_PREFIX)
        title, unit = SCORE_TITLES.get(column, (name.replace("_", " ").capitalize(), ""))
        markers = _limits(tables.thresholds, name)
        svg = histogram(_groups(tables, values), label=title, markers=markers, logarithmic=name == "sharpness")
        note = f"{unit}; {_range_text(values)}" if unit else _range_text(values)
        charts.append({"title": title, "note": note, "svg": svg, "markers": markers})
    return charts
