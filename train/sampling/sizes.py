"""Sizes and lengths that a model's grid supports."""

from __future__ import annotations

from packing.buckets import Bucket
from packing.grid import Grid


def nearest_size(requested: Bucket, grid: Grid) -> Bucket:
    """The supported size closest to `requested`; `requested` itself where it is supported."""
    latent_frames = 1 + max(0, requested.num_frames - 1) / grid.frame_stride
    patch_frames, patch_rows, patch_columns = grid.patch
    latent_frames = patch_frames * max(1, _round_half_up(latent_frames / patch_frames))
    sides = [
        step_px * max(1, _round_half_up(side_px / step_px))
        for side_px, step_px in (
            (requested.height_px, grid.spatial_stride * patch_rows),
            (requested.width_px, grid.spatial_stride * patch_columns),
        )
    ]
    return Bucket(1 + (latent_frames - 1) * grid.frame_stride, sides[0], sides[1], requested.fps)


def supported_length(num_frames: int, grid: Grid) -> int:
    """The smallest number of frames that the grid supports and that is at least `num_frames`."""
    unit = grid.frame_stride * grid.patch[0]
    return unit * -(-(num_frames - 1 + grid.frame_stride) // unit) - grid.frame_stride + 1


def _round_half_up(x: float) -> int:
    return int(x + 0.5)
