"""Members of tars as inputs: what video2dataset, webdataset and our own `shard` write, read by their places, not unpacked.

    for span in videos_in("/data/00000.tar"): span.uri            # "tar+file:///data/00000.tar#000012.mp4"
    member_of("tar+s3://bucket/00000.tar#000012.mp4")             # ("s3://bucket/00000.tar", "000012.mp4")

Members with the key of a video (its name up to the first dot) accompany it: `.txt` is its caption, `.json` has a caption,
the source, the licence and metadata. Of a remote tar only the headers and what is wanted are fetched, in ranges.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import posixpath
import tarfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

from recaption.errors import UsageError, VideoError
from recaption.inputs.companions import is_companion, video_stems
from recaption.inputs.http import HttpFile, open_http
from recaption.inputs.lists.columns import find_columns
from recaption.inputs.lists.entries import ListEntry
from recaption.inputs.lists.listed import ListedSpan, texts_and_metadata
from recaption.inputs.names import HTTP, TAR, etag_of, local_path, protocol_of, remote_filesystem
from recaption.inputs.regular_file import open_regular_file
from recaption.inputs.text_encoding import decode_text

MAX_MEMBERS = 2_000_000
MAX_TEXT_BYTES, MAX_JSON_BYTES = 64 << 10, 1 << 20
"""Of the members that accompany a video; longer ones are left out."""
NUM_CACHED_INDICES = 8
HEADER_BLOCK_BYTES = 32 << 10
"""Of a remote tar, read at a time: most videos are longer, so that a header is one request."""
COPY_BYTES = 8 << 20
RANGE_TRIES, RANGE_BACKOFF_SECONDS = 4, 0.2
"""Of one range of a remote tar; four times as long before each further try."""
Index = dict[str, tuple[int, int]]
"""Name of a member -> (offset, bytes)."""
_indices: OrderedDict[tuple[str, str], Index] = OrderedDict()
"""By (tar, version of it)."""


def is_tar(name: str) -> bool:
    return name.lower().endswith(".tar")


def uri_of_member(tar_uri: str, name: str) -> str:
    """URI of a member of a tar, which `member_of` takes apart."""
    path = local_path(tar_uri)
    place = f"file://{quote(os.fsencode(path))}" if path is not None else tar_uri
    return f"{TAR}{place}#{quote(os.fsencode(name))}"


def member_of(uri: str) -> tuple[str, str] | None:
    """(URI of the tar, name of the member); None of what is no member of a tar."""
    if not uri.startswith(TAR):
        return None
    place, _, name = uri.removeprefix(TAR).partition("#")
    return place, unquote(name, errors="surrogateescape")


def videos_in(tar_uri: str) -> Iterator[ListedSpan | ListEntry]:
    """The videos of a tar, with what the members beside them say.

    Raises:
        UsageError: it cannot be read, or is no uncompressed tar.
    """
    try:
        with open_tar(tar_uri) as (file, version):
            index = index_of(file, tar_uri, version)
            for row, (name, members) in enumerate(_samples(index, file)):
                uri = uri_of_member(tar_uri, name)
                said = _said(file, index, members)
                yield ListedSpan(uri=uri, list_uri=tar_uri, row=row, **said)
    except VideoError as error:
        raise UsageError(f"{tar_uri}: the tar cannot be read: {error.detail}") from None


def _samples(index: Index, file: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """(name of a video, extension -> name of each member with its key), in the order of the tar."""
    by_key: dict[str, dict[str, str]] = {}
    for name in index:
        folder, base = posixpath.split(name)
        key, _, extension = base.partition(".")
        by_key.setdefault(posixpath.join(folder, key), {})[extension.lower()] = name
    stems = video_stems(posixpath.basename(name) for name in index)
    for members in by_key.values():
        for name in members.values():

            def read_head(num_bytes: int, name: str = name) -> bytes:
                return _read(file, index[name][0], min(num_bytes, index[name][1]))

            if not is_companion(posixpath.basename(name), stems, read_head):
                yield name, members


def _said(file: Any, index: Index, members: dict[str, str]) -> dict[str, Any]:
    """Fields of `ListedSpan` that the members beside a video have."""
    row: dict[str, Any] = {}
    text = _small(file, index, members.get("txt"), MAX_TEXT_BYTES)
    caption = (decode_text(text) or "").strip() if text else ""
    if data := _small(file, index, members.get("json"), MAX_JSON_BYTES):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(data)
            row = found if isinstance(found, dict) else {}
    if not row:
        return {"texts": (caption,)} if caption else {}
    columns = find_columns([*row, "id"], {"video": "", "start": "", "end": "", "span": ""}, "")
    said = texts_and_metadata(row, columns)
    return said | ({"texts": tuple(dict.fromkeys((caption, *said["texts"])))} if caption else {})


def _small(file: Any, index: Index, name: str | None, max_bytes: int) -> bytes:
    if name is None or index[name][1] > max_bytes:
        return b""
    return _read(file, *index[name])


def _read(file: Any, offset: int, num_bytes: int) -> bytes:
    file.seek(offset)
    return bytes(file.read(num_bytes))


# --- places -----------------------------------------------------------------------------------------------------------


def index_of(file: Any, tar_uri: str, version: str) -> Index:
    """Places of all members, from their headers; kept for the next member of the same tar.

    Raises:
        VideoError: unreadable, where it is none.
    """
    key = (tar_uri, version)
    if key not in _indices or not version:
        _indices[key] = _read_index(file, tar_uri)
        while len(_indices) > NUM_CACHED_INDICES:
            _indices.popitem(last=False)
    _indices.move_to_end(key)
    return _indices[key]


def _read_index(file: Any, tar_uri: str) -> Index:
    index: Index = {}
    try:
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps one object per member
                if member.isreg() and not member.issparse():
                    index[member.name] = (member.offset_data, member.size)
                if len(index) > MAX_MEMBERS:
                    raise VideoError("too_large", f"a tar of more than {MAX_MEMBERS} members", uri=tar_uri)
    except (tarfile.TarError, EOFError, ValueError) as error:
        detail = f"no uncompressed tar, or broken ({error}); a compressed one has to be unpacked"
        raise VideoError("unreadable", detail, uri=tar_uri) from None
    return index


def copy_member(uri: str, path: str, budget: Any) -> str:
    """Copy one member of a tar to a file; returns its etag, that of the tar.

    Args:
        budget: as of `download`: told the size and every block.

    Raises:
        VideoError: unreadable (no such tar or member), fetch_failed.
    """
    tar_uri, name = member_of(uri) or ("", "")
    with open_tar(tar_uri) as (file, version), open(path, "wb") as copy:
        index = index_of(file, tar_uri, version)
        if name not in index:
            raise VideoError("unreadable", f"{tar_uri} has no member {name!r} any more", uri=uri)
        offset, size = index[name]
        budget.set_size(size)
        while size:
            block = _read(file, offset, min(size, COPY_BYTES))
            if not block:
                raise VideoError("unreadable", "the tar breaks off inside of this member", uri=uri)
            copy.write(block)
            budget.relative_update(len(block))
            offset, size = offset + len(block), size - len(block)
        return version


def tar_etag(uri: str) -> str:
    """The etag of a member now, that of its tar; "" where it has none or is not there.

    Raises:
        VideoError: fetch_failed, where its host does not answer.
    """
    tar_uri, _ = member_of(uri) or ("", "")
    path = local_path(tar_uri)
    if path is not None:
        try:
            return _version_of(os.stat(path))
        except (OSError, ValueError):
            return ""
    with open_tar(tar_uri) as (_, version):
        return version


def _version_of(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


@contextlib.contextmanager
def open_tar(tar_uri: str) -> Iterator[tuple[Any, str]]:
    """(the tar, open for reading anywhere; what tells its version)."""
    path = local_path(tar_uri)
    if path is not None:
        with open_regular_file(path, tar_uri) as file:
            yield file, _version_of(os.fstat(file.fileno()))
    elif protocol_of(tar_uri) in HTTP:
        ranges = HttpRanges(tar_uri)
        yield io.BufferedReader(ranges, HEADER_BLOCK_BYTES), ranges.etag
    else:
        fs, remote_path = remote_filesystem(tar_uri)
        info = fs.info(remote_path)
        with fs.open(remote_path, "rb", block_size=HEADER_BLOCK_BYTES, cache_type="readahead") as remote:
            yield remote, etag_of(info)


class HttpRanges(io.RawIOBase):
    """A file on an HTTP server that is read in ranges.

    Raises:
        VideoError: as `open_http`, or unreadable where the server knows no ranges.
    """

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.uri, self.position = uri, 0
        self.size, self.etag = -1, ""
        self._fetch(0, 0)

    def _fetch(self, first: int, last: int) -> bytes:
        """The bytes from `first` up to and with `last`; one range is asked for `RANGE_TRIES` times."""
        for number in range(RANGE_TRIES):
            try:
                with open_http(self.uri, first_byte=first, last_byte=last) as remote:
                    self._check(remote)
                    return b"".join(remote.blocks())
            except VideoError as error:
                if error.reason != "fetch_failed" or number == RANGE_TRIES - 1:
                    raise
                time.sleep(max(RANGE_BACKOFF_SECONDS * 4**number, getattr(error, "wait_seconds", 0.0)))
        raise AssertionError

    def _check(self, remote: HttpFile) -> None:
        if not remote.is_range or remote.num_bytes is None:
            raise VideoError("unreadable", "its server does not serve ranges: download the tar", uri=self.uri)
        if self.size < 0:
            self.size, self.etag = remote.num_bytes, remote.etag
        if (self.size, self.etag) != (remote.num_bytes, remote.etag):
            raise VideoError("unreadable", "the tar changed while it was read", uri=self.uri)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        last = min(self.position + len(buffer), self.size) - 1
        if last < self.position:
            return 0
        data = self._fetch(self.position, last)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)
