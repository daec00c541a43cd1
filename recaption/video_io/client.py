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
from typing import Any, BinaryIO, Protocol

import numpy as np

from recaption.decoding.messages import ClipRequest, ReadRequest, Request, ScanRequest, encode_request, limit_text
from recaption.errors import VideoError
from recaption.video_io.fallbacks import exchange_frames
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


class FrameSink(Protocol):
    """Takes the frames of a scan as they come, so that they need not all be kept. Its time is not the decoder's."""

    def begin(self, sizes: dict[str, tuple[int, int, int]], pts_seconds: np.ndarray, seconds: float) -> None:
        """Called before the first frame, and again where a killed decoder starts anew.

        Args:
            sizes: by stream: expected number of frames, height, width.
            pts_seconds: of all frames; empty where they are known at the end only.
            seconds: length of the video, 0 where it is not known.
        """
        ...

    def add(self, stream: str, numbers: np.ndarray, pixels_THWC: np.ndarray) -> None:
        """The next frames of a stream and their numbers. Frames of `detail` come before those of `small` after them."""
        ...


class DecodeResponse:
    """Sends one request and holds its response: buffers by stream name, presentation times, the last header.

    Args:
        sink: gets the frames; without one they are kept in `buffers`, within `max_kept_bytes`.
        file: the video, open for reading, or its descriptor. The child reads it through a descriptor of its own, so the
            position of `file` does not move.

    Raises:
        VideoError: decode_timeout, decode_memory, or unreadable where the decoder crashed. An error that the child
            reports is raised by `raise_for_error` only.
    """

    def __init__(
        self, file: BinaryIO | int, limits: DecodeLimits, request: Request, sink: FrameSink | None = None
    ) -> None:
        self.sink = sink
        # the size of a clip is the caller's own choice, that of other frames is the file's
        self.max_bytes = None if isinstance(request, ClipRequest) else limits.max_kept_bytes
        self.sizes: dict[str, tuple[int, int, int]] = {}
        self.block: tuple[str, np.ndarray, np.ndarray] | None = None
        """Of the sink: filled by the time the next message comes."""
        self.buffers: dict[str, FrameBuffer] = {}
        self.pts_seconds = np.zeros(0)
        self.payload = bytearray()
        """Of a cut: the mp4; of a scan: the energies of its sound; of audio: its packets."""
        self.has_reached_audio = False
        """Of a scan: whether all frames are there, and what the decoder does is about its sound."""
        descriptor = file if isinstance(file, int) else file.fileno()
        try:
            self.header = self._exchange(request, descriptor, limits)
        except VideoError as error:
            if not self.has_reached_audio or not isinstance(request, ScanRequest):
                raise
            without_audio = dataclasses.replace(request, measures_audio=False)
            self.payload = bytearray()
            self.header = self._exchange(without_audio, descriptor, limits)
            self.header["video"]["audio_detail"] = f"{error.reason}: {error.detail}"
        self._deliver_block()

    def _exchange(self, request: Request, descriptor: int, limits: DecodeLimits) -> dict[str, Any]:
        if not isinstance(request, ReadRequest | ClipRequest):  # PyAV alone tells what is whole
            limits = dataclasses.replace(limits, backend="av")
        return exchange_frames(
            encode_request(request) | {"limits": dataclasses.asdict(limits)}, descriptor, limits, self._receive
        )

    def _receive(self, header: dict[str, Any], num_bytes: int) -> memoryview:
        if header["kind"] == "length" and not num_bytes:
            self._begin(header)
            return memoryview(b"")
        if header["kind"] in ("bytes", "audio"):
            self._check_payload(num_bytes)
            payload = bytearray(num_bytes)
            if header["kind"] == "audio":
                self.has_reached_audio = True
            else:
                self.payload = payload
            return memoryview(payload)
        if header["kind"] == "length":
            self.block = None  # of a decoder that was killed
            self.pts_seconds = np.empty(num_bytes // 8, np.float64)
            block = self.pts_seconds.view(np.uint8).data
        elif header["kind"] == "done":
            self._deliver_block()
            self.pts_seconds = np.empty(header["count"], np.float64)
            block = self.pts_seconds.view(np.uint8).data
        else:
            self._deliver_block()
            block = self._memory_for(header["stream"], header["count"], header["numbers"])
        if len(block) != num_bytes:
            raise EOFError(f"{num_bytes} bytes where {len(block)} are expected")
        return block

    def _begin(self, header: dict[str, Any]) -> None:
        self.sizes, self.block = {name: tuple(size) for name, size in header["streams"].items()}, None
        if self.sink is not None:
            if self.sizes:
                self.sink.begin(self.sizes, self.pts_seconds, header["seconds"])
            return
        self._check_bytes({name: size[0] for name, size in self.sizes.items()})
        self.buffers = {name: FrameBuffer(*size) for name, size in self.sizes.items()}

    def _check_bytes(self, num_frames: dict[str, int]) -> None:
        """
        Raises:
            VideoError: too_large, where so many frames of each stream are more than may be kept.
        """
        num_bytes = sum(num_frames[name] * height * width * 3 for name, (_, height, width) in self.sizes.items())
        if self.max_bytes is not None and num_bytes > self.max_bytes:
            frames = ", ".join(f"{num_frames[name]:,} of {size[2]}x{size[1]}" for name, size in self.sizes.items())
            detail = f"decoded frames ({frames}) take {num_bytes / 1e9:.1f} GB, more than "
            raise VideoError("too_large", detail + limit_text("max_kept_bytes", self.max_bytes))

    def _check_payload(self, num_bytes: int) -> None:
        """
        Raises:
            VideoError: too_large, where a cut has more bytes than may be kept.
        """
        if self.max_bytes is not None and num_bytes > self.max_bytes:
            detail = f"the cut has {num_bytes / 1e9:.1f} GB, more than "
            raise VideoError("too_large", detail + limit_text("max_kept_bytes", self.max_bytes))

    def _memory_for(self, stream: str, count: int, numbers: list[int]) -> memoryview:
        if self.sink is not None:
            pixels_THWC = np.empty((count, *self.sizes[stream][1:], 3), np.uint8)
            self.block = (stream, np.array(numbers, np.int64), pixels_THWC)
            return pixels_THWC.reshape(-1).data
        buffer = self.buffers[stream]
        if buffer.num_filled + count > len(buffer.pixels_THWC):  # the length was an estimate
            filled = {name: one.num_filled for name, one in self.buffers.items()}
            self._check_bytes(filled | {stream: buffer.num_filled + count})
        return buffer.next_block(count)

    def _deliver_block(self) -> None:
        if self.block is not None and self.sink is not None:
            block, self.block = self.block, None
            self.sink.add(*block)

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
