"""Sizes of a sample in pixels, latents and tokens, and the FLOPs of its tokens.

    grid = Grid(frame_stride=4, spatial_stride=8, patch=(1, 2, 2))
    grid.latent_shape(17, 144, 256)     # (5, 18, 32)
    grid.token_shape(17, 144, 256)      # (5, 9, 16)
    grid.num_tokens(17, 144, 256)       # 720

An image is a video of one frame. Shape suffixes: L tokens of a sample, 3 = (frame, row, column).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recaption.errors import UsageError

Shape3 = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Strides of a causal video autoencoder and patch size of the transformer: how pixels become latents and tokens."""

    frame_stride: int = 4
    """Video frames per latent frame, after the first: t = 1 + (frames - 1) / frame_stride."""
    spatial_stride: int = 8
    """Pixels along one axis per latent position."""
    patch: Shape3 = (1, 1, 1)
    """Latent (frames, rows, columns) that make one token."""

    def __post_init__(self) -> None:
        if min(self.frame_stride, self.spatial_stride, *self.patch) < 1 or len(self.patch) != 3:
            raise UsageError(f"{self} needs strides and three patch sizes of at least 1")

    def latent_shape(self, num_frames: int, height_px: int, width_px: int) -> Shape3:
        """Latent (frames, rows, columns).

        Raises:
            UsageError: the size is not a multiple of the strides, so that frames or border pixels would be lost.
        """
        if num_frames < 1 or (num_frames - 1) % self.frame_stride:
            raise UsageError(f"{num_frames} frames are not {self.frame_stride}k+1, so the last ones would be lost")
        for name, size_px in (("height", height_px), ("width", width_px)):
            if size_px < 1 or size_px % self.spatial_stride:
                raise UsageError(f"{name} {size_px} px is not a multiple of the spatial stride {self.spatial_stride}")
        return (
            1 + (num_frames - 1) // self.frame_stride,
            height_px // self.spatial_stride,
            width_px // self.spatial_stride,
        )

    def token_shape(self, num_frames: int, height_px: int, width_px: int) -> Shape3:
        """Token (frames, rows, columns) of a video in pixels. Raises as `latent_shape` and `token_shape_of_latent`."""
        return token_shape_of_latent(self.latent_shape(num_frames, height_px, width_px), self.patch)

    def num_tokens(self, num_frames: int, height_px: int, width_px: int) -> int:
        frames, rows, columns = self.token_shape(num_frames, height_px, width_px)
        return frames * rows * columns


def token_shape_of_latent(latent_shape: Shape3, patch: Shape3) -> Shape3:
    """Token (frames, rows, columns) of a latent (frames, rows, columns).

    Raises:
        UsageError: the latent does not divide into patches; both sizes are named.
    """
    if any(size < 1 or size % step for size, step in zip(latent_shape, patch)):
        raise UsageError(
            f"a latent of {tuple(latent_shape)} (frames, rows, columns) does not divide into patches {tuple(patch)}: choose "
            "a patch that divides the latents of every bucket"
        )
    return latent_shape[0] // patch[0], latent_shape[1] // patch[1], latent_shape[2] // patch[2]


def positions(token_shape: Shape3) -> np.ndarray:
    """positions_L3, int64: (frame, row, column) of every token, columns fastest, as in `batch.patchify`."""
    return np.indices(token_shape, dtype=np.int64).reshape(3, -1).T.copy()


def layer_flops_coefficients(width: int) -> tuple[float, float]:
    """(a, b) of the forward FLOPs of one transformer layer for l tokens, a * l + b * l^2: 24 d^2 l for the projections,
    4 d l^2 for attention."""
    return 24.0 * width * width, 4.0 * width


def sample_flops(num_tokens: np.ndarray, *, width: int = 1152) -> np.ndarray:
    """Forward FLOPs of one transformer layer per sample, float64.

    Attention is within samples, so a pack costs the sum over its samples: two packs of equal tokens can differ 2x.
    """
    tokens = np.asarray(num_tokens, dtype=np.float64)
    linear, square = layer_flops_coefficients(width)
    return linear * tokens + square * tokens * tokens
