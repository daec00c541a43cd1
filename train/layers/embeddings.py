"""Sinusoidal embeddings of timesteps and positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TIME_FREQUENCIES = 256


POSITION_FREQUENCIES = 8
"""Per axis, for `absolute_positions`: one turn in 2 pi to 128 pi tokens."""


def timestep_frequencies(timestep_S: Tensor, num_frequencies: int = TIME_FREQUENCIES) -> Tensor:
    """Cosines and sines of 1000 t at geometric frequencies (period 2 pi to 2 pi * 1e4), as DDPM's integer steps had."""
    half = num_frequencies // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timestep_S.device) / half
    angles = 1000.0 * timestep_S.float()[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_waves(position_L3: Tensor) -> Tensor:
    """Cosines and sines (L, 6 x POSITION_FREQUENCIES) of each token's place along each axis; any grid size."""
    steps = torch.arange(POSITION_FREQUENCIES, dtype=torch.float32, device=position_L3.device)
    frequencies = 64.0 ** -(steps / (POSITION_FREQUENCIES - 1))
    angles = (position_L3.float()[:, :, None] * frequencies).flatten(1)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
