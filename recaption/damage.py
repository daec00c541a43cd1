"""What can be wrong inside one file of a run folder: parts that do not open, tars that are cut, bytes that changed.

`recaption.verification.verify` calls these and adds what only shows across files.

    for problem in tar_problems(run, "shards/17f-96x96-8fps/000000.tar", rows):
        problem.kind, problem.where, problem.detail
"""

from __future__ import annotations

import hashlib
import json
import math
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from recaption.records import conform
from recaption.run_folder import TEMPORARY_SUFFIX, RunFolder

PROBLEM_KINDS = (
    "temporary_file",
    "part_unreadable",
    "recipe_mixed",
    "input_missing",
    "part_missing",
    "video_twice",
    "clip_id_wrong",
    "clip_without_video",
    "clips_do_not_tile",
    "seconds_do_not_add_up",
    "caption_without_clip",
    "caption_missing",
    "embedding_missing",
    "caption_of_other_clip",
    "clip_score_differs",
    "captions_shuffled",
    "shard_missing",
    "shard_unlisted",
    "shard_broken",
    "keys_scattered",
    "members_missing",
    "sample_missing",
    "sample_unlisted",
    "offset_wrong",
    "sha256_wrong",
    "json_unreadable",
    "bytes_differ",
    "text_differs",
    "caption_changed",
    "clip_in_two_shards",
    "unknown_clip_in_shard",
    "dropped_clip_in_shard",
    "clip_missing_from_shards",
    "index_missing",
    "index_differs",
    "statistics_differ",
    "text_part_differs",
)
"""What `recaption verify` can find. Closed: tests and reports read it."""

BLOCK_BYTES = 512
"""A tar consists of blocks of this size; POSIX ends it with at least two blocks of zeros."""
SHARD_MEMBERS = frozenset({"mp4", "json", "txt"})
LATENT_MEMBERS = frozenset({"npy", "json"})

TOLERANCE_SECONDS = 1e-3
"""Clips of a video add up to its length to this much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is not as it should be."""

    kind: str
    """One of `PROBLEM_KINDS`."""
    where: str
    """The file, relative to the run folder; with `:` and a clip or video id where one row or sample is meant."""
    detail: str

    def __post_init__(self) -> None:
        assert self.kind in PROBLEM_KINDS, self.kind


def temporary_files(run: RunFolder) -> Iterator[Problem]:
    """Files that a killed run left behind under a temporary name."""
    prefix = run.root.rstrip("/") + "/"
    for path in sorted(str(p) for p in run.fs.glob(run.path("**/*" + TEMPORARY_SUFFIX))):
        detail = "left behind by a run that was killed; run the same command again to clear it"
        yield Problem(kind="temporary_file", where=path.removeprefix(prefix), detail=detail)


def open_parts(
    run: RunFolder, names: Iterable[str], schema: pa.Schema, keep: Sequence[str] | None = None
) -> tuple[dict[str, pa.Table], list[Problem]]:
    """Tables by file name with the columns of `schema`, and the files that do not give them.

    Args:
        keep: columns that stay in memory; default: all of them.
    """
    tables: dict[str, pa.Table] = {}
    problems = []
    for name in names:
        try:
            table = conform(run.read_table(name), schema)
            tables[name] = table if keep is None else table.select(list(keep))
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            detail = " ".join(str(error).split())[:200]
            problems.append(Problem(kind="part_unreadable", where=name, detail=f"does not open as a table: {detail}"))
    return tables, problems


def mixed_recipes(run: RunFolder, names: Iterable[str]) -> Iterator[Problem]:
    """Parts of one stage that were made by different settings: their `recipe_hash` metadata differ."""
    hashes = {name: run.table_metadata(name).get("recipe_hash", "") for name in names}
    if len(set(hashes.values())) > 1:
        expected = next(iter(hashes.values()))
        for name, found in hashes.items():
            if found != expected:
                detail = f"recipe_hash is {found!r}, the first part of this stage has {expected!r}"
                yield Problem(kind="recipe_mixed", where=name, detail=detail)


# --- rows -----------------------------------------------------------------------------------------------------------


def input_problems(inputs: pa.Table, videos: dict[str, pa.Table], *, finished: bool) -> Iterator[Problem]:
    """Rule 2: one row per input. Before there is an index an input without a row may just be waiting for its part."""
    prepared = [int(name.rsplit("-", 1)[1].removesuffix(".parquet")) for name in videos]
    rows = pa.concat_tables([table.select(["uri"]) for table in videos.values()]) if videos else inputs.slice(0, 0)
    is_seen = pc.is_in(inputs["uri"], value_set=rows["uri"].combine_chunks())
    due = pa.scalar(True) if finished else pc.is_in(inputs["part"], value_set=pa.array(prepared, pa.int64()))
    for row in inputs.filter(pc.and_(pc.invert(is_seen), due)).to_pylist():
        detail = "this input has no row in RUN/videos"
        yield Problem(kind="input_missing", where=f"inputs.parquet:{row['uri']}", detail=detail)
    for name, uri in repeated(videos, "uri"):
        detail = "this input has another row in RUN/videos"
        yield Problem(kind="video_twice", where=f"{name}:{uri}", detail=detail)


def repeated(tables: Mapping[str, pa.Table], column: str) -> Iterator[tuple[str, str]]:
    """(file, value) of every second and later occurrence of a value, over all tables."""
    if not tables:
        return
    counts = pc.value_counts(pa.concat_tables([table.select([column]) for table in tables.values()])[column])
    often = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    seen: set[str] = set()
    for name, table in tables.items() if len(often) else ():
        for value in table[column].filter(pc.is_in(table[column], value_set=often)).to_pylist():
            if value in seen:
                yield name, value
            seen.add(value)


def tiling_problems(videos_name: str, videos: pa.Table, clips_name: str, clips: pa.Table) -> Iterator[Problem]:
    """Clips cover every frame and every second of every good video once. One part: the videos of a part own its clips."""
    by_uri: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in clips.to_pylist():
        by_uri[row["uri"]].append(row)
        expected = f"{row['video_id']}-{row['start_frame']:07d}-{row['end_frame']:07d}"
        if row["clip_id"] != expected:
            detail = f"its video and frames give the id {expected}"
            yield Problem(kind="clip_id_wrong", where=f"{clips_name}:{row['clip_id']}", detail=detail)
    good: dict[str, str] = {}
    for row in videos.to_pylist():
        if row["status"] == "ok" and row["uri"] not in good:
            good[row["uri"]] = row["video_id"]
            of_video = sorted(by_uri[row["uri"]], key=lambda clip: clip["start_frame"])
            yield from _video_problems(f"{videos_name}:{row['uri']}", row, of_video)
    for uri, rows in by_uri.items():
        for row in rows:
            if good.get(uri) != row["video_id"]:
                detail = f"no readable video {row['video_id']} in {videos_name}"
                yield Problem(kind="clip_without_video", where=f"{clips_name}:{row['clip_id']}", detail=detail)


def _video_problems(where: str, video: dict[str, Any], clips: list[dict[str, Any]]) -> Iterator[Problem]:
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


def caption_problems(name: str, rows: pa.Table, known: pa.Array, made_with: str) -> Iterator[Problem]:
    """Captions belong to clips of this run, and to the settings that their part names.

    Args:
        known: ids of all clips.
        made_with: the part's `recipe_hash` metadata.
    """
    is_known = pc.is_in(rows["clip_id"], value_set=known)
    for clip_id in rows["clip_id"].filter(pc.invert(is_known)).to_pylist():
        detail = "RUN/clips does not have this clip"
        yield Problem(kind="caption_without_clip", where=f"{name}:{clip_id}", detail=detail)
    is_strange = pc.and_(pc.equal(rows["source"], "model"), pc.not_equal(rows["recipe_hash"], made_with))
    num_strange = pc.sum(pc.and_(is_known, is_strange)).as_py() or 0
    if num_strange:
        detail = f"{num_strange} of its captions were made with another recipe_hash than its own, {made_with!r}"
        yield Problem(kind="recipe_mixed", where=name, detail=detail)


# --- tars -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TarSample:
    members: dict[str, tarfile.TarInfo]
    """By extension: what follows the first dot of the member's name."""
    start: int
    end: int
    """One past the padding of the last member."""


def payload_of(members: Mapping[str, bytes], payload: str) -> bytes:
    """What the sha256 in a sample's row is of: the member `payload`, and those that end in it (.scale.npy for npy)."""
    return b"".join(members[ext] for ext in sorted(members) if ext == payload or ext.endswith("." + payload))


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _samples_of(tar: tarfile.TarFile) -> tuple[dict[str, _TarSample], set[str]]:
    """Samples by key, and the keys whose members do not lie together."""
    samples: dict[str, _TarSample] = {}
    scattered: set[str] = set()
    previous = None
    for member in tar:
        key, _, extension = member.name.partition(".")
        end = member.offset_data + _padded(member.size)
        if key not in samples:
            samples[key] = _TarSample({extension: member}, member.offset, end)
        else:
            if key != previous or extension in samples[key].members:
                scattered.add(key)
            samples[key] = _TarSample({**samples[key].members, extension: member}, samples[key].start, end)
        previous = key
    return samples, scattered


def _ends_in_zeros(file: BinaryIO, end_of_members: int) -> bool:
    """Whether two zero blocks, and nothing else, follow. `tarfile` itself stops silently at a bad header in between."""
    file.seek(end_of_members)
    num_zeros = 0
    while block := file.read(1 << 20):
        if block.count(0) != len(block):
            return False
        num_zeros += len(block)
    return num_zeros >= 2 * BLOCK_BYTES


def tar_problems(
    run: RunFolder,
    name: str,
    rows: Iterable[Mapping[str, Any]],
    *,
    extensions: frozenset[str] = SHARD_MEMBERS,
    payload: str = "mp4",
    sha256: str = "",
) -> Iterator[Problem]:
    """Compare one tar with its rows (columns of `Sample`, only those that were written).

    Args:
        extensions: members that every sample has.
        payload: the member whose sha256 is in the row.
        sha256: of the whole tar, where its writer noted it; asked last, for what the other checks cannot see.
    """
    listed = {row["clip_id"]: row for row in rows}
    with run.fs.open(run.path(name), "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                samples, scattered = _samples_of(tar)
                whole = _ends_in_zeros(file, tar.offset)
                problems = list(_sample_problems(tar, name, samples, scattered, listed, extensions, payload))
        except (tarfile.TarError, OSError) as error:
            yield Problem(kind="shard_broken", where=name, detail=f"does not read as a tar to its end: {error}")
            return
        if not whole:
            detail = "cut or overwritten: its samples are not followed by two blocks of zeros"
            yield Problem(kind="shard_broken", where=name, detail=detail)
            return
        file.seek(0)
        if not problems and sha256 and _sha256_of(file) != sha256:
            detail = "its bytes are not the ones that were written"
            problems.append(Problem(kind="bytes_differ", where=name, detail=detail))
    yield from problems


def _sha256_of(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _sample_problems(
    tar: tarfile.TarFile,
    name: str,
    samples: dict[str, _TarSample],
    scattered: set[str],
    rows: dict[str, Mapping[str, Any]],
    extensions: frozenset[str],
    payload: str,
) -> Iterator[Problem]:
    for key in sorted(rows.keys() - samples.keys()):
        detail = "listed in the shard's table, not in the tar"
        yield Problem(kind="sample_missing", where=f"{name}:{key}", detail=detail)
    for key, sample in samples.items():
        where = f"{name}:{key}"
        missing = extensions - sample.members.keys()
        if key in scattered:
            detail = "its members do not lie together, so readers would see two incomplete samples"
            yield Problem(kind="keys_scattered", where=where, detail=detail)
        elif missing:
            detail = "no " + ", ".join(f".{extension}" for extension in sorted(missing))
            yield Problem(kind="members_missing", where=where, detail=detail)
        elif key not in rows:
            detail = "in the tar, not in the shard's table"
            yield Problem(kind="sample_unlisted", where=where, detail=detail)
        else:
            yield from _content_problems(tar, where, sample, rows[key], payload)


def _content_problems(
    tar: tarfile.TarFile, where: str, sample: _TarSample, row: Mapping[str, Any], payload: str
) -> Iterator[Problem]:
    span = (sample.start, sample.end - sample.start)
    listed = (row["offset_bytes"], row["num_bytes"])
    if span != listed:
        detail = f"offset and size are {span[0]} and {span[1]} bytes, the table says {listed[0]} and {listed[1]}"
        yield Problem(kind="offset_wrong", where=where, detail=detail)
    contents = {}
    for extension, member in sample.members.items():
        file = tar.extractfile(member)
        contents[extension] = file.read() if file is not None else b""
    if hashlib.sha256(payload_of(contents, payload)).hexdigest() != row["sha256"]:
        detail = f"the .{payload} is not the one that was written"
        yield Problem(kind="sha256_wrong", where=where, detail=detail)
    if "txt" in contents and contents["txt"].decode(errors="replace") != row["caption"]:
        yield Problem(kind="text_differs", where=where, detail="the .txt is not the caption that the table has")
    try:
        json.loads(contents["json"])
    except ValueError as error:
        yield Problem(kind="json_unreadable", where=where, detail=f"the .json does not parse: {error}")
