"""Checks of the parquet tables: one row per input, clips that cover each video exactly, captions of known clips."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recaption.ledger.overlap import union_seconds
from recaption.ledger.problems import Problem
from recaption.run_folder import RunFolder

TOLERANCE_SECONDS = 1e-3
"""Allowed difference between the length of a video and the sum of its clips."""


def check_recipe_hashes(run: RunFolder, names: Iterable[str]) -> Iterator[Problem]:
    """Find parts of one stage that were made with different settings: their `recipe_hash` metadata differ."""
    hashes = {name: run.table_metadata(name).get("recipe_hash", "") for name in names}
    if len(set(hashes.values())) > 1:
        expected = next(iter(hashes.values()))
        for name, found in hashes.items():
            if found != expected:
                detail = f"recipe_hash is {found!r}, the first part of this stage has {expected!r}"
                yield Problem(kind="recipe_mixed", where=name, detail=detail)


# --- rows -----------------------------------------------------------------------------------------------------------


def check_inputs(inputs: pa.Table, videos: dict[str, pa.Table], *, finished: bool) -> Iterator[Problem]:
    """Every input has exactly one row in RUN/videos, also where it failed.

    Args:
        inputs: columns of `INPUTS_SCHEMA`.
        videos: tables of RUN/videos by file name.
        finished: whether all parts must be there. Otherwise inputs of a part that is not there yet are no problem.
    """
    prepared = [int(name.rsplit("-", 1)[1].removesuffix(".parquet")) for name in videos]
    rows = pa.concat_tables([table.select(["uri"]) for table in videos.values()]) if videos else inputs.slice(0, 0)
    is_seen = pc.is_in(inputs["uri"], value_set=rows["uri"].combine_chunks())
    due = pa.scalar(True) if finished else pc.is_in(inputs["part"], value_set=pa.array(prepared, pa.int64()))
    for row in inputs.filter(pc.and_(pc.invert(is_seen), due)).to_pylist():
        detail = "this input has no row in RUN/videos"
        yield Problem(kind="input_missing", where=f"inputs.parquet:{row['uri']}", detail=detail)
    for name, uri in find_duplicates(videos, "uri"):
        detail = "this input has another row in RUN/videos"
        yield Problem(kind="video_twice", where=f"{name}:{uri}", detail=detail)


def find_duplicates(tables: Mapping[str, pa.Table], column: str) -> Iterator[tuple[str, str]]:
    """(file, value) of every second and later occurrence of a value, over all tables."""
    if not tables:
        return
    counts = pc.value_counts(pa.concat_tables([table.select([column]) for table in tables.values()])[column])
    duplicated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    seen: set[str] = set()
    for name, table in tables.items() if len(duplicated) else ():
        for value in table[column].filter(pc.is_in(table[column], value_set=duplicated)).to_pylist():
            if value in seen:
                yield name, value
            seen.add(value)


def check_coverage(videos_name: str, videos: pa.Table, clips_name: str, clips: pa.Table) -> Iterator[Problem]:
    """Clips cover every frame and every second of every readable video exactly once, in one part of videos and clips; those
    that lists name need not."""
    by_uri: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in clips.to_pylist():
        by_uri[row["uri"]].append(row)
        expected = f"{row['video_id']}-{row['start_frame']:07d}-{row['end_frame']:07d}"
        if row["clip_id"] != expected:
            detail = f"its video and frames give the id {expected}"
            yield Problem(kind="clip_id_wrong", where=f"{clips_name}:{row['clip_id']}", detail=detail)
    readable: dict[str, str] = {}
    for row in videos.to_pylist():
        if row["status"] == "ok" and row["uri"] not in readable:
            readable[row["uri"]] = row["video_id"]
            clips_of_video = sorted(by_uri[row["uri"]], key=lambda clip: clip["start_frame"])
            yield from _check_video_coverage(f"{videos_name}:{row['uri']}", row, clips_of_video)
    for uri, rows in by_uri.items():
        for row in rows:
            if readable.get(uri) != row["video_id"]:
                detail = f"no readable video {row['video_id']} in {videos_name}"
                yield Problem(kind="clip_without_video", where=f"{clips_name}:{row['clip_id']}", detail=detail)


def _check_video_coverage(where: str, video: dict[str, Any], clips: list[dict[str, Any]]) -> Iterator[Problem]:
    if video.get("is_cut_by_list"):
        yield from _check_listed_coverage(where, video, clips)
        return
    edges = [0, *(clip["end_frame"] for clip in clips)]
    for edge, clip in zip(edges, clips):
        if clip["start_frame"] != edge:
            detail = f"frames {edge} to {clip['start_frame']} are in no clip or in two"
            yield Problem(kind="clips_do_not_tile", where=where, detail=detail)
            return
    if edges[-1] != video["num_frames"]:
        detail = f"clips end at frame {edges[-1]} of {video['num_frames']}"
        yield Problem(kind="clips_do_not_tile", where=where, detail=detail)
        return
    clip_seconds = math.fsum(clip["end_seconds"] - clip["start_seconds"] for clip in clips)
    if abs(clip_seconds - video["duration_seconds"]) > TOLERANCE_SECONDS:
        detail = f"clips have {clip_seconds:.4f} s, the video {video['duration_seconds']:.4f} s"
        yield Problem(kind="seconds_do_not_add_up", where=where, detail=detail)


def _check_listed_coverage(where: str, video: dict[str, Any], clips: list[dict[str, Any]]) -> Iterator[Problem]:
    """Clips that lists name are in the video, each once; with what is outside of them they are as long as it."""
    ids = [clip["clip_id"] for clip in clips]
    if len(set(ids)) < len(ids):
        yield Problem(kind="clips_do_not_tile", where=where, detail="one of its clips is there twice")
    if any(not 0 <= clip["start_frame"] < clip["end_frame"] <= video["num_frames"] for clip in clips):
        detail = f"one of its clips is not in its {video['num_frames']} frames"
        yield Problem(kind="clips_do_not_tile", where=where, detail=detail)
        return
    inside = union_seconds((clip["start_seconds"], clip["end_seconds"]) for clip in clips)
    outside = video["outside_seconds"]
    if abs(inside + outside - video["duration_seconds"]) > TOLERANCE_SECONDS:
        detail = (
            f"clips have {inside:.4f} s, {outside:.4f} s are in none, the video has {video['duration_seconds']:.4f} s"
        )
        yield Problem(kind="seconds_do_not_add_up", where=where, detail=detail)


def check_captions(name: str, rows: pa.Table, clip_ids: pa.Array, recipe_hash: str) -> Iterator[Problem]:
    """Captions belong to clips of this run and were made with the settings of their part.

    Args:
        clip_ids: of all clips of the run.
        recipe_hash: from the part's metadata.
    """
    is_known = pc.is_in(rows["clip_id"], value_set=clip_ids)
    for clip_id in rows["clip_id"].filter(pc.invert(is_known)).to_pylist():
        detail = "RUN/clips does not have this clip"
        yield Problem(kind="caption_without_clip", where=f"{name}:{clip_id}", detail=detail)
    is_foreign = pc.and_(pc.equal(rows["source"], "model"), pc.not_equal(rows["recipe_hash"], recipe_hash))
    num_foreign = pc.sum(pc.and_(is_known, is_foreign)).as_py() or 0
    if num_foreign:
        detail = f"{num_foreign} of its captions have another recipe_hash than the part, {recipe_hash!r}"
        yield Problem(kind="recipe_mixed", where=name, detail=detail)
