"""Downloads a remote input to a temporary file: with limits on bytes, disk and time, and several tries.

    with downloaded("s3://bucket/a.mp4", max_bytes=32 << 30, max_seconds=3600) as (file, etag): ...

What the data deserves is final: no such file, no access, too large (`unreadable`, `too_large`). Everything else may pass,
is tried `NUM_TRIES` times, and then is `fetch_failed`: a server error, a dropped line, a full disk, a missing package.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import fsspec

from recaption.errors import UsageError, VideoError
from recaption.inputs.hosts import host_slot
from recaption.inputs.http import open_http
from recaption.inputs.names import HTTP, TAR, etag_of, protocol_of, remote_filesystem
from recaption.inputs.page_videos import fetch_page_video
from recaption.inputs.tars import copy_member, tar_etag

NUM_TRIES = 3
BACKOFF_SECONDS = 1.0
"""Before the second try, four times as much before the third."""
PAGE = "a web page and no video; `pip install recaption[yt-dlp]` and --prepare.decode.page-videos read those of pages"
RESERVE_BYTES = 256 << 20
"""A download leaves so much of the disk free: all workers of a machine share it."""
FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
"""What storage backends raise for 404, 403 and names that no file has."""


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """Limits of one download."""

    max_bytes: int
    max_seconds: float
    max_host_connections: int = 8
    """To one HTTP host, from this machine."""
    page_videos: bool = False
    """Whether yt-dlp may fetch the videos of web pages."""


class _Budget(fsspec.Callback):
    """The limits of one try; fsspec calls it after every block."""

    def __init__(self, uri: str, folder: str, limits: FetchLimits) -> None:
        super().__init__()
        max_bytes, max_seconds = limits.max_bytes, limits.max_seconds
        self.limits = limits
        self.uri, self.folder, self.max_bytes = uri, folder, max_bytes
        self.max_seconds, self.deadline = max_seconds, time.monotonic() + max_seconds
        self.num_bytes = 0
        self.is_given_up = False

    def set_size(self, size: int | None) -> None:
        if size:
            self._check(size)

    def relative_update(self, inc: int = 1) -> None:
        self.num_bytes += inc
        self._check(self.num_bytes)

    def branch(self, path_1: str, path_2: str, kwargs: dict[str, Any]) -> None:
        """Of a file there are no parts with callbacks of their own."""

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            detail = f"more than max_input_bytes = {self.max_bytes}; --prepare.decode.max-input-bytes lets it in"
            raise VideoError("too_large", detail, uri=self.uri)
        free = shutil.disk_usage(self.folder).free
        if free - max(0, num_bytes - self.num_bytes) < RESERVE_BYTES:
            detail = (
                f"{free} bytes are free in {tempfile.gettempdir()} (set TMPDIR), of which {RESERVE_BYTES} stay free"
            )
            raise VideoError("fetch_failed", detail, uri=self.uri)
        if self.is_over:
            raise VideoError("fetch_failed", self.too_late, uri=self.uri)

    @property
    def is_over(self) -> bool:
        return self.is_given_up or time.monotonic() > self.deadline

    @property
    def too_late(self) -> str:
        return (
            f"not there after max_fetch_seconds = {self.max_seconds:g}, {self.num_bytes} bytes are; "
            "--prepare.decode.max-fetch-seconds gives it longer"
        )


@contextlib.contextmanager
def downloaded(uri: str, *, max_bytes: int, max_seconds: float, **more: Any) -> Iterator[tuple[BinaryIO, str]]:
    """(the file, open for reading; its etag or ""). It has no name any more, and goes when it is closed.

    Args:
        more: further fields of `FetchLimits`.

    Raises:
        VideoError: unreadable, too_large, or fetch_failed.
    """
    limits = FetchLimits(max_bytes=max_bytes, max_seconds=max_seconds, **more)
    for number in range(NUM_TRIES):
        try:
            file, etag = _try(uri, limits)
            break
        except VideoError as error:
            if error.reason != "fetch_failed" or number == NUM_TRIES - 1:
                raise
            time.sleep(max(BACKOFF_SECONDS * 4**number, getattr(error, "wait_seconds", 0.0)))
    with file:
        yield file, etag


def _try(uri: str, limits: FetchLimits) -> tuple[BinaryIO, str]:
    """One try, in a thread that is left alone once its time is up: some backends wait for ever."""
    folder = tempfile.mkdtemp(prefix="recaption-")
    budget = _Budget(uri, folder, limits)
    result: dict[str, Any] = {}

    def fetch() -> None:
        try:
            result["etag"] = _fetch(uri, os.path.join(folder, "input"), budget)
        except BaseException as error:  # raised again in the thread that waits
            result["error"] = error

    thread = threading.Thread(target=fetch, daemon=True)
    try:
        thread.start()
        thread.join(limits.max_seconds)
        if thread.is_alive():
            budget.is_given_up = True
            raise VideoError("fetch_failed", budget.too_late, uri=uri)
        if "error" in result:
            raise result["error"]
        return _opened(os.path.join(folder, "input"), uri), result["etag"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _opened(path: str, uri: str) -> BinaryIO:
    if not os.path.isfile(path):
        raise VideoError("unreadable", "not a regular file", uri=uri)
    return open(path, "rb")


def _fetch(uri: str, path: str, budget: _Budget) -> str:
    try:
        if protocol_of(uri.removeprefix(TAR)) in HTTP:
            with host_slot(
                uri.removeprefix(TAR),
                max_connections=budget.limits.max_host_connections,
                max_seconds=budget.limits.max_seconds,
            ):
                return copy_member(uri, path, budget) if uri.startswith(TAR) else _fetch_http(uri, path, budget)
        if uri.startswith(TAR):
            return copy_member(uri, path, budget)
        fs, remote_path = remote_filesystem(uri)
        info = fs.info(remote_path)
        fs.get_file(remote_path, path, callback=budget)
    except VideoError:
        raise
    except (*FINAL_ERRORS, UsageError) as error:
        raise VideoError("unreadable", f"cannot be downloaded: {type(error).__name__}: {error}", uri=uri) from None
    except Exception as error:  # storage backends have no common exception
        raise VideoError("fetch_failed", f"cannot be downloaded: {type(error).__name__}: {error}", uri=uri) from error
    if os.path.isfile(path) and os.path.getsize(path) != (info.get("size") or os.path.getsize(path)):
        raise VideoError("fetch_failed", f"{os.path.getsize(path)} of {info['size']} bytes arrived", uri=uri)
    return etag_of(info)


def _fetch_http(uri: str, path: str, budget: _Budget) -> str:
    """One request, and where the line drops further ones for the rest, as long as each brings something."""
    etag, done, has_ranges = "", 0, False
    with open(path, "wb") as file:
        while True:
            before = done
            try:
                with open_http(uri, first_byte=done or None, etag=etag) as remote:
                    if "html" in remote.response.headers.get("Content-Type", ""):
                        if budget.limits.page_videos:
                            return fetch_page_video(uri, path, budget)
                        raise VideoError("unreadable", PAGE, uri=uri)
                    if not remote.is_range:
                        file.seek(0)
                        file.truncate()
                        done = before = 0
                    etag, has_ranges = remote.etag, remote.has_ranges
                    budget.set_size(remote.num_bytes)
                    for block in remote.blocks():
                        file.write(block)
                        done += len(block)
                        budget.relative_update(len(block))
                    return etag
            except VideoError as error:
                is_same = has_ranges and etag and not etag.startswith("W/")
                if error.reason != "fetch_failed" or done <= before or not is_same or budget.is_over:
                    raise


def current_etag(uri: str) -> str | None:
    """The etag of a remote input now, without its bytes; "" where it has none or is not there; None without an answer."""
    try:
        if uri.startswith(TAR):
            return tar_etag(uri)
        if protocol_of(uri) in HTTP:
            with open_http(uri, method="HEAD") as remote:
                return remote.etag
        fs, path = remote_filesystem(uri)
        fs.invalidate_cache()
        return etag_of(fs.info(path))
    except (*FINAL_ERRORS, UsageError):
        return ""
    except VideoError as error:
        return None if error.reason == "fetch_failed" else ""
    except Exception:  # as in `_fetch`; where it matters the file is fetched, and its error is reported
        return None
