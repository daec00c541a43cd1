"""Solvers with closed-form denoisers: exact distributions, and the order of convergence."""

from __future__ import annotations

import math

import pytest
import torch

from recaption.errors import UsageError
from train.diffusion.parameterization import prediction_target
from train.diffusion.process import DiffusionSettings
from train.diffusion.solvers import DIFFUSION_SOLVERS, FLOW_SOLVERS, choose_solver, integrate, sampling_timesteps
from train.layers.segments import Segments

MEAN, STD = 1.5, 0.4
FLOW = DiffusionSettings()
SETTINGS = {
    "flow": FLOW,
    "flow x0": DiffusionSettings(prediction="x0"),
    "cosine v": DiffusionSettings(schedule="cosine", prediction="v"),
    "cosine epsilon": DiffusionSettings(schedule="cosine", prediction="epsilon"),
    "linear epsilon": DiffusionSettings(schedule="linear", prediction="epsilon", discrete=True),
    "scaled x0 zero": DiffusionSettings(schedule="scaled_linear", prediction="x0", zero_terminal_snr=True),
    "linear v zero": DiffusionSettings(schedule="linear", prediction="v", zero_terminal_snr=True, discrete=True),
}
PAIRS = [
    (name, s)
    for name, diffusion in SETTINGS.items()
    for s in (FLOW_SOLVERS if diffusion.schedule == "flow" else DIFFUSION_SOLVERS)
]


def gaussian_denoiser(diffusion, segments):
    """The exact prediction where every number of a sample is distributed as N(MEAN, STD^2).

    Of x = alpha x0 + sigma eps the expected noise is sigma (x - alpha MEAN) / (alpha^2 STD^2 + sigma^2).
    """

    def predict(x_LD, timestep_S):
        alpha, sigma = (scale[segments.segment_ids_L, None].double() for scale in diffusion.alpha_sigma(timestep_S))
        away = x_LD.double() - alpha * MEAN
        variance = alpha**2 * STD**2 + sigma**2
        noise, clean = sigma * away / variance, MEAN + alpha * STD**2 * away / variance
        return prediction_target(diffusion.prediction, clean, noise, alpha, sigma).to(x_LD.dtype)

    return predict


def exact(diffusion, x, start, end):
    """Solution of the probability flow ODE: the points of a Gaussian keep their distance in standard deviations."""
    alphas, sigmas = diffusion.alpha_sigma(torch.tensor([start, end]))
    (a0, a1), (s0, s1) = alphas.tolist(), sigmas.tolist()
    return a1 * MEAN + math.sqrt((a1**2 * STD**2 + s1**2) / (a0**2 * STD**2 + s0**2)) * (x - a0 * MEAN)


SCALED = DiffusionSettings(schedule="scaled_linear", prediction="epsilon")


def test_dpmpp_2m_is_of_second_order_between_noise_levels_and_of_first_down_to_clean_on_scaled_linear():
    """As the table of solvers says: near 0 the steps in log-SNR do not shrink with their number."""
    for end, order in ((0.1, 2), (0.0, 1)):
        coarse, fine = (error_after(n, SCALED, "dpmpp_2m", end=end) for n in (80, 160))
        assert order - 0.2 < math.log2(coarse / fine) < order + 0.3
    assert error_after(40, SCALED, "dpmpp_2m", end=0.0) < 0.7 * error_after(40, SCALED, "ddim", end=0.0)
    coarse, fine = (error_after(n, FLOW, "dpmpp_2m", end=0.0) for n in (160, 320))
    assert math.log2(coarse / fine) > 1.7


def error_after(num_steps, diffusion, solver, start=0.9, end=0.1):
    segments = Segments.from_lengths([2, 3])
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.linspace(start, end, num_steps + 1, dtype=torch.float64)[:, None].repeat(1, 2)
    found = integrate(gaussian_denoiser(diffusion, segments), x, segments, times, diffusion=diffusion, solver=solver)
    return float((found - exact(diffusion, x, start, end)).abs().max())


@pytest.mark.parametrize(
    ("name", "solver", "order"),
    [("flow", "euler", 1), ("flow", "heun", 2), ("flow x0", "heun", 2), ("flow", "dpmpp_2m", 2)]
    + [(name, "dpmpp_2m", 2) for name in ("cosine v", "linear epsilon")]
    + [(name, "ddim", 1) for name in ("cosine v", "linear epsilon")],
)
def test_twice_the_steps_divide_the_error_by_two_to_the_order(name, solver, order):
    coarse, fine = (error_after(n, SETTINGS[name], solver) for n in (50, 100))
    assert fine > 1e-12, "nothing left to compare"
    assert 0.8 * 2**order < coarse / fine < 1.3 * 2**order


@pytest.mark.parametrize(("name", "solver"), PAIRS)
def test_noise_becomes_the_known_distribution(name, solver):
    diffusion = SETTINGS[name]
    lengths = [4000, 1000]
    segments = Segments.from_lengths(lengths)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5000, 4, generator=generator)
    # the variance of DDPM's posterior is too small in proportion to the step size
    times = sampling_timesteps(300 if solver == "ancestral" else 100, segments, diffusion)
    found = integrate(
        gaussian_denoiser(diffusion, segments), x, segments, times, diffusion=diffusion, solver=solver,
        noise_of=lambda number: torch.randn(5000, 4, generator=generator),
    )  # fmt: skip
    assert found.isfinite().all()
    for part in found.split(lengths):
        assert float(part.mean()) == pytest.approx(MEAN, abs=0.03)
        assert float(part.std()) == pytest.approx(STD, rel=0.05)


def test_a_mixture_of_two_points_keeps_its_weights():
    """-2 with 30 %, +2 with 70 %, each exactly: the posterior mean is a tanh."""
    diffusion = SETTINGS["cosine v"]
    segments = Segments.from_lengths([8000])

    def predict(x_LD, timestep_S):
        alpha, sigma = (scale.double() for scale in diffusion.alpha_sigma(timestep_S))
        x = x_LD.double()
        clean = 2 * torch.tanh(2 * alpha * x / sigma**2 + 0.5 * math.log(0.7 / 0.3))
        return prediction_target(diffusion.prediction, clean, (x - alpha * clean) / sigma, alpha, sigma).float()

    generator = torch.Generator().manual_seed(0)
    for solver in DIFFUSION_SOLVERS:
        x = torch.randn(8000, 1, generator=generator)
        found = integrate(
            predict, x, segments, sampling_timesteps(60, segments, diffusion), diffusion=diffusion, solver=solver,
            noise_of=lambda number: torch.randn(8000, 1, generator=generator),
        )  # fmt: skip
        torch.testing.assert_close(found.abs(), torch.full_like(found, 2.0), atol=0.1, rtol=0)
        assert float((found > 0).float().mean()) == pytest.approx(0.7, abs=0.03)


def test_heun_is_more_accurate_than_euler():
    """dx/dt = x has x(0) = x(1) / e."""
    segments = Segments.from_lengths([2, 1])
    x1 = torch.ones(3, 2)
    errors = {}
    for solver in ("euler", "heun"):
        times = sampling_timesteps(8, segments, DiffusionSettings(shift_tokens=1))
        x0 = integrate(lambda x, t: x, x1, segments, times, solver=solver)
        errors[solver] = float((x0 - torch.e**-1).abs().max())
    assert errors["euler"] < 0.1
    assert errors["heun"] < errors["euler"] / 10


@pytest.mark.parametrize("solver", FLOW_SOLVERS)
def test_a_constant_velocity_is_solved_exactly_in_one_step(solver):
    segments = Segments.from_lengths([2, 3])
    clean, noise = torch.randn(5, 4), torch.randn(5, 4)
    times = sampling_timesteps(1, segments, FLOW)
    torch.testing.assert_close(integrate(lambda x, t: noise - clean, noise, segments, times, solver=solver), clean)


def test_samples_of_a_pack_are_independent_of_each_others_times():
    diffusion = DiffusionSettings(shift_tokens=1)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    for solver in FLOW_SOLVERS:
        parts = []
        for lengths, part in (((1, 4), x), ((1,), x[:1]), ((4,), x[1:])):
            segments = Segments.from_lengths(lengths)
            times = sampling_timesteps(6, segments, diffusion)
            parts.append(
                integrate(
                    gaussian_denoiser(diffusion, segments), part, segments, times, diffusion=diffusion, solver=solver
                )
            )
        torch.testing.assert_close(parts[0], torch.cat(parts[1:]))


def test_each_sample_keeps_its_own_schedule():
    times = sampling_timesteps(4, Segments.from_lengths([1, 4]), DiffusionSettings(shift_tokens=1))
    assert times.shape == (5, 2)
    assert times[0].tolist() == [1, 1]
    assert times[-1].tolist() == [0, 0]
    assert times[2].tolist() == pytest.approx([0.5, 2 / 3])
    with pytest.raises(UsageError, match="num_steps"):
        sampling_timesteps(0, Segments.from_lengths([1]), DiffusionSettings())


def test_discrete_schedules_are_sampled_at_their_steps_and_epsilon_starts_below_pure_noise():
    segments = Segments.from_lengths([1])
    steps = sampling_timesteps(30, segments, SETTINGS["linear epsilon"]) * 1000
    torch.testing.assert_close(steps, steps.round())
    with pytest.raises(UsageError, match="use fewer"):
        sampling_timesteps(1001, segments, SETTINGS["linear epsilon"])
    assert float(sampling_timesteps(30, segments, SETTINGS["cosine v"])[0]) == 1
    start = sampling_timesteps(30, segments, SETTINGS["cosine epsilon"])[0]
    assert 0.99 < float(start) < 1
    assert float(SETTINGS["cosine epsilon"].alpha_sigma(start)[0]) >= 0.005


def test_solvers_that_do_not_support_a_schedule_are_refused_with_those_that_do():
    assert choose_solver("auto", FLOW) == "euler"
    assert choose_solver("auto", SETTINGS["cosine v"]) == "dpmpp_2m"
    with pytest.raises(UsageError, match=r"'heun' does not go with schedule 'cosine'.* choose one of dpmpp_2m, ddim"):
        choose_solver("heun", SETTINGS["cosine v"])
    with pytest.raises(UsageError, match="'ddim' does not go with schedule 'flow'"):
        choose_solver("ddim", FLOW)
    with pytest.raises(UsageError, match="choose one of auto, euler, heun"):
        choose_solver("rk4", FLOW)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "solver"), [("linear epsilon", "ddim"), ("linear epsilon", "dpmpp_2m")])
def test_steps_are_those_of_diffusers(name, solver):
    diffusers = pytest.importorskip("diffusers")
    kind = {"ddim": "DDIMScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler"}[solver]
    more = {"ddim": {"clip_sample": False, "set_alpha_to_one": True}, "dpmpp_2m": {"final_sigmas_type": "zero"}}
    theirs = getattr(diffusers, kind)(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing", **more[solver]
    )
    theirs.set_timesteps(20)
    diffusion, segments = SETTINGS[name], Segments.from_lengths([6])
    model = gaussian_denoiser(diffusion, segments)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    # their step i is the product of i + 1 factors, ours of i
    times = torch.tensor([*((theirs.timesteps + 1) / 1000).tolist(), 0.0])[:, None]
    ours = integrate(model, x, segments, times, diffusion=diffusion, solver=solver)
    for step in theirs.timesteps:
        x = theirs.step(model(x, torch.tensor([(float(step) + 1) / 1000])), step, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)
