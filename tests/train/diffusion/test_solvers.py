"""Solvers against samples whose denoiser is known in closed form: they end where they must, at the order they claim."""

from __future__ import annotations

import math

import pytest
import torch

from recaption.errors import UsageError
from train.diffusion.parameterization import target_of
from train.diffusion.process import PathSettings
from train.diffusion.solvers import OF_DIFFUSION, OF_FLOW, choose_solver, integrate, sampling_times
from train.layers.segments import Segments

MEAN, STD = 1.5, 0.4
FLOW = PathSettings()
PATHS = {
    "flow": FLOW,
    "flow x0": PathSettings(prediction="x0"),
    "cosine v": PathSettings(schedule="cosine", prediction="v"),
    "cosine epsilon": PathSettings(schedule="cosine", prediction="epsilon"),
    "linear epsilon": PathSettings(schedule="linear", prediction="epsilon", discrete=True),
    "scaled x0 zero": PathSettings(schedule="scaled_linear", prediction="x0", zero_terminal_snr=True),
    "linear v zero": PathSettings(schedule="linear", prediction="v", zero_terminal_snr=True, discrete=True),
}
PAIRS = [(name, s) for name, path in PATHS.items() for s in (OF_FLOW if path.schedule == "flow" else OF_DIFFUSION)]


def gaussian_denoiser(path, segments):
    """The exact answer where every number of a sample is drawn from N(MEAN, STD^2).

    Of x = alpha x0 + sigma eps the expected noise is sigma (x - alpha MEAN) / (alpha^2 STD^2 + sigma^2).
    """

    def answer(x_LD, timestep_S):
        alpha, sigma = (share[segments.index_L, None].double() for share in path.alpha_sigma(timestep_S))
        away = x_LD.double() - alpha * MEAN
        variance = alpha**2 * STD**2 + sigma**2
        noise, clean = sigma * away / variance, MEAN + alpha * STD**2 * away / variance
        return target_of(path.prediction, clean, noise, alpha, sigma).to(x_LD.dtype)

    return answer


def exact(path, x, start, end):
    """Where the noise-free way from `start` leads: a Gaussian's points keep their distance in standard deviations."""
    alphas, sigmas = path.alpha_sigma(torch.tensor([start, end]))
    (a0, a1), (s0, s1) = alphas.tolist(), sigmas.tolist()
    return a1 * MEAN + math.sqrt((a1**2 * STD**2 + s1**2) / (a0**2 * STD**2 + s0**2)) * (x - a0 * MEAN)


def error_after(num_steps, path, solver, start=0.9, end=0.1):
    segments = Segments.from_lengths([2, 3])
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.linspace(start, end, num_steps + 1, dtype=torch.float64)[:, None].repeat(1, 2)
    found = integrate(gaussian_denoiser(path, segments), x, segments, times, path=path, solver=solver)
    return float((found - exact(path, x, start, end)).abs().max())


@pytest.mark.parametrize(
    ("name", "solver", "order"),
    [("flow", "euler", 1), ("flow", "heun", 2), ("flow x0", "heun", 2), ("flow", "dpmpp_2m", 2)]
    + [(name, "dpmpp_2m", 2) for name in ("cosine v", "linear epsilon")]
    + [(name, "ddim", 1) for name in ("cosine v", "linear epsilon")],
)
def test_twice_the_steps_shrink_the_error_by_the_order(name, solver, order):
    coarse, fine = (error_after(n, PATHS[name], solver) for n in (50, 100))
    assert fine > 1e-12, "nothing left to compare"
    assert 0.8 * 2**order < coarse / fine < 1.3 * 2**order


@pytest.mark.parametrize(("name", "solver"), PAIRS)
def test_noise_becomes_the_known_distribution(name, solver):
    path = PATHS[name]
    lengths = [4000, 1000]
    segments = Segments.from_lengths(lengths)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5000, 4, generator=generator)
    # DDPM's posterior has too little variance by as much as a step is long
    times = sampling_times(300 if solver == "ancestral" else 100, segments, path)
    found = integrate(
        gaussian_denoiser(path, segments), x, segments, times, path=path, solver=solver,
        noise_of=lambda number: torch.randn(5000, 4, generator=generator),
    )  # fmt: skip
    assert found.isfinite().all()
    for part in found.split(lengths):
        assert float(part.mean()) == pytest.approx(MEAN, abs=0.03)
        assert float(part.std()) == pytest.approx(STD, rel=0.05)


def test_two_peaks_come_out_as_two_peaks_of_their_weights():
    """-2 with 30 %, +2 with 70 %, each exactly: the posterior mean is a tanh."""
    path = PATHS["cosine v"]
    segments = Segments.from_lengths([8000])

    def answer(x_LD, timestep_S):
        alpha, sigma = (share.double() for share in path.alpha_sigma(timestep_S))
        x = x_LD.double()
        clean = 2 * torch.tanh(2 * alpha * x / sigma**2 + 0.5 * math.log(0.7 / 0.3))
        return target_of(path.prediction, clean, (x - alpha * clean) / sigma, alpha, sigma).float()

    generator = torch.Generator().manual_seed(0)
    for solver in OF_DIFFUSION:
        x = torch.randn(8000, 1, generator=generator)
        found = integrate(
            answer, x, segments, sampling_times(60, segments, path), path=path, solver=solver,
            noise_of=lambda number: torch.randn(8000, 1, generator=generator),
        )  # fmt: skip
        torch.testing.assert_close(found.abs(), torch.full_like(found, 2.0), atol=0.1, rtol=0)
        assert float((found > 0).float().mean()) == pytest.approx(0.7, abs=0.03)


def test_heun_is_closer_than_euler_on_any_field():
    """dx/dt = x has x(0) = x(1) / e."""
    segments = Segments.from_lengths([2, 1])
    x1 = torch.ones(3, 2)
    errors = {}
    for solver in ("euler", "heun"):
        times = sampling_times(8, segments, PathSettings(shift_tokens=1))
        x0 = integrate(lambda x, t: x, x1, segments, times, solver=solver)
        errors[solver] = float((x0 - torch.e**-1).abs().max())
    assert errors["euler"] < 0.1
    assert errors["heun"] < errors["euler"] / 10


@pytest.mark.parametrize("solver", OF_FLOW)
def test_a_straight_path_is_sampled_exactly_in_one_step(solver):
    segments = Segments.from_lengths([2, 3])
    clean, noise = torch.randn(5, 4), torch.randn(5, 4)
    times = sampling_times(1, segments, FLOW)
    torch.testing.assert_close(integrate(lambda x, t: noise - clean, noise, segments, times, solver=solver), clean)


def test_samples_of_a_row_do_not_feel_each_others_times():
    path = PathSettings(shift_tokens=1)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    for solver in OF_FLOW:
        parts = []
        for lengths, part in (((1, 4), x), ((1,), x[:1]), ((4,), x[1:])):
            segments = Segments.from_lengths(lengths)
            times = sampling_times(6, segments, path)
            parts.append(integrate(gaussian_denoiser(path, segments), part, segments, times, path=path, solver=solver))
        torch.testing.assert_close(parts[0], torch.cat(parts[1:]))


def test_each_sample_keeps_its_own_schedule():
    times = sampling_times(4, Segments.from_lengths([1, 4]), PathSettings(shift_tokens=1))
    assert times.shape == (5, 2)
    assert times[0].tolist() == [1, 1]
    assert times[-1].tolist() == [0, 0]
    assert times[2].tolist() == pytest.approx([0.5, 2 / 3])
    with pytest.raises(UsageError, match="num_steps"):
        sampling_times(0, Segments.from_lengths([1]), PathSettings())


def test_discrete_paths_are_sampled_at_their_own_steps_and_epsilon_starts_where_a_sample_is_left():
    segments = Segments.from_lengths([1])
    steps = sampling_times(30, segments, PATHS["linear epsilon"]) * 1000
    torch.testing.assert_close(steps, steps.round())
    with pytest.raises(UsageError, match="ask for fewer"):
        sampling_times(1001, segments, PATHS["linear epsilon"])
    assert float(sampling_times(30, segments, PATHS["cosine v"])[0]) == 1
    start = sampling_times(30, segments, PATHS["cosine epsilon"])[0]
    assert 0.99 < float(start) < 1
    assert float(PATHS["cosine epsilon"].alpha_sigma(start)[0]) >= 0.005


def test_solvers_that_do_not_go_with_a_schedule_are_refused_with_those_that_do():
    assert choose_solver("auto", FLOW) == "euler"
    assert choose_solver("auto", PATHS["cosine v"]) == "dpmpp_2m"
    with pytest.raises(UsageError, match=r"'heun' does not go with schedule 'cosine'.* choose one of dpmpp_2m, ddim"):
        choose_solver("heun", PATHS["cosine v"])
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
    path, segments = PATHS[name], Segments.from_lengths([6])
    model = gaussian_denoiser(path, segments)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    # their step i is the product of i + 1 factors, ours of i
    times = torch.tensor([*((theirs.timesteps + 1) / 1000).tolist(), 0.0])[:, None]
    ours = integrate(model, x, segments, times, path=path, solver=solver)
    for step in theirs.timesteps:
        x = theirs.step(model(x, torch.tensor([(float(step) + 1) / 1000])), step, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)
