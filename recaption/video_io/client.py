"""Frames on their way from the decoder child into memory: limits, the result, and the rooms that it is received in.

answer = Answer("a.mp4", b"", DecodeLimits(), {"op": "read", "indices": [0, 8], "short_side_px": None})
answer.raise_refusal("a.mp4")
answer.frames(np.array([0, 8])).pixels_THWC
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from recaption.errors import VideoError
from recaption.video_io import process as decoder_process
from recaption.video_io.frames import DecodeLimits, Frames


class _Room:
    """Memory for the frames of one stream, filled block by block straight from the pipe."""

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


class Answer:
    """One exchange with the decoder child: rooms by stream name, presentation times, the last header."""

    def __init__(self, path: str | None, payload: bytes, limits: DecodeLimits, request: dict[str, Any]) -> None:
        self.rooms: dict[str, _Room] = {}
        self.pts_seconds = np.zeros(0)
        self.header = decoder_process.exchange(
            request | {"path": path, "limits": dataclasses.asdict(limits)},
            payload,
            receive=self._receive,
            wall_seconds=limits.max_wall_seconds,
            seconds_per_video_second=limits.seconds_per_video_second,
        )

    def _receive(self, header: dict[str, Any], num_bytes: int) -> memoryview:
        if header["kind"] == "length":
            self.rooms = {name: _Room(*shape) for name, shape in header["streams"].items()}
            return memoryview(b"")
        if header["kind"] == "done":
            self.pts_seconds = np.empty(header["count"], np.float64)
            block = self.pts_seconds.view(np.uint8).data
        else:
            block = self.rooms[header["stream"]].next_block(header["count"])
        if len(block) != num_bytes:
            raise EOFError(f"{num_bytes} bytes where {len(block)} belong")
        return block

    def raise_refusal(self, uri: str) -> None:
        if self.header["kind"] == "error":
            raise VideoError(self.header["reason"], self.header["detail"], uri=uri)

    def frames(self, indices: np.ndarray) -> Frames:
        pixels_THWC = self.rooms["frames"].filled()
        if self.header["order"] is not None:
            pixels_THWC = pixels_THWC[self.header["order"]]
        return Frames(pixels_THWC, self.pts_seconds, indices)
