"""Sinusoidal embeddings of timesteps and positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TIMESTEP_EMBEDDING_WIDTH = 256
POSITION_FREQUENCIES = 8
"""Frequencies per axis of `sincos_pos_embed`: periods of 2 pi to 128 pi tokens."""


def timestep_embedding(timestep_S: Tensor, width: int = TIMESTEP_EMBEDDING_WIDTH) -> Tensor:
    """(S, width) sinusoidal embedding of 1000 t, as of DDPM's integer timesteps: geometric periods of 2 pi to 2 pi * 1e4."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timestep_S.device) / half
    angles = 1000.0 * timestep_S.float()[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_pos_embed(position_L3: Tensor) -> Tensor:
    """(L, 6 x POSITION_FREQUENCIES) sine-cosine position embedding of each token along three axes; any grid size."""
    steps = torch.arange(POSITION_FREQUENCIES, dtype=torch.float32, device=position_L3.device)
    frequencies = 64.0 ** -(steps / (POSITION_FREQUENCIES - 1))
    angles = (position_L3.float()[:, :, None] * frequencies).flatten(1)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_table(grid: Sequence[int], width: int) -> Tensor:
    """(rows x columns, width) sine-cosine embedding of one grid (rows, columns) as in MAE, DiT, MDT and DiffiT:
    columns in the first half, rows in the second."""
    rows, columns = grid
    row_L, column_L = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).reshape(-1, 2).double().unbind(1)
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    halves = []
    for axis_L in (column_L, row_L):
        angles = axis_L[:, None] * frequencies
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).float()
