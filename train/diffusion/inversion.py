"""Inversion: from a clean sample to the noise from which a solver comes back to it.

    noise_LD = invert(model_with_source_caption, clean_LD, segments, times_KS)
    edited_LD = integrate(model_with_new_caption, noise_LD, segments, times_KS)

The probability flow is solved backward (DDIM inversion, arXiv 2010.02502; as the start of edits: Tune-A-Video, arXiv
2212.11565). With the same model in both directions the way back ends at the clean sample up to the error of the solver,
which shrinks with the steps: like 1 / steps with euler and ddim, like 1 / steps^2 with heun.

Shape suffixes: L tokens of a pack, S samples of a pack, D numbers per token, K points in time.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from recaption.errors import UsageError
from train.diffusion.noise_schedules import FLOW
from train.diffusion.process import DiffusionSettings
from train.diffusion.solvers import Denoiser, choose_solver, integrate
from train.layers.segments import Segments
from train.parallel.transfer import copied


def invert(
    model: Denoiser,
    clean_LD: Tensor,
    segments: Segments,
    times_KS: Tensor,
    *,
    diffusion: DiffusionSettings | None = None,
    solver: str = "auto",
    on_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """x at the first of `times_KS`.

    Only a velocity is known at t = 0, where noise cannot be told from a clean sample's prediction: for other predictions the
    clean sample, scaled, is taken for x at the last time before 0.

    Args:
        times_KS: as of `integrate`, from noise to 0.
        solver: the one of the way back; heun is inverted by heun, all others by euler on flow and ddim elsewhere.

    Raises:
        UsageError: a solver that adds noise, or too few steps.
    """
    diffusion = diffusion or DiffusionSettings()
    chosen = choose_solver(solver, diffusion)
    if chosen == "ancestral":
        raise UsageError("an edit by inversion needs a solver without noise of its own: choose another than ancestral")
    inverse = ("heun" if chosen == "heun" else "euler") if diffusion.schedule == FLOW else "ddim"
    if diffusion.prediction != "velocity":
        times_KS = times_KS[:-1]
        if len(times_KS) < 2:
            raise UsageError("an edit by inversion needs 2 steps or more")
        alpha_S = diffusion.alpha_sigma(times_KS[-1])[0].to(clean_LD.dtype)
        clean_LD = copied(alpha_S, clean_LD.device)[segments.segment_ids_L, None] * clean_LD
        on_step()
    return integrate(model, clean_LD, segments, times_KS.flip(0), diffusion=diffusion, solver=inverse, on_step=on_step)
