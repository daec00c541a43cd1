"""Checks of tar shards against their tables: members, offsets, sizes, sha256, order."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from recaption.ledger.problems import Problem
from recaption.run_folder import RunFolder

SHARD_MEMBERS = frozenset({"mp4", "json", "txt"})
"""Extensions that every sample of a video shard has."""
LATENT_MEMBERS = frozenset({"npy", "json"})
"""Extensions that every sample of a latent shard has."""


@dataclass(frozen=True)
class TarSample:
    """The members of one sample in a tar, and the bytes they occupy."""

    members: dict[str, tarfile.TarInfo]
    """By extension: what follows the first dot of the member's name."""
    start: int
    end: int
    """One past the padding of the last member."""


def payload_of(members: Mapping[str, bytes], payload: str) -> bytes:
    """The bytes that a sample's sha256 covers: the member `payload` and those that end in it (.scale.npy for npy)."""
    return b"".join(members[ext] for ext in sorted(members) if ext == payload or ext.endswith("." + payload))


def padded(num_bytes: int) -> int:
    """Bytes that a member of this size occupies: whole blocks."""
    return -(-num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _samples_of(tar: tarfile.TarFile) -> tuple[dict[str, TarSample], set[str]]:
    """Samples by key, and the keys whose members are not contiguous."""
    samples: dict[str, TarSample] = {}
    scattered: set[str] = set()
    previous = None
    for member in tar:
        key, _, extension = member.name.partition(".")
        end = member.offset_data + padded(member.size)
        if key not in samples:
            samples[key] = TarSample({extension: member}, member.offset, end)
        else:
            if key != previous or extension in samples[key].members:
                scattered.add(key)
            samples[key] = TarSample({**samples[key].members, extension: member}, samples[key].start, end)
        previous = key
    return samples, scattered


def _ends_in_zeros(file: BinaryIO, end_of_members: int) -> bool:
    """Whether only zeros follow, at least the two blocks that POSIX asks for. `tarfile` stops silently at a bad header."""
    file.seek(end_of_members)
    num_zeros = 0
    while block := file.read(1 << 20):
        if block.count(0) != len(block):
            return False
        num_zeros += len(block)
    return num_zeros >= 2 * tarfile.BLOCKSIZE


def check_tar(
    run: RunFolder,
    name: str,
    rows: Iterable[Mapping[str, Any]],
    *,
    extensions: frozenset[str] = SHARD_MEMBERS,
    payload: str = "mp4",
    sha256: str = "",
) -> Iterator[Problem]:
    """`check_tar_file` for one tar of a run.

    Args:
        sha256: of the whole tar, "" where it is not known. Compared last, for damage that the other checks cannot find.
    """
    with run.open(name) as file:
        problems = list(check_tar_file(file, name, rows, extensions=extensions, payload=payload))
        file.seek(0)
        if not problems and sha256 and _sha256_of(file) != sha256:
            detail = "its sha256 is not the one that was recorded when it was written"
            problems.append(Problem(kind="bytes_differ", where=name, detail=detail))
    yield from problems


def check_tar_file(
    file: BinaryIO, name: str, rows: Iterable[Mapping[str, Any]], *, extensions: frozenset[str], payload: str
) -> Iterator[Problem]:
    """Compare one tar with the rows of its table.

    Args:
        rows: columns of `Sample`, only those of samples that were written.
        extensions: members that every sample must have.
        payload: the member whose sha256 is in the row.
    """
    listed = {row["clip_id"]: row for row in rows}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            samples, scattered = _samples_of(tar)
            is_complete = _ends_in_zeros(file, tar.offset)
            problems = list(_check_samples(tar, name, samples, scattered, listed, extensions, payload))
    except (tarfile.TarError, OSError) as error:
        detail = f"cannot be read as a tar to its end: {error}"
        problems = [Problem(kind="shard_broken", where=name, detail=detail)]
    else:
        if not is_complete:
            detail = "cut or overwritten: there are no two blocks of zeros after its samples"
            problems = [Problem(kind="shard_broken", where=name, detail=detail)]
    yield from problems


def _sha256_of(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _check_samples(
    tar: tarfile.TarFile,
    name: str,
    samples: dict[str, TarSample],
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
            detail = "its members are not contiguous, so readers would see two incomplete samples"
            yield Problem(kind="keys_scattered", where=where, detail=detail)
        elif missing:
            detail = "missing " + ", ".join(f".{extension}" for extension in sorted(missing))
            yield Problem(kind="members_missing", where=where, detail=detail)
        elif key not in rows:
            detail = "in the tar, not in the shard's table"
            yield Problem(kind="sample_unlisted", where=where, detail=detail)
        else:
            yield from _check_members(tar, where, sample, rows[key], payload)


def _check_members(
    tar: tarfile.TarFile, where: str, sample: TarSample, row: Mapping[str, Any], payload: str
) -> Iterator[Problem]:
    span = (sample.start, sample.end - sample.start)
    listed = (row["offset_bytes"], row["num_bytes"])
    if span != listed:
        detail = f"offset and size are {span[0]} and {span[1]} bytes, in the table {listed[0]} and {listed[1]}"
        yield Problem(kind="offset_wrong", where=where, detail=detail)
    contents = {}
    for extension, member in sample.members.items():
        file = tar.extractfile(member)
        contents[extension] = file.read() if file is not None else b""
    if hashlib.sha256(payload_of(contents, payload)).hexdigest() != row["sha256"]:
        detail = f"the sha256 of its .{payload} is not the one in the table"
        yield Problem(kind="sha256_wrong", where=where, detail=detail)
    if "txt" in contents and contents["txt"].decode(errors="replace") != row["caption"]:
        yield Problem(kind="text_differs", where=where, detail="the .txt is not the caption in the table")
    try:
        json.loads(contents["json"])
    except ValueError as error:
        yield Problem(kind="json_unreadable", where=where, detail=f"the .json does not parse: {error}")
