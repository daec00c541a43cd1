"""Rates and times from timestamps alone: exact where the timestamps are regular, never taken from a header unchecked."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recaption.decoding import timestamps


@given(
    rate=st.sampled_from([Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(60)]),
    num_frames=st.integers(60, 400),
    start=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_rates_are_recovered_from_rounded_milliseconds(rate: Fraction, num_frames: int, start: int) -> None:
    ticks = np.array([start + round(n * 1000 / rate) for n in range(num_frames)])
    found = timestamps.constant_rate(ticks, Fraction(1, 1000), proposed=(Fraction(1000), None))
    assert abs(float(found / rate) - 1) < 1e-3
    if num_frames > 120:
        assert found == rate


def test_a_rounded_header_rate_means_the_standard_rate() -> None:
    ticks = np.array([round(n * 1001 / 30) for n in range(300)])
    assert timestamps.constant_rate(ticks, Fraction(1, 1000), proposed=(Fraction(2997, 100),)) == Fraction(30000, 1001)


def test_a_header_rate_that_timestamps_contradict_is_ignored() -> None:
    ticks = np.array([0, 1, 4, 5, 9, 10])
    assert timestamps.constant_rate(ticks, Fraction(1, 30), proposed=(Fraction(30),)) is None
    rate, seconds = timestamps.rate_and_duration(ticks, 143_165 * 30, Fraction(1, 30), (Fraction(30),))
    assert (rate, seconds) == (6 / seconds, Fraction(11, 30))


@given(st.lists(st.one_of(st.none(), st.integers(-1000, 1000)), min_size=1, max_size=40))
def test_retimed_frames_always_increase(ticks: list[int | None]) -> None:
    retimed = timestamps.retime(ticks, 40)
    assert len(retimed) == len(ticks)
    assert np.all(np.diff(retimed) > 0)


def test_frames_at_a_rate_are_those_on_screen():
    pts_seconds = np.arange(5) / 10
    found = timestamps.frames_at_rate(pts_seconds, 0.1, num_frames=4, fps=5)
    assert found.tolist() == [1, 3, 4, 4], "0.1, 0.3, 0.5 and 0.7 s; after the last frame it stays"
