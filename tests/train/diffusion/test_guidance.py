"""Guidance: which scale at which time, and answers that keep their spread."""

from __future__ import annotations

import math

import pytest
import torch

from recaption.errors import UsageError
from train.diffusion.guidance import Guidance, guided
from train.layers.segments import Segments


def test_guidance_of_one_is_the_prompt_and_of_zero_is_no_prompt():
    conditional, unconditional = torch.tensor([2.0]), torch.tensor([1.0])
    assert [float(guided(conditional, unconditional, g)) for g in (0.0, 1.0, 3.0)] == [1.0, 2.0, 4.0]
    segments = Segments.from_lengths([1])
    plain = Guidance(scale=3.0).combine(conditional[:, None], unconditional[:, None], torch.tensor([0.5]), segments)
    assert float(plain) == 4.0


def test_an_interval_guides_inside_only():
    weights = Guidance(scale=5.0, interval=(0.2, 0.8)).weights(torch.tensor([0.0, 0.2, 0.5, 0.8, 0.81, 1.0]))
    assert weights.tolist() == [1, 5, 5, 5, 1, 1]


def test_power_cosine_is_mdts_formula_and_rises_towards_the_clean_end():
    t = torch.linspace(0, 1, 11)
    weights = Guidance(scale=4.0, power=4.0).weights(t)
    expected = [(4 - 1) * (1 - math.cos(math.pi * (1 - float(x)) ** 4)) / 2 + 1 for x in t]
    assert weights.tolist() == pytest.approx(expected, abs=1e-6)
    assert float(weights[0]) == pytest.approx(4)
    assert float(weights[-1]) == 1
    assert (weights.diff() <= 0).all()


def test_rescale_gives_each_sample_back_its_own_spread():
    segments = Segments.from_lengths([50, 30])
    generator = torch.Generator().manual_seed(0)
    conditional, unconditional = torch.randn(2, 80, 6, generator=generator)
    conditional[50:] *= 3
    t = torch.tensor([0.5, 0.5])

    def spreads(guidance):
        answer = guidance.combine(conditional, unconditional, t, segments)
        return [float(part.std(correction=0)) for part in answer.split(segments.lengths)]

    own = [float(part.std(correction=0)) for part in conditional.split(segments.lengths)]
    loud = spreads(Guidance(scale=8.0))
    assert min(x / y for x, y in zip(loud, own)) > 3
    assert spreads(Guidance(scale=8.0, rescale=1.0)) == pytest.approx(own, rel=1e-4)
    half = [(x + y) / 2 for x, y in zip(loud, own)]
    assert spreads(Guidance(scale=8.0, rescale=0.5)) == pytest.approx(half, rel=1e-4)


def test_settings_without_sense_or_effect_are_refused():
    for match, settings in {
        "0 <= low < high <= 1": {"interval": (0.8, 0.2)},
        "share from 0 to 1": {"rescale": 1.5},
        "power = -1": {"power": -1.0},
        "have no effect": {"scale": 1.0, "rescale": 0.7},
    }.items():
        with pytest.raises(UsageError, match=match):
            Guidance(**settings).check()
    Guidance.of(1.0).check()
