"""Noise schedules: alpha and sigma of rectified flow and of DDPM's schedules, at times from 0 (clean) to 1 (noise).

    alpha_S, sigma_S = alpha_sigma("cosine", timestep_S)              # x_t = alpha x_0 + sigma eps
    snr_S = (alpha_S / sigma_S) ** 2

`flow` is rectified flow: alpha = 1 - t, sigma = t. The others are DDPM's: alpha^2 + sigma^2 = 1, and alpha^2 is the
product of (1 - beta) over the 1000 steps up to t = step / 1000; step 0 is clean. Between two steps alpha is
interpolated, so t may be any number.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from recaption.errors import UsageError
from train.parallel.transfer import copied

FLOW = "flow"
SCHEDULES = (FLOW, "cosine", "linear", "scaled_linear")
NUM_DISCRETE_STEPS = 1000
MAX_BETA = 0.999
"""Clip of beta in the cosine schedule, as in its paper: the last step would otherwise divide by 0."""
COSINE_OFFSET = 0.008


def alpha_sigma(schedule: str, timestep_S: Tensor, *, zero_terminal_snr: bool = False) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) at each time: float64 for the diffusion schedules, where sigma is a small difference.

    Args:
        zero_terminal_snr: alpha is 0 at t = 1; see `alphas`.

    Raises:
        UsageError: no schedule of that name.
    """
    if schedule == FLOW:
        return 1 - timestep_S, timestep_S
    table = _alphas_on(schedule, zero_terminal_snr, timestep_S.device)
    step_S = timestep_S.double().clamp(0, 1) * NUM_DISCRETE_STEPS
    # float32 holds 0.003 as 0.0030000000260770321, which means step 3 exactly
    nearest_S = step_S.round()
    step_S = torch.where((step_S - nearest_S).abs() < 1e-4, nearest_S, step_S)
    below_S = step_S.long().clamp(max=NUM_DISCRETE_STEPS - 1)
    alpha_S = torch.lerp(table[below_S], table[below_S + 1], step_S - below_S)
    return alpha_S, (1 - alpha_S.square()).clamp(min=0).sqrt()


@cache
def _alphas_on(schedule: str, zero_terminal_snr: bool, device: torch.device) -> Tensor:
    """`alphas` on a device, copied there once."""
    return copied(alphas(schedule, zero_terminal_snr), device)


@cache
def alphas(schedule: str, zero_terminal_snr: bool = False) -> Tensor:
    """(1001,) float64: alpha of step 0 (clean, alpha = 1) to step 1000.

    Sources: `linear` beta from 1e-4 to 0.02 (DDPM, arXiv 2006.11239); `scaled_linear` squares of even steps from
    sqrt(0.00085) to sqrt(0.012) (latent diffusion, arXiv 2112.10752); `cosine` alpha^2 = cos^2((t + 0.008) / 1.008
    pi / 2) (arXiv 2102.09672). The rescale to zero terminal SNR shifts alpha so that the last value is 0 and
    scales it so that the first one stays (arXiv 2305.08891).

    Raises:
        UsageError: no schedule of that name, or one without a table.
    """
    steps = NUM_DISCRETE_STEPS
    if schedule == "linear":
        beta = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    elif schedule == "scaled_linear":
        beta = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), steps, dtype=torch.float64).square()
    elif schedule == "cosine":
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        alpha_bar = torch.cos((t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2).square()
        beta = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=MAX_BETA)
    else:
        raise UsageError(f"unknown schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}")
    alpha = (1 - beta).cumprod(0).sqrt()
    if zero_terminal_snr:
        first, last = alpha[0], alpha[-1]
        alpha = (alpha - last) * first / (first - last)
    return torch.cat([torch.ones(1, dtype=torch.float64), alpha])
