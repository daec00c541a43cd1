"""`recaption shard`: writes captioned clips into RUN/shards/<bucket>/<nnnnnn>.tar + .parquet and RUN/index.parquet.

The assignment of clips to shards is planned before anything is decoded. A shard is one part; it is skipped if it exists
and was written from the same plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow.compute as pc

from jobs.cluster import attempts
from jobs.cluster.cluster import Cluster
from jobs.recipe.run_inputs import (
    check_still_there,
    kept_clips,
    source_is_back,
    source_states,
    videos_with_audio,
    write_recipe,
)
from jobs.recipe.settings import Recipe, grid_of, stage_hashes
from packing.buckets import Bucket, BucketTable
from packing.grid import Grid
from packing.shards.index import build_index, is_committed, remove_stale_shards
from packing.shards.plan import OtherText, PlannedShard, RejectedClip, ShardClip, plan_hash, plan_shards
from packing.shards.samples import Entry, failed_entry, video_entry
from packing.shards.write import write_shard
from recaption.captions.repeated import read_repeated
from recaption.captions.sets import REJECTED_CLIPS, caption_set_pattern, mark_repeated_captions
from recaption.decoding.audio.tracks import NO_AUDIO
from recaption.errors import FAILURE_REASONS, PASSING_REASONS, UsageError, VideoError
from recaption.inputs.open_input import InputState
from recaption.records import Caption, from_table, schema_of, to_table
from recaption.run_folder import RunFolder
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.opened_video import OpenVideos
from recaption.video_io.writer import encode_video


def shard(
    run: RunFolder, recipe: Recipe, set_name: str, cluster: Cluster, *, only: Collection[str] | None = None
) -> dict[str, Any]:
    """Write the planned shards that do not exist yet, remove shards that are not in the plan, rebuild the index.

    Args:
        only: names of shards that may be written; default: all.

    Raises:
        UsageError: no such caption set.
    """
    planned, rejects, hashes = planned_shards(run, recipe, set_name)
    write_recipe(run, recipe)
    grid = grid_of(recipe)
    allowed = [s for s in planned if only is None or s.name in only]
    # every clip's id starts with the id of its video
    states = source_states(run, {clip.uri: clip.clip_id.partition("-")[0] for s in allowed for clip in s.clips})
    missing_shards = [
        s for s in allowed if not is_committed(run, s.name, hashes[s.name]) or lacks_clips_in_reach(run, s, states)
    ]
    parts = [_part(s, hashes[s.name], states) for s in missing_shards]
    settings = {"run_uri": run.uri, "table": recipe.shard.buckets, "decode": recipe.prepare.decode, "grid": grid}
    run.write_table(REJECTED_CLIPS, to_table(rejects, RejectedClip), {"set": set_name})
    for _ in cluster.run_parts(ShardWorker, settings, parts, title="shard", unit="num_samples"):
        pass
    check_still_there(run, [f"{s.name}.parquet" for s in missing_shards], "shard")
    removed = remove_stale_shards(run, hashes)
    index = build_index(run)
    buckets: dict[str, int] = {}
    for name in index["bucket"].to_pylist():
        buckets[name] = buckets.get(name, 0) + 1
    throughput = cluster.throughput()
    return {
        "shards": sum(run.exists(f"{name}.tar") for name in hashes),
        "samples": index.num_rows,
        "buckets": buckets,
        "rejected": _rejected(run, len(rejects)),
        "computed_parts": len(parts),
        "skipped_parts": len(planned) - len(parts),
        "removed_shards": len(removed),
        "decoder_fallbacks": throughput.get("decoder_fallbacks", {}),
        "throughput": throughput,
    }


def planned_shards(
    run: RunFolder, recipe: Recipe, set_name: str
) -> tuple[list[PlannedShard], list[RejectedClip], dict[str, str]]:
    """(planned shards, rejected clips, shard name -> hash of its plan) for the current run folder."""
    planned, rejects = plan_shards(_captioned(run, recipe, set_name), recipe.shard.buckets)
    recipe_hash = f"{stage_hashes(recipe)['shard']}/{set_name}/{grid_of(recipe)}"
    return planned, rejects, {s.name: plan_hash(s, recipe_hash) for s in planned}


def _captioned(run: RunFolder, recipe: Recipe, set_name: str) -> list[ShardClip]:
    """Kept clips whose main caption passed the quality gates, with their other texts."""
    if not run.list(f"captions/{set_name}/part-*.parquet"):
        raise UsageError(f"{run.uri} has no caption set {set_name!r}: run `recaption caption --set {set_name}` first")
    table = run.read_tables(caption_set_pattern(set_name), schema_of(Caption))
    table = mark_repeated_captions(table, read_repeated(run, set_name), recipe.filters.max_clips_per_caption)
    captions: dict[str, Caption] = {}
    others: dict[str, list[OtherText]] = {}
    for row in from_table(table.filter(pc.is_null(table["reason"])), Caption):
        if row.is_main:
            captions[row.clip_id] = row
        else:
            other = (row.source, row.kind, row.window, row.start_seconds, row.end_seconds, row.text)
            others.setdefault(row.clip_id, []).append(other)
    with_audio = videos_with_audio(run) if recipe.shard.audio != "drop" else set()
    return [
        ShardClip(
            clip_id=clip.clip_id,
            uri=clip.uri,
            start_frame=clip.start_frame,
            end_frame=clip.end_frame,
            start_seconds=clip.start_seconds,
            end_seconds=clip.end_seconds,
            width_px=clip.width_px,
            height_px=clip.height_px,
            caption=captions[clip.clip_id].text,
            num_caption_tokens=captions[clip.clip_id].num_tokens,
            other_texts=tuple(sorted(others.get(clip.clip_id, ()))),
            audio=recipe.shard.audio if clip.video_id in with_audio else "",
        )
        for clips in kept_clips(run, recipe).values()
        for clip in clips
        if clip.clip_id in captions
    ]


def lacks_clips_in_reach(run: RunFolder, planned: PlannedShard, states: dict[str, InputState]) -> bool:
    """Whether clips failed in a shard for reasons that may be gone by now."""
    rows = run.read_columns(f"{planned.name}.parquet", ["clip_id", "reason"]).to_pylist()
    passing = {row["clip_id"]: row["reason"] for row in rows if row["reason"] in PASSING_REASONS}
    failed = [(clip.uri, passing[clip.clip_id]) for clip in planned.clips if clip.clip_id in passing]
    return any(reason == "fetch_failed" or source_is_back(uri, states) for uri, reason in failed)


def _part(planned: PlannedShard, key: str, states: dict[str, InputState]) -> dict[str, Any]:
    return {
        "name": planned.name,
        "plan_hash": key,
        "bucket": dataclasses.asdict(planned.bucket),
        "clips": [dataclasses.asdict(c) for c in planned.clips],
        "sources": {c.uri: dataclasses.asdict(states[c.uri]) for c in planned.clips},
    }


def _rejected(run: RunFolder, num_without_bucket: int) -> dict[str, int]:
    """Reason -> clips that are in no shard: without a bucket, or failed in transcoding."""
    rejected = {"no_bucket": num_without_bucket} if num_without_bucket else {}
    for name in run.list("shards/*/*.parquet"):
        for reason in run.read_table(name)["reason"].to_pylist():
            if reason in FAILURE_REASONS:
                rejected[reason] = rejected.get(reason, 0) + 1
    return rejected


class ShardWorker:
    """Transcodes the clips of one shard per part. One per actor."""

    def __init__(self, run_uri: str, table: BucketTable, decode: DecodeLimits, grid: Grid) -> None:
        self.run = RunFolder(run_uri)
        self.table = table
        self.videos = OpenVideos(decode)
        self.grid = grid

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        bucket = Bucket(**part["bucket"])
        clips = [ShardClip(**row) for row in part["clips"]]
        states = {uri: InputState(**state) for uri, state in part["sources"].items()}
        self.videos.forget_failures()
        entries = self._entries(clips, bucket, states)
        report = write_shard(self.run, part["name"], entries, plan_hash=part["plan_hash"])
        return dataclasses.asdict(report)

    def _entries(self, clips: list[ShardClip], bucket: Bucket, states: dict[str, InputState]) -> Iterator[Entry]:
        num_tokens = self.grid.num_tokens(bucket.num_frames, bucket.height_px, bucket.width_px)
        for clip in clips:
            try:
                attempts.begin(clip.clip_id)
                opened = self.videos.open(clip.uri, states[clip.uri])
                frames = opened.read_clip(
                    clip.start_seconds,
                    num_frames=bucket.num_frames,
                    fps=bucket.fps,
                    height_px=bucket.height_px,
                    width_px=bucket.width_px,
                    start_frame=clip.start_frame,
                    end_frame=clip.end_frame,
                )
                seconds = (clip.start_seconds, clip.start_seconds + bucket.num_frames / bucket.fps)
                audio = opened.read_audio(*seconds, may_copy=clip.audio == "keep") if clip.audio else NO_AUDIO
            except VideoError as error:
                yield failed_entry(clip, bucket, reason=error.reason, detail=error.detail)
                continue
            mp4 = encode_video(frames, fps=bucket.fps, codec=self.table.codec, crf=self.table.crf, audio=audio.tracks)
            lost = f"audio lost: {'; '.join(audio.lost)}" if audio.lost else ""
            yield video_entry(clip, bucket, mp4, num_latent_tokens=num_tokens, audio=audio.description, detail=lost)
        attempts.begin()
