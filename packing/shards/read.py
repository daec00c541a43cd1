"""Read one sample of a shard by its row in the index. (webdataset and tarfile read whole shards.)

sample = from_table(run.read_table("index.parquet"), Sample)[0]
read_sample(run, sample)["mp4"]                         # one ranged read, checked against the sha256 of the index
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator

import numpy as np

from packing.shards.latent_codec import decode_latent
from packing.shards.samples import LatentSample
from recaption.errors import VideoError
from recaption.ledger.tar_checks import padded, payload_of
from recaption.records import Sample
from recaption.run_folder import RunFolder


def read_sample(run: RunFolder, sample: Sample, *, payload: str = "mp4", check: bool = True) -> dict[str, bytes]:
    """Members of one sample, extension (without dot) -> bytes, by one ranged read of its tar.

    Args:
        payload: the member that `sample.sha256` belongs to.
        check: compare the sha256, which doubles the time.

    Raises:
        OutsideRunError: its shard is not in the run folder.
        VideoError: the tar is missing or too short (`unreadable`, `truncated`), or has other bytes (`frame_mismatch`).
    """
    where = f"{sample.shard}#{sample.clip_id}"
    if sample.offset_bytes < 0 or sample.num_bytes <= 0:
        raise VideoError("unreadable", f"{sample.offset_bytes = }, {sample.num_bytes = }: no place in a tar", uri=where)
    try:
        span = run.read_span(sample.shard, sample.offset_bytes, sample.offset_bytes + sample.num_bytes)
    except FileNotFoundError as error:
        raise VideoError("unreadable", "the shard is not there", uri=where) from error
    if len(span) != sample.num_bytes:
        raise VideoError("truncated", f"the shard ends {sample.num_bytes - len(span)} bytes early", uri=where)
    members = {}
    for name, start, size in _members(span, where):
        key, _, extension = name.partition(".")
        if key != sample.clip_id:
            raise VideoError("frame_mismatch", f"{name} is in its place", uri=where)
        members[extension] = span[start : start + size]
    if check and hashlib.sha256(payload_of(members, payload)).hexdigest() != sample.sha256:
        raise VideoError("frame_mismatch", f"the .{payload} member is not the one that was written", uri=where)
    return members


def _members(span: bytes, where: str) -> Iterator[tuple[str, int, int]]:
    """(name, start, size) of each member of whole tar blocks.

    The headers that `write` makes have a short name and an octal size at fixed offsets. `tarfile` takes longer to parse one
    than to read the latent behind it, so it is used for other headers only.
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
        start += tarfile.BLOCKSIZE + padded(size)


def _members_by_tarfile(span: bytes, start: int, where: str) -> Iterator[tuple[str, int, int]]:
    try:
        with tarfile.open(fileobj=io.BytesIO(span[start:]), mode="r:") as archive:
            for member in archive:
                if not member.isfile():
                    raise VideoError("frame_mismatch", f"{member.name} is in its place", uri=where)
                yield member.name, start + member.offset_data, member.size
    except tarfile.TarError as error:
        raise VideoError("unreadable", f"no tar header where the index says: {error}", uri=where) from error


def read_latent(run: RunFolder, sample: LatentSample, *, check: bool = True) -> np.ndarray:
    """latent_CTHW of one sample, float16 or float32 (see latent_codec.py), writable.

    Raises:
        VideoError: as `read_sample`, also for a type or shape other than in the index.
    """
    members = read_sample(run, sample, payload="npy", check=check)
    shape = (sample.latent_channels, sample.latent_frames, sample.latent_height, sample.latent_width)
    try:
        return decode_latent(members, sample.latent_dtype, shape)
    except ValueError as error:
        raise VideoError(
            "unreadable", f"no latent is in its place: {error}", uri=f"{sample.shard}#{sample.clip_id}"
        ) from error
