"""Blanks the buffers of frames that nobody needs any more, so that what the next frame leaves out shows.

used_buffers = UsedBuffers()
yield frame
used_buffers.blank(frame)      # later, once neither the decoder nor a filter refers to it

A decoder takes the buffers of its frames from a pool. HEVC data that end early leave the rest of a frame unwritten without a
word; in a new buffer that is zero, which `undecoded_fraction` finds, in a used one it is what an earlier frame had there,
which looks right and depends on what was read before.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

CODECS_WITH_HOLES = frozenset({"hevc"})
"""Their decoders output frames that they have not written whole."""
MAX_WAITING_FRAMES = 17
"""One more than the pictures that HEVC lets a decoder keep (A.4.2): most are free before their turn comes."""
MAX_WAITING_BYTES = 128 << 20
"""Of large pictures fewer wait, but so many always do:"""
MIN_WAITING_FRAMES = 4
"""Whoever takes frames from the decoder may still have the last two (deinterlacing)."""


class UsedBuffers:
    """Frames that were used, from the oldest on."""

    def __init__(self) -> None:
        self.waiting: deque[Any] = deque()

    def blank(self, frame: Any) -> None:
        """Blank the buffer of `frame` once other frames have come; one that is still referred to then is left as it is."""
        self.waiting.append(frame)
        num_bytes = sum(plane.buffer_size for plane in frame.planes)
        num_waiting = max(MIN_WAITING_FRAMES, min(MAX_WAITING_FRAMES, MAX_WAITING_BYTES // num_bytes))
        while len(self.waiting) > num_waiting:
            _blank_if_sole_owner(self.waiting.popleft())


def _blank_if_sole_owner(frame: Any) -> None:
    """Zero the chroma planes, unless somebody else refers to them."""
    address = frame.planes[-1].buffer_ptr
    frame.make_writable()  # copies the planes where there is another reference
    if frame.planes[-1].buffer_ptr == address:
        for plane in frame.planes[1:]:
            np.frombuffer(plane, np.uint8)[:] = 0
