"""Pictures of an experiment: its loss curves and readings as one plot, and the same prompts over all arms as one sheet.

    write_plot(results, "results/backbones.png")
    write_sheet({"dit": "out/.../dit/samples.npz", "uvit": ...}, "results/backbones-samples.png")

Drawn with Pillow at twice the size and scaled down; the project has no plotting library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tests.evidence.results import FOLLOWS, Results
from tests.evidence.world import HELD_OUT_SIZE

Colour = tuple[int, int, int]
SCALE = 2
COLOURS = (
    (31, 98, 178),
    (214, 93, 20),
    (34, 139, 84),
    (150, 62, 160),
    (190, 40, 60),
    (90, 90, 90),
    (0, 140, 150),
    (160, 120, 0),
    (230, 110, 160),
    (110, 160, 220),
)
INK, GREY, LIGHT = (30, 30, 30), (120, 120, 120), (225, 225, 225)
PANEL_PX = (330, 250)
MARGIN_PX = (52, 34, 14, 40)
"""Left, top, right, bottom of a panel."""
LEGEND_LINE_PX = 20
SHEET_FRAME_PX = 72
SHEET_FRAMES = 3
SHEET_TEXT_PX = 20


@dataclass(frozen=True)
class Line:
    """One line or row of dots of a panel."""

    label: str
    colour: Colour
    xs: Sequence[float]
    ys: Sequence[float]


def write_plot(results: Results, path: Path) -> None:
    """Validation loss against steps and CPU-minutes (the mean of all seeds), readings of each arm with a dot per seed."""
    colours = {arm: COLOURS[number % len(COLOURS)] for number, arm in enumerate(results.data["arms"])}
    panels: list[Callable[[Canvas], None]] = []
    for prefix, of in (("", "held-out clips"), (HELD_OUT_SIZE, "a size held out")):
        for axis, unit, divisor in (("step", "steps", 1), ("cpu_seconds", "CPU-minutes", 60)):
            lines = _curves(results, colours, axis, f"{prefix}loss", divisor)
            if lines:
                panels.append(lambda c, lines=lines, title=f"loss of {of}, by {unit}": c.lines(title, lines))
    for reading in _shown_readings(results):
        rows = [
            Line(
                arm,
                colours[arm],
                [float(x.mean()) for seed in seeds if (x := results.series(arm, seed, reading)) is not None],
                (),
            )
            for arm, seeds in results.runs.items()
        ]
        title = reading.replace("_", " ") + (", fraction of prompts" if reading.endswith(FOLLOWS) else "")
        panels.append(lambda c, rows=rows, title=title: c.dots(title, [row for row in rows if row.xs]))
    columns = min(2, max(1, len(panels)))
    width = columns * PANEL_PX[0]
    legend = _legend([(arm, colours[arm]) for arm in results.finished_arms], width)
    top_px = LEGEND_LINE_PX * len(legend) + 6
    height = math.ceil(len(panels) / columns) * PANEL_PX[1] + top_px
    image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
    for number, panel in enumerate(panels):
        panel(Canvas(image, (number % columns) * PANEL_PX[0], (number // columns) * PANEL_PX[1] + top_px))
    Canvas(image, 0, 0).legend(legend)
    image.resize((width, height), Image.Resampling.LANCZOS).save(path)


def _legend(entries: Sequence[tuple[str, Colour]], width_px: int) -> list[list[tuple[float, str, Colour]]]:
    """Lines of (x, label, colour) that fit the width."""
    font, lines, x = ImageFont.load_default(size=13), [[]], float(MARGIN_PX[0])
    for label, colour in entries:
        length = 28 + font.getlength(label)
        if x + length > width_px and lines[-1]:
            lines.append([])
            x = float(MARGIN_PX[0])
        lines[-1].append((x, label, colour))
        x += length
    return lines


def _curves(results: Results, colours: Mapping[str, Colour], axis: str, name: str, divisor: float) -> list[Line]:
    """Mean curve of each arm over its seeds, at the points of the first."""
    lines = []
    for arm, seeds in results.runs.items():
        curves = [run["curve"] for run in seeds.values() if name in run["curve"]]
        if curves:
            xs = np.mean([np.interp(curves[0]["step"], c["step"], c[axis]) for c in curves], axis=0) / divisor
            ys = np.mean([np.interp(curves[0]["step"], c["step"], c[name]) for c in curves], axis=0)
            lines.append(Line(arm, colours[arm], xs.tolist(), ys.tolist()))
    return lines


def _shown_readings(results: Results) -> list[str]:
    """`follows` and what the claims are about."""
    read = {name for seeds in results.runs.values() for run in seeds.values() for name in run["readings"]}
    wanted = [FOLLOWS, HELD_OUT_SIZE + FOLLOWS, *(claim.reading for claim in results.claims)]
    return [name for name in dict.fromkeys(wanted) if name in read]


class Canvas:
    """A panel of an image; coordinates are in final pixels from its corner."""

    def __init__(self, image: Image.Image, left_px: int, top_px: int) -> None:
        self.draw = ImageDraw.Draw(image)
        self.left_px, self.top_px = left_px, top_px

    def text(self, x: float, y: float, text: str, colour: Colour, size: int = 12, anchor: str = "la") -> None:
        font = ImageFont.load_default(size=size * SCALE)
        self.draw.text(self._at(x, y), text, fill=colour, font=font, anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
        self.draw.line([self._at(*point) for point in points], fill=colour, width=round(width * SCALE), joint="curve")

    def dot(self, x: float, y: float, radius: float, colour: Colour) -> None:
        (left, top), (right, bottom) = self._at(x - radius, y - radius), self._at(x + radius, y + radius)
        self.draw.ellipse((left, top, right, bottom), fill=colour)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (self.left_px + x) * SCALE, (self.top_px + y) * SCALE

    def legend(self, lines: Sequence[Sequence[tuple[float, str, Colour]]]) -> None:
        for number, line in enumerate(lines):
            y = LEGEND_LINE_PX * number + 14
            for x, label, colour in line:
                self.dot(x, y, 5, colour)
                self.text(x + 9, y, label, INK, 13, "lm")

    def lines(self, title: str, lines: Sequence[Line]) -> None:
        """A line chart; the loss axis leaves out the steep start."""
        left, top, right, bottom = MARGIN_PX
        width, height = PANEL_PX[0] - left - right, PANEL_PX[1] - top - bottom
        x_end = max(max(line.xs) for line in lines)
        lowest = min(min(line.ys) for line in lines)
        highest = max(float(np.quantile(line.ys, 0.9)) for line in lines)
        span = (highest - lowest) or 1.0
        y_low, y_high = lowest - 0.05 * span, highest + 0.05 * span
        self.text(left, 8, title, INK, 12)
        for value in _ticks(y_low, y_high):
            y = top + height * (y_high - value) / (y_high - y_low)
            self.line([(left, y), (left + width, y)], LIGHT, 1)
            self.text(left - 5, y, f"{value:g}", GREY, 11, "rm")
        for value in _ticks(0, x_end):
            self.text(left + width * value / x_end, top + height + 6, f"{value:g}", GREY, 11, "ma")
        for line in lines:
            points = [
                (left + width * x / x_end, top + height * (y_high - y) / (y_high - y_low))
                for x, y in zip(line.xs, line.ys)
                if y <= y_high
            ]
            if len(points) > 1:
                self.line(points, line.colour, 1.8)
            for point in points[-1:]:
                self.dot(*point, 3, line.colour)

    def dots(self, title: str, rows: Sequence[Line]) -> None:
        """One row per arm: a dot per seed, a bar at their mean."""
        left, top, right, bottom = MARGIN_PX
        width, height = PANEL_PX[0] - left - right, PANEL_PX[1] - top - bottom
        values = [value for row in rows for value in row.xs]
        low, high = min(0.0, *values), max([*values, 1e-9])
        if FOLLOWS in title:
            high = 1.0
        self.text(left, 8, title, INK, 12)
        for value in _ticks(low, high):
            x = left + width * (value - low) / (high - low)
            self.line([(x, top), (x, top + height)], LIGHT, 1)
            self.text(x, top + height + 6, f"{value:g}", GREY, 11, "ma")
        for number, row in enumerate(rows):
            y = top + height * (number + 0.5) / len(rows)
            xs = [left + width * (value - low) / (high - low) for value in row.xs]
            mean = sum(xs) / len(xs)
            self.line([(left, y), (mean, y)], row.colour, 6)
            for x in xs:
                self.dot(x, y, 4.5, row.colour)
                self.dot(x, y, 2.5, (255, 255, 255))
            self.text(max(xs) + 10, y, f"{sum(row.xs) / len(row.xs):.3g}", INK, 11, "lm")
            if height / len(rows) > 22:
                self.text(left, y - 6, row.label, GREY, 10, "ls")


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two values."""
    rough = (high - low) / 4 or 1.0
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    return [round(n * step, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def write_sheet(samples: Mapping[str, Path], path: Path) -> None:
    """One row per prompt, one column per arm; first, middle and last frame of each sample. Nothing without samples."""
    loaded = {arm: np.load(file) for arm, file in samples.items()}
    if not loaded:
        return
    prompts = next(iter(loaded.values()))["prompts"].tolist()
    strips = {arm: [_strip(video) for video in found["videos"]] for arm, found in loaded.items()}
    gap = 10
    widths = {arm: max(strip.width for strip in found) + gap for arm, found in strips.items()}
    heights = [max(found[row].height for found in strips.values()) + SHEET_TEXT_PX for row in range(len(prompts))]
    sheet = Image.new("RGB", (sum(widths.values()) + gap, sum(heights) + SHEET_TEXT_PX + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    x = gap
    for arm, found in strips.items():
        draw.text((x, 4), arm, fill=INK, font=font)
        y = SHEET_TEXT_PX
        for row, strip in enumerate(found):
            sheet.paste(strip, (x, y + SHEET_TEXT_PX))
            y += heights[row]
        x += widths[arm]
    y = SHEET_TEXT_PX
    for row, prompt in enumerate(prompts):
        draw.text((gap, y + 3), prompt, fill=GREY, font=font)
        y += heights[row]
    sheet.save(path)


def _strip(video_THWC: np.ndarray) -> Image.Image:
    chosen = np.unique(np.linspace(0, len(video_THWC) - 1, min(SHEET_FRAMES, len(video_THWC))).round().astype(int))
    strip = Image.fromarray(np.concatenate(list(video_THWC[chosen]), axis=1))
    factor = SHEET_FRAME_PX / min(video_THWC.shape[1:3])
    return strip.resize((round(strip.width * factor), round(strip.height * factor)), Image.Resampling.BICUBIC)
