"""decord (the distribution `decord2`) as a decoding backend. It runs in a child of its own (recaption/decoding/worker.py).

Left to itself decord guesses the numbers of frames from packets, seeks to wrong ones where the order of display differs, and
hands out an earlier frame again where one does not decode. Here it decodes every segment from its first packet to its last,
and one frame too few is an error.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from recaption.decoding.backends.foreign_log import ForeignLog
from recaption.decoding.backends.interface import RefusalError, Segment

MAX_REPEATED_FRACTION = 1e-9
"""decord replaces frames that do not decode by earlier ones, up to this fraction: none. 0 would mean any number."""


def load() -> DecordBackend:
    """
    Raises:
        ImportError: decord2 is not installed.
    """
    return DecordBackend()


class DecordBackend:
    """See `interface.Backend`."""

    def __init__(self) -> None:
        self.decord = _import_decord()
        self.log = ForeignLog("decord2.libs/libavutil")
        self.version = importlib.metadata.version("decord2")

    def frames(self, segment: Segment) -> Iterator[np.ndarray]:
        """As `interface.Backend.frames`."""
        try:
            yield from self._frames(segment)
        except (self.decord.DECORDError, RuntimeError, AssertionError, StopIteration) as error:
            raise RefusalError("refused", str(error).partition("\n")[0][:200]) from None
        if damage := segment.damage(self.log.take()):
            raise RefusalError("damage", damage)

    def _frames(self, segment: Segment) -> Iterator[np.ndarray]:
        reader = self.decord.VideoReader(io.BytesIO(segment.payload), num_threads=1, fault_tol=MAX_REPEATED_FRACTION)
        if len(reader) != segment.num_frames:
            raise RefusalError("mismatch", f"{len(reader)} frames of {segment.num_frames}")
        self.log.take()  # it seeks once when it opens, in vain
        keyframes = reader.get_key_indices()
        position = 0
        for wanted in segment.wanted:
            position = _advance(reader, keyframes, position, wanted)
            yield _without_padding(reader.next().asnumpy())
            position += 1
        if position < segment.num_frames:  # to the end: a frame that went missing is missing there
            _advance(reader, keyframes, position, segment.num_frames - 1)
            reader.next()


def _without_padding(pixels_HWC: np.ndarray) -> np.ndarray:
    """Of narrow frames decord takes the padding at the end of each row for a fourth channel of all pixels."""
    height, width, num_channels = pixels_HWC.shape
    if num_channels <= 3:
        return pixels_HWC
    return pixels_HWC.reshape(height, width * num_channels)[:, : 3 * width].reshape(height, width, 3)


def _advance(reader: Any, keyframes: list[int], position: int, target: int) -> int:
    """Decode up to frame `target`; not past a keyframe in one step, since decord would seek to it."""
    while position < target:
        following = next((k for k in keyframes if k > position), target + 1)
        if target < following:
            reader.skip_frames(target - position)
            return target
        if following - 1 > position:
            reader.skip_frames(following - 1 - position)
        reader.next()
        position = following
    return position


def _import_decord() -> Any:
    """decord without its search for CUDA, whose libraries take gigabytes of address space, and with its symbols its own.

    It would load its FFmpeg for the whole process, in the way of PyAV's of the same version.
    """
    os.environ.setdefault("PATH", "")  # it appends to it
    everywhere, nvidia = ctypes.RTLD_GLOBAL, sys.modules.get("nvidia")
    setattr(ctypes, "RTLD_GLOBAL", ctypes.RTLD_LOCAL)  # noqa: B010 - mypy knows it as a constant
    sys.modules["nvidia"] = None  # type: ignore[assignment]
    try:
        import decord
    finally:
        setattr(ctypes, "RTLD_GLOBAL", everywhere)  # noqa: B010
        del sys.modules["nvidia"]
        if nvidia is not None:
            sys.modules["nvidia"] = nvidia
    return decord
