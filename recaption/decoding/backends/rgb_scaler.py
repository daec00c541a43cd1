"""RGB frames of a backend at the size, and the right way up, that `picture.scaler.Scaler` gives decoded frames.

scaler = RgbScaler(Orientation(), 144, 256)
scaler(pixels_HWC)                           # (144, 256, 3) uint8

PyAV's frames are scaled on their way from Y'CbCr to RGB, those of a backend afterwards, by the same filters of swscale. The
difference is rounding, and the chroma of edges (docs/decoders.md has figures).
"""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from recaption.decoding.orientation import Orientation
from recaption.decoding.picture.scaler import BIT_EXACT_SCALING


class RgbScaler:
    """Scales and turns RGB frames; the conversion is set up once."""

    def __init__(self, orientation: Orientation, height_px: int, width_px: int) -> None:
        self.orientation = orientation
        self.size = orientation.size(height_px, width_px)
        """(height, width) as stored."""
        self.to_planes, self.reformatter = VideoReformatter(), VideoReformatter()

    def __call__(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """(height, width, 3) uint8 RGB as displayed."""
        if pixels_HWC.shape[:2] != self.size:
            pixels_HWC = self._scaled(pixels_HWC)
        return self.orientation.apply(pixels_HWC)

    def _scaled(self, pixels_HWC: np.ndarray) -> np.ndarray:
        height, width = pixels_HWC.shape[:2]
        shrinks = self.size[0] * self.size[1] < height * width
        flags = BIT_EXACT_SCALING | (Interpolation.AREA if shrinks else Interpolation.BICUBIC)
        packed = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), format="rgb24")
        planar = self.to_planes.reformat(packed, format="gbrp", interpolation=Interpolation.POINT, threads=1)
        # swscale turns RGB into Y'CbCr and back to scale it: as three planes of Y'CbCr each channel is scaled alone
        channels = av.VideoFrame(width, height, "yuv444p")
        for plane, source in zip(channels.planes, planar.planes, strict=True):
            plane.update(source)
        scaled = self.reformatter.reformat(
            channels, self.size[1], self.size[0], "yuv444p", interpolation=flags, threads=1
        )
        green, blue, red = scaled.to_ndarray()
        return np.stack([red, green, blue], axis=-1)
