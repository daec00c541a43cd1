"""Frame rates, durations and frame selection from presentation timestamps; header values are only hints.

    ticks = np.array([0, 1001, 2002])
    constant_rate(ticks, Fraction(1, 30000), proposed=())   -> Fraction(30000, 1001)
    frames_at_rate(ticks / 30000, 0.0, num_frames=2, fps=15) -> array([0, 2])

A tick is one unit of a stream's time base. Timestamps of Matroska are whole milliseconds, so 30 fps arrives there as
33, 33, 34: a rate is accepted where every timestamp is within one tick of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np

STANDARD_RATES = tuple(
    Fraction(r)
    for r in [
        "24000/1001",
        "24",
        "25",
        "30000/1001",
        "30",
        "50",
        "60000/1001",
        "60",
        "8",
        "10",
        "12",
        "25/2",
        "15",
        "15000/1001",
        "20",
        "48",
        "90",
        "100",
        "120",
        "120000/1001",
        "144",
        "240",
        "5",
        "6",
        "1",
        "2",
    ]
)
"""Rates that cameras and encoders use, tried where timestamps are too coarse to give the rate exactly."""
SAME_RATE = Fraction(1, 10_000)
"""A header rate this close (relative) to a standard rate is that rate, rounded: 2997/100 means 30000/1001."""
COARSE_TICK = Fraction(1, 2000)
"""Time bases at or above this (Matroska, FLV: 1/1000) round every timestamp visibly."""
MIN_TICKS_PER_FRAME = 8
"""Below this, "within one tick" would accept any timestamps as a constant rate."""
TOLERANCE_FRAMES = 0.4
"""How much too early, in source frames, a frame may be displayed: timestamps rounded to a millisecond then neither
repeat nor skip one. Not one half: when a rate is doubled every second time is exactly between two frames."""
MAX_RATE = 1000
"""Higher header rates are time bases mistaken for rates (1000 in some mkv and flv files)."""
FALLBACK_RATE = Fraction(25)
"""FFmpeg's default for images and streams without timestamps."""


def median_step(ticks: np.ndarray) -> float:
    """Median distance between consecutive timestamps; 0 where there are none."""
    steps = np.diff(ticks)
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else 0.0


def retime(ticks: Sequence[int | None], fallback_step: int) -> np.ndarray:
    """Strictly increasing timestamps for frames in display order.

    Timestamps that already increase stay as they are. Decode-order timestamps (AVI) are the right set in the wrong
    order: they are sorted. Missing ones, and those that jump back (two recordings joined in one MPEG-TS), continue one
    step after the previous frame.
    """
    known = np.array([t for t in ticks if t is not None], np.int64)
    if len(known) == len(ticks):
        if np.all(np.diff(known) > 0):
            return known
        if len(np.unique(known)) == len(known):
            return np.sort(known)
    step = max(1, round(median_step(known)) or fallback_step)
    retimed: list[int] = []
    offset = 0
    for tick in ticks:
        earliest = retimed[-1] + 1 if retimed else None
        time = None if tick is None else tick + offset
        if time is None or (earliest is not None and time < earliest):
            time = 0 if earliest is None else retimed[-1] + step
            offset = offset if tick is None else time - tick
        retimed.append(time)
    return np.array(retimed, np.int64)


def _grid_error_ticks(ticks: np.ndarray, time_base: Fraction, rate: Fraction) -> float:
    """Largest distance in ticks between the timestamps and the grid of a constant rate, after the best shift."""
    error = (ticks - ticks[0]) - np.arange(len(ticks)) * float(1 / (rate * time_base))
    return float(error.max() - error.min()) / 2


def constant_rate(ticks: np.ndarray, time_base: Fraction, proposed: Iterable[Fraction | None]) -> Fraction | None:
    """The exact rate (30000/1001, not 29.97) of evenly spaced timestamps; None where they are not, or there is only one.

    Args:
        proposed: rates from the header, each accepted only where the timestamps agree with it.
    """
    if len(ticks) < 2:
        return None
    header_rates = [Fraction(r) for r in proposed if r and 0 < r <= MAX_RATE]
    steps = np.diff(ticks)
    even = [1 / (int(steps[0]) * time_base)] if np.all(steps == steps[0]) else []
    if even and time_base < COARSE_TICK:
        return even[0]
    if median_step(ticks) < MIN_TICKS_PER_FRAME:
        return even[0] if even else None
    for candidates in (header_rates, STANDARD_RATES):
        errors = [(_grid_error_ticks(ticks, time_base, rate), order) for order, rate in enumerate(candidates)]
        fitting = [e for e in errors if e[0] <= 1.0]
        if fitting:
            rate = candidates[min(fitting)[1]]
            return next((r for r in STANDARD_RATES if abs(r / rate - 1) < SAME_RATE), rate)
    return even[0] if even else None


def rate_and_duration(
    ticks: np.ndarray, last_duration: int, time_base: Fraction, proposed: Sequence[Fraction | None]
) -> tuple[Fraction, Fraction]:
    """(frames per second, seconds) of all frames: the exact rate where it is constant, else frames / seconds.

    At a constant rate the last frame lasts as long as the others. Otherwise it lasts `last_duration`, or the median step
    where that value is implausible (one tick in mkv, days in some fragmented mp4).

    Args:
        last_duration: duration of the last frame in ticks, as stored in the file.
        proposed: rates from the header.
    """
    rate = constant_rate(ticks, time_base, proposed)
    header_rates = [Fraction(r) for r in proposed if r and 0 < r <= MAX_RATE]
    if rate is not None:
        return rate, len(ticks) / rate
    step = Fraction(median_step(ticks)) or 1 / (time_base * (header_rates[0] if header_rates else FALLBACK_RATE))
    longest = max([step, 1 / time_base, *np.diff(ticks).tolist()])
    is_plausible = step / 4 <= last_duration <= 4 * longest
    seconds = (int(ticks[-1]) - int(ticks[0]) + (last_duration if is_plausible else step)) * time_base
    if len(ticks) == 1:
        return (header_rates[0] if header_rates else FALLBACK_RATE), seconds
    return len(ticks) / seconds, seconds


def frames_at_rate(pts_seconds: np.ndarray, start_seconds: float, *, num_frames: int, fps: float) -> np.ndarray:
    """Indices into `pts_seconds` of the frames displayed at start, start + 1/fps, ...; repeats are possible.

    Times before the first frame give the first, times after the last give the last.
    """
    tolerance = TOLERANCE_FRAMES * median_step(pts_seconds)
    times = start_seconds + np.arange(num_frames) / fps + tolerance
    return np.clip(np.searchsorted(pts_seconds, times, side="right") - 1, 0, len(pts_seconds) - 1)
