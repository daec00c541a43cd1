"""The wire between a process and its decoder child: length-prefixed messages over two pipes.

A message is 4 bytes header length, 8 bytes payload length (little endian), a JSON header, raw payload bytes:

    header = {"kind": "frames", "stream": "small", "count": 340}    payload = 340 frames of uint8 RGB
"""

from __future__ import annotations

import json
import struct
from typing import Any

LENGTHS = struct.Struct("<IQ")
"""Header bytes, payload bytes."""


MAX_HEADER_BYTES = 64 << 20
"""A longer header is not one of ours: the stream is out of step."""


def pack_header(header: dict[str, Any], num_payload_bytes: int) -> bytes:
    """Everything of a message that comes before its payload."""
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return LENGTHS.pack(len(encoded), num_payload_bytes) + encoded


def unpack_lengths(prefix: bytes | bytearray) -> tuple[int, int]:
    """(header bytes, payload bytes) of the message that starts with `prefix`."""
    num_header_bytes, num_payload_bytes = LENGTHS.unpack(prefix)
    if num_header_bytes > MAX_HEADER_BYTES:
        raise EOFError(f"a header of {num_header_bytes} bytes: the message stream is out of step")
    return num_header_bytes, num_payload_bytes
