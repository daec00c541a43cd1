"""Noise conditioning augmentation: levels of a signal-to-noise ratio, and hints at them."""

from __future__ import annotations

import pytest
import torch

from train.diffusion.noise_augmentation import augmented, level_of_snr
from train.diffusion.process import DiffusionSettings
from train.layers.segments import Segments

FLOW, COSINE = DiffusionSettings(), DiffusionSettings(schedule="cosine", prediction="v")


def test_levels_are_where_the_schedule_has_that_ratio():
    assert level_of_snr(3.0, FLOW) == pytest.approx(0.366, abs=5e-4)
    assert level_of_snr(5.0, FLOW) == pytest.approx(0.309, abs=5e-4)
    for snr, variance in ((3.0, 0.25), (5.0, 1 / 6)):
        _, sigma = COSINE.alpha_sigma(torch.tensor([level_of_snr(snr, COSINE)]))
        assert float(sigma.square()) == pytest.approx(variance, abs=1e-3)
    assert level_of_snr(float("inf"), FLOW) < 1e-6


def test_at_level_0_the_hint_is_clean_and_at_1_it_is_noise_alone():
    segments = Segments.from_lengths([2, 2])
    hint_LD, noise_LD = torch.randn(4, 3), torch.randn(4, 3)
    found = augmented(hint_LD, noise_LD, torch.tensor([0.0, 1.0]), segments, FLOW)
    assert torch.equal(found[:2], hint_LD[:2])
    assert torch.equal(found[2:], noise_LD[2:])
