"""Background layer of rendered scenes: background, surroundings, colour grading of dusk and sepia.

The layer is one image, wider than the frame if the camera pans; the camera crops it. Lengths are in units
of the frame's short side unless a name ends in `_px`.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from recaption.scenes.captions import SceneAttributes
from recaption.scenes.objects import COLOURS, PAN, contour_width_px
from recaption.scenes.overlays import FOG_GREY

RGB = tuple[int, int, int]
_GRADIENTS: dict[str, tuple[RGB, RGB]] = {
    "sky": ((85, 160, 240), (190, 222, 250)),
    "sea": ((10, 82, 128), (35, 135, 165)),
    "sand": ((228, 200, 150), (205, 172, 115)),
    "grass": ((98, 165, 62), (66, 128, 42)),
    "night": ((10, 12, 38), (30, 30, 78)),
    "ice": ((226, 241, 248), (186, 218, 234)),
    "brick wall": ((160, 98, 82), (140, 82, 68)),
    "road": ((92, 92, 98), (112, 112, 118)),
}
"""Top and bottom colour of each background."""
_DUSK_GRADIENT: tuple[RGB, RGB] = ((62, 38, 92), (226, 118, 62))
_DUSK_OPACITY = 0.6
_SEPIA_DARK, _SEPIA_LIGHT = np.asarray((38.0, 24.0, 10.0), np.float32), np.asarray((250.0, 228.0, 188.0), np.float32)
_SEPIA_OPACITY = 0.8
_MIN_COLOUR_DISTANCE = 150.0
"""Minimum red-mean distance (0..765) between the colours of the object and of any part of the background."""


def grade_colours(pixels: np.ndarray, scene: SceneAttributes, down: np.ndarray) -> np.ndarray:
    """Apply dusk and sepia to colours (..., 3); `down` (..., 1) is the vertical position from top (0) to bottom (1)."""
    pixels = pixels.astype(np.float32)
    if scene.weather == "dusk":
        top, bottom = (np.asarray(colour, np.float32) for colour in _DUSK_GRADIENT)
        pixels = pixels + (top + (bottom - top) * down - pixels) * _DUSK_OPACITY
    if scene.style == "sepia":
        luma = pixels @ np.asarray((0.299, 0.587, 0.114), np.float32) / 255
        sepia = _SEPIA_DARK + (_SEPIA_LIGHT - _SEPIA_DARK) * luma[..., None]
        pixels = pixels + (sepia - pixels) * _SEPIA_OPACITY
    return pixels


def background_colours(scene: SceneAttributes) -> np.ndarray:
    """(N, 3) float RGB at the top and bottom of the background after grading; in fog, at its lowest and highest density."""
    colours = grade_colours(np.asarray(_GRADIENTS[scene.background]), scene, np.asarray([[0.0], [1.0]], np.float32))
    if scene.weather == "foggy":
        colours = np.concatenate([colours + (FOG_GREY - colours) * density for density in (0.5, 0.7)])
    return colours


def contour_colour(scene: SceneAttributes) -> RGB:
    """Line colour of the outline style: dark on light backgrounds, light on dark ones."""
    return (245, 245, 245) if is_dark(scene) else (12, 12, 12)


def is_dark(scene: SceneAttributes) -> bool:
    """Whether the background is dark."""
    return bool(background_colours(scene).mean() < 105)


def is_visible(scene: SceneAttributes) -> bool:
    """Whether the object's colour is distinguishable from all parts of the background.

    Distance: red-mean weighted RGB (https://www.compuphase.com/cmetric.htm), 0 for equal, 765 for black and white.
    """
    background = background_colours(scene)
    background = np.concatenate([background, background.mean(0, keepdims=True)])
    colour = np.asarray(COLOURS[scene.colour], np.float32)
    red = (background[:, 0] + colour[0]) / 2
    delta = (background - colour) ** 2
    distance = np.sqrt((2 + red / 256) * delta[:, 0] + 4 * delta[:, 1] + (2 + (255 - red) / 256) * delta[:, 2])
    return bool(distance.min() >= _MIN_COLOUR_DISTANCE)


def paint_background(scene: SceneAttributes, height_px: int, width_px: int, rng: np.random.Generator) -> np.ndarray:
    """Paint the background layer: (height_px, W, 3) uint8; W exceeds width_px only if the camera pans."""
    unit = float(min(height_px, width_px))
    margin_px = 0
    if scene.camera.startswith("pans"):
        margin_px = int(np.ceil(min(PAN * width_px, unit) / 2)) + 2
    canvas = _Canvas(height_px, width_px + 2 * margin_px, unit, scene)
    canvas.gradient(*_GRADIENTS[scene.background])
    _BACKGROUNDS[scene.background](canvas, rng)
    if scene.surroundings != "empty":
        _draw_surroundings(canvas, scene.surroundings, rng)
    down = np.linspace(0.0, 1.0, height_px, dtype=np.float32)[:, None, None]
    if scene.weather == "dusk" or scene.style == "sepia":
        return np.clip(grade_colours(canvas.pixels, scene, down) + 0.5, 0, 255).astype(np.uint8)
    return canvas.pixels


class _Canvas:
    """Drawing surface with lengths in short sides of the frame; adds contours in the outline style."""

    def __init__(self, height_px: int, width_px: int, unit_px: float, scene: SceneAttributes) -> None:
        self.pixels = np.empty((height_px, width_px, 3), np.uint8)
        self.unit_px = unit_px
        self.height, self.width = height_px / unit_px, width_px / unit_px
        self.contour_px = max(1, round(0.5 * contour_width_px(height_px, width_px))) if scene.style == "outline" else 0
        self.contour = contour_colour(scene)

    def px(self, length: float) -> int:
        return max(1, round(length * self.unit_px))

    def gradient(self, top: RGB, bottom: RGB) -> None:
        down = np.linspace(0.0, 1.0, len(self.pixels), dtype=np.float32)[:, None, None]
        start, end = np.asarray(top, np.float32), np.asarray(bottom, np.float32)
        self.pixels[...] = np.round(start + (end - start) * down).astype(np.uint8)

    def line(self, points: np.ndarray, colour: RGB, width: float, *, closed: bool = False) -> None:
        path = np.round(np.asarray(points) * self.unit_px * 16).astype(np.int32)
        cv2.polylines(self.pixels, [path], closed, colour, self.px(width), cv2.LINE_AA, 4)

    def polygon(self, points: list[tuple[float, float]] | np.ndarray, colour: RGB) -> None:
        path = np.round(np.asarray(points) * self.unit_px * 16).astype(np.int32)
        cv2.fillPoly(self.pixels, [path], colour, cv2.LINE_AA, 4)
        outline, outline_px = self.outline_for(colour)
        cv2.polylines(self.pixels, [path], True, outline, outline_px, cv2.LINE_AA, 4)

    def box(self, x: float, y: float, width: float, height: float, colour: RGB) -> None:
        self.polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], colour)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, colour: RGB) -> None:
        turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        self.polygon(np.stack([x + radius_x * np.cos(turn), y + radius_y * np.sin(turn)], 1), colour)

    def blob(self, parts: list[tuple[float, float, float, float]], colour: RGB) -> None:
        """Draw a union of ellipses with one outline around it."""
        outline, outline_px = self.outline_for(colour)
        turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        paths = [
            np.round(np.stack([x + a * np.cos(turn), y + b * np.sin(turn)], 1) * self.unit_px * 16).astype(np.int32)
            for x, y, a, b in parts
        ]
        for path in paths:
            cv2.polylines(self.pixels, [path], True, outline, 2 * outline_px, cv2.LINE_AA, 4)
        for path in paths:
            cv2.fillPoly(self.pixels, [path], colour, cv2.LINE_AA, 4)

    def outline_for(self, colour: RGB) -> tuple[RGB, int]:
        """(colour, width in pixels) of the outline of a shape of this colour."""
        if self.contour_px:
            return self.contour, self.contour_px
        red, green, blue = colour
        return (red * 3 // 5, green * 3 // 5, blue * 3 // 5), 1


# --- backgrounds ------------------------------------------------------------------------------------------------------


def _waves(canvas: _Canvas, rng: np.random.Generator, colour: RGB, *, spacing: float, height: float) -> None:
    x = np.linspace(0, canvas.width, 12 + int(24 * canvas.width))
    for y in np.arange(0.5 * spacing, canvas.height, spacing):
        phase, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.16, 0.24)
        curve = y + height * np.sin(2 * np.pi * x / length + phase)
        canvas.line(np.stack([x, curve], 1), colour, 0.012)


def _sky(canvas: _Canvas, rng: np.random.Generator) -> None:
    """No details: the sky is its gradient."""


def _sea(canvas: _Canvas, rng: np.random.Generator) -> None:
    _waves(canvas, rng, (120, 195, 215), spacing=0.11, height=0.014)


def _sand(canvas: _Canvas, rng: np.random.Generator) -> None:
    _waves(canvas, rng, (186, 148, 92), spacing=0.17, height=0.02)
    for x, y in rng.uniform(0, 1, size=(int(60 * canvas.width * canvas.height), 2)):
        canvas.line(np.asarray([(x * canvas.width, y * canvas.height)] * 2), (170, 135, 85), 0.008)


def _grass(canvas: _Canvas, rng: np.random.Generator) -> None:
    for x, y, lean in rng.uniform(0, 1, size=(int(130 * canvas.width * canvas.height), 3)):
        foot = np.asarray((x * canvas.width, y * canvas.height))
        colour = (45, 105, 30) if lean < 0.5 else (140, 200, 90)
        canvas.line(np.stack([foot, foot + np.asarray((0.05 * (lean - 0.5), -0.055))]), colour, 0.01)


def _night(canvas: _Canvas, rng: np.random.Generator) -> None:
    for x, y, size in rng.uniform(0, 1, size=(int(48 * canvas.width * canvas.height), 3)):
        position = np.asarray([(x * canvas.width, y * canvas.height)] * 2)
        canvas.line(position, (235, 235, 215), 0.01 + 0.014 * size)


def _ice(canvas: _Canvas, rng: np.random.Generator) -> None:
    for _ in range(int(7 * canvas.width * canvas.height) + 2):
        start = rng.uniform(0, 1, size=2) * (canvas.width, canvas.height)
        steps = rng.uniform(-0.17, 0.17, size=(6, 2))
        canvas.line(start + np.cumsum(steps, 0), (120, 172, 204), 0.011)


def _brick_wall(canvas: _Canvas, rng: np.random.Generator) -> None:
    row, brick, mortar = 0.1, 0.24, (206, 196, 184)
    for index, y in enumerate(np.arange(0, canvas.height + row, row)):
        for x in np.arange(-brick * (0.5 if index % 2 else 1.0), canvas.width, brick):
            shade = int(rng.integers(-14, 15))
            colour = (152 + shade, 92 + shade, 76 + shade)
            path = np.asarray([(x, y), (x + brick, y), (x + brick, y + row), (x, y + row)])
            cv2.fillPoly(canvas.pixels, [np.round(path * canvas.unit_px).astype(np.int32)], colour)
            canvas.line(path[[0, 3]], mortar, 0.016)
        canvas.line(np.asarray([(0, y), (canvas.width, y)]), mortar, 0.016)


def _road(canvas: _Canvas, rng: np.random.Generator) -> None:
    lanes = max(2, round(canvas.height / 0.5))
    start = rng.uniform(0, 0.3)
    for lane in range(lanes):
        y = canvas.height * (lane + 0.5) / lanes
        for x in np.arange(-start, canvas.width, 0.3):
            canvas.line(np.asarray([(x, y), (x + 0.16, y)]), (226, 226, 220), 0.03)
    for x, y in rng.uniform(0, 1, size=(int(50 * canvas.width * canvas.height), 2)):
        canvas.line(np.asarray([(x * canvas.width, y * canvas.height)] * 2), (75, 75, 80), 0.008)


_BACKGROUNDS: dict[str, Callable[[_Canvas, np.random.Generator], None]] = {
    "sky": _sky,
    "sea": _sea,
    "sand": _sand,
    "grass": _grass,
    "night": _night,
    "ice": _ice,
    "brick wall": _brick_wall,
    "road": _road,
}


# --- surroundings: (canvas, x, y of the foot, size) ------------------------------------------------------------------


def _tree(canvas: _Canvas, x: float, y: float, size: float, shade: int) -> None:
    canvas.box(x - 0.07 * size, y - 0.45 * size, 0.14 * size, 0.45 * size, (112, 74, 44))
    green = (48 + shade, 98 + shade, 58 + shade)
    crown = [(0.0, -0.82, 0.3, 0.3), (-0.22, -0.6, 0.25, 0.22), (0.22, -0.6, 0.25, 0.22)]
    canvas.blob([(x + a * size, y + b * size, c * size, d * size) for a, b, c, d in crown], green)


def _house(canvas: _Canvas, x: float, y: float, size: float, shade: int) -> None:
    canvas.box(x - 0.38 * size, y - 0.55 * size, 0.76 * size, 0.55 * size, (214 + shade, 200 + shade, 178 + shade))
    roof = [(x - 0.48 * size, y - 0.55 * size), (x, y - 1.0 * size), (x + 0.48 * size, y - 0.55 * size)]
    canvas.polygon(roof, (128, 66, 58))
    canvas.box(x - 0.28 * size, y - 0.44 * size, 0.2 * size, 0.2 * size, (92, 118, 138))
    canvas.box(x + 0.06 * size, y - 0.4 * size, 0.2 * size, 0.4 * size, (96, 70, 54))


def _hill(canvas: _Canvas, x: float, y: float, size: float, shade: int) -> None:
    arc = np.linspace(np.pi, 2 * np.pi, 30)
    mound = np.stack([x + 0.75 * size * np.cos(arc), y + 0.85 * size * np.sin(arc)], 1)
    canvas.polygon(mound, (118 + shade, 112 + shade, 84 + shade))


def _cloud(canvas: _Canvas, x: float, y: float, size: float, shade: int) -> None:
    puffs = [(0.0, -0.02, 0.36, 0.24), (-0.38, 0.08, 0.27, 0.17), (0.38, 0.08, 0.27, 0.17), (0.0, 0.12, 0.5, 0.14)]
    grey = 232 + shade // 2
    canvas.blob([(x + a * size, y + b * size, c * size, d * size) for a, b, c, d in puffs], (grey, grey, grey))


def _flower(canvas: _Canvas, x: float, y: float, size: float, shade: int) -> None:
    canvas.line(np.asarray([(x, y), (x, y - 0.6 * size)]), (44, 92, 44), 0.075 * size)
    canvas.ellipse(x + 0.15 * size, y - 0.22 * size, 0.16 * size, 0.07 * size, (58, 112, 52))
    head = y - 0.72 * size
    for turn in np.arange(6) * np.pi / 3:
        petal = (x + 0.19 * size * np.cos(turn), head + 0.19 * size * np.sin(turn))
        canvas.ellipse(*petal, 0.12 * size, 0.12 * size, (224, 208 + shade, 226))
    canvas.ellipse(x, head, 0.1 * size, 0.1 * size, (204, 160, 62))


def _cactus(canvas: _Canvas, x: float, y: float, size: float, shade: int) -> None:
    green = (70 + shade, 122 + shade, 92 + shade)
    arms = [
        [(0.0, 0.0), (0.0, -0.9)],
        [(0.0, -0.35), (-0.3, -0.35), (-0.3, -0.65)],
        [(0.0, -0.5), (0.3, -0.5), (0.3, -0.82)],
    ]
    paths = [np.asarray([(x + a * size, y + b * size) for a, b in arm]) for arm in arms]
    outline, outline_px = canvas.outline_for(green)
    for path in paths:
        canvas.line(path, outline, 0.19 * size + 2 * outline_px / canvas.unit_px)
    for path in paths:
        canvas.line(path, green, 0.19 * size)


def _rock(canvas: _Canvas, x: float, y: float, size: float, shade: int) -> None:
    corners = [(-0.52, 0.0), (-0.44, -0.3), (-0.16, -0.52), (0.2, -0.46), (0.46, -0.22), (0.54, 0.0)]
    grey = 138 + shade
    canvas.polygon([(x + a * size, y + b * size) for a, b in corners], (grey, grey - 4, grey - 10))
    facet = np.asarray([(x - 0.16 * size, y - 0.52 * size), (x - 0.02 * size, y - 0.2 * size), (x + 0.2 * size, y)])
    canvas.line(facet, (grey - 45, grey - 48, grey - 52), 0.04 * size)


_SURROUNDINGS: dict[str, tuple[Callable[[_Canvas, float, float, float, int], None], float, float]] = {
    "trees": (_tree, 0.42, 0.34),
    "houses": (_house, 0.36, 0.42),
    "hills": (_hill, 0.44, 0.5),
    "clouds": (_cloud, 0.32, 0.44),
    "flowers": (_flower, 0.32, 0.27),
    "cacti": (_cactus, 0.36, 0.36),
    "rocks": (_rock, 0.28, 0.34),
}
"""Value of `surroundings` -> (function that draws one, its height, distance between neighbours)."""


def _draw_surroundings(canvas: _Canvas, surroundings: str, rng: np.random.Generator) -> None:
    """Draw a row along the bottom (clouds: along the top), wide enough to be visible on both sides of any object."""
    draw, size, spacing = _SURROUNDINGS[surroundings]
    count = max(3, int(np.ceil(canvas.width / spacing)))
    for x in (np.arange(count) + 0.5) * canvas.width / count + rng.uniform(-0.18, 0.18, size=count) * spacing:
        scale = size * rng.uniform(0.85, 1.1)
        y = rng.uniform(0.14, 0.2) if surroundings == "clouds" else canvas.height - rng.uniform(0.015, 0.05)
        if surroundings == "hills":
            y = canvas.height + 0.02
        draw(canvas, float(x), float(y), float(scale), int(rng.integers(-12, 13)))
