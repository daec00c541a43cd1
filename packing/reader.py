"""Read shards back: one sample by its place in the index, or whole tars in order the WebDataset way.

row = from_table(run.read_table("index.parquet"), Sample)[0]
read_sample(run, row)["mp4"]                            # one ranged read, checked against the row's sha256
for sample in iterate(run): sample["__key__"], sample["mp4"], sample["json"], sample["txt"]
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from packing.shards import LatentSample
from recaption.errors import VideoError
from recaption.records import Sample
from recaption.run_folder import RunFolder


def read_sample(run: RunFolder, row: Sample, *, payload: str = "mp4") -> dict[str, bytes]:
    """Members of one sample, extension (without dot) -> bytes, by one ranged read of its tar.

    Args:
        payload: the member that `row.sha256` belongs to.

    Raises:
        VideoError: the tar is gone or too short (`unreadable`, `truncated`), or holds other bytes (`frame_mismatch`).
    """
    where = f"{row.shard}#{row.clip_id}"
    try:
        span = run.fs.cat_file(run.path(row.shard), start=row.offset_bytes, end=row.offset_bytes + row.num_bytes)
    except FileNotFoundError as error:
        raise VideoError("unreadable", "the shard is not there", uri=where) from error
    if len(span) != row.num_bytes:
        raise VideoError("truncated", f"the shard ends {row.num_bytes - len(span)} bytes early", uri=where)
    members = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(span), mode="r:") as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                file = archive.extractfile(member)
                if key != row.clip_id or file is None:
                    raise VideoError("frame_mismatch", f"{member.name} lies in its place", uri=where)
                members[extension] = file.read()
    except tarfile.TarError as error:
        raise VideoError("unreadable", f"no tar header where the index says: {error}", uri=where) from error
    if hashlib.sha256(members.get(payload, b"")).hexdigest() != row.sha256:
        raise VideoError("frame_mismatch", f"the .{payload} member is not the one that was written", uri=where)
    return members


def read_latent(run: RunFolder, row: LatentSample) -> np.ndarray:
    """latent_CTHW float16 of one sample. Raises VideoError as `read_sample`, also for a shape other than the row's."""
    where = f"{row.shard}#{row.clip_id}"
    latent = np.load(io.BytesIO(read_sample(run, row, payload="npy")["npy"]), allow_pickle=False)
    expected = (row.latent_channels, row.latent_frames, row.latent_height, row.latent_width)
    if latent.shape != expected:
        raise VideoError("frame_mismatch", f"latent {latent.shape} where the index says {expected}", uri=where)
    return latent


def iterate(run: RunFolder, pattern: str = "shards/*/*.tar") -> Iterator[dict[str, Any]]:
    """All samples of all tars that match, in name order: dicts of WebDataset (`__key__`, then extension -> bytes).

    Raises:
        VideoError: `truncated`, where a tar yields another number of samples than its parquet says. (A tar cut between
            two members reads without any error of its own.)
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander  # imports torch: only where it is used

    for name in run.list(pattern):
        marker = name.removesuffix(".tar") + ".parquet"
        expected = int(run.table_metadata(marker)["num_samples"]) if run.exists(marker) else None
        num_samples = 0
        with run.fs.open(run.path(name), "rb") as stream:
            try:
                for sample in group_by_keys(tar_file_expander([{"url": name, "stream": stream}])):
                    num_samples += 1
                    yield sample
            except tarfile.TarError as error:
                raise VideoError("truncated", str(error.args[0]), uri=name) from error
        if expected is not None and num_samples != expected:
            raise VideoError("truncated", f"{num_samples} samples where {expected} were written", uri=name)
