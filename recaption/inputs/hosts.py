"""At most so many connections to one host from this machine, over all of its processes.

with host_slot("https://host/a.mp4", max_connections=8, max_seconds=60.0):
    ...                                               # a request

A slot is a locked file in the folder of temporary files: the kernel gives it back when its process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import tempfile
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from recaption.errors import VideoError

WAIT_SECONDS = 0.05


def _folder() -> str:
    """Of this user alone: nobody else may hold all slots."""
    path = os.path.join(tempfile.gettempdir(), f"recaption-hosts-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    return path if os.stat(path, follow_symlinks=False).st_uid == os.getuid() else tempfile.mkdtemp()


@contextlib.contextmanager
def host_slot(uri: str, *, max_connections: int, max_seconds: float) -> Iterator[None]:
    """Wait until fewer than `max_connections` are open to the host of a URL.

    Raises:
        VideoError: fetch_failed, after `max_seconds`.
    """
    host = hashlib.sha256((urlsplit(uri).hostname or "").encode()).hexdigest()[:16]
    folder, deadline = _folder(), time.monotonic() + max_seconds
    numbers = list(range(max_connections))
    random.shuffle(numbers)
    while True:
        for number in numbers:
            with open(os.path.join(folder, f"{host}-{number}"), "wb") as slot:
                try:
                    fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield
                return
        if time.monotonic() > deadline:
            detail = f"{max_connections} connections to its host were busy for {max_seconds:g} s"
            raise VideoError("fetch_failed", detail, uri=uri)
        time.sleep(WAIT_SECONDS)
