"""Diffusion solvers on packs: Euler, Heun, DPM-Solver++(2M), DDIM and DDPM's ancestral sampling.

    times_KS = sampling_timesteps(30, segments, diffusion)
    clean_LD = integrate(model, noise_LD, segments, times_KS, diffusion=diffusion, solver="dpmpp_2m")

Shape suffixes: L tokens of a pack, S samples of a pack, D numbers per token, K points in time.

    euler      flow                  one model call a step, first order
    heun       flow                  two model calls a step, second order
    dpmpp_2m   every schedule        one model call a step, second order in the log-SNR (DPM-Solver++, arXiv 2211.01095);
                                     on linear and scaled_linear first order in the number of steps, see below
    ddim       diffusion schedules   one model call a step, first order (arXiv 2010.02502; on flow it is `euler`)
    ancestral  diffusion schedules   DDPM's: new noise at every step (arXiv 2006.11239)

dpmpp_2m is of second order where all steps in log-SNR shrink with their number: between two noise levels on every schedule,
and down to the clean sample on flow and cosine. Near t = 0 of linear and scaled_linear, sigma^2 is proportional to t, so the
last even steps make it 1/2, 2/3, ... of what it was however many there are, and the error of a whole sampling shrinks like
1 / steps, as with diffusers' `final_sigmas_type` zero. At 40 steps of scaled_linear it is 0.6 of ddim's (test_solvers.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from packing.grid import Shape3
from recaption.errors import UsageError
from train.diffusion.noise_schedules import FLOW, NUM_DISCRETE_STEPS, alphas
from train.diffusion.parameterization import to_x0_and_noise
from train.diffusion.process import DiffusionSettings
from train.diffusion.timestep_shift import shifted
from train.layers.segments import Segments
from train.parallel.transfer import copied

SOLVERS = ("euler", "heun", "dpmpp_2m", "ddim", "ancestral")
FLOW_SOLVERS = ("euler", "heun", "dpmpp_2m")
DIFFUSION_SOLVERS = ("dpmpp_2m", "ddim", "ancestral")
MIN_ALPHA = 0.005
"""Sampling with epsilon starts at the last step whose alpha is at least this: x0 = (x - sigma eps) / alpha, and dividing by
4.9e-5 (the end of the cosine schedule) turns an error of 0.01 in the noise into one of 200 in the sample."""
Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_LD, timestep_S) -> model output, in the prediction type of the diffusion settings. Times are on the CPU, whatever the
device of x: what depends on them is decided without waiting for the device."""


def choose_solver(solver: str, diffusion: DiffusionSettings) -> str:
    """The solver that will run: `auto` is euler on flow and dpmpp_2m on the diffusion schedules.

    Raises:
        UsageError: unknown solver, or one that does not support the schedule.
    """
    supported = FLOW_SOLVERS if diffusion.schedule == FLOW else DIFFUSION_SOLVERS
    if solver == "auto":
        return supported[0]
    if solver not in SOLVERS:
        raise UsageError(f"unknown solver {solver!r}: choose one of auto, {', '.join(SOLVERS)}")
    if solver not in supported:
        raise UsageError(
            f"solver {solver!r} does not go with schedule {diffusion.schedule!r}, which the model was trained on: choose "
            f"one of {', '.join(supported)}"
        )
    return solver


def sampling_timesteps(
    num_steps: int, segments: Segments, settings: DiffusionSettings, *, token_shapes: Sequence[Shape3] | None = None
) -> Tensor:
    """(K+1, S) times from noise to 0, on the CPU: even steps under each sample's shift; for discrete settings DDPM's steps.

    Args:
        token_shapes: tokens of each sample along (frames, rows, columns), for shift rules that tell them apart.

    Raises:
        UsageError: fewer than 1 step, or more than a discrete schedule can tell apart.
    """
    if num_steps < 1:
        raise UsageError(f"{num_steps = } must be at least 1")
    even_K1 = torch.linspace(1, 0, num_steps + 1)[:, None]
    shapes = [None] * len(segments) if token_shapes is None else token_shapes
    shift_S = torch.tensor([settings.shift_of(*size) for size in zip(segments.lengths, shapes, strict=True)])
    times_KS = shifted(even_K1, shift_S)
    if settings.prediction == "epsilon":
        times_KS = times_KS * _max_time(settings)
    if settings.discrete:
        steps_KS = (times_KS * NUM_DISCRETE_STEPS).round()
        if bool((steps_KS.diff(dim=0) == 0).any()):
            raise UsageError(
                f"{num_steps = } is too many for the {NUM_DISCRETE_STEPS} discrete steps of the schedule: two would fall "
                "on the same one; use fewer"
            )
        times_KS = steps_KS / NUM_DISCRETE_STEPS
    return times_KS


def _max_time(settings: DiffusionSettings) -> float:
    """The largest time of the schedule whose alpha is at least `MIN_ALPHA`."""
    table = alphas(settings.schedule, settings.zero_terminal_snr)
    return int((table >= MIN_ALPHA).nonzero().max()) / NUM_DISCRETE_STEPS


def integrate(
    model: Denoiser,
    x_LD: Tensor,
    segments: Segments,
    times_KS: Tensor,
    *,
    diffusion: DiffusionSettings | None = None,
    solver: str = "auto",
    noise_of: Callable[[int], Tensor] | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """Solve from the first of `times_KS` to the last, every sample on its own schedule.

    Args:
        model: predicts in the prediction type of `diffusion` (by default the velocity of rectified flow).
        times_KS: read on the CPU, where `sampling_timesteps` makes them.
        noise_of: step number -> fresh (L, D) noise; `ancestral` needs it.
        on_step: called after each step, for a progress bar.

    Raises:
        UsageError: as `choose_solver`.
    """
    diffusion = diffusion or DiffusionSettings()
    solver = choose_solver(solver, diffusion)
    if solver == "ancestral" and noise_of is None:
        raise ValueError("solver 'ancestral' adds noise at every step: pass noise_of")
    steps = _Solver(model, segments, diffusion)
    for number, (now_S, next_S) in enumerate(itertools.pairwise(times_KS.cpu())):
        if solver in ("euler", "heun"):
            x_LD = steps.euler_or_heun_step(x_LD, now_S, next_S, is_heun=solver == "heun")
        elif solver == "dpmpp_2m":
            x_LD = steps.dpmpp_2m_step(x_LD, now_S, next_S)
        else:
            noise_LD = noise_of(number) if solver == "ancestral" and noise_of else None
            x_LD = steps.ddim_step(x_LD, now_S, next_S, noise_LD)
        on_step()
    return x_LD


class _Solver:
    """The steps of all solvers; `dpmpp_2m_step` keeps the x0 of the step before."""

    def __init__(self, model: Denoiser, segments: Segments, diffusion: DiffusionSettings) -> None:
        self.model, self.segments, self.diffusion = model, segments, diffusion
        self._previous: tuple[Tensor, Tensor] | None = None
        """x0 and log-SNR step size of the previous step."""

    def _alpha_sigma(self, time_S: Tensor) -> tuple[Tensor, Tensor]:
        alpha_S, sigma_S = self.diffusion.alpha_sigma(time_S)
        return alpha_S.double(), sigma_S.double()

    def _per_token(self, factor_S: Tensor, like: Tensor) -> Tensor:
        """(S,) on the CPU -> (L, 1) on the device and in the dtype of `like`."""
        return copied(factor_S.to(like.dtype), like.device)[self.segments.segment_ids_L, None]

    def _x0_and_noise(self, x_LD: Tensor, now_S: Tensor) -> tuple[Tensor, Tensor]:
        """The model's x0 and noise."""
        alpha_L1, sigma_L1 = (self._per_token(scale_S, x_LD) for scale_S in self._alpha_sigma(now_S))
        return to_x0_and_noise(self.diffusion.prediction, self.model(x_LD, now_S), x_LD, alpha_L1, sigma_L1)

    def _velocity(self, x_LD: Tensor, now_S: Tensor) -> Tensor:
        if self.diffusion.prediction == "velocity":
            return self.model(x_LD, now_S)
        clean_LD, noise_LD = self._x0_and_noise(x_LD, now_S)
        return noise_LD - clean_LD

    def euler_or_heun_step(self, x_LD: Tensor, now_S: Tensor, next_S: Tensor, *, is_heun: bool) -> Tensor:
        """Euler's step along the velocity, or Heun's along the mean of the velocities at both ends.

        Without velocity prediction the velocity at t = 0 is 0 / 0, so the last step of Heun is an Euler step.
        """
        step_L1 = copied(next_S - now_S, x_LD.device)[self.segments.segment_ids_L, None]
        velocity_LD = self._velocity(x_LD, now_S)
        if is_heun and (self.diffusion.prediction == "velocity" or bool((next_S > 0).all())):
            velocity_LD = (velocity_LD + self._velocity(x_LD + step_L1 * velocity_LD, next_S)) / 2
        return x_LD + step_L1 * velocity_LD

    def ddim_step(self, x_LD: Tensor, now_S: Tensor, next_S: Tensor, noise_LD: Tensor | None) -> Tensor:
        """DDIM's step; with `noise_LD`, DDPM's: noise of the posterior's variance replaces as much of the predicted one."""
        clean_LD, predicted_noise_LD = self._x0_and_noise(x_LD, now_S)
        (alpha_S, sigma_S), (next_alpha_S, next_sigma_S) = self._alpha_sigma(now_S), self._alpha_sigma(next_S)
        x_LD = self._per_token(next_alpha_S, x_LD) * clean_LD
        if noise_LD is None:
            return x_LD + self._per_token(next_sigma_S, x_LD) * predicted_noise_LD
        fresh_S = next_sigma_S / sigma_S * (1 - (alpha_S / next_alpha_S).square()).clamp(min=0).sqrt()
        predicted_S = (next_sigma_S.square() - fresh_S.square()).clamp(min=0).sqrt()
        return (
            x_LD + self._per_token(predicted_S, x_LD) * predicted_noise_LD + self._per_token(fresh_S, x_LD) * noise_LD
        )

    def dpmpp_2m_step(self, x_LD: Tensor, now_S: Tensor, next_S: Tensor) -> Tensor:
        """x' = sigma'/sigma x + alpha' (1 - exp(-h)) D, where h is the step in log(alpha / sigma) and D is x0 extrapolated
        from this prediction and the previous one to the middle of the step.

        h is infinite in the first step (from pure noise) and in the last (to the clean sample): there D is this x0.
        """
        clean_LD, _ = self._x0_and_noise(x_LD, now_S)
        (alpha_S, sigma_S), (next_alpha_S, next_sigma_S) = self._alpha_sigma(now_S), self._alpha_sigma(next_S)
        size_S = (next_alpha_S / next_sigma_S).log() - (alpha_S / sigma_S).log()
        extrapolated_LD = clean_LD
        if self._previous is not None:
            previous_clean_LD, previous_size_S = self._previous
            ratio_S = size_S / previous_size_S / 2
            ratio_L1 = self._per_token(torch.where(ratio_S.isfinite(), ratio_S, 0), x_LD)
            extrapolated_LD = clean_LD + ratio_L1 * (clean_LD - previous_clean_LD)
        self._previous = clean_LD, size_S
        decay_S = next_sigma_S * alpha_S / (sigma_S * next_alpha_S)  # exp(-h)
        return (
            self._per_token(next_sigma_S / sigma_S, x_LD) * x_LD
            + self._per_token(next_alpha_S * (1 - decay_S), x_LD) * extrapolated_LD
        )
