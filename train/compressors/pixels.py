"""Frames (uint8 RGB, channels last) <-> pixels (float RGB in -1..1, channels first), and the compressor of pixel space.

    pixels_BCTHW = to_pixels(torch.from_numpy(frames_THWC))[None]
    frames_THWC = to_frames(pixels_BCTHW[0])
    compressor = PixelSpace()                                     # 17 frames of 64x64: latents (3, 17, 64, 64)
    compressor = PixelSpace(spatial_stride=2, frame_stride=4)     # the same clips: latents (3, 5, 32, 32)

`pixels` compresses nothing, for diffusion in pixel space. With a spatial stride, pixels are averaged over squares; with a
frame stride, every so many frames are kept. `decode` repeats pixels and frames, so that `encode(decode(latents))` gives the
latents again: a stage of a cascade hands its video to the next one as frames of full size.

Shapes: any number of leading dimensions, B clips, T frames, H rows, W columns, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.errors import UsageError
from train.compressors.interface import check_latents, check_pixels

MAX_STRIDE = 64


class PixelSpace(nn.Module):
    """Pixels as latents; implements `train.compressors.interface.Compressor`."""

    num_channels = 3
    value_range = (-1.0, 1.0)
    """Bounds of every latent value: what dynamic thresholding may rely on."""

    def __init__(self, spatial_stride: int = 1, frame_stride: int = 1) -> None:
        super().__init__()
        for name, stride in (("stride", spatial_stride), ("frame-stride", frame_stride)):
            if not 1 <= stride <= MAX_STRIDE:
                raise UsageError(f"compressor pixels takes a {name} from 1 to {MAX_STRIDE}, not {stride}")
        self.spatial_stride, self.frame_stride = spatial_stride, frame_stride
        self.config: dict[str, Any] = {
            "kind": "pixels",
            "version": 1,
            "spatial_stride": spatial_stride,
            "frame_stride": frame_stride,
        }
        self.name = "pixels" + "".join(
            f"-{letter}{stride}" for letter, stride in (("s", spatial_stride), ("f", frame_stride)) if stride > 1
        )

    @torch.no_grad()
    def encode(self, pixels_BCTHW: Tensor) -> Tensor:
        strides = {"frame_stride": self.frame_stride, "spatial_stride": self.spatial_stride}
        check_pixels(pixels_BCTHW, **strides, name=self.name)
        stride = self.spatial_stride
        return F.avg_pool3d(pixels_BCTHW[:, :, :: self.frame_stride].float(), (1, stride, stride))

    @torch.no_grad()
    def decode(self, latents_BCthw: Tensor) -> Tensor:
        check_latents(latents_BCthw, num_channels=self.num_channels, name=self.name)
        pixels = latents_BCthw.float().clamp(-1, 1)
        pixels = pixels.repeat_interleave(self.spatial_stride, 3).repeat_interleave(self.spatial_stride, 4)
        first, rest = pixels[:, :, :1], pixels[:, :, 1:]
        # each kept frame is the last of its group: 1 + stride * k frames, as in every compressor with a frame stride
        return torch.cat([first, rest.repeat_interleave(self.frame_stride, 2)], dim=2)


def to_pixels(frames_THWC: Tensor) -> Tensor:
    """uint8 (..., T, H, W, C) to float (..., C, T, H, W) in -1..1."""
    return frames_THWC.movedim(-1, -4).float() / 127.5 - 1


def to_frames(pixels_CTHW: Tensor) -> np.ndarray:
    """float (..., C, T, H, W), clamped to -1..1, to uint8 (..., T, H, W, C)."""
    frames_CTHW = ((pixels_CTHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return frames_CTHW.movedim(-4, -1).cpu().contiguous().numpy()


def parse_options(text: str) -> dict[str, int]:
    """Parse the options after `pixels:`, such as `stride=2,frame-stride=4`.

    Raises:
        UsageError: invalid options.
    """
    names = {"stride": "spatial_stride", "frame-stride": "frame_stride"}
    try:
        pairs = [part.split("=") for part in text.split(",") if text]
        return {names[name]: int(value) for name, value in pairs}
    except (ValueError, KeyError) as error:
        raise UsageError(f"invalid compressor pixels:{text}; write pixels or pixels:stride=2,frame-stride=4") from error
