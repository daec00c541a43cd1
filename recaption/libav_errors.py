"""What libav says only in its log: files cut off, frames patched up in silence, memory that ran out. Used in the child."""

from __future__ import annotations

import logging
import resource
from collections import deque

CODECS_THAT_HIDE_DAMAGE = frozenset({"ffv1", "hevc", "mjpeg"})
"""Their decoders fill in what is missing without marking the frame; they only log an error."""

SMALL_BYTES = 32 << 20
"""Closer than this to the memory limit, a decoder's failure is put down to it."""


class LibavErrors(logging.Handler):
    """What libav logs as an error: the only place where it says some things that matter."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: deque[str] = deque(maxlen=1000)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage().strip())


LOGGED = LibavErrors()
"""Emptied before every request."""


def is_out_of_memory(max_memory_bytes: int) -> bool:
    """Whether a decoder's "invalid data" means memory that it could not get (H.264 does not tell the two apart)."""
    lines = list(LOGGED.lines)
    if any("get_buffer() failed" in line for line in lines):
        return not any("Picture size" in line for line in lines)  # a frame of absurd size is refused in the same words
    with open("/proc/self/statm") as file:
        used_bytes = int(file.read().split()[0]) * resource.getpagesize()
    return used_bytes + SMALL_BYTES > max_memory_bytes


def listen() -> None:
    """Start collecting. PyAV passes libav's log to Python's logger of this name."""
    logger = logging.getLogger("libav")
    logger.addHandler(LOGGED)
    logger.propagate = False
