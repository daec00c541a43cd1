"""Charts of the report page as inline SVG; colours come from the page's style sheet.

    histogram([Group("kept", "kept", seconds)], unit="s", label="Clip length")      # -> Markup("<svg ...>")

Horizontal positions are percentages, so that a chart fills its column while its text keeps its size. All data is
escaped; `class` values come from this project only.
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


AXIS_HEIGHT_PX = 22


NUM_BINS = 18


@dataclass(frozen=True)
class Group:
    """Values of a histogram drawn in one colour."""

    label: str
    style: str
    """CSS class of the colour: `kept`, `dropped`, `failed`, `waiting`, `accent`."""
    values: Sequence[float]


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
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True)
class Segment:
    """One segment of a stacked bar."""

    label: str
    style: str
    value: float


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
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / num_steps))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * num_steps >= span * (1 - 1e-9))


def nice_ticks(low: float, high: float, num_steps: int = 4) -> list[float]:
    """Round numbers inside [low, high]."""
    step = nice_step(high - low, num_steps)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _svg(height_px: int, label: str, body: list[Markup], style: str = "chart") -> Markup:
    start = Markup('<svg class="{}" width="100%" height="{}" role="img" aria-label="{}">')
    return Markup("").join([start.format(style, height_px, label), *body, Markup("</svg>")])


def _x_label(at_percent: float, y_px: int, text: str) -> Markup:
    anchor = "start" if at_percent < 4 else "end" if at_percent > 96 else "middle"
    tag = Markup('<text class="tick" x="{:.2f}%" y="{}" text-anchor="{}">{}</text>')
    return tag.format(min(max(at_percent, 0), 100), y_px, anchor, text)


def _grid_line(y_px: float, text: str) -> list[Markup]:
    return [
        Markup('<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(y_px),
        Markup('<text class="tick" x="0" y="{:.1f}">{}</text>').format(y_px - 4, text),
    ]


# --- histogram --------------------------------------------------------------------------------------------------------


def _bin_edges(values: np.ndarray, logarithmic: bool) -> np.ndarray:
    """Round bin edges that cover all values; log10 values if `logarithmic`."""
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
    if low == high:
        half = max(abs(low) * 0.05, 0.05)
        return np.array([low - half, low + half])
    if logarithmic:
        return np.linspace(low - 1e-9, high + 1e-9, NUM_BINS + 1)
    step = nice_step(high - low, NUM_BINS)
    first = math.floor(low / step + 1e-9)
    return step * np.arange(first, math.floor(high / step + 1e-9) + 2)


def histogram(
    groups: Sequence[Group], *, label: str, unit: str = "", markers: Sequence[Marker] = (), logarithmic: bool = False
) -> Markup:
    """Stacked histogram of the groups. Values that are not finite and markers outside of the data are left out.

    Args:
        logarithmic: logarithmic x axis; ignored unless all values are positive.
    """
    arrays = [np.asarray([v for v in group.values if v is not None and math.isfinite(v)], float) for group in groups]
    all_values = np.concatenate(arrays) if arrays else np.zeros(0)
    if not len(all_values):
        return Markup('<p class="empty">No values.</p>')
    logarithmic = logarithmic and bool((all_values > 0).all()) and all_values.max() > all_values.min()
    edges = _bin_edges(all_values, logarithmic)
    counts = [np.histogram(np.log10(a) if logarithmic else a, edges)[0] for a in arrays]
    top = int(np.sum(counts, axis=0).max())
    low, high = float(edges[0]), float(edges[-1])

    def percent(x: float) -> float:
        return 100 * (x - low) / (high - low)

    def real(x: float) -> float:
        return 10.0**x if logarithmic else x

    bottom = PLOT_TOP_PX + PLOT_HEIGHT_PX
    body = _grid_line(PLOT_TOP_PX, number(top))
    for i, (start, end) in enumerate(itertools.pairwise(edges)):
        y = float(bottom)
        for group, count in zip(groups, counts):
            height = PLOT_HEIGHT_PX * int(count[i]) / top
            y -= height
            if count[i]:
                title = f"{number(real(start))} to {number(real(end))} {unit}: {int(count[i])} {group.label}"
                position = (percent(start) + 0.25, y, max(percent(end) - percent(start) - 0.5, 0.3), max(height, 1))
                rect = (
                    '<rect class="{}" x="{:.2f}%" y="{:.1f}" width="{:.2f}%" height="{:.1f}"><title>{}</title></rect>'
                )
                body.append(Markup(rect).format(group.style, *position, title))
    body.append(Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(bottom))
    ticks = nice_ticks(low, high, 4) if len(edges) > 2 else [(low + high) / 2]
    if logarithmic:
        ticks = [float(t) for t in range(math.ceil(low), math.floor(high) + 1)][:6] or [low, high]
    for tick in ticks:
        body.append(_x_label(percent(tick), bottom + 16, number(real(tick))))
    for marker in markers:
        if real(low) <= marker.x <= real(high):
            x_percent = percent(math.log10(marker.x) if logarithmic else marker.x)
            line = '<line class="marker" x1="{0:.2f}%" x2="{0:.2f}%" y1="4" y2="{1}"><title>{2}</title></line>'
            body.append(Markup(line).format(x_percent, bottom, marker.label))
    return _svg(bottom + AXIS_HEIGHT_PX, f"{label}: histogram of {len(all_values)} values", body)


# --- bars -------------------------------------------------------------------------------------------------------------


def stacked_bar(segments: Sequence[Segment], *, total: float, label: str, height_px: int = 26) -> Markup:
    """One horizontal bar of width `total`; the segments follow each other from the left."""
    body = [Markup('<rect class="track" x="0" y="0" width="100%" height="{}" rx="4"/>').format(height_px)]
    start = 0.0
    for segment in segments:
        width = 100 * segment.value / total if total > 0 else 0.0
        if segment.value > 0:
            rect = '<rect class="{}" x="{:.3f}%" y="0" width="{:.3f}%" height="{}"><title>{}</title></rect>'
            body.append(Markup(rect).format(segment.style, start, max(width, 0.15), height_px, segment.label))
        start += width
    return _svg(height_px, label, body, style="bar")


@dataclass(frozen=True)
class FunnelRow:
    """Amounts left after one step of the pipeline and lost in it, in the unit of the funnel."""

    left: float
    lost: Sequence[Segment]


def funnel(rows: Sequence[FunnelRow], *, total: float) -> list[Markup]:
    """Waterfall chart: one bar per row, all to the same scale, with the losses of a row to the right of what is left.

    The full length of each bar is what the row above has left.
    """
    bars = []
    for row in rows:
        segments = [Segment("left", "kept", row.left), *row.lost]
        fraction = row.left / total if total > 0 else 0.0
        bars.append(stacked_bar(segments, total=total, label=f"{fraction:.1%} of the input is left"))
    return bars


# --- lines ------------------------------------------------------------------------------------------------------------


def _downsample(series: Series, num_points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Finite points; above `num_points`, the means of that many equal intervals."""
    xs, ys = np.asarray(series.xs, float), np.asarray(series.ys, float)
    finite = np.isfinite(xs) & np.isfinite(ys)
    xs, ys = xs[finite], ys[finite]
    if len(xs) <= num_points:
        return xs, ys
    edges = np.linspace(0, len(xs), num_points + 1).astype(int)
    pairs = [(xs[a:b].mean(), ys[a:b].mean()) for a, b in itertools.pairwise(edges)]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def smooth(ys: Sequence[float], window_fraction: float = 0.05) -> list[float]:
    """Centred moving average over `window_fraction` of the points; the window is narrower at both ends."""
    values = np.asarray(ys, float)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    half = max(int(len(values) * window_fraction / 2), 1)
    smoothed = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        smoothed.append(float((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return smoothed


def line(series: Sequence[Series], *, label: str) -> Markup:
    """Line chart with a common x axis; the y axis spans the data."""
    curves = [(s, *_downsample(s)) for s in series]
    curves = [c for c in curves if len(c[1])]
    if not curves:
        return Markup('<p class="empty">No values.</p>')
    all_x, all_y = np.concatenate([c[1] for c in curves]), np.concatenate([c[2] for c in curves])
    x_low, x_high = float(all_x.min()), float(all_x.max())
    y_low, y_high = float(all_y.min()), float(all_y.max())
    if y_low == y_high:
        y_low, y_high = y_low - 0.5, y_high + 0.5
    x_span = (x_high - x_low) or 1.0
    height = PLOT_HEIGHT_PX + 40
    bottom = PLOT_TOP_PX + height
    labels = []
    body = []
    for tick in nice_ticks(y_low, y_high, 4):
        rule, text = _grid_line(bottom - height * (tick - y_low) / (y_high - y_low), number(tick))
        body.append(rule)
        labels.append(text)  # after the lines: on top of them
    inner = '<svg x="0" y="{}" width="100%" height="{}" viewBox="0 0 1000 1000" preserveAspectRatio="none">'
    body.append(Markup(inner).format(PLOT_TOP_PX, height))
    for one, xs, ys in curves:
        points = " ".join(
            f"{1000 * (x - x_low) / x_span:.1f},{1000 * (y_high - y) / (y_high - y_low):.1f}" for x, y in zip(xs, ys)
        )
        tag = '<polyline class="line {}" points="{}" vector-effect="non-scaling-stroke"><title>{}</title></polyline>'
        body.append(Markup(tag).format(one.style, points, one.label))
    body += [Markup("</svg>"), *labels]
    body.append(Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(bottom))
    ticks = nice_ticks(x_low, x_high, 4)
    for tick in ticks:
        body.append(_x_label(100 * (tick - x_low) / x_span, bottom + 16, number(tick)))
    values_text = ", ".join(f"{one.label} from {number(ys[0])} to {number(ys[-1])}" for one, _, ys in curves)
    return _svg(bottom + AXIS_HEIGHT_PX, f"{label}: {values_text}", body)


# --- retention --------------------------------------------------------------------------------------------------------


def retention_chart(
    xs: Sequence[float],
    series: Sequence[Series],
    *,
    label: str,
    markers: Sequence[Marker] = (),
    logarithmic: bool = False,
) -> Markup:
    """Kept fraction (0 to 1) of the clips against the value of a threshold; the first series is filled.

    Args:
        logarithmic: logarithmic x axis; ignored unless all of `xs` are positive.
    """
    positions = np.asarray(xs, float)
    logarithmic = logarithmic and bool((positions > 0).all())
    positions = np.log10(positions) if logarithmic else positions
    low, high = float(positions[0]), float(positions[-1])
    if low == high:
        half = max(abs(low) * 0.05, 0.05)
        low, high = low - half, high + half
    bottom = PLOT_TOP_PX + PLOT_HEIGHT_PX
    rules = [_grid_line(bottom - PLOT_HEIGHT_PX * fraction, f"{fraction:.0%}") for fraction in (0.5, 1.0)]
    body = [rule for rule, _ in rules]
    inner = '<svg x="0" y="{}" width="100%" height="{}" viewBox="0 0 1000 1000" preserveAspectRatio="none">'
    body.append(Markup(inner).format(PLOT_TOP_PX, PLOT_HEIGHT_PX))
    for one in reversed(series):  # the first on top
        steps = _corners(1000 * (positions - low) / (high - low), 1000 * (1 - np.asarray(one.ys, float)))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in steps)
        if one is series[0]:
            area = f"{steps[0][0]:.1f},1000 {points} {steps[-1][0]:.1f},1000"
            body.append(Markup('<polygon class="area {}" points="{}"/>').format(one.style, area))
        tag = '<polyline class="line {}" points="{}" vector-effect="non-scaling-stroke"><title>{}</title></polyline>'
        body.append(Markup(tag).format(one.style, points, one.label))
    body += [Markup("</svg>"), *(text for _, text in rules)]
    body.append(Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(bottom))
    ticks = [float(t) for t in range(math.ceil(low), math.floor(high) + 1)] if logarithmic else nice_ticks(low, high, 4)
    for tick in ticks or [low, high]:
        body.append(
            _x_label(100 * (tick - low) / (high - low), bottom + 16, number(10.0**tick if logarithmic else tick))
        )
    for marker in markers:
        if logarithmic and marker.x <= 0:
            continue
        x_percent = 100 * ((math.log10(marker.x) if logarithmic else marker.x) - low) / (high - low)
        if -1e-6 <= x_percent <= 100 + 1e-6:
            line_ = '<line class="marker {3}" x1="{0:.2f}%" x2="{0:.2f}%" y1="4" y2="{1}"><title>{2}</title></line>'
            body.append(Markup(line_).format(x_percent, bottom, marker.label, marker.style))
    values_text = ", ".join(f"{one.label} from {one.ys[0]:.0%} to {one.ys[-1]:.0%}" for one in series)
    return _svg(bottom + AXIS_HEIGHT_PX, f"{label}: {values_text}", body)


def _corners(xs: np.ndarray, ys: np.ndarray) -> list[tuple[float, float]]:
    """Points of the curve; a single point becomes a horizontal line."""
    if len(xs) < 2:
        return [(0.0, float(ys[0])), (1000.0, float(ys[0]))]
    return [(float(x), float(y)) for x, y in zip(xs, ys)]


# --- packs ------------------------------------------------------------------------------------------------------------


def pack_columns(pack_tokens: Sequence[int], capacity: int, *, max_columns: int = 160) -> Markup:
    """One column per pack, filled to tokens / capacity; above `max_columns` packs, one per group of consecutive packs."""
    fills = np.asarray(pack_tokens, float) / capacity
    if not len(fills):
        return Markup('<p class="empty">No packs.</p>')
    edges = np.linspace(0, len(fills), min(len(fills), max_columns) + 1).astype(int)
    body = _grid_line(PLOT_TOP_PX, "capacity")
    width = 100 / (len(edges) - 1)
    bottom = PLOT_TOP_PX + PLOT_HEIGHT_PX
    gap = min(0.15 * width, 0.4)
    for i, (a, b) in enumerate(itertools.pairwise(edges)):
        fill = float(fills[a:b].mean())
        height = PLOT_HEIGHT_PX * min(fill, 1.0)
        title = f"pack {a}: fill {fill:.1%}" if b - a == 1 else f"packs {a} to {b - 1}: mean fill {fill:.1%}"
        position = (i * width + gap / 2, width - gap)
        rect = '<rect class="{}" x="{:.3f}%" y="{:.1f}" width="{:.3f}%" height="{:.1f}"/>'
        body.append(Markup("<g><title>{}</title>").format(title))
        body.append(Markup(rect).format("padding", position[0], PLOT_TOP_PX, position[1], PLOT_HEIGHT_PX - height))
        body.append(Markup(rect).format("accent", position[0], bottom - height, position[1], height))
        body.append(Markup("</g>"))
    body.append(_x_label(0, bottom + 16, "pack 0"))
    body.append(_x_label(100, bottom + 16, f"pack {len(fills) - 1}"))
    label = f"Fill of {len(fills)} packs, mean {fills.mean():.1%}, lowest {fills.min():.1%}"
    return _svg(bottom + AXIS_HEIGHT_PX, label, body)


def frame_outline(width_px: int, height_px: int, largest_px: int, *, box_px: int = 44) -> Markup:
    """Outline of a frame size, to scale with the largest one of its table."""
    scale = (box_px - 2) / max(largest_px, 1)
    width, height = max(width_px * scale, 2), max(height_px * scale, 2)
    tag = (
        '<svg class="outline" width="{0}" height="{0}" aria-hidden="true">'
        '<rect x="{1:.1f}" y="{2:.1f}" width="{3:.1f}" height="{4:.1f}" rx="2"/></svg>'
    )
    return Markup(tag).format(box_px, (box_px - width) / 2, (box_px - height) / 2, width, height)
