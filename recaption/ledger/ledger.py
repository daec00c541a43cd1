"""The ledger of a run: every input video, and every second of it, is in exactly one state.

    ledger = build_ledger(run, thresholds)
    ledger.summary()["clips"]          # {"total": 18, "kept": 15, "dropped": {"blurry": 2, "no_bucket": 1}, ...}

States are computed from the files of the run folder and never stored, so they cannot become outdated. They are columns,
not objects: about 0.6 kB of memory per clip. `recaption.ledger.verify` checks them against the shards.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recaption.captions.repeated import read_repeated
from recaption.captions.sets import (
    CAPTION_STATE_SCHEMA,
    REJECTED_CLIPS,
    caption_set_pattern,
    default_caption_set,
    main_captions,
    mark_repeated_captions,
    without_open_captions,
)
from recaption.dedup.near_duplicates import read_pairs
from recaption.errors import DROP_REASONS
from recaption.ledger.overlap import counted_seconds
from recaption.ledger.removed import REMOVED_SCHEMA, read_removed
from recaption.ledger.spans import span_counts
from recaption.ledger.verdicts import add_verdicts, read_verdicts
from recaption.quality.filters import VIDEO_FLAG_SOURCES, FilterThresholds, evaluate_filters, with_video_flags
from recaption.quality.plugins import add_plugin_scores, read_plugin_scores
from recaption.records import Clip, ClipScores, Video, conform, from_table, schema_of, shard_schema
from recaption.run_folder import RunFolder

CLIPS_SCHEMA = pa.schema([*schema_of(Clip), *(f for f in schema_of(ClipScores) if f.name != "clip_id")])
SHARD_SCHEMA = shard_schema()
REJECTED_SCHEMA = pa.schema([("clip_id", pa.string()), ("reason", pa.string())])
SHARD_STATE_SCHEMA = pa.schema([SHARD_SCHEMA.field(n) for n in ("clip_id", "shard", "status", "reason")])
INPUTS_SCHEMA = pa.schema([("uri", pa.string()), ("part", pa.int64())])
VIDEO_FLAGS_SCHEMA = pa.schema([schema_of(Video).field(name) for name in VIDEO_FLAG_SOURCES])
CLIP_STATES = ("in_shard", "waiting", "dropped", "failed")
COUNTED_FIRST = {"in_shard": 0, "waiting": 1, "failed": 2, "dropped": 3}
"""Of clips that overlap, the one with the smallest counts the seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipState:
    """The state of one clip: in a shard, waiting for a stage, dropped or failed."""

    clip_id: str
    uri: str
    state: str
    """One of `CLIP_STATES`."""
    reason: str | None = None
    """dropped: of `DROP_REASONS`; failed: of `FAILURE_REASONS`; waiting: the stage it is waiting for, `caption` or
    `shard`."""
    shard: str | None = None
    """in_shard: the tar; the sample's key is the clip id."""
    duplicate_of: str | None = None
    """dropped as a duplicate: the clip that is kept instead."""
    seconds: float
    counted_seconds: float
    """Those that no other clip counts already: of clips that overlap, as lists may name them, each second counts once, for
    one in a shard before one that waits, failed or was dropped."""


STATES_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("clip_id", "uri", "state", "reason", "shard", "duplicate_of")),
        pa.field("seconds", pa.float64()),
        pa.field("counted_seconds", pa.float64()),
    ]
)
"""Columns of `ClipState`."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All videos and all clips of a run, each in one state."""

    video_table: pa.Table
    """Columns of `Video`."""
    clip_table: pa.Table
    """Columns of `ClipState`, in the order of `read_clips`."""
    num_waiting_inputs: int = 0
    """Inputs that `prepare` has listed but not processed yet."""
    removed: pa.Table = field(default_factory=REMOVED_SCHEMA.empty_table)
    """Inputs that were taken out: columns of `REMOVED_SCHEMA`. One that was listed again is not in `video_table`."""
    spans: dict[str, Any] = field(default_factory=dict)
    """Spans that lists name: numbers by state and the failed ones, of `span_counts`."""

    @cached_property
    def videos(self) -> tuple[Video, ...]:
        return tuple(from_table(self.video_table, Video))

    @cached_property
    def clips(self) -> tuple[ClipState, ...]:
        return tuple(from_table(self.clip_table, ClipState))

    def summary(self) -> dict[str, Any]:
        """The numbers that `--json` prints, JSON-simple.

        videos.total = ok + failed + removed. clips.total = kept + all of dropped + all of failed, kept = in_shard + waiting.
        seconds.total = kept + dropped + failed, where failed includes failed videos, and what is trimmed off
        damaged ones (`truncated`), as far as it is known, and dropped includes removed ones and those in no span of a list
        (`outside`). Seconds of several clips of a list count once; `overlap` is what the clips have beyond that.
        """
        videos = self.video_table
        failed, removed = (videos.filter(pc.equal(videos["status"], status)) for status in ("failed", "removed"))
        removed_seconds = [*self.removed["duration_seconds"].to_numpy(), *removed["duration_seconds"].to_numpy()]
        num_removed = removed.num_rows + self.removed.num_rows
        removed_clips = int(self.removed["num_clips"].to_numpy().sum())
        states = self.clip_table["state"].to_numpy(zero_copy_only=False)
        reasons = self.clip_table["reason"].to_numpy(zero_copy_only=False)
        seconds = self.clip_table["counted_seconds"].to_numpy()
        overlap = math.fsum(self.clip_table["seconds"].to_numpy() - seconds)
        outside = math.fsum(videos.filter(pc.equal(videos["status"], "ok"))["outside_seconds"].to_numpy())
        count = Counter(zip(states, reasons))
        seconds_of = {state: seconds[states == state] for state in CLIP_STATES}
        durations = self.video_table["duration_seconds"].to_numpy()
        truncated = self.video_table["truncated_seconds"].to_numpy()
        trimmed = self.video_table.filter(pc.greater(self.video_table["truncated_seconds"], 0))
        failed_clips = self.clip_table.filter(pc.equal(self.clip_table["state"], "failed"))
        return {
            "videos": {
                "total": videos.num_rows + self.removed.num_rows,
                "ok": videos.num_rows - failed.num_rows - removed.num_rows,
                "failed": failed.num_rows,
                "waiting": self.num_waiting_inputs,
                **({"removed": num_removed} if num_removed else {}),
            },
            "clips": {
                "total": self.clip_table.num_rows + removed_clips,
                "kept": len(seconds_of["in_shard"]) + len(seconds_of["waiting"]),
                "dropped": _count_reasons(count, "dropped") | ({"removed": removed_clips} if removed_clips else {}),
                "failed": _count_reasons(count, "failed"),
                "in_shard": len(seconds_of["in_shard"]),
                "waiting": _count_reasons(count, "waiting"),
            },
            "seconds": {
                "total": math.fsum([*durations, *self.removed["duration_seconds"].to_numpy(), *truncated]),
                "kept": math.fsum([*seconds_of["in_shard"], *seconds_of["waiting"]]),
                "dropped": math.fsum([*seconds_of["dropped"], *removed_seconds, outside]),
                "failed": math.fsum([*seconds_of["failed"], *failed["duration_seconds"].to_numpy(), *truncated]),
                "truncated": math.fsum(truncated),
                **({"outside": outside} if outside else {}),
                **({"overlap": overlap} if overlap > 1e-9 else {}),
            },
            **({"spans": {name: self.spans[name] for name in ("total", "ok", "failed")}} if self.spans else {}),
            "failures": failed.select(["uri", "reason", "detail"]).to_pylist() + self.spans.get("failures", []),
            "trimmed": trimmed.select(["uri", "duration_seconds", "truncated_seconds", "detail"]).to_pylist(),
            "clip_failures": failed_clips.select(["clip_id", "uri", "reason"]).to_pylist(),
        }


def _count_reasons(count: Counter[tuple[str, str | None]], wanted: str) -> dict[str, int]:
    return dict(sorted((str(reason), number) for (state, reason), number in count.items() if state == wanted))


def build_ledger(run: RunFolder, thresholds: FilterThresholds, set_name: str | None = None) -> Ledger:
    """The ledger of a run folder, whatever stages have run.

    Args:
        set_name: caption set that decides `bad_caption`; default: the set that the shards were made with.
    """
    videos = run.read_tables("videos/part-*.parquet", schema_of(Video))
    clips = read_clips(run)
    captions = _read_captions(run, set_name or default_caption_set(run), thresholds)
    shards = run.read_tables("shards/*/*.parquet", SHARD_STATE_SCHEMA)
    rejected = run.read_table(REJECTED_CLIPS) if run.exists(REJECTED_CLIPS) else REJECTED_SCHEMA.empty_table()
    states = clip_states(clips, thresholds, read_pairs(run), captions, shards, rejected)
    num_waiting, removed = _num_waiting_inputs(run, videos), read_removed(run)
    videos = removed.without_remembered(videos)
    return Ledger(
        video_table=videos,
        clip_table=states,
        num_waiting_inputs=num_waiting,
        removed=removed.table,
        spans=span_counts(run),
    )


def committed_clips(run: RunFolder) -> list[str]:
    """Parts of clips whose part of videos exists: that one is written last and commits both."""
    committed = set(run.list("videos/part-*.parquet"))
    return [name for name in run.list("clips/part-*.parquet") if name.replace("clips/", "videos/", 1) in committed]


def read_clips(run: RunFolder) -> pa.Table:
    """Spans and scores of all clips, and what else the filters read; row i belongs to `Ledger.clips[i]`."""
    return with_decisions(run, run.read_parts(committed_clips(run), CLIPS_SCHEMA))


def with_decisions(run: RunFolder, clips: pa.Table) -> pa.Table:
    """Clips with what the filters read beside their own columns: flags of the videos, verdicts, scores of plug-ins."""
    clips = with_video_flags(clips, run.read_tables("videos/part-*.parquet", VIDEO_FLAGS_SCHEMA))
    return add_verdicts(add_plugin_scores(clips, read_plugin_scores(run)), read_verdicts(run))


def concat(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """All rows of the tables, with the columns of `schema`; an empty table of `schema` where there are none."""
    return pa.concat_tables([schema.empty_table(), *(conform(table, schema) for table in tables)])


def _read_captions(run: RunFolder, set_name: str | None, thresholds: FilterThresholds) -> pa.Table:
    if set_name is None:
        return CAPTION_STATE_SCHEMA.empty_table()
    captions = run.read_tables(caption_set_pattern(set_name), CAPTION_STATE_SCHEMA)
    return mark_repeated_captions(captions, read_repeated(run, set_name), thresholds.max_clips_per_caption)


def _num_waiting_inputs(run: RunFolder, videos: pa.Table) -> int:
    if not run.exists("inputs.parquet"):
        return 0
    seen = pc.is_in(run.read_table("inputs.parquet")["uri"], value_set=videos["uri"].combine_chunks())
    return len(seen) - (pc.sum(seen).as_py() or 0)


def clip_states(
    clips: pa.Table,
    thresholds: FilterThresholds,
    pairs: pa.Table,
    captions: pa.Table,
    shards: pa.Table,
    rejected: pa.Table,
) -> pa.Table:
    """One state per row of `clips`. Filters take precedence: a clip that they drop is dropped even if it is in a shard.

    Only main captions count (`Caption.is_main`): not texts that came with the video, captions of a window, or other
    caption types than the descriptive one.

    Args:
        clips: as of `read_clips`.
        pairs: near-duplicates, from `near_duplicates.read_pairs`.
        captions: columns of `CAPTION_STATE_SCHEMA`.
        shards: columns of `SHARD_STATE_SCHEMA`.
    """
    ids = clips["clip_id"].combine_chunks()
    verdicts = evaluate_filters(clips, thresholds, pairs)
    drop_reason = np.array(verdicts.reasons, object)
    is_written = pc.equal(shards["status"], "ok")
    shard = _lookup(ids, shards.filter(is_written), "shard")
    rejected_reason = _lookup(ids, rejected, "reason")
    failure_reason = _lookup(ids, shards.filter(pc.invert(is_written)), "reason")
    main = main_captions(without_open_captions(captions))
    is_good = pc.is_null(main["reason"])
    has_caption = _is_in(ids, main.filter(is_good))
    caption_reason = _lookup(ids, main.filter(pc.invert(is_good)), "reason")
    caption_reason[has_caption] = None

    state = np.full(len(drop_reason), "waiting", object)
    reason = np.where(has_caption, "shard", "caption").astype(object)
    for lost_reason in (caption_reason, failure_reason, rejected_reason, drop_reason):  # later ones take precedence
        is_lost = _is_set(lost_reason)
        reason[is_lost] = lost_reason[is_lost]
        state[is_lost] = ["dropped" if text in DROP_REASONS else "failed" for text in lost_reason[is_lost]]
    is_in_shard = ~_is_set(drop_reason) & _is_set(shard)
    state[is_in_shard], reason[is_in_shard] = "in_shard", None
    shard[~is_in_shard] = None
    seconds = pc.subtract(clips["end_seconds"], clips["start_seconds"])
    rank = np.array([COUNTED_FIRST[one] for one in state], np.int64)
    counted = pa.array(counted_seconds(clips, rank))
    columns = [ids, clips["uri"], state, reason, shard, verdicts.duplicate_of, seconds, counted]
    arrays = [pa.array(c, pa.string()) if isinstance(c, (np.ndarray, list)) else c for c in columns]
    return pa.table(arrays, schema=STATES_SCHEMA)


def _is_set(values: np.ndarray) -> np.ndarray:
    """(N,) bool: which of (N,) object values are not None."""
    is_valid: np.ndarray = pa.array(values, pa.string()).is_valid().to_numpy(zero_copy_only=False)
    return is_valid


def _is_in(ids: pa.Array, table: pa.Table) -> np.ndarray:
    """(N,) bool: which of `ids` the table has."""
    found: np.ndarray = pc.is_in(ids, value_set=table["clip_id"].combine_chunks()).to_numpy(zero_copy_only=False)
    return found.astype(bool)


def _lookup(ids: pa.Array, table: pa.Table, column: str) -> np.ndarray:
    """(N,) object: the value of `column` in the table's first row of each id, None where there is no such row."""
    rows = pc.index_in(ids, value_set=table["clip_id"].combine_chunks())
    values: np.ndarray = table[column].combine_chunks().take(rows).to_numpy(zero_copy_only=False)
    return values.astype(object)
