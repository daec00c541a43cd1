"""Frame preprocessing: from a clip of any size and length to the normalised square frames of a captioner.

    preprocessor = FramePreprocessor(frame_px=64, fit="pad")
    preprocessor.to_tensor(clip_THWC, num_frames=8, repeat=True)        float32 (8, 3, 64, 64)

`crop` resizes the shorter side and crops the centre, as CLIP does; `pad` resizes the longer side and pads with the mean
colour (letterbox); `squash` ignores the aspect ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from recaption.errors import UsageError

FITS = ("crop", "pad", "squash")
"""Resize modes: open_clip's `shortest`, `longest` and `squash`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FramePreprocessor:
    """Resizes and normalises frames."""

    frame_px: int
    """Side of the square output."""
    fit: str = "crop"
    """Resize mode, one of `FITS`."""
    interpolation: str = "bicubic"
    """`bicubic` or `bilinear`, both with antialiasing (Pillow)."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Of RGB in 0..1; also the padding colour."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UsageError(f"{self.fit = } is not one of {', '.join(FITS)}")

    def to_tensor(self, clip_THWC: np.ndarray, *, num_frames: int, repeat: bool) -> Tensor:
        """Uniformly sampled frames, normalised, (T, 3, frame_px, frame_px); `repeat` as in `uniform_frame_indices`."""
        indices = uniform_frame_indices(len(clip_THWC), num_frames, repeat=repeat)
        return self.normalise(torch.from_numpy(self.resize_frames(clip_THWC, indices)))

    def resize_frames(self, clip_THWC: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """The frames at `indices`, resized, still uint8: (T, frame_px, frame_px, 3)."""
        resized = {index: self._resize(clip_THWC[index]) for index in np.unique(indices).tolist()}
        return np.stack([resized[index] for index in indices.tolist()])

    def normalise(self, pixels_THWC: Tensor) -> Tensor:
        """uint8 (..., H, W, 3) to normalised float32 (..., 3, H, W)."""
        mean, std = (_on_device(tuple(values), pixels_THWC.device) for values in (self.mean, self.std))
        return ((pixels_THWC.float() / 255 - mean) / std).movedim(-1, -3).contiguous()

    def _resize(self, frame_HWC: np.ndarray) -> np.ndarray:
        height, width = frame_HWC.shape[:2]
        size = self.frame_px
        resample = Image.Resampling.BICUBIC if self.interpolation == "bicubic" else Image.Resampling.BILINEAR
        image = Image.fromarray(np.ascontiguousarray(frame_HWC))
        if self.fit == "squash":
            return np.asarray(image.resize((size, size), resample))
        if self.fit == "pad":
            scale = size / max(height, width)
            fitted = max(1, round(width * scale)), max(1, round(height * scale))
            canvas = Image.new("RGB", (size, size), tuple(round(255 * level) for level in self.mean))
            canvas.paste(image.resize(fitted, resample), ((size - fitted[0]) // 2, (size - fitted[1]) // 2))
            return np.asarray(canvas)
        # integer rules of torchvision's Resize and CenterCrop, so that one frame equals open_clip's own input
        short, long = min(height, width), max(height, width)
        fitted = (size, int(size * long / short)) if width <= height else (int(size * long / short), size)
        left, top = round((fitted[0] - size) / 2), round((fitted[1] - size) / 2)
        return np.asarray(image.resize(fitted, resample).crop((left, top, left + size, top + size)))


def upload(pixels: np.ndarray, device: torch.device) -> Tensor:
    """uint8 pixels on the device, to be normalised there: a quarter of the bytes, from pinned memory, without waiting."""
    tensor = torch.from_numpy(pixels)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@cache
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values as a tensor, copied to the device once and without waiting for it."""
    with torch.inference_mode(False):
        tensor = torch.tensor(values)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def uniform_frame_indices(num_available: int, num_frames: int, *, repeat: bool) -> np.ndarray:
    """Indices of uniformly spaced frames: the middle of each of `num_frames` equal spans of the clip.

    Args:
        repeat: whether a clip with fewer frames repeats some (a captioner with a temporal embedding needs exactly
            `num_frames`); otherwise all of its frames are taken once.
    """
    if num_available < 1:
        raise UsageError("a clip without frames cannot be captioned")
    count = num_frames if repeat else min(num_frames, num_available)
    return ((np.arange(count) + 0.5) * num_available / count).astype(np.int64)
