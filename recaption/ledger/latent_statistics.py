"""RUN/latents/<compressor>/statistics.json: mean and std of each channel over all latents of the index.

Each shard's table carries the figures of its own latents; they are merged in the order of the shards' names, so the file
has the same bytes whatever the number of workers.

    statistics = ChannelStatistics.of(latent_CTHW).merged(ChannelStatistics.of(other_CTHW))
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

STATISTICS = "statistics.json"


KEY = "channel_statistics"
"""Metadata of a shard's table."""


INDEX_SCHEMA = pa.schema([("shard", pa.string()), ("latent_dtype", pa.string()), ("round_trip_psnr_db", pa.float64())])


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and spread of each channel over all values of some latents. Merged in one order it is the same to the bit."""

    num_values: int = 0
    """Per channel."""
    mean_C: tuple[float, ...] = ()
    squares_C: tuple[float, ...] = ()
    """Sum of squared distances from the mean."""

    @classmethod
    def of(cls, latent_CTHW: np.ndarray) -> ChannelStatistics:
        values_CN = latent_CTHW.reshape(len(latent_CTHW), -1).astype(np.float64)
        mean_C = values_CN.mean(axis=1)
        squares_C = np.square(values_CN - mean_C[:, None]).sum(axis=1)
        return cls(values_CN.shape[1], tuple(mean_C.tolist()), tuple(squares_C.tolist()))

    def merged(self, other: ChannelStatistics) -> ChannelStatistics:
        """Of both (Chan, Golub and LeVeque 1979, eq. 2.1), without the loss of digits that plain sums have."""
        if not self.num_values or not other.num_values:
            return self if self.num_values else other
        num_values = self.num_values + other.num_values
        apart_C = np.subtract(other.mean_C, self.mean_C)
        mean_C = np.add(self.mean_C, apart_C * (other.num_values / num_values))
        between_C = np.square(apart_C) * (self.num_values * other.num_values / num_values)
        squares_C = np.add(self.squares_C, other.squares_C) + between_C
        return ChannelStatistics(num_values, tuple(mean_C.tolist()), tuple(squares_C.tolist()))

    @property
    def std_C(self) -> tuple[float, ...]:
        return tuple(float(np.sqrt(s / self.num_values)) for s in self.squares_C)

    def to_json(self) -> str:
        return json.dumps({"num_values": self.num_values, "mean": self.mean_C, "squares": self.squares_C})

    @classmethod
    def from_json(cls, text: str) -> ChannelStatistics:
        found: dict[str, Any] = json.loads(text)
        return cls(found["num_values"], tuple(found["mean"]), tuple(found["squares"]))


def gather_statistics(run: RunFolder, folder: str) -> bytes:
    """The content of the file. `folder` is `latents/<compressor>`, whose index has been written.

    Raises:
        FileNotFoundError: the table of a shard that the index names is gone.
    """
    index = conform(run.read_table(f"{folder}/index.parquet"), INDEX_SCHEMA)
    statistics, num_unknown = ChannelStatistics(), 0
    for shard in sorted(set(index["shard"].to_pylist())):
        metadata = run.table_metadata(shard.removesuffix(".tar") + ".parquet")
        if KEY in metadata:
            statistics = statistics.merged(ChannelStatistics.from_json(metadata[KEY]))
        else:  # of a version that did not take them down
            num_unknown += int(metadata["num_samples"])
    psnr_db = pc.min_max(index["round_trip_psnr_db"]).as_py() | {"mean": pc.mean(index["round_trip_psnr_db"]).as_py()}
    document = {
        "num_samples": index.num_rows - num_unknown,
        "num_values_per_channel": statistics.num_values,
        "mean": statistics.mean_C,
        "std": statistics.std_C,
        "dtypes": sorted(set(index["latent_dtype"].to_pylist())),
        "round_trip_psnr_db": {name: round(value, 2) for name, value in psnr_db.items() if value is not None},
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def statistics_problems(run: RunFolder) -> Iterator[Problem]:
    """The shards that an index of latents names have their tables, and the file says what those tables come to."""
    for index in run.list("latents/*/index.parquet"):
        folder = index.removesuffix("/index.parquet")
        shards = set(conform(run.read_table(index), INDEX_SCHEMA)["shard"].to_pylist())
        lost = sorted(shard for shard in shards if not run.exists(shard.removesuffix(".tar") + ".parquet"))
        for shard in lost:
            if not run.exists(shard):  # with its tar there it is reported as unlisted
                detail = "the index of the latents lists samples in it, it is gone with its table"
                yield Problem(kind="shard_missing", where=shard, detail=detail)
        name = f"{folder}/{STATISTICS}"
        if lost or not any(KEY in run.table_metadata(shard.removesuffix(".tar") + ".parquet") for shard in shards):
            continue
        if not run.exists(name) or run.read_bytes(name) != gather_statistics(run, folder):
            detail = "not what the tables of its shards come to; run `recaption encode` again"
            yield Problem(kind="statistics_differ", where=name, detail=detail)
