"""Prediction targets (velocity, epsilon, x0, v), their inverse, and min-SNR weights.

    target_LD = prediction_target("v", clean_LD, noise_LD, alpha_L1, sigma_L1)
    clean_LD, noise_LD = to_x0_and_noise("v", prediction_LD, x_LD, alpha_L1, sigma_L1)

Shape suffixes: L tokens of a pack, S samples, D numbers per token. x = alpha * clean + sigma * noise throughout.

    velocity   noise - clean                   the velocity of rectified flow (schedule `flow` only)
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
FLOW_PREDICTIONS = ("velocity", "x0")
DIFFUSION_PREDICTIONS = ("epsilon", "x0", "v")


def check_pairing(prediction: str, schedule: str, *, zero_terminal_snr: bool) -> None:
    """Raises UsageError unless x0 can be recovered from the prediction at every time of the schedule."""
    if prediction not in PREDICTIONS:
        raise UsageError(f"unknown prediction {prediction!r}: choose one of {', '.join(PREDICTIONS)}")
    supported = FLOW_PREDICTIONS if schedule == FLOW else DIFFUSION_PREDICTIONS
    if prediction not in supported:
        raise UsageError(
            f"prediction {prediction!r} does not go with schedule {schedule!r}: use {' or '.join(supported)}"
        )
    if zero_terminal_snr and schedule == FLOW:
        raise UsageError("zero_terminal_snr is for the diffusion schedules: schedule 'flow' ends in pure noise anyway")
    if zero_terminal_snr and prediction == "epsilon":
        raise UsageError(
            "prediction 'epsilon' does not go with zero_terminal_snr: at pure noise, knowing the noise tells nothing about "
            "the sample; use 'v' or 'x0'"
        )


def prediction_target(prediction: str, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Regression target of the model."""
    if prediction == "velocity":
        return noise - clean
    if prediction == "epsilon":
        return noise
    if prediction == "x0":
        return clean
    return alpha * noise - sigma * clean


def to_x0_and_noise(
    prediction: str, model_output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Predicted x0 and noise.

    Not finite where x does not contain the part in question (alpha or sigma is 0) and the model does not predict it.
    """
    if prediction == "velocity":
        return x - sigma * model_output, x + alpha * model_output
    if prediction == "epsilon":
        return (x - sigma * model_output) / alpha, model_output
    if prediction == "x0":
        return model_output, (x - alpha * model_output) / sigma
    return alpha * x - sigma * model_output, sigma * x + alpha * model_output


def min_snr_weight(prediction: str, gamma: float, alpha_S: Tensor, sigma_S: Tensor) -> Tensor:
    """Loss weight of min-SNR-gamma for each prediction type (arXiv 2303.09556): min(SNR, gamma) on the error of x0.

    The error of x0 is that of epsilon times sigma / alpha, that of v or velocity times sigma. So the weights are
    min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v, and min(SNR, gamma) itself for x0.
    """
    clipped_S = torch.minimum((alpha_S / sigma_S).square(), torch.full_like(alpha_S, gamma))
    if prediction == "x0":
        return clipped_S
    if prediction == "epsilon":
        return torch.minimum(torch.ones_like(alpha_S), gamma * (sigma_S / alpha_S).square())
    return clipped_S * sigma_S.square()
