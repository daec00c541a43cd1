"""Tables of a run folder that several sections of the report use, read once."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from recaption.captions.repeated import read_repeated
from recaption.captions.sets import caption_set_pattern, caption_sets, default_caption_set, mark_repeated_captions
from recaption.ledger.ledger import Ledger, build_ledger, read_clips
from recaption.quality.filters import FilterThresholds
from recaption.records import Caption, Sample, from_table, schema_of
from recaption.run_folder import RunFolder

CAPTION_SCHEMA = pa.schema(
    [f for f in schema_of(Caption) if f.name not in ("clip_sha256", "recipe_hash", "mean_logprob", "seed")]
)


def clock(seconds: float) -> str:
    """A point in a video: 0:07.5, 12:03.0, 1:02:03.0."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


def duration(seconds: float) -> str:
    """A length of footage in its two largest units: 8.4 s, 3 min 12 s, 5 h 20 min, 12 d 4 h."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    left = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count:,} {unit}" if count else "")
    return " ".join(part for part in parts[:2] if part)


@dataclass(frozen=True, kw_only=True)
class RunTables:
    """Ledger, clips, captions and samples of a run."""

    ledger: Ledger
    clips: pa.Table
    """Spans and scores; row i belongs to `ledger.clips[i]`."""
    thresholds: FilterThresholds
    set_name: str | None
    other_sets: list[str]
    captions: dict[str, dict[str, Any]]
    """clip_id -> main caption of the chosen set; one that passed the gates if there is one."""
    originals: dict[str, str]
    """clip_id -> original text of the video."""
    other_captions: dict[str, list[dict[str, Any]]]
    """clip_id -> captions of its windows and of other kinds that passed the gates."""
    index: dict[str, Sample]

    @property
    def faults(self) -> list[tuple[str, int]]:
        """(fault, number of captions with it), most frequent first."""
        counts = Counter(row["fault"].replace("_", " ") for row in self.captions.values() if row["fault"])
        return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))

    @cached_property
    def _common_folder(self) -> str:
        uris = [video.uri for video in self.ledger.videos]
        prefix = os.path.commonprefix(uris)  # noqa: RUF071 (URIs and paths may be mixed)
        return prefix[: prefix.rfind("/") + 1]

    def short_uri(self, uri: str) -> str:
        """`uri` without the common folder of all inputs."""
        return uri.removeprefix(self._common_folder) or uri


def read_run(run: RunFolder, thresholds: FilterThresholds, set_name: str | None) -> RunTables:
    """Read the tables of a run; they are empty for stages that have not run."""
    set_name = set_name or default_caption_set(run)
    captions: dict[str, dict[str, Any]] = {}
    originals: dict[str, str] = {}
    other_captions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    table = run.read_tables(caption_set_pattern(set_name), CAPTION_SCHEMA) if set_name else CAPTION_SCHEMA.empty_table()
    if set_name:
        table = mark_repeated_captions(table, read_repeated(run, set_name), thresholds.max_clips_per_caption)
    for row in table.to_pylist():
        if row["source"] == "original":
            originals[row["clip_id"]] = row["text"]
        elif row["kind"] != "descriptive" or row["window"]:
            if row["reason"] is None:
                other_captions[row["clip_id"]].append(row)
        elif row["clip_id"] not in captions or captions[row["clip_id"]]["reason"] is not None:
            captions[row["clip_id"]] = row
    index = run.read_table("index.parquet") if run.exists("index.parquet") else schema_of(Sample).empty_table()
    return RunTables(
        ledger=build_ledger(run, thresholds, set_name),
        clips=read_clips(run),
        thresholds=thresholds,
        set_name=set_name,
        other_sets=[name for name in caption_sets(run) if name != set_name],
        captions=captions,
        originals=originals,
        other_captions=other_captions,
        index={row.clip_id: row for row in from_table(index, Sample)},
    )
