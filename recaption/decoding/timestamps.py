"""When frames are shown, from their timestamps alone. Headers only propose; timestamps decide.

    ticks = np.array([0, 1001, 2002])
    constant_rate(ticks, Fraction(1, 30000), proposed=())   -> Fraction(30000, 1001)
    frames_at_rate(ticks / 30000, 0.0, num_frames=2, fps=15) -> array([0, 2])

A tick is one unit of a stream's time base. Timestamps of Matroska are whole milliseconds, so 30 fps arrives there as
33, 33, 34: a rate is accepted where every timestamp lies within one tick of it.
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
"""Rates that cameras and encoders use, tried where timestamps are too coarse to spell one out."""


SAME_RATE = Fraction(1, 10_000)
"""A claim this close to a standard rate is that rate, rounded: 2997/100 means 30000/1001."""


COARSE_TICK = Fraction(1, 2000)
"""Time bases at or above this (Matroska, FLV: 1/1000) round every timestamp visibly."""


MIN_TICKS_PER_FRAME = 8
"""Below this, "within one tick" would call any timestamps constant."""


TOLERANCE_FRAMES = 0.4
"""How much too early, in source frames, a frame may be shown: timestamps rounded to a millisecond then neither double
nor skip one. Not one half: when a rate is doubled every second time lies exactly between two frames."""


MAX_RATE = 1000
"""Higher claims come from time bases mistaken for rates (mkv and flv that say 1000)."""


FALLBACK_RATE = Fraction(25)
"""FFmpeg's own for pictures and streams without any timing."""


def median_step(ticks: np.ndarray) -> float:
    """Usual distance between neighbours; 0 where there are none."""
    steps = np.diff(ticks)
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else 0.0


def retime(ticks: Sequence[int | None], fallback_step: int) -> np.ndarray:
    """Strictly increasing times for frames in the order in which they are shown.

    Timestamps that already rise stay as they are. Decode-order timestamps (AVI) are the right set in the wrong order:
    they are sorted. Missing ones and those that jump back (two recordings joined in one MPEG-TS) go on one step later.
    """
    known = np.array([t for t in ticks if t is not None], np.int64)
    if len(known) == len(ticks):
        if np.all(np.diff(known) > 0):
            return known
        if len(np.unique(known)) == len(known):
            return np.sort(known)
    step = max(1, round(median_step(known)) or fallback_step)
    shown: list[int] = []
    offset = 0
    for tick in ticks:
        earliest = shown[-1] + 1 if shown else None
        time = None if tick is None else tick + offset
        if time is None or (earliest is not None and time < earliest):
            time = 0 if earliest is None else shown[-1] + step
            offset = offset if tick is None else time - tick
        shown.append(time)
    return np.array(shown, np.int64)


def _lies_on(ticks: np.ndarray, time_base: Fraction, rate: Fraction) -> float:
    """Largest distance in ticks between the timestamps and an even grid of this rate, after the best shift."""
    error = (ticks - ticks[0]) - np.arange(len(ticks)) * float(1 / (rate * time_base))
    return float(error.max() - error.min()) / 2


def constant_rate(ticks: np.ndarray, time_base: Fraction, proposed: Iterable[Fraction | None]) -> Fraction | None:
    """The exact rate (30000/1001, not 29.97) of evenly spaced timestamps; None where they are not, or there is but one.

    `proposed` are the header's claims, each believed only where the timestamps agree with it.
    """
    if len(ticks) < 2:
        return None
    claims = [Fraction(r) for r in proposed if r and 0 < r <= MAX_RATE]
    steps = np.diff(ticks)
    even = [1 / (int(steps[0]) * time_base)] if np.all(steps == steps[0]) else []
    if even and time_base < COARSE_TICK:
        return even[0]
    if median_step(ticks) < MIN_TICKS_PER_FRAME:
        return even[0] if even else None
    for candidates in (claims, STANDARD_RATES):
        errors = [(_lies_on(ticks, time_base, rate), order) for order, rate in enumerate(candidates)]
        fitting = [e for e in errors if e[0] <= 1.0]
        if fitting:
            rate = candidates[min(fitting)[1]]
            return next((r for r in STANDARD_RATES if abs(r / rate - 1) < SAME_RATE), rate)
    return even[0] if even else None


def rate_and_duration(
    ticks: np.ndarray, last_duration: int, time_base: Fraction, proposed: Sequence[Fraction | None]
) -> tuple[Fraction, Fraction]:
    """(frames per second, seconds) of all frames: the exact rate where it is constant, else frames / seconds.

    The last frame lasts as long as the others at a constant rate; otherwise as long as it claims, unless that is absurd
    beside the steps before it (mkv claims one tick, some fragmented mp4 claim days), then the usual step.
    """
    rate = constant_rate(ticks, time_base, proposed)
    claims = [Fraction(r) for r in proposed if r and 0 < r <= MAX_RATE]
    if rate is not None:
        return rate, len(ticks) / rate
    step = Fraction(median_step(ticks)) or 1 / (time_base * (claims[0] if claims else FALLBACK_RATE))
    longest = max([step, 1 / time_base, *np.diff(ticks).tolist()])
    believable = step / 4 <= last_duration <= 4 * longest
    seconds = (int(ticks[-1]) - int(ticks[0]) + (last_duration if believable else step)) * time_base
    if len(ticks) == 1:
        return (claims[0] if claims else FALLBACK_RATE), seconds
    return len(ticks) / seconds, seconds


def frames_at_rate(pts_seconds: np.ndarray, start_seconds: float, *, num_frames: int, fps: float) -> np.ndarray:
    """Which source frame is on screen at start, start + 1/fps, ...: positions into `pts_seconds`, repeats allowed.

    Times before the first frame show the first, times after the last show the last.
    """
    tolerance = TOLERANCE_FRAMES * median_step(pts_seconds)
    times = start_seconds + np.arange(num_frames) / fps + tolerance
    return np.clip(np.searchsorted(pts_seconds, times, side="right") - 1, 0, len(pts_seconds) - 1)
