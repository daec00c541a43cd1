"""Guidance: scales over time, and rescaled predictions that keep their standard deviation."""

from __future__ import annotations

import math

import pytest
import torch

from recaption.errors import UsageError
from train.diffusion.guidance import Guidance, apply_guidance, dynamic_threshold
from train.layers.segments import Segments


def test_scale_1_is_conditional_and_scale_0_unconditional():
    conditional, unconditional = torch.tensor([2.0]), torch.tensor([1.0])
    assert [float(apply_guidance(conditional, unconditional, g)) for g in (0.0, 1.0, 3.0)] == [1.0, 2.0, 4.0]
    segments = Segments.from_lengths([1])
    plain = Guidance(scale=3.0).combine(conditional[:, None], unconditional[:, None], torch.tensor([0.5]), segments)
    assert float(plain) == 4.0


def test_outside_of_the_interval_the_scale_is_1():
    scales = Guidance(scale=5.0, interval=(0.2, 0.8)).scales(torch.tensor([0.0, 0.2, 0.5, 0.8, 0.81, 1.0]))
    assert scales.tolist() == [1, 5, 5, 5, 1, 1]


def test_power_cosine_is_mdts_formula_and_rises_towards_clean():
    t = torch.linspace(0, 1, 11)
    scales = Guidance(scale=4.0, power=4.0).scales(t)
    expected = [(4 - 1) * (1 - math.cos(math.pi * (1 - float(x)) ** 4)) / 2 + 1 for x in t]
    assert scales.tolist() == pytest.approx(expected, abs=1e-6)
    assert float(scales[0]) == pytest.approx(4)
    assert float(scales[-1]) == 1
    assert (scales.diff() <= 0).all()


def test_rescale_restores_the_standard_deviation_of_each_sample():
    segments = Segments.from_lengths([50, 30])
    generator = torch.Generator().manual_seed(0)
    conditional, unconditional = torch.randn(2, 80, 6, generator=generator)
    conditional[50:] *= 3
    t = torch.tensor([0.5, 0.5])

    def stds(guidance):
        prediction = guidance.combine(conditional, unconditional, t, segments)
        return [float(part.std(correction=0)) for part in prediction.split(segments.lengths)]

    conditional_std = [float(part.std(correction=0)) for part in conditional.split(segments.lengths)]
    guided_std = stds(Guidance(scale=8.0))
    assert min(x / y for x, y in zip(guided_std, conditional_std)) > 3
    assert stds(Guidance(scale=8.0, rescale=1.0)) == pytest.approx(conditional_std, rel=1e-4)
    half = [(x + y) / 2 for x, y in zip(guided_std, conditional_std)]
    assert stds(Guidance(scale=8.0, rescale=0.5)) == pytest.approx(half, rel=1e-4)


def test_settings_that_are_invalid_or_without_effect_are_refused():
    for match, settings in {
        "0 <= low < high <= 1": {"interval": (0.8, 0.2)},
        "fraction from 0 to 1": {"rescale": 1.5},
        "power = -1": {"power": -1.0},
        "have no effect": {"scale": 1.0, "rescale": 0.7},
    }.items():
        with pytest.raises(UsageError, match=match):
            Guidance(**settings).check()
    Guidance.of(1.0).check()


def test_oscillating_guidance_is_high_first_and_then_every_other_step():
    oscillating = Guidance(scale=15.0, oscillation_steps=3, oscillation_scale=1.0)
    assert [float(oscillating.scales(torch.tensor([0.5]), step)) for step in range(8)] == [15, 15, 15, 1, 15, 1, 15, 1]
    plain, same = Guidance(scale=3.0), Guidance(scale=3.0, oscillation_steps=2, oscillation_scale=3.0)
    assert [float(same.scales(torch.tensor([0.5]), step)) for step in range(5)] == [3.0] * 5
    assert float(plain.scales(torch.tensor([0.5]), 7)) == 3.0
    with pytest.raises(UsageError, match="leave one of them out"):
        Guidance(scale=3.0, power=4.0, oscillation_steps=2).check()
    with pytest.raises(UsageError, match="the oscillation scale at least 1"):
        Guidance(scale=3.0, oscillation_steps=2, oscillation_scale=0.0).check()


def test_dynamic_threshold_leaves_small_values_and_brings_large_ones_to_1():
    segments = Segments.from_lengths([100, 50])
    small, large = torch.linspace(-1, 1, 100)[:, None], torch.linspace(-3, 3, 50)[:, None]
    found = dynamic_threshold(torch.cat([small, large]), segments, 90.0)
    assert torch.equal(found[:100], small)
    bound = large.abs().flatten().sort().values[44]  # the 45th of 50
    torch.testing.assert_close(found[100:], large.clamp(-bound, bound) / bound)
    assert found.abs().max() == 1
    Guidance(dynamic_threshold=99.5).check_values((-1.0, 1.0))
    with pytest.raises(UsageError, match="for models of pixels"):
        Guidance(dynamic_threshold=99.5).check_values(None)
