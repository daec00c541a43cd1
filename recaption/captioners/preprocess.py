"""From a clip of any size and length to the square frames a captioner looks at.

    framing = Framing(frame_px=64, fit="pad")
    framing.tensor(clip_THWC, num_frames=8)        float32 (8, 3, 64, 64), normalised

`crop` is CLIP's own framing (shorter side to size, middle kept); `pad` keeps the whole picture: longer side to size,
grey above and below or left and right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from recaption.errors import UsageError

FITS = ("crop", "pad", "squash")
"""Named as open_clip's resize modes shortest, longest and squash."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Framing:
    frame_px: int
    fit: str = "crop"
    """One of `FITS`."""
    interpolation: str = "bicubic"
    """`bicubic` or `bilinear`, both with antialiasing (Pillow)."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Of RGB in 0..1; also the colour of the padding."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UsageError(f"{self.fit = } is not one of {', '.join(FITS)}")

    def tensor(self, clip_THWC: np.ndarray, *, num_frames: int, repeat: bool) -> Tensor:
        """Normalised frames (T, 3, frame_px, frame_px) of a clip; see `choose_frames` for `repeat`."""
        chosen = choose_frames(len(clip_THWC), num_frames, repeat=repeat)
        return self.normalise(torch.from_numpy(self.pixels(clip_THWC, chosen)))

    def pixels(self, clip_THWC: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """The chosen frames, framed, still uint8: (T, frame_px, frame_px, 3)."""
        framed = {index: self._frame(clip_THWC[index]) for index in np.unique(chosen).tolist()}
        return np.stack([framed[index] for index in chosen.tolist()])

    def normalise(self, pixels_THWC: Tensor) -> Tensor:
        """uint8 (..., H, W, 3) to normalised float32 (..., 3, H, W)."""
        mean = torch.tensor(self.mean, device=pixels_THWC.device)
        std = torch.tensor(self.std, device=pixels_THWC.device)
        return ((pixels_THWC.float() / 255 - mean) / std).movedim(-1, -3).contiguous()

    def _frame(self, frame_HWC: np.ndarray) -> np.ndarray:
        height, width = frame_HWC.shape[:2]
        size = self.frame_px
        resample = Image.Resampling.BICUBIC if self.interpolation == "bicubic" else Image.Resampling.BILINEAR
        picture = Image.fromarray(np.ascontiguousarray(frame_HWC))
        if self.fit == "squash":
            return np.asarray(picture.resize((size, size), resample))
        if self.fit == "pad":
            scale = size / max(height, width)
            fitted = max(1, round(width * scale)), max(1, round(height * scale))
            canvas = Image.new("RGB", (size, size), tuple(round(255 * level) for level in self.mean))
            canvas.paste(picture.resize(fitted, resample), ((size - fitted[0]) // 2, (size - fitted[1]) // 2))
            return np.asarray(canvas)
        # integer rules of torchvision's Resize and CenterCrop, so that one frame equals open_clip's own input
        short, long = min(height, width), max(height, width)
        fitted = (size, int(size * long / short)) if width <= height else (int(size * long / short), size)
        left, top = round((fitted[0] - size) / 2), round((fitted[1] - size) / 2)
        return np.asarray(picture.resize(fitted, resample).crop((left, top, left + size, top + size)))


def choose_frames(num_present: int, num_wanted: int, *, repeat: bool) -> np.ndarray:
    """Indices of frames spread evenly over the clip: the middle of each of as many equal spans.

    Args:
        repeat: a clip shorter than wanted shows frames twice (a captioner with a temporal embedding needs its full
            count); otherwise it gives fewer frames.
    """
    if num_present < 1:
        raise UsageError("a clip without frames cannot be captioned")
    count = num_wanted if repeat else min(num_wanted, num_present)
    return ((np.arange(count) + 0.5) * num_present / count).astype(np.int64)
