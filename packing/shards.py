"""Shards: clips of one bucket in one tar, and beside it the parquet that says what lies where.

    for shard in plan_shards(clips, table)[0]:                             # shard_plan.py
        key = plan_hash(shard, recipe_hash)
        if not is_committed(run, shard.name, key):
            write_shard(run, shard.name, entries, plan_hash=key)           # of video_entry(...) or failed_entry(...)
    remove_stale(run, [s.name for s in shards])
    build_index(run)

Members `<clip_id>.json .mp4 .txt` (latents: `.json .npy`, see latents.py) lie side by side, plain ustar with mtime 0, so
any tar or WebDataset reader opens them and the same clips give the same bytes. The parquet is written last and marks the
commit: a shard without it, or with another `plan_hash` in its metadata, is written anew. The one writer of both kinds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from packing import latents
from packing.buckets import Bucket, bucket_name
from packing.shard_plan import ShardClip, check_key
from recaption.damage import payload_of
from recaption.errors import FAILURE_REASONS, UsageError
from recaption.latent_statistics import KEY, STATISTICS, ChannelStatistics, gather_statistics
from recaption.records import Sample, schema_of
from recaption.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentSample(Sample):
    """One row of RUN/latents/<name>/index.parquet; `sha256` is that of the .npy member, and .scale.npy if there is one."""

    latent_channels: int
    latent_frames: int
    latent_height: int
    latent_width: int
    latent_dtype: str
    """One of `latents.LATENT_DTYPES`."""
    round_trip_psnr_db: float | None
    """Of the clip decoded from what lies in the tar, rounding included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One sample on its way into a tar, or the reason why it does not get there."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    """Extension without dot -> bytes; empty where `reason` is set."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Columns of the parquet row; the writer adds shard, offset_bytes, num_bytes, sha256 and status."""
    reason: str | None = None
    detail: str = ""
    statistics: ChannelStatistics | None = None
    """Of a latent, as it will be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What one written shard came to."""

    name: str
    num_samples: int
    num_bytes: int
    rejected: dict[str, int]
    """Failure reason -> number of clips."""


# --- entries --------------------------------------------------------------------------------------------------------


def video_entry(clip: ShardClip, bucket: Bucket, mp4: bytes, *, num_latent_tokens: int) -> Entry:
    """A transcoded clip as members .mp4 .json .txt. Where the source lay is left out: bytes depend on content only."""
    description = {
        "clip_id": clip.clip_id,
        "caption": clip.caption,
        "bucket": bucket_name(bucket),
        **dataclasses.asdict(bucket),
        "source_start_seconds": clip.start_seconds,
        "source_end_seconds": clip.end_seconds,
    }
    if clip.other_texts:
        names = ("source", "kind", "window", "start_seconds", "end_seconds", "text")
        description["other_texts"] = [dict(zip(names, text, strict=True)) for text in clip.other_texts]
    members = {"mp4": mp4, "json": _canonical_json(description), "txt": clip.caption.encode()}
    return Entry(key=clip.clip_id, members=members, fields=_video_fields(clip, bucket, num_latent_tokens))


def failed_entry(clip: ShardClip, bucket: Bucket, *, reason: str, detail: str) -> Entry:
    """A clip that could not be transcoded: a row with a reason from `errors.FAILURE_REASONS`, no members."""
    return Entry(key=clip.clip_id, fields=_video_fields(clip, bucket, 0), reason=reason, detail=detail)


def _video_fields(clip: ShardClip, bucket: Bucket, num_latent_tokens: int) -> dict[str, Any]:
    return {
        "bucket": bucket_name(bucket),
        **dataclasses.asdict(bucket),
        "num_latent_tokens": num_latent_tokens,
        "num_caption_tokens": clip.num_caption_tokens,
        "caption": clip.caption,
    }


def latent_shard_name(compressor: str, shard: str) -> str:
    """Latents mirror the video shards one to one: `shards/B/000000.tar` -> `latents/<compressor>/B/000000`.

    Raises:
        UsageError: `compressor` cannot be the name of a folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", compressor):
        raise UsageError(f"{compressor!r} cannot name a folder of latents: use letters, digits, '.', '_' and '-'")
    bucket, number = shard.removesuffix(".tar").split("/")[-2:]
    return f"latents/{compressor}/{bucket}/{number}"


def latent_entry(
    sample: Sample,
    latent: np.ndarray,
    *,
    num_latent_tokens: int,
    dtype: str = "float16",
    measure: Callable[[np.ndarray], float] | None = None,
    details: dict[str, Any] | None = None,
) -> Entry:
    """A latent (C, t, h, w) as members .npy (and .scale.npy) and .json; one that `dtype` cannot hold becomes a failed row.

    Args:
        dtype: one of `latents.LATENT_DTYPES`.
        measure: round-trip error in dB of the latent as it will be read.
        details: JSON-simple facts to keep in the .json member (compressor).
    """
    latents.check_dtype(dtype)
    shape = latent.shape
    fields = {name: getattr(sample, name) for name in _COPIED} | {
        "num_latent_tokens": num_latent_tokens,
        **dict(zip(("latent_channels", "latent_frames", "latent_height", "latent_width"), shape)),
        "latent_dtype": dtype,
    }
    try:
        members = latents.store(latent, dtype)
    except ValueError as error:
        return Entry(key=sample.clip_id, fields=fields, reason="write_failed", detail=str(error))
    restored = latents.restore(members, dtype, shape)
    measured = {"round_trip_psnr_db": round(measure(restored), 2)} if measure is not None else {}
    description = {"clip_id": sample.clip_id, "caption": sample.caption, "bucket": sample.bucket, "dtype": dtype}
    members["json"] = _canonical_json({**description, **measured, **(details or {})})
    fields |= measured
    return Entry(key=sample.clip_id, members=members, fields=fields, statistics=ChannelStatistics.of(restored))


def failed_latent(sample: Sample, *, reason: str, detail: str) -> Entry:
    """A sample that could not be encoded: a row with a reason from `errors.FAILURE_REASONS`, no members."""
    fields = {name: getattr(sample, name) for name in _COPIED}
    return Entry(key=sample.clip_id, fields=fields, reason=reason, detail=detail)


_COPIED = ("bucket", "num_frames", "height_px", "width_px", "fps", "num_caption_tokens", "caption")


def _canonical_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


# --- write ----------------------------------------------------------------------------------------------------------


def shard_schema(record: type = Sample) -> pa.Schema:
    """Columns of the parquet beside a tar: the record's, plus status (`ok` or `failed`), reason and detail."""
    status = pa.field("status", pa.string(), nullable=False)
    return pa.schema([*schema_of(record), status, pa.field("reason", pa.string()), pa.field("detail", pa.string())])


def is_committed(run: RunFolder, name: str, plan_hash: str) -> bool:
    """Whether the shard lies there whole, made from exactly this plan."""
    if not run.exists(f"{name}.parquet"):
        return False
    metadata = run.table_metadata(f"{name}.parquet")
    if metadata.get("plan_hash") != plan_hash:
        return False
    num_bytes = int(metadata["tar_num_bytes"])
    if num_bytes == 0:
        return not run.exists(f"{name}.tar")
    return run.exists(f"{name}.tar") and run.fs.size(run.path(f"{name}.tar")) == num_bytes


def write_shard(
    run: RunFolder,
    name: str,
    entries: Iterable[Entry],
    *,
    plan_hash: str,
    record: type = Sample,
    payload: str = "mp4",
    facts: Callable[[], dict[str, str]] = dict,
) -> ShardReport:
    """Write `<name>.tar`, then `<name>.parquet`, which commits it. Holds one shard in memory.

    Args:
        record: `Sample`, or `LatentSample` with payload="npy".
        payload: extension of the member whose sha256 goes into the row.
        facts: more to note in the parquet's metadata, asked once all entries are in the tar.

    Raises:
        OSError: the tar does not read back as it was written, or the storage failed; nothing is committed then.
        UsageError: a key appears twice or is not fit to be one.
    """
    tar, rows = _build_tar(f"{name}.tar", entries, record, payload)
    samples = [row for row in rows if row["status"] == "ok"]
    _verify_tar(tar, samples, payload)
    run.remove(f"{name}.parquet")  # from here on the old shard, if any, is no longer committed
    if samples:
        run.write_bytes(f"{name}.tar", tar)
    else:
        tar = b""  # readers stumble over tars without members, so there is none
        run.remove(f"{name}.tar")
    metadata = {
        "plan_hash": plan_hash,
        "tar_num_bytes": str(len(tar)),
        "tar_sha256": hashlib.sha256(tar).hexdigest(),
        "num_samples": str(len(samples)),
        **facts(),
    }
    run.write_table(f"{name}.parquet", pa.Table.from_pylist(rows, schema=shard_schema(record)), metadata)
    rejected: dict[str, int] = {}
    for row in rows:
        if row["status"] != "ok":
            rejected[row["reason"]] = rejected.get(row["reason"], 0) + 1
    return ShardReport(name=name, num_samples=len(samples), num_bytes=len(tar), rejected=rejected)


def write_latents_shard(run: RunFolder, name: str, entries: Iterable[Entry], *, plan_hash: str) -> ShardReport:
    """`write_shard` for `latent_entry`s; `name` from `latent_shard_name`. Notes what their channels come to."""
    statistics = ChannelStatistics()

    def counted() -> Iterator[Entry]:
        nonlocal statistics
        for entry in entries:
            statistics = statistics.merged(entry.statistics or ChannelStatistics())
            yield entry

    return write_shard(
        run,
        name,
        counted(),
        plan_hash=plan_hash,
        record=LatentSample,
        payload="npy",
        facts=lambda: {KEY: statistics.to_json()},
    )


def _build_tar(shard: str, entries: Iterable[Entry], record: type, payload: str) -> tuple[bytes, list[dict[str, Any]]]:
    from webdataset import TarWriter  # imports torch: only where it is used

    blank = {f.name: "" if pa.types.is_string(f.type) else 0 for f in schema_of(record) if not f.nullable}
    rows: list[dict[str, Any]] = []
    seen = set()
    sink = io.BytesIO()
    # mtime, owner and mode are pinned, members are sorted by extension: the same entries give the same bytes.
    with TarWriter(sink, user="", group="", mode=0o644, mtime=0, encoder=False) as writer:
        for entry in entries:
            check_key(entry.key)
            if entry.key in seen:
                raise UsageError(f"{shard}: {entry.key} comes twice")
            seen.add(entry.key)
            row = blank | entry.fields | {"clip_id": entry.key, "shard": shard}
            if entry.reason is not None:
                if entry.reason not in FAILURE_REASONS:
                    raise ValueError(f"{entry.reason = } is not in FAILURE_REASONS")
                rows.append(row | {"status": "failed", "reason": entry.reason, "detail": entry.detail})
                continue
            start = writer.tarstream.offset
            writer.write({"__key__": entry.key, **entry.members})
            rows.append(
                row
                | {"offset_bytes": start, "num_bytes": writer.tarstream.offset - start}
                | {"sha256": hashlib.sha256(payload_of(entry.members, payload)).hexdigest()}
                | {"status": "ok", "reason": None, "detail": ""}
            )
    return sink.getvalue(), rows


def _verify_tar(tar: bytes, samples: Sequence[dict[str, Any]], payload: str) -> None:
    """Open the bytes anew and hold them against the rows: every sample where it should be, whole, and nothing else."""
    found: list[tuple[str, int, dict[str, bytes]]] = []
    with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
        for member in archive:
            key, _, extension = member.name.partition(".")
            if not found or found[-1][0] != key:
                found.append((key, member.offset, {}))
            file = archive.extractfile(member)
            found[-1][2][extension] = file.read() if file else b""
    read = [(key, offset, hashlib.sha256(payload_of(parts, payload)).hexdigest()) for key, offset, parts in found]
    expected = [(row["clip_id"], row["offset_bytes"], row["sha256"]) for row in samples]
    if read != expected:
        raise OSError(f"a tar of {len(expected)} samples does not read back as it was written ({len(read)} found)")


# --- index ----------------------------------------------------------------------------------------------------------


def build_index(
    run: RunFolder, pattern: str = "shards/*/*.parquet", *, index: str = "index.parquet", record: type = Sample
) -> pa.Table:
    """Gather the rows of whole samples from all committed shards, sorted by (bucket, shard, offset), into `index`."""
    rows = run.read_tables(pattern, shard_schema(record))
    ok = pc.equal(rows["status"], "ok")
    table = rows.filter(ok).sort_by([("bucket", "ascending"), ("shard", "ascending"), ("offset_bytes", "ascending")])
    table = table.select(schema_of(record).names)
    run.write_table(index, table, {"num_samples": str(table.num_rows)})
    return table


def build_latents_index(run: RunFolder, compressor: str) -> pa.Table:
    """RUN/latents/<compressor>/index.parquet with the columns of `LatentSample`, and statistics.json beside it."""
    folder = f"latents/{compressor}"
    table = build_index(run, f"{folder}/*/*.parquet", index=f"{folder}/index.parquet", record=LatentSample)
    run.write_bytes(f"{folder}/{STATISTICS}", gather_statistics(run, folder))
    return table


def remove_stale(run: RunFolder, planned_names: Iterable[str], *, folder: str = "shards") -> list[str]:
    """Delete shards of an earlier plan that this one no longer names; returns their names (without extension)."""
    planned = set(planned_names)
    files = [*run.list(f"{folder}/*/*.parquet"), *run.list(f"{folder}/*/*.tar")]  # the commit marks go first
    stale = [f for f in files if f.rsplit(".", 1)[0] not in planned]
    for name in stale:
        run.remove(name)
    return sorted({f.rsplit(".", 1)[0] for f in stale})
