"""Takes samples out of shards and latents: the bytes of the other samples are copied, nothing is encoded again.

Of a shard two files change, and a kill can come between them. So the new table is written beside the old one first, then the
tar, then the table: where the tar is the one that the new table describes, what was killed only has to be finished.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.encode.encode import latents_key
from jobs.recipe.settings import Recipe
from jobs.remove.targets import Targets
from packing.shards.read import read_latent
from packing.shards.samples import LatentSample, latent_shard_name
from packing.shards.write import end_of_tar, verify_tar
from recaption.errors import StorageError
from recaption.ledger.latent_statistics import STATISTICS_KEY, ChannelStatistics
from recaption.records import from_table
from recaption.run_folder import RunFolder

NEXT = ".next"
"""`<shard>.next`: the table that a shard is about to have."""


@dataclass(frozen=True)
class _NewShard:
    """What a shard becomes."""

    tar: bytes
    table: pa.Table
    metadata: dict[str, str]


def remove_samples(run: RunFolder, targets: Targets, recipe: Recipe) -> tuple[int, list[str]]:
    """Take the targets' samples out of all shards and latents; returns (samples of videos, names of the shards)."""
    for name in run.list(f"shards/*/*{NEXT}") + run.list(f"latents/*/*/*{NEXT}"):
        _finish(run, name.removesuffix(NEXT))
    for tar in run.list("shards/*/*.tar") + run.list("latents/*/*/*.tar"):
        if not run.exists(tar.removesuffix(".tar") + ".parquet"):  # not committed: nothing says what is in it
            run.remove(tar)
    compressors = sorted({name.split("/")[1] for name in run.list("latents/*/*/*.parquet")})
    num_samples = 0
    changed: list[str] = []
    for name in (table.removesuffix(".parquet") for table in run.list("shards/*/*.parquet")):
        new, num_gone = _without(run, name, targets, payload="mp4")
        if new is None:
            continue
        old_sha256 = run.table_metadata(f"{name}.parquet").get("tar_sha256", "")
        for compressor in compressors:  # before the shard, whose old sha256 tells whether they were made from it
            keys = [latents_key(recipe, compressor, sha256) for sha256 in (old_sha256, new.metadata["tar_sha256"])]
            _rewrite_latents(run, latent_shard_name(compressor, f"{name}.tar"), targets, keys[0], keys[1])
        _replace(run, name, new)
        num_samples, changed = num_samples + num_gone, [*changed, name]
    for name in (table.removesuffix(".parquet") for table in run.list("latents/*/*/*.parquet")):
        _rewrite_latents(run, name, targets, "", "")  # of shards that no longer exist, or were written anew meanwhile
    return num_samples, changed


def _rewrite_latents(run: RunFolder, name: str, targets: Targets, old_key: str, new_key: str) -> None:
    """Take samples out of a latent shard. If it was made from the shard as it was (`old_key`), it is from the new one."""
    if not run.exists(f"{name}.parquet"):
        return
    plan_hash = run.table_metadata(f"{name}.parquet").get("plan_hash")
    new, _ = _without(run, name, targets, payload="npy")
    if new is not None:
        _replace(
            run, name, replace(new, metadata=new.metadata | {"plan_hash": new_key if plan_hash == old_key else ""})
        )


def _without(run: RunFolder, name: str, targets: Targets, *, payload: str) -> tuple[_NewShard | None, int]:
    """(the shard without the targets' samples, how many those are); (None, 0) where it has none of their rows."""
    table = run.read_table(f"{name}.parquet")
    is_theirs = targets.has_clip(table["clip_id"])
    if not pc.any(is_theirs).as_py():
        return None, 0
    kept = table.filter(pc.invert(is_theirs))
    is_written = pc.equal(table["status"], "ok")
    num_gone = pc.sum(pc.and_(is_theirs, is_written)).as_py() or 0
    body, offsets = io.BytesIO(), []
    rows = kept.to_pylist()
    for row in rows:
        offsets.append(body.tell() if row["status"] == "ok" else row["offset_bytes"])
        if row["status"] == "ok":
            start = row["offset_bytes"]
            body.write(run.read_span(f"{name}.tar", start, start + row["num_bytes"]))
    tar = body.getvalue() + end_of_tar(body.tell()) if body.tell() else b""
    position = kept.schema.get_field_index("offset_bytes")
    kept = kept.set_column(position, kept.schema.field(position), pa.array(offsets, pa.int64()))
    samples = [row for row in kept.to_pylist() if row["status"] == "ok"]
    if samples:
        try:
            verify_tar(f"{name}.tar", tar, samples, payload)
        except OSError as error:
            raise StorageError(
                f"{run.path(name)}.tar is damaged, run `recaption verify --repair` first: {error}"
            ) from error
    metadata = run.table_metadata(f"{name}.parquet") | {
        "plan_hash": "",
        "tar_num_bytes": str(len(tar)),
        "tar_sha256": hashlib.sha256(tar).hexdigest(),
        "num_samples": str(len(samples)),
    }
    if STATISTICS_KEY in metadata:
        metadata[STATISTICS_KEY] = _statistics(run, table.filter(pc.and_(is_written, pc.invert(is_theirs))))
    return _NewShard(tar, kept, metadata), num_gone


def _statistics(run: RunFolder, rows: pa.Table) -> str:
    statistics = ChannelStatistics()
    for row in from_table(rows, LatentSample):
        statistics = statistics.merged(ChannelStatistics.from_latent(read_latent(run, row)))
    return statistics.to_json()


def _replace(run: RunFolder, name: str, new: _NewShard) -> None:
    if not new.table.num_rows:
        run.remove(f"{name}.parquet")
        run.remove(f"{name}.tar")
        return
    sink = io.BytesIO()
    encoded = {k.encode(): v.encode() for k, v in new.metadata.items()}
    pq.write_table(new.table.replace_schema_metadata(encoded), sink, compression="zstd")
    run.write_bytes(name + NEXT, sink.getvalue())
    if new.tar:
        run.write_bytes(f"{name}.tar", new.tar)
    else:
        run.remove(f"{name}.tar")
    _finish(run, name)


def _finish(run: RunFolder, name: str) -> None:
    """Make the next table the table of a shard if its tar is already the new one; forget it otherwise."""
    sha256 = hashlib.sha256(run.read_bytes(f"{name}.tar") if run.exists(f"{name}.tar") else b"").hexdigest()
    if run.table_metadata(name + NEXT)["tar_sha256"] == sha256:
        run.write_table(f"{name}.parquet", run.read_table(name + NEXT), run.table_metadata(name + NEXT))
    run.remove(name + NEXT)
