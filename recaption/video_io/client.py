"""Client of the decoder child: sends one request and receives its frames into preallocated buffers.

with open("a.mp4", "rb") as file:
    response = DecodeResponse(file, DecodeLimits(), ReadRequest(indices=[0, 8]))
response.raise_for_error("a.mp4")
response.frames(np.array([0, 8])).pixels_THWC
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from recaption.decoding.messages import Request, encode_request
from recaption.errors import VideoError
from recaption.video_io import process as decoder_process
from recaption.video_io.frames import DecodeLimits, Frames


class FrameBuffer:
    """Buffer for the frames of one stream, filled block by block directly from the pipe."""

    def __init__(self, num_frames: int, height_px: int, width_px: int) -> None:
        self.pixels_THWC = np.empty((num_frames, height_px, width_px, 3), np.uint8)
        self.num_filled = 0

    def next_block(self, count: int) -> memoryview:
        end = self.num_filled + count
        if end > len(self.pixels_THWC):
            larger = np.empty((max(end, len(self.pixels_THWC) * 3 // 2), *self.pixels_THWC.shape[1:]), np.uint8)
            larger[: self.num_filled] = self.pixels_THWC[: self.num_filled]
            self.pixels_THWC = larger
        block = self.pixels_THWC[self.num_filled : end]
        self.num_filled = end
        return block.reshape(-1).data

    def filled(self) -> np.ndarray:
        return self.pixels_THWC[: self.num_filled]


class DecodeResponse:
    """Sends one request and holds its response: buffers by stream name, presentation times, the last header.

    Args:
        file: the video, open for reading, or its descriptor. The child reads it through a descriptor of its own, so the
            position of `file` does not move.

    Raises:
        VideoError: decode_timeout, decode_memory, or unreadable where the decoder crashed. An error that the child
            reports is raised by `raise_for_error` only.
    """

    def __init__(self, file: BinaryIO | int, limits: DecodeLimits, request: Request) -> None:
        self.buffers: dict[str, FrameBuffer] = {}
        self.pts_seconds = np.zeros(0)
        self.header = decoder_process.exchange(
            encode_request(request) | {"limits": dataclasses.asdict(limits)},
            file if isinstance(file, int) else file.fileno(),
            receive=self._receive,
            wall_seconds=limits.max_wall_seconds,
            seconds_per_video_second=limits.seconds_per_video_second,
        )

    def _receive(self, header: dict[str, Any], num_bytes: int) -> memoryview:
        if header["kind"] == "length":
            self.buffers = {name: FrameBuffer(*shape) for name, shape in header["streams"].items()}
            return memoryview(b"")
        if header["kind"] == "done":
            self.pts_seconds = np.empty(header["count"], np.float64)
            block = self.pts_seconds.view(np.uint8).data
        else:
            block = self.buffers[header["stream"]].next_block(header["count"])
        if len(block) != num_bytes:
            raise EOFError(f"{num_bytes} bytes where {len(block)} are expected")
        return block

    def raise_for_error(self, uri: str) -> None:
        """Raise the error that the child reported, if any, as a `VideoError`."""
        if self.header["kind"] == "error":
            raise VideoError(self.header["reason"], self.header["detail"], uri=uri)

    def frames(self, indices: np.ndarray) -> Frames:
        """The frames of a read or clip request, in the order of its indices."""
        pixels_THWC = self.buffers["frames"].filled()
        if self.header["order"] is not None:
            pixels_THWC = pixels_THWC[self.header["order"]]
        return Frames(pixels_THWC, self.pts_seconds, indices)


@contextlib.contextmanager
def file_in_memory(payload: bytes) -> Iterator[BinaryIO]:
    """An open file with these bytes that is on no disk."""
    with open(os.memfd_create("video"), "w+b") as file:
        file.write(payload)
        file.flush()
        yield file
