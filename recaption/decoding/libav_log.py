"""What libav says only in its log, or not at all: files cut off, frames patched up in silence, memory that ran out.

Used in the decoder child.
"""

from __future__ import annotations

import logging
import resource
from collections import deque
from typing import Any

import numpy as np

CODECS_THAT_HIDE_DAMAGE = frozenset({"ffv1", "hevc", "mjpeg"})
"""Their decoders fill in what is missing without marking the frame; they only log an error."""


UNDECODED_SHARE = 0.01
"""Share of a frame without colour values from which it counts as not decoded."""


COLOUR_STEP = 8
"""Every 8th row and column of the colour planes is looked at: 0.02 ms a frame at 1080p."""


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
    return mapped_bytes() + SMALL_BYTES > max_memory_bytes


def mapped_bytes() -> int:
    """Address space of this process: what RLIMIT_AS counts."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def undecoded_share(frame: Any) -> float:
    """Share of a frame that its decoder left as it found it, 0.0 where that is under `UNDECODED_SHARE`.

    HEVC whose slices end early leaves the rest of the picture at zero and says nothing. Zero in both colour planes is
    no colour: red and blue would be far below black.
    """
    if not frame.format.name.startswith(("yuv420p", "yuv422p", "yuv444p", "yuvj420p")):
        return 0.0
    kind = np.uint8 if frame.format.components[1].bits == 8 else np.uint16
    empty = None
    for plane in frame.planes[1:3]:
        rows = np.frombuffer(plane, kind).reshape(plane.height, -1)[::COLOUR_STEP, : plane.width : COLOUR_STEP]
        empty = rows == 0 if empty is None else empty & (rows == 0)
    share = float(empty.mean()) if empty is not None and empty.size else 0.0
    return share if share >= UNDECODED_SHARE else 0.0


def listen() -> None:
    """Start collecting. PyAV passes libav's log to Python's logger of this name."""
    logger = logging.getLogger("libav")
    logger.addHandler(LOGGED)
    logger.propagate = False
