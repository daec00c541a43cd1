"""Protocol between a process and its decoder child: length-prefixed messages by socket and pipe.

A message is 4 bytes header length, 8 bytes payload length (little endian), a JSON header, raw payload bytes:

    header = {"kind": "frames", "stream": "small", "count": 340, "numbers": [...]}    payload = 340 frames of uint8 RGB

Requests are the dataclasses below, plus the limits; the descriptor of the open file travels with the first byte:

    encode_request(ReadRequest(indices=[0, 8]))   -> {"op": "read", "indices": [0, 8], "short_side_px": None, ...}
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

LENGTHS = struct.Struct("<IQ")
"""Header bytes, payload bytes."""
BackendName = Literal["av", "decord", "torchcodec"]
"""Who decodes frames by number: PyAV, or one of recaption/decoding/backends in a child of its own."""
MAX_HEADER_BYTES = 64 << 20
"""A longer header is not a message of this protocol: the two sides are out of step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRequest:
    """Decode everything, return no frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanRequest:
    """Decode everything once: every frame small, some of them larger."""

    small_px: int
    """Short side of the stream `small`: every frame."""
    detail_px: int
    """Short side of the stream `detail`: the first frame of every `detail_every_seconds`."""
    detail_every_seconds: float
    measures_audio: bool = True
    """Whether the sound is measured too (audio/levels.py)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadRequest:
    """Frames by index."""

    indices: Sequence[int] | None = None
    """None = all frames."""
    short_side_px: int | None = None
    """None = full size."""
    snap_seconds: float = 0.0
    """An index may move to a keyframe this close; 0 = never."""
    snap_within: Sequence[int] = (0, 1 << 62)
    """Half-open range of frame indices that keyframes are taken from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRequest:
    """A span of frames resampled to a constant rate, scaled to cover a size and center-cropped."""

    start_seconds: float
    num_frames: int
    fps: float
    height_px: int
    width_px: int
    start_frame: int
    end_frame: int
    """Half-open: frames from outside [start_frame, end_frame) are never returned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CutRequest:
    """A span of frames as it is stored: its packets in an mp4 of their own (lossless_cut.py)."""

    start_frame: int
    end_frame: int
    """Half-open."""
    audio_seconds: Sequence[float] | None = None
    """The same span in time: its audio is cut out too. None = without audio."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioRequest:
    """The audio of a span of time: packets that are ready to be written (audio/tracks.py)."""

    start_seconds: float
    end_seconds: float
    may_copy: bool = True
    """Whether packets may be copied; else all is encoded anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimesRequest:
    """The presentation times of a span of frames."""

    start_frame: int
    end_frame: int
    """Half-open."""


Request = ProbeRequest | ScanRequest | ReadRequest | ClipRequest | CutRequest | AudioRequest | TimesRequest
REQUESTS: dict[str, type[Request]] = {
    "probe": ProbeRequest,
    "scan": ScanRequest,
    "read": ReadRequest,
    "clip": ClipRequest,
    "cut": CutRequest,
    "audio": AudioRequest,
    "times": TimesRequest,
}
"""`op` of a request's header -> its class."""


def encode_request(request: Request) -> dict[str, Any]:
    """The header of a request: `op` and its fields."""
    (op,) = [name for name, kind in REQUESTS.items() if type(request) is kind]
    return {"op": op} | {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}


def decode_request(header: dict[str, Any]) -> Request:
    """The inverse of `encode_request`; other keys of the header (limits) are ignored.

    Raises:
        KeyError: unknown `op`, or a field is missing.
    """
    kind = REQUESTS[header["op"]]
    return kind(**{field.name: header[field.name] for field in dataclasses.fields(kind)})


def limit_text(name: str, value: float) -> str:
    """A limit that an input exceeds, and the flag that raises it."""
    return f"{name} = {value} (--prepare.decode.{name.replace('_', '-')})"


def pack_header(header: dict[str, Any], num_payload_bytes: int) -> bytes:
    """Everything of a message that comes before its payload."""
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return LENGTHS.pack(len(encoded), num_payload_bytes) + encoded


def unpack_lengths(prefix: bytes | bytearray) -> tuple[int, int]:
    """(header bytes, payload bytes) of the message that starts with `prefix`.

    Raises:
        EOFError: the header is longer than `MAX_HEADER_BYTES`.
    """
    num_header_bytes, num_payload_bytes = LENGTHS.unpack(prefix)
    if num_header_bytes > MAX_HEADER_BYTES:
        raise EOFError(f"a header of {num_header_bytes} bytes: the message stream is out of step")
    return num_header_bytes, num_payload_bytes
