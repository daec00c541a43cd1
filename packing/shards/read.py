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

from packing.shards.latent_codec import restore
from packing.shards.samples import LatentSample
from recaption.errors import VideoError
from recaption.ledger.tar_checks import payload_of
from recaption.records import Sample
from recaption.run_folder import RunFolder


def read_sample(run: RunFolder, row: Sample, *, payload: str = "mp4", check: bool = True) -> dict[str, bytes]:
    """Members of one sample, extension (without dot) -> bytes, by one ranged read of its tar.

    Args:
        payload: the member that `row.sha256` belongs to.
        check: compare the sha256, which takes as long as all the rest.

    Raises:
        VideoError: the tar is gone or too short (`unreadable`, `truncated`), or holds other bytes (`frame_mismatch`).
    """
    where = f"{row.shard}#{row.clip_id}"
    try:
        span = run.read_span(row.shard, row.offset_bytes, row.offset_bytes + row.num_bytes)
    except FileNotFoundError as error:
        raise VideoError("unreadable", "the shard is not there", uri=where) from error
    if len(span) != row.num_bytes:
        raise VideoError("truncated", f"the shard ends {row.num_bytes - len(span)} bytes early", uri=where)
    members = {}
    for name, start, size in _members(span, where):
        key, _, extension = name.partition(".")
        if key != row.clip_id:
            raise VideoError("frame_mismatch", f"{name} lies in its place", uri=where)
        members[extension] = span[start : start + size]
    if check and hashlib.sha256(payload_of(members, payload)).hexdigest() != row.sha256:
        raise VideoError("frame_mismatch", f"the .{payload} member is not the one that was written", uri=where)
    return members


def _members(span: bytes, where: str) -> Iterator[tuple[str, int, int]]:
    """(name, start, size) of each member of whole tar blocks.

    The headers that `shards` writes have a short name and an octal size at fixed places; `tarfile`, which can read all
    others, takes longer to read one than the latent behind it, so it is asked for those only.
    """
    start = 0
    while start < len(span) and span[start]:
        header = span[start : start + tarfile.BLOCKSIZE]
        digits = header[124:135]
        if header[257:262] != b"ustar" or header[156:157] != tarfile.REGTYPE or not digits.isdigit() or header[345]:
            yield from _members_by_tarfile(span, start, where)
            return
        size = int(digits, 8)
        yield header[:100].rstrip(b"\0").decode(errors="replace"), start + tarfile.BLOCKSIZE, size
        start += tarfile.BLOCKSIZE + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _members_by_tarfile(span: bytes, start: int, where: str) -> Iterator[tuple[str, int, int]]:
    try:
        with tarfile.open(fileobj=io.BytesIO(span[start:]), mode="r:") as archive:
            for member in archive:
                if not member.isfile():
                    raise VideoError("frame_mismatch", f"{member.name} lies in its place", uri=where)
                yield member.name, start + member.offset_data, member.size
    except tarfile.TarError as error:
        raise VideoError("unreadable", f"no tar header where the index says: {error}", uri=where) from error


def read_latent(run: RunFolder, row: LatentSample, *, check: bool = True) -> np.ndarray:
    """latent_CTHW of one sample, float16 or float32 (see latent_codec.py), writable.

    Raises:
        VideoError: as `read_sample`, also for a type or shape other than the row's.
    """
    members = read_sample(run, row, payload="npy", check=check)
    shape = (row.latent_channels, row.latent_frames, row.latent_height, row.latent_width)
    try:
        return restore(members, row.latent_dtype, shape)
    except ValueError as error:
        raise VideoError(
            "unreadable", f"no latent lies in its place: {error}", uri=f"{row.shard}#{row.clip_id}"
        ) from error


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
