"""Predictions: every one leads back to the clean sample and the noise; min-SNR is one weighting said four ways."""

from __future__ import annotations

import pytest
import torch

from train.diffusion.noise_schedules import SCHEDULES, alpha_sigma
from train.diffusion.parameterization import OF_DIFFUSION, OF_FLOW, clean_and_noise, min_snr_weight, target_of

PAIRS = [(s, p) for s in SCHEDULES for p in (OF_FLOW if s == "flow" else OF_DIFFUSION)]


def point(schedule, t):
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    alpha, sigma = (share.double() for share in alpha_sigma(schedule, torch.tensor([t])))
    return clean, noise, alpha, sigma


@pytest.mark.parametrize(("schedule", "prediction"), PAIRS)
@pytest.mark.parametrize("t", [0.02, 0.5, 0.97])
def test_the_target_leads_back_to_clean_and_noise(schedule, prediction, t):
    clean, noise, alpha, sigma = point(schedule, t)
    target = target_of(prediction, clean, noise, alpha, sigma)
    found = clean_and_noise(prediction, target, alpha * clean + sigma * noise, alpha, sigma)
    torch.testing.assert_close(found, (clean, noise))


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_pure_noise_of_zero_terminal_snr_still_leads_to_the_sample(prediction):
    clean, noise, _, _ = point("cosine", 1.0)
    alpha, sigma = alpha_sigma("cosine", torch.ones(1), zero_terminal_snr=True)
    found = clean_and_noise(prediction, target_of(prediction, clean, noise, alpha, sigma), noise, alpha, sigma)
    torch.testing.assert_close(found, (clean, noise))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("t", [0.05, 0.3, 0.9])
def test_min_snr_weights_the_same_error_of_the_sample_alike(gamma, t):
    """Whatever is predicted: weight x squared error = min(SNR, gamma) x squared error of the clean sample."""
    for schedule, prediction in PAIRS:
        clean, noise, alpha, sigma = point(schedule, t)
        x, target = alpha * clean + sigma * noise, target_of(prediction, clean, noise, alpha, sigma)
        answer = target + 0.01
        found, _ = clean_and_noise(prediction, answer, x, alpha, sigma)
        weighted = min_snr_weight(prediction, gamma, alpha, sigma) * (answer - target).square().mean()
        expected = ((alpha / sigma) ** 2).clamp(max=gamma) * (found - clean).square().mean()
        torch.testing.assert_close(weighted, expected, msg=f"{schedule} {prediction}")


def test_min_snr_has_the_papers_formulas_and_finite_ends():
    alpha, sigma = alpha_sigma("linear", torch.tensor([0.0, 0.1, 0.5, 1.0]))
    snr = (alpha / sigma) ** 2
    clipped = snr.clamp(max=5)
    torch.testing.assert_close(min_snr_weight("epsilon", 5.0, alpha, sigma)[1:], (clipped / snr)[1:])
    torch.testing.assert_close(min_snr_weight("v", 5.0, alpha, sigma)[1:], (clipped / (snr + 1))[1:])
    torch.testing.assert_close(min_snr_weight("x0", 5.0, alpha, sigma)[1:], clipped[1:])
    for prediction in OF_DIFFUSION:
        assert min_snr_weight(prediction, 5.0, alpha, sigma).isfinite().all()
