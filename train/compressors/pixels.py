"""Frames (uint8 RGB, channels last) <-> pixels, the input and output of compressors (float RGB in -1..1, channels first).

    pixels_BCTHW = to_pixels(torch.from_numpy(frames_THWC))[None]
    frames_THWC = to_frames(pixels_BCTHW[0])

Shapes: any number of leading dimensions, T frames, H rows, W columns, C channels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_pixels(frames_THWC: Tensor) -> Tensor:
    """uint8 (..., T, H, W, C) to float (..., C, T, H, W) in -1..1."""
    return frames_THWC.movedim(-1, -4).float() / 127.5 - 1


def to_frames(pixels_CTHW: Tensor) -> np.ndarray:
    """float (..., C, T, H, W), clamped to -1..1, to uint8 (..., T, H, W, C)."""
    frames_CTHW = ((pixels_CTHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return frames_CTHW.movedim(-4, -1).cpu().contiguous().numpy()
