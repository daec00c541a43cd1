"""Noise schedules: the tables of their papers at integer steps, interpolation between them, exact ends."""

from __future__ import annotations

import math

import pytest
import torch

from recaption.errors import UsageError
from train.diffusion.noise_schedules import SCHEDULES, alpha_sigma, alphas

DIFFUSION = SCHEDULES[1:]


def test_linear_and_scaled_linear_are_the_products_of_their_papers():
    """Written out with Python numbers."""
    for schedule, beta_of in (
        ("linear", lambda i: 1e-4 + (0.02 - 1e-4) * i / 999),
        ("scaled_linear", lambda i: (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2),
    ):
        alpha_bar = 1.0
        for step in range(1, 1001):
            alpha_bar *= 1 - beta_of(step - 1)
            if step in (1, 2, 500, 1000):
                alpha, sigma = alpha_sigma(schedule, torch.tensor([step / 1000]))
                assert float(alpha) == pytest.approx(alpha_bar**0.5, rel=1e-9)
                assert float(sigma) == pytest.approx((1 - alpha_bar) ** 0.5, rel=1e-9)


def test_cosine_is_a_cosine_up_to_its_last_steps():
    t = torch.linspace(0, 0.99, 100)
    alpha, _ = alpha_sigma("cosine", t)
    start = math.cos(0.008 / 1.008 * math.pi / 2)
    expected = torch.cos((t.double() + 0.008) / 1.008 * math.pi / 2) / start
    torch.testing.assert_close(alpha, expected, atol=2e-6, rtol=0)
    last, _ = alpha_sigma("cosine", torch.ones(1))
    assert 0 < float(last) < 1e-4, "the largest beta is capped"


@pytest.mark.parametrize("schedule", DIFFUSION)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_alpha_only_falls_and_alpha_squared_plus_sigma_squared_is_1(schedule, zero_terminal_snr):
    t = torch.linspace(0, 1, 3001)
    alpha, sigma = alpha_sigma(schedule, t, zero_terminal_snr=zero_terminal_snr)
    assert float(alpha[0]) == 1
    assert float(sigma[0]) == 0
    assert (alpha.diff() < 0).all()
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3001, dtype=torch.float64))


@pytest.mark.parametrize("schedule", DIFFUSION)
def test_zero_terminal_snr_ends_at_alpha_0_and_keeps_the_first_step(schedule):
    plain, rescaled = alphas(schedule), alphas(schedule, True)
    assert float(rescaled[-1]) == 0.0
    assert float(plain[-1]) > 0
    assert float(rescaled[1]) == pytest.approx(float(plain[1]), rel=1e-12)
    alpha, sigma = alpha_sigma(schedule, torch.ones(1), zero_terminal_snr=True)
    assert float(alpha) == 0.0
    assert float(sigma) == 1.0


def test_flow_is_linear_and_unknown_names_are_refused():
    t = torch.tensor([0.0, 0.25, 1.0])
    alpha, sigma = alpha_sigma("flow", t)
    assert alpha.tolist() == [1, 0.75, 0]
    assert sigma.tolist() == [0, 0.25, 1]
    with pytest.raises(UsageError, match="choose one of flow, cosine, linear, scaled_linear"):
        alpha_sigma("sine", t)


@pytest.mark.slow
def test_the_tables_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    names = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
    bounds = {"scaled_linear": (0.00085, 0.012)}
    for schedule, name in names.items():
        start, end = bounds.get(schedule, (1e-4, 0.02))
        for zero in (False, True):
            theirs = diffusers.DDPMScheduler(
                beta_schedule=name, beta_start=start, beta_end=end, rescale_betas_zero_snr=zero
            ).alphas_cumprod.double()
            torch.testing.assert_close(alphas(schedule, zero)[1:] ** 2, theirs, rtol=1e-3, atol=1e-6)
