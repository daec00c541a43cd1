"""Prediction types: each inverts to x0 and noise; min-SNR is the same weighting for all of them."""

from __future__ import annotations

import pytest
import torch

from train.diffusion.noise_schedules import SCHEDULES, alpha_sigma
from train.diffusion.parameterization import (
    DIFFUSION_PREDICTIONS,
    FLOW_PREDICTIONS,
    min_snr_weight,
    prediction_target,
    to_x0_and_noise,
)

PAIRS = [(s, p) for s in SCHEDULES for p in (FLOW_PREDICTIONS if s == "flow" else DIFFUSION_PREDICTIONS)]


def point(schedule, t):
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    alpha, sigma = (scale.double() for scale in alpha_sigma(schedule, torch.tensor([t])))
    return clean, noise, alpha, sigma


@pytest.mark.parametrize(("schedule", "prediction"), PAIRS)
@pytest.mark.parametrize("t", [0.02, 0.5, 0.97])
def test_the_target_inverts_to_x0_and_noise(schedule, prediction, t):
    clean, noise, alpha, sigma = point(schedule, t)
    target = prediction_target(prediction, clean, noise, alpha, sigma)
    found = to_x0_and_noise(prediction, target, alpha * clean + sigma * noise, alpha, sigma)
    torch.testing.assert_close(found, (clean, noise))


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_at_zero_terminal_snr_pure_noise_still_inverts_to_x0(prediction):
    clean, noise, _, _ = point("cosine", 1.0)
    alpha, sigma = alpha_sigma("cosine", torch.ones(1), zero_terminal_snr=True)
    found = to_x0_and_noise(prediction, prediction_target(prediction, clean, noise, alpha, sigma), noise, alpha, sigma)
    torch.testing.assert_close(found, (clean, noise))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("t", [0.05, 0.3, 0.9])
def test_min_snr_weights_errors_of_x0_alike_for_all_predictions(gamma, t):
    """weight x squared error of the prediction = min(SNR, gamma) x squared error of x0."""
    for schedule, prediction in PAIRS:
        clean, noise, alpha, sigma = point(schedule, t)
        x, target = alpha * clean + sigma * noise, prediction_target(prediction, clean, noise, alpha, sigma)
        prediction_found = target + 0.01
        found, _ = to_x0_and_noise(prediction, prediction_found, x, alpha, sigma)
        weighted = min_snr_weight(prediction, gamma, alpha, sigma) * (prediction_found - target).square().mean()
        expected = ((alpha / sigma) ** 2).clamp(max=gamma) * (found - clean).square().mean()
        torch.testing.assert_close(weighted, expected, msg=f"{schedule} {prediction}")


def test_min_snr_has_the_papers_formulas_and_finite_ends():
    alpha, sigma = alpha_sigma("linear", torch.tensor([0.0, 0.1, 0.5, 1.0]))
    snr = (alpha / sigma) ** 2
    clipped = snr.clamp(max=5)
    torch.testing.assert_close(min_snr_weight("epsilon", 5.0, alpha, sigma)[1:], (clipped / snr)[1:])
    torch.testing.assert_close(min_snr_weight("v", 5.0, alpha, sigma)[1:], (clipped / (snr + 1))[1:])
    torch.testing.assert_close(min_snr_weight("x0", 5.0, alpha, sigma)[1:], clipped[1:])
    for prediction in DIFFUSION_PREDICTIONS:
        assert min_snr_weight(prediction, 5.0, alpha, sigma).isfinite().all()
