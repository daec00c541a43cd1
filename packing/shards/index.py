"""The index over all committed shards, and the removal of stale ones."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from packing.shards.samples import LatentSample
from recaption.ledger.latent_statistics import STATISTICS_FILE, merge_shard_statistics
from recaption.records import Sample, schema_of, shard_schema
from recaption.run_folder import RunFolder


def is_committed(run: RunFolder, name: str, plan_hash: str) -> bool:
    """Whether the shard is complete and made from exactly this plan."""
    if not run.exists(f"{name}.parquet"):
        return False
    metadata = run.table_metadata(f"{name}.parquet")
    if metadata.get("plan_hash") != plan_hash:
        return False
    num_bytes = int(metadata["tar_num_bytes"])
    if num_bytes == 0:
        return not run.exists(f"{name}.tar")
    return run.exists(f"{name}.tar") and run.size(f"{name}.tar") == num_bytes


def build_index(
    run: RunFolder, pattern: str = "shards/*/*.parquet", *, index: str = "index.parquet", record: type = Sample
) -> pa.Table:
    """Write `index`: the rows of all samples in committed shards, without failed ones, sorted by (bucket, shard, offset)."""
    rows = run.read_tables(pattern, shard_schema(record))
    ok = pc.equal(rows["status"], "ok")
    table = rows.filter(ok).sort_by([("bucket", "ascending"), ("shard", "ascending"), ("offset_bytes", "ascending")])
    table = table.select(schema_of(record).names)
    run.write_table(index, table, {"num_samples": str(table.num_rows)})
    return table


def build_latents_index(run: RunFolder, compressor: str) -> pa.Table:
    """Write index.parquet (columns of `LatentSample`) and statistics.json in RUN/latents/<compressor>."""
    folder = f"latents/{compressor}"
    table = build_index(run, f"{folder}/*/*.parquet", index=f"{folder}/index.parquet", record=LatentSample)
    run.write_bytes(f"{folder}/{STATISTICS_FILE}", merge_shard_statistics(run, folder))
    return table


def remove_stale_shards(run: RunFolder, planned_names: Iterable[str], *, folder: str = "shards") -> list[str]:
    """Delete shards that the current plan does not contain; returns their names (without extension)."""
    planned = set(planned_names)
    files = [*run.list(f"{folder}/*/*.parquet"), *run.list(f"{folder}/*/*.tar")]  # the commit marks go first
    stale = [f for f in files if f.rsplit(".", 1)[0] not in planned]
    for name in stale:
        run.remove(name)
    return sorted({f.rsplit(".", 1)[0] for f in stale})
