"""Convolutions over packs: neighbours are found by position, one call for all samples, nothing is padded or reshaped.

    frame_conv = FrameConv(channels=16, patch=(1, 2, 2))            # 3 x 3 over the latents of each frame
    tokens_LD = frame_conv(tokens_LD, segments, position_L3)
    before_L, after_L = (neighbour_index(segments, position_L3, (step, 0, 0)) for step in (-1, 1))
    x_LD = time_conv(x_LD, before_L, after_L)                       # width 3 along time, each channel by itself

A neighbour that does not exist, over the rim or dropped, counts as zero. Shape suffixes: L tokens of a pack, D numbers per
token, C channels of the latents, T, H, W the patch of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from packing.grid import Shape3
from train.layers.segments import Segments

_AXIS = 1 << 15
"""More positions than an axis has: a place is one int64 of (sample, frame, row, column)."""


def neighbour_index(segments: Segments, position_L3: Tensor, offset: Shape3) -> Tensor:
    """(L) int64: the token of the same sample at this distance from each token; L where there is none. No host sync.

    Args:
        offset: (frames, rows, columns), each -1, 0 or 1.
    """
    if not len(position_L3):
        return position_L3.new_zeros(0)
    place_L = segments.segment_ids_L
    for axis_L in (position_L3 + 1).unbind(1):  # + 1: no place before the first
        place_L = place_L * _AXIS + axis_L
    sorted_L, token_L = place_L.sort()
    wanted_L = place_L + (offset[0] * _AXIS + offset[1]) * _AXIS + offset[2]
    found_L = torch.searchsorted(sorted_L, wanted_L).clamp(max=len(place_L) - 1)
    return torch.where(sorted_L[found_L] == wanted_L, token_L[found_L], len(place_L))


def gather_neighbours(x_LD: Tensor, index: Tensor) -> Tensor:
    """Tokens at an index of `neighbour_index`, of any shape: zeros where there is no token."""
    return torch.cat([x_LD, x_LD.new_zeros(1, x_LD.shape[1])])[index]


class FrameConv(nn.Module):
    """A 3 x 3 convolution over the latents of each frame, C to C channels; equal to Conv2d with a rim of zeros."""

    def __init__(self, channels: int, patch: Shape3) -> None:
        """
        Args:
            patch: latent (frames, rows, columns) of a token, whose numbers are (channel, frame, row, column).
        """
        super().__init__()
        self.channels, self.patch = channels, patch
        self.conv = nn.Conv2d(channels, channels, 3)

    def forward(self, tokens_LD: Tensor, segments: Segments, position_L3: Tensor) -> Tensor:
        steps = (-1, 0, 1)
        index_L9 = torch.stack(
            [neighbour_index(segments, position_L3, (0, row, column)) for row in steps for column in steps], dim=1
        )
        frames, rows, columns = self.patch
        around = gather_neighbours(tokens_LD, index_L9).unflatten(1, (3, 3))
        around = around.unflatten(3, (self.channels, frames, rows, columns)).permute(0, 4, 3, 1, 5, 2, 6)
        around = around.reshape(-1, self.channels, 3 * rows, 3 * columns)  # (L T, C, 3 H, 3 W)
        with_rim = around[:, :, rows - 1 : 2 * rows + 1, columns - 1 : 2 * columns + 1]
        out = self.conv(with_rim).unflatten(0, (-1, frames))
        return out.transpose(1, 2).reshape(len(tokens_LD), -1)


class TimeConv(nn.Module):
    """A convolution of width 3 along time, each channel by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(3)
        self.weight_3D = nn.Parameter(torch.empty(3, width).uniform_(-bound, bound))
        self.bias_D = nn.Parameter(torch.zeros(width))

    def forward(self, x_LD: Tensor, before_L: Tensor, after_L: Tensor) -> Tensor:
        """
        Args:
            before_L, after_L: `neighbour_index` one frame earlier and later.
        """
        before_D, own_D, after_D = self.weight_3D.to(x_LD.dtype)
        x_LD_before, x_LD_after = (gather_neighbours(x_LD, index_L) for index_L in (before_L, after_L))
        out_LD = torch.addcmul(self.bias_D.to(x_LD.dtype), x_LD, own_D)
        return torch.addcmul(torch.addcmul(out_LD, x_LD_before, before_D), x_LD_after, after_D)
