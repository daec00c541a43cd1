"""Write shards: one WebDataset tar with samples of one bucket, and a parquet with the offset of each sample.

    for shard in plan_shards(clips, table)[0]:                             # plan.py
        key = plan_hash(shard, recipe_hash)
        if not is_committed(run, shard.name, key):
            write_shard(run, shard.name, entries, plan_hash=key)           # of video_entry(...) or failed_entry(...)
    remove_stale_shards(run, [s.name for s in shards])
    build_index(run)

Members `<clip_id>.json .mp4 .txt` (latents: `.json .npy`, see latent_codec.py) are adjacent, in plain ustar with mtime 0,
so that any tar or WebDataset reader opens them and the same clips give the same bytes. The parquet is written last and marks
the commit: a shard without it, or with another `plan_hash` in its metadata, is rewritten. Writes video and latent shards.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from packing.shards.plan import check_key
from packing.shards.samples import Entry, LatentSample
from recaption.errors import FAILURE_REASONS, UsageError
from recaption.ledger.latent_statistics import STATISTICS_KEY, ChannelStatistics
from recaption.ledger.tar_checks import LATENT_MEMBERS, SHARD_MEMBERS, check_tar_file, payload_of
from recaption.records import Sample, schema_of, shard_schema
from recaption.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """Counts of one written shard."""

    name: str
    num_samples: int
    num_bytes: int
    rejected: dict[str, int]
    """Failure reason -> number of clips."""


def write_shard(
    run: RunFolder,
    name: str,
    entries: Iterable[Entry],
    *,
    plan_hash: str,
    record: type = Sample,
    payload: str = "mp4",
    extra_metadata: Callable[[], dict[str, str]] = dict,
) -> ShardReport:
    """Write `<name>.tar`, then `<name>.parquet`, which commits it. Holds one shard in memory.

    Args:
        record: `Sample`, or `LatentSample` with payload="npy".
        payload: extension of the member whose sha256 goes into the row.
        extra_metadata: of the parquet; called once all entries are in the tar.

    Raises:
        OSError: the tar does not read back as it was written, or the storage failed; nothing is committed then.
        UsageError: a key appears twice or is malformed.
    """
    tar, rows = _build_tar(f"{name}.tar", entries, record, payload)
    samples = [row for row in rows if row["status"] == "ok"]
    verify_tar(f"{name}.tar", tar, samples, payload)
    run.remove(f"{name}.parquet")  # from here on the old shard, if any, is no longer committed
    if samples:
        run.write_bytes(f"{name}.tar", tar)
    else:
        tar = b""  # readers fail on tars without members, so there is none
        run.remove(f"{name}.tar")
    metadata = {
        "plan_hash": plan_hash,
        "tar_num_bytes": str(len(tar)),
        "tar_sha256": hashlib.sha256(tar).hexdigest(),
        "num_samples": str(len(samples)),
        **extra_metadata(),
    }
    run.write_table(f"{name}.parquet", pa.Table.from_pylist(rows, schema=shard_schema(record)), metadata)
    rejected: dict[str, int] = {}
    for row in rows:
        if row["status"] != "ok":
            rejected[row["reason"]] = rejected.get(row["reason"], 0) + 1
    return ShardReport(name=name, num_samples=len(samples), num_bytes=len(tar), rejected=rejected)


def write_latents_shard(run: RunFolder, name: str, entries: Iterable[Entry], *, plan_hash: str) -> ShardReport:
    """`write_shard` for `latent_entry`s; `name` from `latent_shard_name`. Adds their channel statistics to the metadata."""
    statistics = ChannelStatistics()

    def counting() -> Iterator[Entry]:
        nonlocal statistics
        for entry in entries:
            statistics = statistics.merged(entry.statistics or ChannelStatistics())
            yield entry

    return write_shard(
        run,
        name,
        counting(),
        plan_hash=plan_hash,
        record=LatentSample,
        payload="npy",
        extra_metadata=lambda: {STATISTICS_KEY: statistics.to_json()},
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
                raise UsageError(f"{shard}: {entry.key} is there twice")
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
                | {"status": "ok", "reason": None, "detail": entry.detail}
            )
    return sink.getvalue(), rows


def end_of_tar(num_bytes: int) -> bytes:
    """What follows the members of a tar, as `tarfile` writes it: two blocks of zeros, then zeros up to a whole record."""
    end = num_bytes + 2 * tarfile.BLOCKSIZE
    return bytes(-(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - num_bytes)


def verify_tar(name: str, tar: bytes, samples: Sequence[dict[str, Any]], payload: str) -> None:
    """Read the bytes again as `recaption verify` does: every sample at its offset, complete, and nothing else."""
    extensions = LATENT_MEMBERS if payload == "npy" else SHARD_MEMBERS
    for problem in check_tar_file(io.BytesIO(tar), name, samples, extensions=extensions, payload=payload):
        raise OSError(f"a tar of {len(samples)} samples does not read back as it was written: {problem.detail}")
