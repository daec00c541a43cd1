"""Opens an input as the bytes that were hashed: local files in place, remote ones as a download.

    with open_input("a.mp4", expected=state) as opened:      # VideoError("source_changed") if it has other bytes now
        opened.file, opened.video_id()                        # one open descriptor from here on; no name is looked up again
        opened.check_unchanged()                              # after reading: nobody wrote to it meanwhile

Of a local file size, mtime, ctime and inode are recorded. Where all four are as they were, the bytes are; where one differs
(the file was touched, copied or restored), the bytes are hashed, and only other bytes are `source_changed`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from recaption.errors import VideoError
from recaption.inputs.download import downloaded
from recaption.inputs.names import local_path
from recaption.inputs.regular_file import open_regular_file
from recaption.records import Video

MAX_INPUT_BYTES = 32 << 30
"""Of a download: 10 hours of 1080p at 7 Mbit/s."""
MAX_FETCH_SECONDS = 3600.0
"""Of a download: 32 GB at 9 MB/s."""
NUM_CACHED_HASHES = 100_000
"""About 30 MB."""
SETTLED_NS = 2_000_000_000
"""A hash is cached only of a file that was not written so shortly before: file times tick in steps of milliseconds."""
_hashes: OrderedDict[tuple[int, ...], str] = OrderedDict()


@dataclass(frozen=True, kw_only=True, slots=True)
class InputState:
    """What identifies the bytes of an input, and what tells cheaply that they are the same."""

    video_id: str = ""
    """First 16 hex digits of their sha256; "" where it is not known."""
    num_bytes: int = 0
    mtime_ns: int = 0
    """Of a local file, like the two below; 0 of a remote one."""
    ctime_ns: int = 0
    inode: int = 0
    etag: str = ""
    """Of a remote file, where its storage has one."""

    @classmethod
    def of(cls, video: Video) -> InputState:
        """The state that `prepare` recorded."""
        return cls(**{name: getattr(video, name) for name in cls.__dataclass_fields__})

    def has_same_stat(self, other: InputState) -> bool:
        """Whether size, times and inode of a local file are equal, and known."""
        mine = (self.num_bytes, self.mtime_ns, self.ctime_ns, self.inode)
        return bool(self.inode) and mine == (other.num_bytes, other.mtime_ns, other.ctime_ns, other.inode)


class OpenedInput:
    """One input, open for reading."""

    def __init__(self, uri: str, file: BinaryIO, *, etag: str = "", is_local: bool = True, video_id: str = "") -> None:
        self.uri, self.file, self.is_local = uri, file, is_local
        self._status = os.fstat(file.fileno())
        self._video_id, self._etag = video_id, etag

    def video_id(self) -> str:
        """Hash of the bytes; read once, and not at all where the file is as it was when it was hashed."""
        if not self._video_id:
            key = _stat_key(self._status)
            is_settled = time.time_ns() - self._status.st_ctime_ns > SETTLED_NS
            self._video_id = (_hashes.get(key, "") if is_settled else "") or video_id_of(self.file)
            self.check_unchanged()
            if is_settled:
                _hashes[key] = self._video_id
                while len(_hashes) > NUM_CACHED_HASHES:
                    _hashes.popitem(last=False)
        return self._video_id

    def state(self) -> InputState:
        """Hash and stat, to be recorded."""
        if self.is_local:
            return replace(state_of_stat(self._status), video_id=self.video_id())
        return InputState(video_id=self.video_id(), num_bytes=self._status.st_size, etag=self._etag)

    def has_stat_of(self, expected: InputState) -> bool:
        return self.is_local and expected.has_same_stat(state_of_stat(self._status))

    def check_unchanged(self) -> None:
        """
        Raises:
            VideoError: source_changed, where the file was written to since it was opened.
        """
        now, before = os.fstat(self.file.fileno()), self._status
        if _stat_key(now) == _stat_key(before):
            return
        is_renamed_or_linked = (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        if is_renamed_or_linked and (not self._video_id or video_id_of(self.file) == self._video_id):
            self._status = now
            return
        raise VideoError("source_changed", "the file was written to while it was read", uri=self.uri)


@contextlib.contextmanager
def open_input(
    uri: str | os.PathLike[str],
    *,
    expected: InputState | str | None = None,
    max_bytes: int = MAX_INPUT_BYTES,
    max_seconds: float = MAX_FETCH_SECONDS,
    **more: Any,
) -> Iterator[OpenedInput]:
    """
    Args:
        expected: what the input was, or its video_id; None = whatever is there.
        max_bytes: of a download.
        max_seconds: of a download.
        more: further limits of a download (`download.FetchLimits`).

    Raises:
        VideoError: unreadable, too_large, fetch_failed, or source_changed where it is not what is expected.
    """
    uri = os.fspath(uri)
    if isinstance(expected, str):
        expected = InputState(video_id=expected)
    path = local_path(uri)
    if path is None:
        with downloaded(uri, max_bytes=max_bytes, max_seconds=max_seconds, **more) as (file, etag):
            opened = OpenedInput(uri, file, etag=etag, is_local=False)
            _check_expected(opened, expected)
            yield opened
        return
    with open_regular_file(path, uri) as file:
        opened = OpenedInput(uri, file)
        if expected is not None and opened.has_stat_of(expected):
            opened = OpenedInput(uri, file, video_id=expected.video_id)
        _check_expected(opened, expected)
        yield opened


def _check_expected(opened: OpenedInput, expected: InputState | None) -> None:
    if expected is not None and expected.video_id and opened.video_id() != expected.video_id:
        detail = (
            f"it was {expected.video_id} when it was prepared and is {opened.video_id()} now; run `recaption prepare`"
        )
        raise VideoError("source_changed", detail, uri=opened.uri)


def video_id_of(file: BinaryIO) -> str:
    """First 16 hex digits of the sha256 of a whole file; its position does not matter."""
    digest = hashlib.sha256()
    offset = 0
    while block := os.pread(file.fileno(), 1 << 20, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()[:16]


def state_of_stat(status: os.stat_result) -> InputState:
    """The state of a local file without its hash."""
    return InputState(
        num_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        inode=status.st_ino & (1 << 63) - 1,  # as tables hold it
    )


def local_state(uri: str) -> InputState | None:
    """Stat of a local input now, without reading it; None where it is remote, gone or out of reach."""
    path = local_path(uri)
    if path is None:
        return None
    try:
        return state_of_stat(os.stat(path))
    except (OSError, ValueError):
        return None


def _stat_key(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
