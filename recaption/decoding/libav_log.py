"""Errors that libav reports only in its log, or not at all: cut files, concealed damage, failed allocations.

Used in the decoder child.
"""

from __future__ import annotations

import logging
import os
import resource
from collections import deque
from functools import cache
from typing import Any

import numpy as np

CODECS_THAT_HIDE_DAMAGE = frozenset({"ffv1", "gif", "hevc", "mjpeg"})
"""Their decoders fill in what is missing without marking the frame; they only log an error."""
MIN_UNDECODED_FRACTION = 0.01
"""Fraction of a frame without chroma values from which that area counts as not decoded."""
CHROMA_SAMPLING_STEP = 8
"""Every 8th row and column of the chroma planes is checked: 0.02 ms a frame at 1080p."""
MEMORY_MARGIN_BYTES = 32 << 20
"""A decoder that fails this close to the memory limit is taken to have run out of memory."""


class LibavErrorLog(logging.Handler):
    """Collects libav's log messages of level ERROR: some failures are reported nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: deque[str] = deque(maxlen=1000)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage().strip())


ERROR_LOG = LibavErrorLog()
"""Cleared before every request."""


def is_out_of_memory(max_memory_bytes: int) -> bool:
    """Whether a decoder's "invalid data" error is really a failed allocation (H.264 reports both the same way)."""
    lines = list(ERROR_LOG.lines)
    if any("get_buffer() failed" in line for line in lines):
        return not any("WebpFrame size" in line for line in lines)  # a frame of absurd size gives the same message
    return mapped_bytes() + MEMORY_MARGIN_BYTES > max_memory_bytes


@cache
def _memory_status() -> int:
    """Descriptor of /proc/self/statm, opened while this process may still open files."""
    return os.open("/proc/self/statm", os.O_RDONLY)


def mapped_bytes() -> int:
    """Address space of this process: what RLIMIT_AS counts."""
    return int(os.pread(_memory_status(), 64, 0).split()[0]) * resource.getpagesize()


def undecoded_fraction(frame: Any) -> float:
    """Fraction of a frame that its decoder never wrote; 0.0 where that is under `MIN_UNDECODED_FRACTION`.

    HEVC whose slices end early leaves the rest of the frame at zero without an error. Zero in both chroma planes is not
    a valid colour: red and blue would be far below black.
    """
    if not frame.format.name.startswith(("yuv420p", "yuv422p", "yuv444p", "yuvj420p")):
        return 0.0
    dtype = np.uint8 if frame.format.components[1].bits == 8 else np.uint16
    empty = None
    for plane in frame.planes[1:3]:
        rows = np.frombuffer(plane, dtype).reshape(plane.height, -1)[
            ::CHROMA_SAMPLING_STEP, : plane.width : CHROMA_SAMPLING_STEP
        ]
        empty = rows == 0 if empty is None else empty & (rows == 0)
    fraction = float(empty.mean()) if empty is not None and empty.size else 0.0
    return fraction if fraction >= MIN_UNDECODED_FRACTION else 0.0


def capture_errors() -> None:
    """Start collecting into `ERROR_LOG`. PyAV forwards libav's log to Python's logger "libav"."""
    logger = logging.getLogger("libav")
    logger.addHandler(ERROR_LOG)
    logger.propagate = False
