"""Rotation and flips from display matrices, and the sizes for scaling and cropping. Plain numpy and integers.

A phone stores 1920x1080 with a display matrix that rotates by 90 degrees; everything after decoding sees 1080x1920.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Orientation:
    """One of the eight axis-aligned orientations: transpose first, then flip rows, then flip columns."""

    is_transposed: bool = False
    flips_rows: bool = False
    flips_columns: bool = False

    def apply(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """The frame as displayed; contiguous."""
        if self.is_transposed:
            pixels_HWC = pixels_HWC.swapaxes(0, 1)
        if self.flips_rows:
            pixels_HWC = pixels_HWC[::-1]
        if self.flips_columns:
            pixels_HWC = pixels_HWC[:, ::-1]
        return np.ascontiguousarray(pixels_HWC)

    def size(self, height_px: int, width_px: int) -> tuple[int, int]:
        """(height, width) from stored to displayed, or back."""
        return (width_px, height_px) if self.is_transposed else (height_px, width_px)

    @property
    def rotation_degrees(self) -> int:
        """Clockwise, 0, 90, 180 or 270. A mirror image counts as the rotation left after mirroring its columns."""
        mirrored = self.is_transposed ^ self.flips_rows ^ self.flips_columns
        flips_columns = self.flips_columns ^ mirrored
        if self.is_transposed:
            return 90 if flips_columns else 270
        return 180 if flips_columns else 0


def from_display_matrix(matrix: Sequence[int]) -> Orientation:
    """Orientation of an MP4 display matrix (9 integers, row by row, 16.16 fixed point).

    x' = a x + c y and y' = b x + d y with a, b, c, d at positions 0, 1, 3, 4 (ISO/IEC 14496-12, 8.2.2). For angles that
    are not a multiple of 90 degrees and degenerate matrices (all zero occurs in real files) the frame stays as stored.
    """
    a, b, c, d = (matrix[i] for i in (0, 1, 3, 4))
    if a and d and not b and not c:
        return Orientation(False, flips_rows=d < 0, flips_columns=a < 0)
    if b and c and not a and not d:
        return Orientation(True, flips_rows=b < 0, flips_columns=c < 0)
    return Orientation()


def from_counterclockwise_degrees(degrees: float) -> Orientation:
    """Orientation from an angle alone, where the matrix itself cannot be read."""
    rotations = {0: Orientation(), 90: Orientation(True, flips_rows=True), 180: Orientation(False, True, True)}
    return (rotations | {270: Orientation(True, flips_columns=True)}).get(int(degrees) % 360, Orientation())


def size_with_short_side(height_px: int, width_px: int, short_side_px: int) -> tuple[int, int]:
    """(height, width) of the same aspect ratio whose shorter side is `short_side_px`."""
    short = min(height_px, width_px)
    long_side_px = max(1, round(max(height_px, width_px) * short_side_px / short))
    return (short_side_px, long_side_px) if height_px <= width_px else (long_side_px, short_side_px)


def size_to_cover(height_px: int, width_px: int, cover_height_px: int, cover_width_px: int) -> tuple[int, int]:
    """Smallest (height, width) of the same aspect ratio that covers the target size; the rest is cropped."""
    if height_px * cover_width_px <= width_px * cover_height_px:
        return cover_height_px, max(cover_width_px, round(width_px * cover_height_px / height_px))
    return max(cover_height_px, round(height_px * cover_width_px / width_px)), cover_width_px


def center_crop(pixels_HWC: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """The middle `height_px` x `width_px` of a frame at least that large."""
    top = (pixels_HWC.shape[0] - height_px) // 2
    left = (pixels_HWC.shape[1] - width_px) // 2
    return pixels_HWC[top : top + height_px, left : left + width_px]
