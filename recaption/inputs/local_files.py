"""Local paths of input files (remote ones are downloaded to a temporary file), and their content hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator

import fsspec

from recaption.errors import VideoError


def _is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


@contextlib.contextmanager
def local_copy(uri: str | os.PathLike[str]) -> Iterator[str]:
    """Path of the file on this machine: itself, or a temporary download that is removed afterwards.

    Raises:
        VideoError: unreadable, where there is no such file or it cannot be downloaded.
    """
    uri = os.fspath(uri)
    if not _is_remote(uri):
        path = uri.removeprefix("file://")
        try:
            is_file = stat.S_ISREG(os.stat(path).st_mode)
        except (OSError, ValueError) as error:
            raise VideoError("unreadable", getattr(error, "strerror", None) or str(error), uri=uri) from None
        if not is_file:
            raise VideoError("unreadable", "not a regular file", uri=uri)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="recaption-") as folder:
        path = os.path.join(folder, "input")
        try:
            fs, remote_path = fsspec.url_to_fs(uri)
            fs.get_file(remote_path, path)
        except Exception as error:  # storage backends have no common exception
            raise VideoError("unreadable", f"cannot be downloaded: {type(error).__name__}: {error}", uri=uri) from error
        yield path


def file_id(path: str | os.PathLike[str]) -> tuple[str, int]:
    """(video_id, number of bytes): the first 16 hex digits of the sha256 of the file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16], os.fstat(file.fileno()).st_size
