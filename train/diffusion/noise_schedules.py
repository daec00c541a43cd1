"""How much of the clean sample and how much noise there is at a time from 0 (clean) to 1 (noise).

    alpha_S, sigma_S = alpha_sigma("cosine", timestep_S)              # x_t = alpha x_0 + sigma eps
    snr_S = (alpha_S / sigma_S) ** 2

`flow` is the straight path: alpha = 1 - t, sigma = t. The others are DDPM's: alpha^2 + sigma^2 = 1, and alpha^2 is the
product of (1 - beta) over the 1000 steps up to t = step / 1000; step 0 is clean. Between two steps alpha is
interpolated, so that t may be any number.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from recaption.errors import UsageError

FLOW = "flow"


SCHEDULES = (FLOW, "cosine", "linear", "scaled_linear")


NUM_DISCRETE_STEPS = 1000


MAX_BETA = 0.999
"""Of one step of the cosine schedule, as in its paper: the last step would otherwise divide by 0."""


COSINE_OFFSET = 0.008


def alpha_sigma(schedule: str, timestep_S: Tensor, *, zero_terminal_snr: bool = False) -> tuple[Tensor, Tensor]:
    """Shares of the clean sample and of noise, float64 for `flow`'s rivals (sigma is a small difference there).

    Args:
        zero_terminal_snr: at t = 1 nothing of the sample is left; see `alphas`.

    Raises:
        UsageError: no schedule of that name.
    """
    if schedule == FLOW:
        return 1 - timestep_S, timestep_S
    table = alphas(schedule, zero_terminal_snr).to(timestep_S.device)
    place_S = timestep_S.double().clamp(0, 1) * NUM_DISCRETE_STEPS
    # float32 holds 0.003 as 0.0030000000260770321: what is meant is step 3 itself
    nearest_S = place_S.round()
    place_S = torch.where((place_S - nearest_S).abs() < 1e-4, nearest_S, place_S)
    below_S = place_S.long().clamp(max=NUM_DISCRETE_STEPS - 1)
    alpha_S = torch.lerp(table[below_S], table[below_S + 1], place_S - below_S)
    return alpha_S, (1 - alpha_S.square()).clamp(min=0).sqrt()


@cache
def alphas(schedule: str, zero_terminal_snr: bool = False) -> Tensor:
    """(1001,) float64: alpha of step 0 (1, clean) to step 1000.

    Sources: `linear` beta from 1e-4 to 0.02 (DDPM, arXiv 2006.11239); `scaled_linear` squares of an even walk from
    sqrt(0.00085) to sqrt(0.012) (latent diffusion, arXiv 2112.10752); `cosine` alpha^2 = cos^2((t + 0.008) / 1.008
    pi / 2) (arXiv 2102.09672). The rescale to zero terminal SNR shifts alpha so that the last one is 0 and stretches it
    so that the first stays (arXiv 2305.08891).

    Raises:
        UsageError: no such table.
    """
    steps = NUM_DISCRETE_STEPS
    if schedule == "linear":
        beta = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    elif schedule == "scaled_linear":
        beta = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), steps, dtype=torch.float64).square()
    elif schedule == "cosine":
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        kept = torch.cos((t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2).square()
        beta = (1 - kept[1:] / kept[:-1]).clamp(max=MAX_BETA)
    else:
        raise UsageError(f"unknown schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}")
    alpha = (1 - beta).cumprod(0).sqrt()
    if zero_terminal_snr:
        first, last = alpha[0], alpha[-1]
        alpha = (alpha - last) * first / (first - last)
    return torch.cat([torch.ones(1, dtype=torch.float64), alpha])
