"""Opens local files that strangers name: regular files only, without waiting as a pipe makes one wait."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

from recaption.errors import VideoError

PASSING_ERRORS = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.ENOTCONN,
        errno.EMFILE,
        errno.ENFILE,
        errno.EAGAIN,
    }
)
"""Of network file systems and busy machines: they say nothing about the file."""


def open_regular_file(path: str, uri: str) -> BinaryIO:
    """Never waits, as opening a pipe does, and never opens a device.

    Raises:
        VideoError: unreadable or fetch_failed.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise VideoError("unreadable", "not a regular file", uri=uri)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        file = os.fdopen(descriptor, "rb")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # exchanged in between
            file.close()
            raise VideoError("unreadable", "not a regular file", uri=uri)
        return file
    except (OSError, ValueError) as error:
        reason = "fetch_failed" if getattr(error, "errno", None) in PASSING_ERRORS else "unreadable"
        raise VideoError(reason, getattr(error, "strerror", None) or str(error), uri=uri) from None
