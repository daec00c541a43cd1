"""At most so many connections to one host from this machine, over all of its processes.

with host_slot("https://host/a.mp4", max_connections=8, max_seconds=60.0):
    ...                                               # a request

A slot is a name of a socket that only one process can have (Linux's abstract ones): it leaves no file, and the kernel gives
it back when its process dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from recaption.errors import VideoError

WAIT_SECONDS = 0.05


@contextlib.contextmanager
def host_slot(uri: str, *, max_connections: int, max_seconds: float) -> Iterator[None]:
    """Wait until fewer than `max_connections` are open to the host of a URL.

    Raises:
        VideoError: fetch_failed, after `max_seconds`.
    """
    host = hashlib.sha256((urlsplit(uri).hostname or "").encode()).hexdigest()[:16]
    deadline = time.monotonic() + max_seconds
    numbers = list(range(max_connections))
    random.shuffle(numbers)
    while True:
        for number in numbers:
            with socket.socket(socket.AF_UNIX) as slot:
                try:
                    slot.bind(f"\0recaption-{os.getuid()}-{host}-{number}")
                except OSError:
                    continue
                yield
                return
        if time.monotonic() > deadline:
            detail = f"{max_connections} connections to its host were busy for {max_seconds:g} s"
            raise VideoError("fetch_failed", detail, uri=uri)
        time.sleep(WAIT_SECONDS)
