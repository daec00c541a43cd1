"""A super-resolution stage of a cascade: how the low-resolution version of a clip comes about, and onto its grid.

    stage = Stage(kind="ssr", ratio=2)
    stage.hint(pixels_CTHW)                # the clip at half its size, on its own grid again

Shape suffixes: C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from packing.grid import Shape3
from recaption.errors import UsageError

DEFAULT_SNR = 5.0
"""Signal-to-noise ratio of the low-resolution clip in sampling (noise_augmentation.py)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A super-resolution stage: what it is trained on, and what a checkpoint records of it."""

    kind: str
    """`ssr`: spatial super-resolution; `tsr`: temporal."""
    ratio: int
    """Pixels per low-resolution pixel along each axis, or frames per low-resolution frame."""

    @classmethod
    def of(cls, config: dict[str, Any] | None) -> Stage | None:
        """From a checkpoint's config; None for a base."""
        return None if not config else cls(**config)

    @property
    def config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def check_shape(self, shape: Shape3) -> None:
        """Raises UsageError where a clip of this many (frames, rows, columns) has no low-resolution version."""
        frames, rows, columns = shape
        if self.kind == "ssr" and (rows % self.ratio or columns % self.ratio):
            raise UsageError(f"clips of {columns}x{rows} px do not divide by the ratio {self.ratio} of stage ssr")
        if self.kind == "tsr" and (frames - 1) % self.ratio:
            raise UsageError(
                f"clips of {frames} frames are not {self.ratio}k+1, as stage tsr of ratio {self.ratio} needs"
            )

    def hint(self, pixels_CTHW: Tensor) -> Tensor:
        """The low-resolution version of a clip on its own grid: averaged and enlarged, or every n-th frame, repeated."""
        if self.kind == "tsr":
            index = torch.arange(pixels_CTHW.shape[1], device=pixels_CTHW.device) // self.ratio * self.ratio
            return pixels_CTHW[:, index]
        frames_TCHW = F.avg_pool2d(pixels_CTHW.transpose(0, 1).float(), self.ratio)
        large = F.interpolate(frames_TCHW, size=pixels_CTHW.shape[2:], mode="bilinear", align_corners=False)
        return large.transpose(0, 1)
