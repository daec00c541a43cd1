"""Noise conditioning augmentation: a super-resolution model sees its low-resolution input noised, and is told how much.

    level = level_of_snr(5.0, diffusion)                             # of sampling; 0.309 on rectified flow
    hint_LD = augmented(low_LD, noise_LD, level_S, segments, diffusion)

Trained on clips that were made small, a stage of a cascade gets clips that another model made: noise hides what sets the two
apart (arXiv 2106.15282; Imagen Video samples with a signal-to-noise ratio of 3 or 5).

Shape suffixes: L tokens of a pack, S samples of a pack, D numbers per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.diffusion.process import DiffusionSettings
from train.layers.segments import Segments

LEVEL = "level"
"""Scalar input of a super-resolution model: the time, 0 (clean) to 1 (noise), at which its hint is."""


def augmented(
    hint_LD: Tensor, noise_LD: Tensor, level_S: Tensor, segments: Segments, diffusion: DiffusionSettings
) -> Tensor:
    """The hint at a time of the model's own noise schedule: noise alone at level 1 of one that ends in pure noise."""
    alpha_S, sigma_S = diffusion.alpha_sigma(level_S)
    alpha_L1, sigma_L1 = (scale_S.to(hint_LD.dtype)[segments.segment_ids_L, None] for scale_S in (alpha_S, sigma_S))
    return alpha_L1 * hint_LD + sigma_L1 * noise_LD


def level_of_snr(snr: float, diffusion: DiffusionSettings) -> float:
    """The time at which (alpha / sigma)^2 is `snr`; 0 for an infinite one."""
    low, high = 0.0, 1.0
    for _ in range(50):  # the ratio falls with time on every schedule
        middle = (low + high) / 2
        alpha, sigma = (float(scale) for scale in diffusion.alpha_sigma(torch.tensor([middle], dtype=torch.float64)))
        low, high = (middle, high) if alpha * alpha > snr * sigma * sigma else (low, middle)
    return low
