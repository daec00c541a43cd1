"""Requests for frames to a decoding backend, and to PyAV where it fails: a hang or a lie costs a fallback, not a row.

    header = exchange_frames(header, descriptor, limits, receive)
    take_fallbacks()                          # {"interlaced": 3, "timeout": 1}: requests since the last call, by reason

What a child with a backend reports as an error of the file is asked of PyAV once more, and only PyAV's word counts.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from recaption.errors import VideoError
from recaption.video_io import process as decoder_process
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.process import Receive

REASONS = {"decode_timeout": "timeout", "decode_memory": "memory", "unreadable": "crashed"}
"""What ended a child -> reason of the fallback."""
MAX_KNOWN_FILES = 1000
"""Files that a backend did not survive: their other frames do not wait for it to hang again."""

_fallbacks: Counter[str] = Counter()
_not_survived: dict[tuple[str, tuple[int, ...]], str] = {}
"""(backend, file) -> reason."""


def take_fallbacks() -> dict[str, int]:
    """Reason -> number of requests that PyAV answered in a backend's place since the last call, in this process."""
    taken = dict(sorted(_fallbacks.items()))
    _fallbacks.clear()
    return taken


def exchange_frames(request: dict[str, Any], descriptor: int, limits: DecodeLimits, receive: Receive) -> dict[str, Any]:
    """As `process.exchange`, for a request for frames by number: with the backend of the limits, or with PyAV instead.

    Raises:
        VideoError: of PyAV's child.
        UsageError: the backend does not work on this machine.
    """
    if limits.backend == "av":
        return _exchange("av", request, descriptor, limits, receive)
    status = os.fstat(descriptor)
    file = (limits.backend, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    reason = _not_survived.get(file, "")
    if not reason:
        try:
            header = _exchange(limits.backend, request, descriptor, limits, receive)
        except VideoError as error:
            if error.reason not in REASONS:  # of this process: the frames are more than it keeps
                raise
            reason = REASONS[error.reason]
            _not_survived[file] = reason
            while len(_not_survived) > MAX_KNOWN_FILES:
                del _not_survived[next(iter(_not_survived))]
        else:
            if header["kind"] == "done":
                if header["fallback"] is not None:
                    _fallbacks[header["fallback"][0]] += 1
                return header
            reason = "refused"
    header = _exchange("av", request, descriptor, limits, receive)
    if header["kind"] == "done":
        _fallbacks[reason] += 1
        header["fallback"] = (reason, "")
    return header


def _exchange(
    backend: str, request: dict[str, Any], descriptor: int, limits: DecodeLimits, receive: Receive
) -> dict[str, Any]:
    return decoder_process.exchange(
        request,
        descriptor,
        receive=receive,
        wall_seconds=limits.max_wall_seconds,
        seconds_per_video_second=limits.seconds_per_video_second,
        backend=backend,
        max_resident_bytes=None if backend == "av" else limits.max_memory_bytes,
    )
