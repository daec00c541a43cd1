"""What a denoiser is asked for at a noisy point, and how to get from its answer to the clean sample and the noise.

    target_LD = target_of("v", clean_LD, noise_LD, alpha_L1, sigma_L1)
    clean_LD, noise_LD = clean_and_noise("v", answer_LD, x_LD, alpha_L1, sigma_L1)

Shape suffixes: L tokens of a row, S samples, D numbers per token. x = alpha * clean + sigma * noise throughout.

    velocity   noise - clean                   the straight path's own slope (schedule `flow` only)
    epsilon    noise                           DDPM (arXiv 2006.11239)
    x0         clean
    v          alpha * noise - sigma * clean   progressive distillation (arXiv 2202.00512); needs alpha^2 + sigma^2 = 1
"""

from __future__ import annotations

import torch
from torch import Tensor

from recaption.errors import UsageError
from train.diffusion.noise_schedules import FLOW

PREDICTIONS = ("velocity", "epsilon", "x0", "v")


OF_FLOW = ("velocity", "x0")


OF_DIFFUSION = ("epsilon", "x0", "v")


def check_pairing(prediction: str, schedule: str, *, zero_terminal_snr: bool) -> None:
    """Raises UsageError where the clean sample cannot be had from the answer at every time of the schedule."""
    if prediction not in PREDICTIONS:
        raise UsageError(f"unknown prediction {prediction!r}: choose one of {', '.join(PREDICTIONS)}")
    fitting = OF_FLOW if schedule == FLOW else OF_DIFFUSION
    if prediction not in fitting:
        raise UsageError(
            f"prediction {prediction!r} does not go with schedule {schedule!r}: use {' or '.join(fitting)}"
        )
    if zero_terminal_snr and schedule == FLOW:
        raise UsageError("zero_terminal_snr is for the diffusion schedules: schedule 'flow' ends in pure noise anyway")
    if zero_terminal_snr and prediction == "epsilon":
        raise UsageError(
            "prediction 'epsilon' does not go with zero_terminal_snr: of pure noise, knowing the noise says nothing about "
            "the sample; use 'v' or 'x0'"
        )


def target_of(prediction: str, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the denoiser should answer."""
    if prediction == "velocity":
        return noise - clean
    if prediction == "epsilon":
        return noise
    if prediction == "x0":
        return clean
    return alpha * noise - sigma * clean


def clean_and_noise(prediction: str, answer: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of x that the answer speaks of. Where a part has no share in x (alpha or sigma 0) and the answer is
    not about it, it is not finite."""
    if prediction == "velocity":
        return x - sigma * answer, x + alpha * answer
    if prediction == "epsilon":
        return (x - sigma * answer) / alpha, answer
    if prediction == "x0":
        return answer, (x - alpha * answer) / sigma
    return alpha * x - sigma * answer, sigma * x + alpha * answer


def min_snr_weight(prediction: str, gamma: float, alpha_S: Tensor, sigma_S: Tensor) -> Tensor:
    """min(SNR, gamma) on the error of the clean sample, said of the error of the prediction (arXiv 2303.09556).

    The error of the clean sample is that of epsilon times sigma / alpha, that of v or velocity times sigma. So the
    weights are min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v, and min(SNR, gamma) itself for x0.
    """
    clipped_S = torch.minimum((alpha_S / sigma_S).square(), torch.full_like(alpha_S, gamma))
    if prediction == "x0":
        return clipped_S
    if prediction == "epsilon":
        return torch.minimum(torch.ones_like(alpha_S), gamma * (sigma_S / alpha_S).square())
    return clipped_S * sigma_S.square()
