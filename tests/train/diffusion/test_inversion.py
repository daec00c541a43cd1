"""Inversion: there and back again, with an error that shrinks with the steps as the solver's order says."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from recaption.errors import UsageError
from train.diffusion.inversion import invert
from train.diffusion.parameterization import prediction_target
from train.diffusion.process import DiffusionSettings
from train.diffusion.solvers import integrate, sampling_timesteps
from train.layers.segments import Segments

SEGMENTS = Segments.from_lengths([3, 2])
MEAN, STD = 0.7, 0.5
"""Of the data: numbers that are normally distributed, for which the best prediction is known."""


def best_model(diffusion):
    """The exact model of normal data."""

    def predict(x_LD, timestep_S):
        alpha_L1, sigma_L1 = (
            scale_S.double()[SEGMENTS.segment_ids_L, None] for scale_S in diffusion.alpha_sigma(timestep_S)
        )
        variance = (alpha_L1 * STD) ** 2 + sigma_L1**2
        centred = x_LD - alpha_L1 * MEAN
        clean, noise = MEAN + alpha_L1 * STD**2 / variance * centred, sigma_L1 / variance * centred
        return prediction_target(diffusion.prediction, clean, noise, alpha_L1, sigma_L1)

    return predict


def error_of(diffusion, num_steps, solver):
    """Largest error of there and back."""
    clean_LD = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * STD + MEAN
    times_KS = sampling_timesteps(num_steps, SEGMENTS, diffusion).double()
    model = best_model(diffusion)
    noise_LD = invert(model, clean_LD, SEGMENTS, times_KS, diffusion=diffusion, solver=solver)
    assert not torch.allclose(noise_LD, clean_LD, atol=0.1)
    found_LD = integrate(model, noise_LD, SEGMENTS, times_KS, diffusion=diffusion, solver=solver)
    return float((found_LD - clean_LD).abs().max())


@pytest.mark.parametrize(
    ("schedule", "prediction", "solver", "order"),
    [
        ("flow", "velocity", "euler", 1),
        ("flow", "velocity", "heun", 2),
        ("flow", "velocity", "dpmpp_2m", 1),
        ("flow", "x0", "euler", 1),
        ("cosine", "v", "ddim", 1),
        ("cosine", "x0", "ddim", 1),
        ("cosine", "epsilon", "ddim", 1),
    ],
)
def test_the_way_back_ends_at_the_clean_sample_the_nearer_the_more_steps(schedule, prediction, solver, order):
    diffusion = DiffusionSettings(schedule=schedule, prediction=prediction, timesteps="uniform")
    errors = [error_of(diffusion, num_steps, solver) for num_steps in (20, 80, 320)]
    assert errors[0] < 0.5
    for few, many in itertools.pairwise(errors):
        assert many < few / 4**order * 1.6, errors


def test_the_noise_of_normal_data_is_the_one_that_the_flow_assigns():
    diffusion = DiffusionSettings()
    clean_LD = MEAN + STD * torch.tensor([[-1.0], [0.0], [2.0], [1.0], [-2.0]], dtype=torch.float64)
    times_KS = sampling_timesteps(400, SEGMENTS, diffusion).double()
    noise_LD = invert(best_model(diffusion), clean_LD, SEGMENTS, times_KS, diffusion=diffusion, solver="heun")
    torch.testing.assert_close(noise_LD, (clean_LD - MEAN) / STD, atol=1e-3, rtol=0)


def test_a_solver_that_adds_noise_and_too_few_steps_are_refused():
    diffusion = DiffusionSettings(schedule="cosine", prediction="v", timesteps="uniform")
    for num_steps, solver, message in ((10, "ancestral", "another than ancestral"), (1, "ddim", "2 steps or more")):
        times_KS = sampling_timesteps(num_steps, SEGMENTS, diffusion)
        with pytest.raises(UsageError, match=message):
            invert(best_model(diffusion), torch.zeros(5, 2), SEGMENTS, times_KS, diffusion=diffusion, solver=solver)
    assert math.isfinite(error_of(diffusion, 2, "ddim"))
