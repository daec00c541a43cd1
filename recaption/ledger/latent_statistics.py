"""Per-channel mean and std of latents: RUN/latents/<compressor>/statistics.json, over all latents of the index.

Each shard's table has the statistics of its own latents in its metadata; they are merged in the order of the shards'
names, so the file has the same bytes whatever the number of workers.

    statistics = ChannelStatistics.from_latent(latent_CTHW).merged(ChannelStatistics.from_latent(other_CTHW))
    statistics.mean_C, statistics.std_C
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recaption.ledger.problems import Problem
from recaption.records import conform
from recaption.run_folder import RunFolder

STATISTICS_FILE = "statistics.json"
STATISTICS_KEY = "channel_statistics"
"""Metadata key of a shard's table: the JSON of its `ChannelStatistics`."""
LATENT_INDEX_SCHEMA = pa.schema(
    [("shard", pa.string()), ("latent_dtype", pa.string()), ("round_trip_psnr_db", pa.float64())]
)
"""Columns of an index of latents that statistics need."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and sum of squared deviations per channel. Bit-identical when merged in the same order."""

    num_values: int = 0
    """Per channel."""
    mean_C: tuple[float, ...] = ()
    squared_deviations_C: tuple[float, ...] = ()
    """Sum of squared deviations from the mean (M2 of Welford's algorithm)."""

    @classmethod
    def from_latent(cls, latent_CTHW: np.ndarray) -> ChannelStatistics:
        """Statistics of one latent."""
        values_CN = latent_CTHW.reshape(len(latent_CTHW), -1).astype(np.float64)
        mean_C = values_CN.mean(axis=1)
        squared_deviations_C = np.square(values_CN - mean_C[:, None]).sum(axis=1)
        return cls(values_CN.shape[1], tuple(mean_C.tolist()), tuple(squared_deviations_C.tolist()))

    def merged(self, other: ChannelStatistics) -> ChannelStatistics:
        """Statistics over both (Chan, Golub and LeVeque 1979, eq. 2.1); more exact than plain sums."""
        if not self.num_values or not other.num_values:
            return self if self.num_values else other
        num_values = self.num_values + other.num_values
        delta_C = np.subtract(other.mean_C, self.mean_C)
        mean_C = np.add(self.mean_C, delta_C * (other.num_values / num_values))
        between_C = np.square(delta_C) * (self.num_values * other.num_values / num_values)
        squared_deviations_C = np.add(self.squared_deviations_C, other.squared_deviations_C) + between_C
        return ChannelStatistics(num_values, tuple(mean_C.tolist()), tuple(squared_deviations_C.tolist()))

    @property
    def std_C(self) -> tuple[float, ...]:
        return tuple(float(np.sqrt(s / self.num_values)) for s in self.squared_deviations_C)

    def to_json(self) -> str:
        return json.dumps({"num_values": self.num_values, "mean": self.mean_C, "squares": self.squared_deviations_C})

    @classmethod
    def from_json(cls, text: str) -> ChannelStatistics:
        found: dict[str, Any] = json.loads(text)
        return cls(found["num_values"], tuple(found["mean"]), tuple(found["squares"]))


def merge_shard_statistics(run: RunFolder, folder: str) -> bytes:
    """Content of statistics.json. `folder` is `latents/<compressor>`, whose index has been written.

    Raises:
        FileNotFoundError: the table of a shard in the index is missing.
        ValueError: the table of a shard has no statistics in its metadata.
    """
    index = conform(run.read_table(f"{folder}/index.parquet"), LATENT_INDEX_SCHEMA)
    statistics = ChannelStatistics()
    for shard in sorted(set(index["shard"].to_pylist())):
        table = shard.removesuffix(".tar") + ".parquet"
        metadata = run.table_metadata(table)
        if STATISTICS_KEY not in metadata:
            raise ValueError(f"{table} has no {STATISTICS_KEY} in its metadata")
        statistics = statistics.merged(ChannelStatistics.from_json(metadata[STATISTICS_KEY]))
    psnr_db = pc.min_max(index["round_trip_psnr_db"]).as_py() | {"mean": pc.mean(index["round_trip_psnr_db"]).as_py()}
    document = {
        "num_samples": index.num_rows,
        "num_values_per_channel": statistics.num_values,
        "mean": statistics.mean_C,
        "std": statistics.std_C,
        "dtypes": sorted(set(index["latent_dtype"].to_pylist())),
        "round_trip_psnr_db": {name: round(value, 2) for name, value in psnr_db.items() if value is not None},
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def check_statistics(run: RunFolder) -> Iterator[Problem]:
    """Every shard in an index of latents has its table, and statistics.json is what those tables give."""
    for index in run.list("latents/*/index.parquet"):
        folder = index.removesuffix("/index.parquet")
        shards = set(conform(run.read_table(index), LATENT_INDEX_SCHEMA)["shard"].to_pylist())
        without_table = sorted(shard for shard in shards if not run.exists(shard.removesuffix(".tar") + ".parquet"))
        for shard in without_table:
            if not run.exists(shard):  # where its tar exists it is reported as unlisted
                detail = "the index of the latents lists samples in it, but the shard and its table are missing"
                yield Problem(kind="shard_missing", where=shard, detail=detail)
        name = f"{folder}/{STATISTICS_FILE}"
        if without_table:
            continue
        try:
            expected = merge_shard_statistics(run, folder)
        except ValueError as error:
            yield Problem(kind="statistics_differ", where=name, detail=f"cannot be checked: {error}")
            continue
        if not run.exists(name) or run.read_bytes(name) != expected:
            detail = "differs from the statistics in the tables of its shards; run `recaption encode` again"
            yield Problem(kind="statistics_differ", where=name, detail=detail)
