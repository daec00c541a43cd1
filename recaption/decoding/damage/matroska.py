"""The size that a Matroska or WebM file says it has, and breaks in its structure (RFC 8794 and 9559)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

HEADER_BYTES = 4096
"""The EBML header and the start of the segment are within the first few dozen."""
EBML, SEGMENT = 0x1A45DFA3, 0x18538067


def is_cut_off(file: Any, num_bytes: int) -> bool:
    """Whether the file is shorter than its segment; also where a recorder left the size of the segment open."""
    head = os.pread(file.fileno(), HEADER_BYTES, 0)
    position = 0
    while position + 4 < len(head):
        name = int.from_bytes(head[position : position + 4])
        size, position, is_unknown = _read_size(head, position + 4)
        if name == SEGMENT:
            return is_unknown or position + size > num_bytes
        if name != EBML:
            return False
        position += size
    return False


def broken_structure(log: Iterable[str]) -> str:
    """libav's first message that it lost its place and skipped to the next cluster; "" where there is none.

    The frames between are gone, and nothing else tells: those that follow may start with a keyframe.
    """
    return next((line for line in log if "invalid as first byte of an EBML number" in line), "")


def _read_size(head: bytes, position: int) -> tuple[int, int, bool]:
    """(value, position behind it, whether it is the value for "unknown") of a variable-size integer."""
    first = head[position]
    length = 9 - first.bit_length() if first else 9
    bits = 7 * min(length, 8)
    value = int.from_bytes(head[position : position + length]) & ((1 << bits) - 1)
    return value, position + length, value == (1 << bits) - 1
