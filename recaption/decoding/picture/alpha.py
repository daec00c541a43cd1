"""Frames with transparency, laid on one colour.

has_alpha(frame)                             # whether its pixel format can hold transparency
on_background(pixels_HWC, alpha_HW)          # uint8 RGB on white
"""

from __future__ import annotations

from typing import Any

import numpy as np

BACKGROUND = 255
"""White in all channels: what a browser shows behind a GIF, an APNG or a WebP. A black one would count as letterbox bars."""


def has_alpha(frame: Any) -> bool:
    """Whether the pixel format can hold transparency: an alpha channel, or a palette."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def on_background(pixels_HWC: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
    """uint8 RGB laid on `BACKGROUND`: colour * alpha + background * (1 - alpha), rounded.

    Args:
        pixels_HWC: uint8 RGB, not multiplied by alpha.
        alpha_HW: uint8.
    """
    alpha_HW1 = alpha_HW[..., None].astype(np.uint16)
    weighted = pixels_HWC * alpha_HW1 + np.uint16(BACKGROUND) * (255 - alpha_HW1)
    return ((weighted + 127) // 255).astype(np.uint8)
