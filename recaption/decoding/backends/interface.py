"""What a decoding backend takes and returns: packets that PyAV has numbered go in, RGB frames by those numbers come out.

    backend = load_backend("decord")                 # in a child of its own, before it is confined
    for pixels_HWC in backend.frames(Segment(matroska, 48, wanted=(0, 24), size=(360, 640), first_tick=2)): ...

A backend never sees the input itself. It gets a small container that PyAV wrote of the packets between a keyframe and the
last wanted frame (segments.py): no edit list, no rotation, no lying table, one keyframe, timestamps that count frames. What
it cannot do it refuses, with one of `FALLBACK_REASONS`; PyAV then decodes the frames.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, get_args

import av
import numpy as np

from recaption.decoding.messages import BackendName

BACKENDS: tuple[str, ...] = tuple(name for name in get_args(BackendName) if name != "av")
"""Backends beside PyAV itself."""
FRAME_SECONDS = Fraction(1, 25)
"""Distance of two frames in a segment, whatever it is in the video: timestamps there are numbers of frames."""
MISSED_REFERENCE = "mmco: "
"""What the decoder of H.264 logs where a frame is to be forgotten that it never had."""
FALLBACK_REASONS = (
    "codec",
    "pixel_format",
    "hdr",
    "interlaced",
    "transparent",
    "numbering",
    "hidden_frames",
    "parameters",
    "refused",
    "damage",
    "mismatch",
    "crashed",
    "timeout",
    "memory",
)
"""Why PyAV decoded frames although another backend was asked for (docs/decoders.md)."""


class RefusalError(Exception):
    """The backend cannot or must not decode these frames.

    Args:
        reason: one of `FALLBACK_REASONS`.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        assert reason in FALLBACK_REASONS, reason
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Segment:
    """The packets from a keyframe to the last of some wanted frames, in a container of their own."""

    payload: bytes
    """Matroska or NUT with one stream."""
    num_frames: int
    """One for each packet, numbered from 0 in the order in which they are displayed."""
    wanted: tuple[int, ...]
    """Ascending."""
    size: tuple[int, int]
    """(height, width) of the frames as stored, by the header."""
    first_tick: int
    """Timestamp of frame 0 in units of `FRAME_SECONDS`; that of frame i is `first_tick + i`."""
    is_first: bool = True
    """Whether it starts where the video does. Elsewhere a decoder misses frames before the keyframe, which is no damage."""

    def damage(self, log_lines: list[str]) -> str:
        """The first of some messages that tells of damage; ""."""
        lines = [line for line in log_lines if self.is_first or not line.startswith(MISSED_REFERENCE)]
        return lines[0] if lines else ""


class Backend(Protocol):
    """A library that decodes."""

    def frames(self, segment: Segment) -> Iterator[np.ndarray]:
        """The wanted frames: (height, width, 3) uint8 RGB, as stored (neither turned nor scaled).

        Raises:
            RefusalError: it cannot decode them, reports damage, or gives other frames than those; also after the last frame.
        """
        ...


def load_backend(name: str) -> Backend:
    """The backend, loaded whole: nothing is imported later.

    Raises:
        ImportError: it is not installed, or a library that it needs is missing.
    """
    module = importlib.import_module(f"recaption.decoding.backends.{name}_frames")
    backend: Backend = module.load()
    for _ in backend.frames(_example()):  # imports what it needs only then
        pass
    return backend


def _example() -> Segment:
    """Two small MPEG-4 frames."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="matroska") as output:
        stream = output.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p")
        for value in (0, 255):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), value, np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return Segment(sink.getvalue(), 2, (0, 1), (64, 64), 0)
