"""Overlays of rendered scenes: weather, text, film grain, pixelation."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from recaption.scenes.captions import SceneAttributes

FOG_GREY = 222.0


# --- weather ----------------------------------------------------------------------------------------------------------


class Weather:
    """Sun, rain, snow and fog over the background; dusk only changes the background's colours."""

    def __init__(
        self, kind: str, height_px: int, width_px: int, *, is_dark: bool, num_units: float, rng: np.random.Generator
    ) -> None:
        self.kind = kind
        self.unit = float(min(height_px, width_px))
        self.size_px = (height_px, width_px)
        self.positions = rng.uniform(0.0, 1.0, size=(max(int(22 * num_units), 14), 2))
        self.speeds = rng.uniform(0.8, 1.2, size=len(self.positions))
        self.sun_left = bool(rng.integers(2))
        self.rain = np.asarray((205, 225, 250) if is_dark else (45, 65, 120), np.float32)
        self.fog_phase = float(rng.uniform(0.0, 2 * np.pi))

    def draw_behind_object(self, frame_HWC: np.ndarray, seconds: float) -> None:
        """Draw sun or fog: behind the object, so that its colour is unchanged."""
        height_px, width_px = self.size_px
        if self.kind == "sunny":
            self._draw_sun(frame_HWC)
        elif self.kind == "foggy":
            rows = np.linspace(0.0, 1.0, height_px, dtype=np.float32)[:, None]
            columns = np.linspace(0.0, width_px / self.unit, width_px, dtype=np.float32)[None, :]
            waves = np.sin(columns * 3.1 + 9.0 * rows + self.fog_phase + 0.8 * seconds)
            veil = (0.6 + 0.16 * waves * np.cos(7.0 * rows - 0.3 * seconds))[..., None]
            frame_HWC[...] = (frame_HWC + (np.float32(FOG_GREY) - frame_HWC) * veil).astype(np.uint8)

    def draw_in_front(self, frame_HWC: np.ndarray, seconds: float) -> None:
        """Draw rain or snow: in front of everything, thin enough to see through."""
        height_px, width_px = self.size_px
        if self.kind == "rainy":
            length = 0.13 * self.unit
            fall = 2.2 * seconds * self.speeds
            x = np.mod(self.positions[:, 0] - 0.25 * fall, 1.0) * width_px
            y = np.mod(self.positions[:, 1] + fall, 1.0) * (height_px + length) - length / 2
            mask = np.zeros(self.size_px, np.uint8)
            ends = np.stack([np.stack([x, y], 1), np.stack([x - 0.25 * length, y + length], 1)], 1)
            width = max(1, round(0.012 * self.unit))
            cv2.polylines(mask, list(_fixed_point(ends)), False, 190, width, cv2.LINE_AA, _SHIFT)
            _blend(frame_HWC, self.rain, mask)
        elif self.kind == "snowy":
            fall = 0.3 * seconds * self.speeds
            x = np.mod(self.positions[:, 0] + 0.02 * np.sin(3.0 * fall + self.positions[:, 1] * 20), 1.0) * width_px
            y = np.mod(self.positions[:, 1] + fall, 1.0) * height_px
            radius = max(0.017 * self.unit, 0.6)
            mask = np.zeros(self.size_px, np.uint8)
            for centre in _fixed_point(np.stack([x, y], 1)):
                cv2.circle(mask, (int(centre[0]), int(centre[1])), round(radius * _ONE), 235, -1, cv2.LINE_AA, _SHIFT)
            _blend(frame_HWC, np.asarray((250, 252, 255), np.float32), mask)

    def _draw_sun(self, frame_HWC: np.ndarray) -> None:
        height_px, width_px = self.size_px
        centre = np.asarray((0.15 * self.unit if self.sun_left else width_px - 0.15 * self.unit, 0.14 * self.unit))
        mask = np.zeros((height_px, width_px), np.uint8)
        for angle in np.arange(12) * (2 * np.pi / 12):
            ray = np.asarray((np.cos(angle), np.sin(angle)))
            line = np.stack([centre + 0.12 * self.unit * ray, centre + 0.19 * self.unit * ray])
            cv2.polylines(mask, [_fixed_point(line)], False, 255, max(1, round(0.02 * self.unit)), cv2.LINE_AA, _SHIFT)
        x, y = _fixed_point(centre)
        cv2.circle(mask, (int(x), int(y)), round(0.095 * self.unit * _ONE), 255, -1, cv2.LINE_AA, _SHIFT)
        _blend(frame_HWC, np.asarray((255, 238, 120), np.float32), mask)


_SHIFT = 4
"""Fractional bits of the fixed-point coordinates that OpenCV takes, its parameter `shift`."""
_ONE = 1 << _SHIFT


def _fixed_point(points: np.ndarray) -> np.ndarray:
    """Pixel coordinates as int32 with `_SHIFT` fractional bits."""
    return np.round((points - 0.5) * _ONE).astype(np.int32)


def _blend(frame_HWC: np.ndarray, colour: np.ndarray, mask_HW: np.ndarray) -> None:
    """Alpha-blend `colour` in place where the mask (0..255) is non-zero."""
    is_set = mask_HW > 0
    alpha = mask_HW[is_set].astype(np.float32)[:, None] / 255.0
    frame_HWC[is_set] = (frame_HWC[is_set] * (1 - alpha) + colour * alpha + 0.5).astype(np.uint8)


# --- text and style ---------------------------------------------------------------------------------------------------


def text_at_bottom(scene: SceneAttributes) -> bool:
    """Whether text is at the bottom of the frame: only if clouds are at the top."""
    return scene.surroundings == "clouds"


@lru_cache(maxsize=64)
def render_text(word: str, height_px: int, width_px: int, at_bottom: bool) -> tuple[np.ndarray, np.ndarray]:
    """White letters with a dark outline: (H, W, 1) float opacity 0..1 and (H, W, 1) float grey level."""
    unit = min(height_px, width_px)
    size = max(8.0, 0.2 * unit)
    stroke = max(1, round(size * 0.09))
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(word, stroke_width=stroke)
    size *= min(1.0, 0.92 * width_px / (right - left))
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(word, stroke_width=stroke)
    x = (width_px - (right - left)) / 2 - left
    y = (height_px - 0.05 * unit - bottom) if at_bottom else (0.05 * unit - top)
    opacity = Image.new("L", (width_px, height_px), 0)
    ImageDraw.Draw(opacity).text((x, y), word, fill=255, font=font, stroke_width=stroke, stroke_fill=255)
    letters = Image.new("L", (width_px, height_px), 15)
    ImageDraw.Draw(letters).text((x, y), word, fill=255, font=font)
    return np.asarray(opacity, np.float32)[..., None] / 255, np.asarray(letters, np.float32)[..., None]


def pixelate(frame_HWC: np.ndarray) -> np.ndarray:
    """Pixelate with blocks of 1/24 of the short side, at least 2 px."""
    height_px, width_px = frame_HWC.shape[:2]
    block = max(2, round(min(height_px, width_px) / 24))
    small = cv2.resize(frame_HWC, (-(-width_px // block), -(-height_px // block)), interpolation=cv2.INTER_AREA)
    return np.repeat(np.repeat(small, block, 0), block, 1)[:height_px, :width_px]


class Grain:
    """Film grain that changes with every frame: one noise field, read at a random offset each time."""

    def __init__(self, height_px: int, width_px: int, rng: np.random.Generator) -> None:
        self.size_px = (height_px, width_px)
        field = rng.normal(0.0, 26.0, size=(height_px + 32, width_px + 32, 1))
        self.field = np.round(field).astype(np.int16)
        self.rng = rng

    def add(self, frame_HWC: np.ndarray) -> np.ndarray:
        height_px, width_px = self.size_px
        y, x = self.rng.integers(0, 32, size=2)
        noisy = frame_HWC.astype(np.int16) + self.field[y : y + height_px, x : x + width_px]
        return np.clip(noisy, 0, 255).astype(np.uint8)
