"""From noise to clean with a trained denoiser: which times to visit, and how to step from one to the next.

    times_KS = sampling_times(30, segments, path)
    clean_LD = integrate(model, noise_LD, segments, times_KS, path=path, solver="dpmpp_2m")

Shape suffixes: L tokens of a row, S samples of a row, D numbers per token, K points in time.

    euler      flow                  one answer a step, first order
    heun       flow                  two answers a step, second order
    dpmpp_2m   every schedule        one answer a step, second order (DPM-Solver++, arXiv 2211.01095)
    ddim       diffusion schedules   one answer a step, first order (arXiv 2010.02502; on flow it is `euler`)
    ancestral  diffusion schedules   DDPM's: new noise at every step (arXiv 2006.11239)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from packing.grid import Shape3
from recaption.errors import UsageError
from train.diffusion.noise_schedules import FLOW, NUM_DISCRETE_STEPS, alphas
from train.diffusion.parameterization import clean_and_noise
from train.diffusion.process import PathSettings
from train.diffusion.timestep_shift import shifted
from train.layers.segments import Segments

SOLVERS = ("euler", "heun", "dpmpp_2m", "ddim", "ancestral")


OF_FLOW = ("euler", "heun", "dpmpp_2m")


OF_DIFFUSION = ("dpmpp_2m", "ddim", "ancestral")


MIN_ALPHA = 0.005
"""Sampling with epsilon starts where so much of the sample is left: dividing by less (4.9e-5 at the end of the cosine
schedule) makes a hundredth of an error in the noise a hundredfold one in the sample."""


Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_LD, timestep_S) to the model's answer, in the path's own prediction."""


def choose_solver(solver: str, path: PathSettings) -> str:
    """The solver that will run: `auto` is euler on flow and dpmpp_2m on the diffusion schedules.

    Raises:
        UsageError: no solver of that name, or one that does not go with the schedule.
    """
    fitting = OF_FLOW if path.schedule == FLOW else OF_DIFFUSION
    if solver == "auto":
        return fitting[0]
    if solver not in SOLVERS:
        raise UsageError(f"unknown solver {solver!r}: choose one of auto, {', '.join(SOLVERS)}")
    if solver not in fitting:
        raise UsageError(
            f"solver {solver!r} does not go with schedule {path.schedule!r}, which the model was trained on: choose one "
            f"of {', '.join(fitting)}"
        )
    return solver


def sampling_times(
    num_steps: int, segments: Segments, settings: PathSettings, *, token_shapes: Sequence[Shape3] | None = None
) -> Tensor:
    """(K+1, S) from noise to 0: even steps, moved by each sample's own shift; on DDPM's steps for discrete paths.

    Args:
        token_shapes: tokens of each sample along (frames, rows, columns), for shift rules that tell them apart.

    Raises:
        UsageError: no step, or more than a discrete path has.
    """
    if num_steps < 1:
        raise UsageError(f"{num_steps = } must be at least 1")
    even_K1 = torch.linspace(1, 0, num_steps + 1)[:, None]
    shapes = [None] * len(segments) if token_shapes is None else token_shapes
    shift_S = torch.tensor([settings.shift_of(*size) for size in zip(segments.lengths, shapes, strict=True)])
    times_KS = shifted(even_K1, shift_S)
    if settings.prediction == "epsilon":
        times_KS = times_KS * _latest_time(settings)
    if settings.discrete:
        steps_KS = (times_KS * NUM_DISCRETE_STEPS).round()
        if bool((steps_KS.diff(dim=0) == 0).any()):
            raise UsageError(
                f"{num_steps = } is more than the {NUM_DISCRETE_STEPS} discrete steps of the schedule hold apart; ask for "
                "fewer"
            )
        times_KS = steps_KS / NUM_DISCRETE_STEPS
    return times_KS.to(segments.cu_seqlens.device)


def _latest_time(settings: PathSettings) -> float:
    """The last step of the schedule with enough of the sample left to be told from the noise."""
    table = alphas(settings.schedule, settings.zero_terminal_snr)
    return int((table >= MIN_ALPHA).nonzero().max()) / NUM_DISCRETE_STEPS


def integrate(
    model: Denoiser,
    x_LD: Tensor,
    segments: Segments,
    times_KS: Tensor,
    *,
    path: PathSettings | None = None,
    solver: str = "auto",
    noise_of: Callable[[int], Tensor] | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """Take x_LD from the first of `times_KS` to the last, every sample at its own pace.

    Args:
        model: answers in the prediction of `path` (by default the velocity of rectified flow).
        noise_of: fresh (L, D) noise for the step of a number; `ancestral` needs it.
        on_step: called after each step, for a progress bar.

    Raises:
        UsageError: as `choose_solver`.
    """
    path = path or PathSettings()
    solver = choose_solver(solver, path)
    if solver == "ancestral" and noise_of is None:
        raise ValueError("solver 'ancestral' draws noise at every step: pass noise_of")
    walk = _Walk(model, segments, path)
    for number, (now_S, next_S) in enumerate(itertools.pairwise(times_KS)):
        if solver in ("euler", "heun"):
            x_LD = walk.straight(x_LD, now_S, next_S, is_corrected=solver == "heun")
        elif solver == "dpmpp_2m":
            x_LD = walk.multistep(x_LD, now_S, next_S)
        else:
            x_LD = walk.denoise(x_LD, now_S, next_S, noise_of(number) if solver == "ancestral" and noise_of else None)
        on_step()
    return x_LD


class _Walk:
    """The steps of all solvers. `multistep` remembers the step before."""

    def __init__(self, model: Denoiser, segments: Segments, path: PathSettings) -> None:
        self.model, self.segments, self.path = model, segments, path
        self._before: tuple[Tensor, Tensor] | None = None

    def _shares(self, time_S: Tensor) -> tuple[Tensor, Tensor]:
        alpha_S, sigma_S = self.path.alpha_sigma(time_S)
        return alpha_S.double(), sigma_S.double()

    def _spread(self, factor_S: Tensor, like: Tensor) -> Tensor:
        return factor_S.to(like.dtype)[self.segments.index_L, None]

    def _estimate(self, x_LD: Tensor, now_S: Tensor) -> tuple[Tensor, Tensor]:
        """The clean sample and the noise that the model sees in x."""
        alpha_L1, sigma_L1 = (self._spread(share_S, x_LD) for share_S in self._shares(now_S))
        return clean_and_noise(self.path.prediction, self.model(x_LD, now_S), x_LD, alpha_L1, sigma_L1)

    def _velocity(self, x_LD: Tensor, now_S: Tensor) -> Tensor:
        if self.path.prediction == "velocity":
            return self.model(x_LD, now_S)
        clean_LD, noise_LD = self._estimate(x_LD, now_S)
        return noise_LD - clean_LD

    def straight(self, x_LD: Tensor, now_S: Tensor, next_S: Tensor, *, is_corrected: bool) -> Tensor:
        """Euler's step along the slope, or Heun's along the mean of the slopes at both ends. Without velocity
        prediction the slope at t = 0 has no value (0 / 0), and Heun's last step is Euler's."""
        step_L1 = (next_S - now_S)[self.segments.index_L, None]
        slope_LD = self._velocity(x_LD, now_S)
        if is_corrected and (self.path.prediction == "velocity" or bool((next_S > 0).all())):
            slope_LD = (slope_LD + self._velocity(x_LD + step_L1 * slope_LD, next_S)) / 2
        return x_LD + step_L1 * slope_LD

    def denoise(self, x_LD: Tensor, now_S: Tensor, next_S: Tensor, noise_LD: Tensor | None) -> Tensor:
        """DDIM's step; with `noise_LD`, the part of the noise that DDPM's posterior replaces is drawn anew."""
        clean_LD, old_noise_LD = self._estimate(x_LD, now_S)
        (alpha_S, sigma_S), (next_alpha_S, next_sigma_S) = self._shares(now_S), self._shares(next_S)
        x_LD = self._spread(next_alpha_S, x_LD) * clean_LD
        if noise_LD is None:
            return x_LD + self._spread(next_sigma_S, x_LD) * old_noise_LD
        fresh_S = next_sigma_S / sigma_S * (1 - (alpha_S / next_alpha_S).square()).clamp(min=0).sqrt()
        kept_S = (next_sigma_S.square() - fresh_S.square()).clamp(min=0).sqrt()
        return x_LD + self._spread(kept_S, x_LD) * old_noise_LD + self._spread(fresh_S, x_LD) * noise_LD

    def multistep(self, x_LD: Tensor, now_S: Tensor, next_S: Tensor) -> Tensor:
        """x' = sigma'/sigma x + alpha' (1 - exp(-h)) D, where h is the step in log(alpha / sigma) and D the clean sample
        extrapolated from this estimate and the one before to the middle of the step.

        The first step, from nothing but noise, and the last, to nothing but sample, have an h without bound and take the
        estimate as it is.
        """
        clean_LD, _ = self._estimate(x_LD, now_S)
        (alpha_S, sigma_S), (next_alpha_S, next_sigma_S) = self._shares(now_S), self._shares(next_S)
        size_S = (next_alpha_S / next_sigma_S).log() - (alpha_S / sigma_S).log()
        towards_LD = clean_LD
        if self._before is not None:
            clean_before_LD, size_before_S = self._before
            ratio_S = size_S / size_before_S / 2
            ratio_L1 = self._spread(torch.where(ratio_S.isfinite(), ratio_S, 0), x_LD)
            towards_LD = clean_LD + ratio_L1 * (clean_LD - clean_before_LD)
        self._before = clean_LD, size_S
        decay_S = next_sigma_S * alpha_S / (sigma_S * next_alpha_S)  # exp(-h)
        return (
            self._spread(next_sigma_S / sigma_S, x_LD) * x_LD
            + self._spread(next_alpha_S * (1 - decay_S), x_LD) * towards_LD
        )
