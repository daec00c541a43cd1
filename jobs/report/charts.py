"""Charts of the report page as inline SVG; colours come from the page's style sheet.

    histogram([Group("kept", "kept", seconds)], unit="s", label="Clip length")      # -> Markup("<svg ...>")

Horizontal positions are percentages, so that a chart fills its column while its text keeps its size. All data is
escaped; `class` values come from this project only.

Not Vega-Lite, though it runs without eval: on the demo run the page grows from 0.25 to 1.4 MB, is drawn after 1.5 s instead
of 0.5 s (90 MB of script heap, not 2), and is empty without scripts; bins, thinning and the 48 bars in tables stay ours.
Not altair's or matplotlib's SVG either: fixed widths and colours (phone, dark mode), no tooltips, 100 MB to install.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

PLOT_TOP_PX = 18
PLOT_HEIGHT_PX = 132
CURVE_HEIGHT_PX = 172
AXIS_HEIGHT_PX = 22
NUM_BINS = 18
NO_VALUES = Markup('<p class="empty">No values.</p>')


@dataclass(frozen=True)
class Group:
    """Values of a histogram drawn in one colour."""

    label: str
    style: str
    """CSS class of the colour: `kept`, `dropped`, `failed`, `waiting`, `accent`."""
    values: Sequence[float | None]


@dataclass(frozen=True)
class Marker:
    """A vertical line in a chart, such as a threshold."""

    x: float
    label: str
    style: str = ""
    """CSS class in addition to `marker`."""


@dataclass(frozen=True)
class Series:
    """One line of a line chart."""

    label: str
    style: str
    xs: Sequence[float] | np.ndarray
    ys: Sequence[float] | np.ndarray
    is_filled: bool = False
    """Colour the area below the line too."""


@dataclass(frozen=True)
class Segment:
    """One segment of a stacked bar or column; the label is its tooltip."""

    label: str
    style: str
    value: float


# --- numbers and axes -------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Short number for an axis or a table: 12,300 / 3.2 / 0.041."""
    if not math.isfinite(value):
        return "–"
    if value == round(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    text = f"{value:,.{digits}f}" if abs(value) >= 1e-3 else f"{value:.1e}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def nice_step(span: float, num_steps: int) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that covers `span` in at most `num_steps` steps."""
    power = 10.0 ** math.floor(math.log10(span / num_steps))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * num_steps >= span * (1 - 1e-9))


def nice_ticks(low: float, high: float, num_steps: int = 4) -> list[float]:
    """Round numbers inside [low, high]."""
    step = nice_step(high - low, num_steps)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Axis:
    """Maps values to fractions of the axis; `low` and `high` are log10 of the values if it is logarithmic."""

    low: float
    high: float
    is_logarithmic: bool = False

    @classmethod
    def spanning(cls, values: np.ndarray, *, logarithmic: bool = False) -> _Axis:
        """From the smallest to the largest value, one value in the middle; logarithmic only if all are positive."""
        logarithmic = logarithmic and bool((values > 0).all())
        ends = np.array([values.min(), values.max()])
        low, high = (float(end) for end in (np.log10(ends) if logarithmic else ends))
        half = 0.0 if low < high else max(abs(low) * 0.05, 0.05)
        return cls(low - half, high + half, logarithmic)

    def position(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        return np.log10(values) if self.is_logarithmic else np.asarray(values, float)

    def fraction(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        return (self.position(values) - self.low) / (self.high - self.low)

    def value(self, position: float) -> float:
        return 10.0**position if self.is_logarithmic else position

    def labels(self) -> list[tuple[float, str]]:
        """(fraction, text) of round values; over several decades, of powers of ten."""
        decades = self.high - self.low
        if self.is_logarithmic and decades >= 1:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            ticks = [factor * 10.0**power for power in powers for factor in ((1, 3) if decades < 3 else (1,))]
            ticks = [tick for tick in ticks if self.low <= math.log10(tick) <= self.high]
        else:
            ticks = nice_ticks(self.value(self.low), self.value(self.high))
        ticks = ticks[:: math.ceil(len(ticks) / 6) or 1]
        return [(float(at), number(tick)) for at, tick in zip(self.fraction(ticks), ticks)]

    def marks(self, markers: Sequence[Marker]) -> list[tuple[float, Marker]]:
        """(fraction, marker) of the markers on the axis."""
        marks = [(float(self.fraction([m.x])[0]), m) for m in markers if m.x > 0 or not self.is_logarithmic]
        return [(at, marker) for at, marker in marks if -1e-8 <= at <= 1 + 1e-8]


# --- parts of a chart -------------------------------------------------------------------------------------------------


def _tag(name: str, *children: str, **attributes: object) -> Markup:
    """`<name attributes>children</name>`, escaped; `text_anchor` is written text-anchor and `class_` class."""
    pairs = [Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()]
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(pairs), Markup("").join(children))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}%"


def _svg(height_px: int, label: str, body: Sequence[Markup], style: str = "chart") -> Markup:
    return _tag("svg", *body, class_=style, width="100%", height=height_px, role="img", aria_label=label)


def _rectangle(segment: Segment, x: float, width: float, y_px: float, height_px: float) -> Markup:
    place = {"x": _percent(x), "y": f"{y_px:.1f}", "width": _percent(width), "height": f"{height_px:.1f}"}
    return _tag("rect", _tag("title", segment.label), class_=segment.style, **place)


def _column(start: float, end: float, stack: Sequence[Segment]) -> list[Markup]:
    """Segments on top of each other, between two fractions of the width; a value of 1 is the height of the plot."""
    gap = min(0.15 * (end - start), 0.005)
    y_px, rectangles = float(PLOT_TOP_PX + PLOT_HEIGHT_PX), []
    for segment in stack:
        height_px = PLOT_HEIGHT_PX * segment.value
        y_px -= height_px
        if segment.value > 0:
            rectangles.append(_rectangle(segment, start + gap / 2, end - start - gap, y_px, max(height_px, 1)))
    return rectangles


def _chart(
    body: Sequence[Markup],
    *,
    label: str,
    x_labels: Sequence[tuple[float, str]],
    y_labels: Sequence[tuple[float, str]],
    marks: Sequence[tuple[float, Marker]] = (),
    height_px: int = PLOT_HEIGHT_PX,
) -> Markup:
    """The body of a chart on grid lines, with labels and markers at fractions of its width and height."""
    bottom = PLOT_TOP_PX + height_px
    heights = [(bottom - height_px * at, text) for at, text in y_labels]
    drawn = [_tag("line", class_="grid", x1=0, x2="100%", y1=f"{y:.1f}", y2=f"{y:.1f}") for y, _ in heights]
    drawn += body
    drawn.append(_tag("line", class_="axis", x1=0, x2="100%", y1=bottom, y2=bottom))
    for at, text in x_labels:
        anchor = "start" if at < 0.04 else "end" if at > 0.96 else "middle"
        drawn.append(_tag("text", text, class_="tick", x=_percent(at), y=bottom + 16, text_anchor=anchor))
    for at, marker in marks:
        ends = {"x1": _percent(at), "x2": _percent(at), "y1": 4, "y2": bottom}
        drawn.append(_tag("line", _tag("title", marker.label), class_=f"marker {marker.style}".strip(), **ends))
    # Last, to be read above lines and markers.
    drawn += [_tag("text", text, class_="tick", x=0, y=f"{y - 4:.1f}") for y, text in heights]
    return _svg(bottom + AXIS_HEIGHT_PX, label, drawn)


# --- bars and columns -------------------------------------------------------------------------------------------------


def stacked_bar(segments: Sequence[Segment], *, total: float, label: str, height_px: int = 26) -> Markup:
    """One horizontal bar of width `total`; the segments follow each other from the left."""
    body = [_tag("rect", class_="track", x=0, y=0, width="100%", height=height_px, rx=4)]
    start = 0.0
    for segment in segments:
        width = segment.value / total if total > 0 else 0.0
        if segment.value > 0:
            body.append(_rectangle(segment, start, max(width, 0.0015), 0, height_px))
        start += width
    return _svg(height_px, label, body, style="bar")


def histogram(
    groups: Sequence[Group], *, label: str, unit: str = "", markers: Sequence[Marker] = (), logarithmic: bool = False
) -> Markup:
    """Stacked histogram of the groups. Values that are not finite and markers outside of the data are left out.

    Args:
        logarithmic: logarithmic x axis; ignored unless all values are positive.
    """
    arrays = [np.asarray([v for v in group.values if v is not None and math.isfinite(v)], float) for group in groups]
    all_values = np.concatenate([np.zeros(0), *arrays])
    if not len(all_values):
        return NO_VALUES
    axis = _Axis.spanning(all_values, logarithmic=logarithmic)
    step = nice_step(axis.high - axis.low, NUM_BINS)
    first, last = (math.floor(end / step + 1e-9) for end in (axis.low, axis.high))
    edges = step * np.arange(first, last + 2)
    axis = _Axis(float(edges[0]), float(edges[-1]), axis.is_logarithmic)
    # Clipped: rounding can put the first edge above the smallest value.
    counts = [np.histogram(axis.position(a).clip(axis.low, axis.high), edges)[0] for a in arrays]
    top = int(np.sum(counts, axis=0).max())
    body = []
    for i, (start, end) in enumerate(itertools.pairwise(edges)):
        span = f"{number(axis.value(start))} to {number(axis.value(end))} {unit}".rstrip()
        stack = [Segment(f"{span}: {n[i]} {g.label}", g.style, n[i] / top) for g, n in zip(groups, counts)]
        body += _column(i / (len(edges) - 1), (i + 1) / (len(edges) - 1), stack)
    return _chart(
        body,
        label=f"{label}: histogram of {len(all_values)} values",
        x_labels=axis.labels(),
        y_labels=[(1.0, number(top))],
        marks=axis.marks(markers),
    )


def pack_columns(pack_tokens: Sequence[int], capacity: int, *, max_columns: int = 160) -> Markup:
    """One column per pack, filled to tokens / capacity; above `max_columns` packs, one per group of consecutive packs."""
    fills = np.asarray(pack_tokens, float) / capacity
    if not len(fills):
        return Markup('<p class="empty">No packs.</p>')
    edges = np.linspace(0, len(fills), min(len(fills), max_columns) + 1).astype(int)
    body = []
    for i, (a, b) in enumerate(itertools.pairwise(edges)):
        fill = float(fills[a:b].mean())
        title = f"pack {a}: fill {fill:.1%}" if b - a == 1 else f"packs {a} to {b - 1}: mean fill {fill:.1%}"
        stack = [Segment(title, "accent", min(fill, 1.0)), Segment(title, "padding", 1 - fill)]
        body += _column(i / (len(edges) - 1), (i + 1) / (len(edges) - 1), stack)
    return _chart(
        body,
        label=f"Fill of {len(fills)} packs, mean {fills.mean():.1%}, lowest {fills.min():.1%}",
        x_labels=[(0.0, "pack 0"), (1.0, f"pack {len(fills) - 1}")],
        y_labels=[(1.0, "capacity")],
    )


# --- curves -----------------------------------------------------------------------------------------------------------


def smooth(ys: Sequence[float], window_fraction: float = 0.05) -> list[float]:
    """Centred moving average over `window_fraction` of the points; the window is narrower at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(ys)])
    index = np.arange(len(ys))
    reach = np.minimum(max(int(len(ys) * window_fraction / 2), 1), np.minimum(index, index[::-1]))
    means: list[float] = ((sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)).tolist()
    return means


def _downsample(series: Series, num_points: int = 400) -> np.ndarray:
    """(2, N) finite points; above `num_points`, the means of that many equal intervals."""
    points = np.array([series.xs, series.ys], float)
    points = points[:, np.isfinite(points).all(axis=0)]
    if points.shape[1] <= num_points:
        return points
    edges = np.linspace(0, points.shape[1], num_points + 1).astype(int)
    return np.add.reduceat(points, edges[:-1], axis=1) / np.diff(edges)


def line(
    series: Sequence[Series],
    *,
    label: str,
    markers: Sequence[Marker] = (),
    logarithmic: bool = False,
    as_fraction: bool = False,
) -> Markup:
    """Line chart with a common x axis, the last series on top.

    Args:
        logarithmic: logarithmic x axis; ignored unless all of `xs` are positive.
        as_fraction: the y axis is 0 to 1; otherwise it spans the data.
    """
    curves = [(one, xs, ys) for one, (xs, ys) in ((one, _downsample(one)) for one in series) if len(xs)]
    if not curves:
        return NO_VALUES
    x_axis = _Axis.spanning(np.concatenate([xs for _, xs, _ in curves]), logarithmic=logarithmic)
    y_axis = _Axis(0.0, 1.0) if as_fraction else _Axis.spanning(np.concatenate([ys for _, _, ys in curves]))
    height_px = PLOT_HEIGHT_PX if as_fraction else CURVE_HEIGHT_PX
    drawn = []
    for one, xs, ys in curves:
        places = [f"{1000 * x:.1f},{1000 - 1000 * y:.1f}" for x, y in zip(x_axis.fraction(xs), y_axis.fraction(ys))]
        is_dot = len(places) == 1
        points = " ".join(places * (1 + is_dot))  # a line of no length has round ends
        if one.is_filled:
            area = f"{places[0].partition(',')[0]},1000 {points} {places[-1].partition(',')[0]},1000"
            drawn.append(_tag("polygon", class_=f"area {one.style}", points=area))
        stroke = {
            "class_": f"line {one.style}{' dot' * is_dot}",
            "points": points,
            "vector_effect": "non-scaling-stroke",
        }
        drawn.append(_tag("polyline", _tag("title", one.label), **stroke))
    place = {"y": PLOT_TOP_PX, "width": "100%", "height": height_px, "viewBox": "0 0 1000 1000"}
    form = "{:.0%}".format if as_fraction else number
    values_text = ", ".join(f"{one.label} from {form(ys[0])} to {form(ys[-1])}" for one, _, ys in curves)
    return _chart(
        [_tag("svg", *drawn, **place, preserveAspectRatio="none")],
        label=f"{label}: {values_text}",
        x_labels=x_axis.labels(),
        y_labels=[(0.5, "50%"), (1.0, "100%")] if as_fraction else y_axis.labels(),
        marks=x_axis.marks(markers),
        height_px=height_px,
    )


# --- outlines ---------------------------------------------------------------------------------------------------------


def frame_outline(width_px: int, height_px: int, largest_px: int, *, box_px: int = 44) -> Markup:
    """Outline of a frame size, to scale with the largest one of its table."""
    scale = (box_px - 2) / max(largest_px, 1)
    width, height = max(width_px * scale, 2), max(height_px * scale, 2)
    x, y = (box_px - width) / 2, (box_px - height) / 2
    rectangle = _tag("rect", x=f"{x:.1f}", y=f"{y:.1f}", width=f"{width:.1f}", height=f"{height:.1f}", rx=2)
    return _tag("svg", rectangle, class_="outline", width=box_px, height=box_px, aria_hidden="true")
