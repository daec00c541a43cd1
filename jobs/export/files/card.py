"""README.md of an export: what it holds and how it is loaded; for the Hub with the header of a dataset card."""

from __future__ import annotations

from collections import Counter

import yaml

from jobs.export.dataset import ExportedDataset
from jobs.export.layouts import Layout

SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
                   (10_000_000, "1M<n<10M"), (1 << 62, "10M<n<100M"))  # fmt: skip
"""As the Hub names them."""
MAX_LISTED = 10


def card(layout: Layout, dataset: ExportedDataset) -> str:
    """The whole README.md; without dates, so that the same export has the same bytes."""
    totals = dataset.totals()
    lines = [
        "# Captioned video clips",
        "",
        f"{totals['clips']:,} clips, {totals['seconds']:,.1f} seconds, {totals['bytes']:,} bytes of video. Made by "
        f"`recaption export --to {layout.name}`, for {layout.trainers}.",
        "",
        f"{totals['copied']:,} clips are whole source files, byte for byte; {totals['cut']:,} were cut out at keyframes; "
        f"{totals['encoded']:,} were encoded (H.264, 4:2:0). {totals['with_audio']:,} have audio.",
        "",
        "## Loading",
        "",
        "```",
        *layout.usage.replace("{root}", "." if layout.hub_data_files else dataset.root).splitlines(),
        "```",
        "",
        "## Contents",
        "",
        "`clips.parquet` has one row per clip: file, caption, all its texts, source, times in the source, size, rate, "
        "scores, and the reason where it could not be written. `export.json` accounts for every clip of the run.",
        "",
        f"Licence: {dataset.licence or 'not stated; it is that of the sources'}.",
        "",
        *_table(
            "frames x height x width", Counter(f"{c.num_frames} x {c.height_px} x {c.width_px}" for c in dataset.clips)
        ),
        *_table("captioned by", Counter(clip.captioner or "unknown" for clip in dataset.clips)),
        *_table("licence", Counter(clip.licence or "not stated" for clip in dataset.clips)),
    ]
    return (_header(layout, dataset) if layout.hub_data_files else "") + "\n".join(lines)


def _header(layout: Layout, dataset: ExportedDataset) -> str:
    size = next(name for limit, name in SIZE_CATEGORIES if len(dataset.clips) < limit)
    header = {
        **({"license": dataset.licence} if dataset.licence else {}),
        "task_categories": ["text-to-video"],
        "size_categories": [size],
        "tags": ["video", "captions"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": layout.hub_data_files}]}],
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"


def _table(title: str, counts: Counter[str]) -> list[str]:
    rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    more = [f"| {len(rows) - MAX_LISTED:,} others | |"] if len(rows) > MAX_LISTED else []
    return [
        f"| {title} | clips |",
        "| --- | --- |",
        *(f"| {name} | {n:,} |" for name, n in rows[:MAX_LISTED]),
        *more,
        "",
    ]
