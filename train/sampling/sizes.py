"""The trained size nearest to one that is asked for."""

from __future__ import annotations

from packing.buckets import Bucket
from packing.grid import Grid


def nearest_size(wanted: Bucket, grid: Grid) -> Bucket:
    """The size of the grid closest to `wanted`; `wanted` itself where the grid has it."""
    latent_frames = 1 + max(0, wanted.num_frames - 1) / grid.frame_stride
    patch_frames, patch_rows, patch_columns = grid.patch
    latent_frames = patch_frames * max(1, _round_half_up(latent_frames / patch_frames))
    sides = [
        step_px * max(1, _round_half_up(side_px / step_px))
        for side_px, step_px in (
            (wanted.height_px, grid.spatial_stride * patch_rows),
            (wanted.width_px, grid.spatial_stride * patch_columns),
        )
    ]
    return Bucket(1 + (latent_frames - 1) * grid.frame_stride, sides[0], sides[1], wanted.fps)


def _round_half_up(x: float) -> int:
    return int(x + 0.5)
