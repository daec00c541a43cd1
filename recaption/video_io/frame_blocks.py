"""Frames of one stream in the blocks in which they came, and windows of them by frame number.

blocks = FrameBlocks()
blocks.add(np.arange(340), pixels_THWC)
blocks.window(48, 131)                        # (pixels, numbers) of the frames 48 to 130
blocks.forget_before(131)
"""

from __future__ import annotations

import bisect

import numpy as np


class FrameBlocks:
    """Blocks in ascending order of their frame numbers."""

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []
        self.numbers: list[np.ndarray] = []
        self.num_bytes = 0

    def add(self, numbers: np.ndarray, pixels_THWC: np.ndarray) -> None:
        if len(numbers):
            self.blocks.append(pixels_THWC)
            self.numbers.append(numbers)
            self.num_bytes += pixels_THWC.nbytes

    def window(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """(pixels, numbers) of the frames with a number in [start, end), copied."""
        first = bisect.bisect_left(self.numbers, start, key=lambda numbers: int(numbers[-1]))
        pixels, found = [], []
        for block_THWC, numbers in zip(self.blocks[first:], self.numbers[first:], strict=True):
            if numbers[0] >= end:
                break
            here = slice(*np.searchsorted(numbers, [start, end]))
            pixels.append(block_THWC[here])
            found.append(numbers[here])
        if not found:
            shape = self.blocks[0].shape[1:] if self.blocks else (0, 0, 3)
            return np.zeros((0, *shape), np.uint8), np.zeros(0, np.int64)
        return np.concatenate(pixels), np.concatenate(found)

    def forget_before(self, frame: int) -> None:
        """Drop the blocks in which all frames are older."""
        num_old = bisect.bisect_left(self.numbers, frame, key=lambda numbers: int(numbers[-1]))
        self.num_bytes -= sum(block.nbytes for block in self.blocks[:num_old])
        del self.blocks[:num_old], self.numbers[:num_old]
