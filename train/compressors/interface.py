"""The Compressor protocol, and checks of pixel and latent shapes."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from recaption.errors import UsageError


class Compressor(Protocol):
    """A video autoencoder. Shapes: B clips, C channels, T frames, H rows, W columns; lower case: the latent grid."""

    name: str
    """Used as folder name (`RUN/latents/<name>`): letters, digits, dots and dashes."""
    config: dict[str, Any]
    """JSON-serialisable; compressors with equal configs give equal latents."""
    num_channels: int
    frame_stride: int
    spatial_stride: int

    def encode(self, pixels_BCTHW: Tensor) -> Tensor:
        """RGB in -1..1 to normalised latents (B, num_channels, 1 + (T-1)/frame_stride, H/stride, W/stride).

        Raises:
            UsageError: the strides do not divide the length or size.
        """
        ...

    def decode(self, latents_BCthw: Tensor) -> Tensor:
        """The inverse of `encode`, clamped to -1..1."""
        ...

    def to(self, device: torch.device | str) -> Any: ...


def check_pixels(pixels_BCTHW: Tensor, *, frame_stride: int, spatial_stride: int, name: str) -> None:
    """Raises UsageError unless this is a batch of float RGB clips whose length and size the strides divide."""
    if pixels_BCTHW.ndim != 5 or pixels_BCTHW.shape[1] != 3 or not pixels_BCTHW.is_floating_point():
        raise UsageError(
            f"compressor {name} takes float RGB clips (clips, 3, frames, height, width) in -1..1, "
            f"not {tuple(pixels_BCTHW.shape)} of {pixels_BCTHW.dtype}"
        )
    num_frames, height_px, width_px = pixels_BCTHW.shape[2:]
    latent_shape(num_frames, height_px, width_px, frame_stride=frame_stride, spatial_stride=spatial_stride, name=name)


def check_latents(latents_BCthw: Tensor, *, num_channels: int, name: str) -> None:
    """Raises UsageError unless the shape is one of the compressor's latents."""
    if latents_BCthw.ndim != 5 or latents_BCthw.shape[1] != num_channels:
        raise UsageError(
            f"compressor {name} decodes latents (clips, {num_channels}, frames, rows, columns), "
            f"not {tuple(latents_BCthw.shape)}"
        )


def latent_shape(
    num_frames: int, height_px: int, width_px: int, *, frame_stride: int, spatial_stride: int, name: str
) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a clip.

    Raises:
        UsageError: the strides do not divide it; names the nearest sizes that they do.
    """
    if num_frames < 1 or (num_frames - 1) % frame_stride:
        nearest_length = max(1, (num_frames - 1) // frame_stride * frame_stride + 1)
        raise UsageError(
            f"compressor {name} takes {frame_stride}k+1 frames (1, {frame_stride + 1}, {2 * frame_stride + 1}, ...), "
            f"not {num_frames}; trim the clip to {nearest_length}"
        )
    if min(height_px, width_px) < spatial_stride or height_px % spatial_stride or width_px % spatial_stride:
        smaller, larger = (
            tuple(max(1, round_(side / spatial_stride)) * spatial_stride for side in (width_px, height_px))
            for round_ in (math.floor, math.ceil)
        )
        nearest = f"is {larger[0]}x{larger[1]}"
        if smaller != larger:
            nearest = f"are {smaller[0]}x{smaller[1]} and {larger[0]}x{larger[1]}"
        raise UsageError(
            f"compressor {name} takes sizes that are multiples of {spatial_stride} px, not {width_px}x{height_px}; "
            f"the nearest {nearest}"
        )
    return 1 + (num_frames - 1) // frame_stride, height_px // spatial_stride, width_px // spatial_stride
