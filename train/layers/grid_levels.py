"""A pyramid of the grids of a pack, for U-shaped networks: convolutions, resampling and windows as gathers of tokens.

    key = GridLevelsKey(num_levels=2, window=8)           # in a backbone's `layout_keys`
    fine, coarse = inputs.layouts[key].levels
    x_LD = conv(x_LD, fine.around_L9)                     # PackedConv, 3 x 3 within each frame
    y_KD = down(x_LD, fine.down_K9)                       # stride 2: rows and columns 0, 2, 4, ...
    x_LD = y_KD[fine.parent_L]                            # nearest neighbour back to the fine grid

An odd side keeps its last row: 7 x 9 becomes 4 x 5. Like other layouts it is built once per batch, on the CPU.

Shape suffixes: L tokens of a pack, K tokens of the next level, S segments, D width, G groups.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from packing.grid import Shape3
from train.layers.layouts import Layout, layout_of
from train.layers.packed_convolution import gather_neighbours
from train.layers.relative_bias import PackedPositions
from train.layers.segments import Segments
from train.parallel.transfer import copied


@dataclass(frozen=True, eq=False)
class GridLevel:
    """The tokens of whole grids at one resolution, in the order (frame, row, column)."""

    segments: Segments
    """Of the samples."""
    frames: Segments
    """Of their frames."""
    position_L3: Tensor
    around_L9: Tensor
    """int64: the 3 x 3 tokens around each, L where there is none."""
    down_K9: Tensor
    """The same for each token of the next level, around the one of this level at twice its row and column."""
    parent_L: Tensor
    """int64: token of the next level that covers each token."""
    windows: Layout
    """Windows of each frame."""
    places: Layout
    """One place along time."""

    @functools.cached_property
    def window_positions(self) -> PackedPositions:
        """In the order of `windows`."""
        return PackedPositions(self.windows.gather(self.position_L3), self.windows.segments)

    def to(self, device: torch.device | str) -> GridLevel:
        return GridLevel(
            self.segments.to(device),
            self.frames.to(device),
            copied(self.position_L3, device),
            copied(self.around_L9, device),
            copied(self.down_K9, device),
            copied(self.parent_L, device),
            self.windows.to(device),
            self.places.to(device),
        )

    def repeated(self, times: int, num_parents: int) -> GridLevel:
        """
        Args:
            num_parents: tokens of the next level.
        """
        num_tokens = len(self.position_L3)

        def of(index: Tensor, step: int) -> Tensor:
            copies = [torch.where(index == step, times * step, index + copy * step) for copy in range(times)]
            return torch.cat(copies)

        return GridLevel(
            self.segments.repeated(times),
            self.frames.repeated(times),
            self.position_L3.repeat(times, 1),
            of(self.around_L9, num_tokens),
            of(self.down_K9, num_tokens),
            of(self.parent_L, num_parents),
            self.windows.repeated(times, num_tokens),
            self.places.repeated(times, num_tokens),
        )


@dataclass(frozen=True)
class GridLevels:
    """Levels of a pack from fine to coarse."""

    levels: tuple[GridLevel, ...]

    def to(self, device: torch.device | str) -> GridLevels:
        return GridLevels(tuple(level.to(device) for level in self.levels))

    def repeated(self, times: int, num_tokens: int) -> GridLevels:
        """As of `Layout`."""
        numbers = [len(level.down_K9) for level in self.levels]
        return GridLevels(tuple(level.repeated(times, n) for level, n in zip(self.levels, numbers, strict=True)))


@dataclass(frozen=True)
class GridLevelsKey:
    """The key of a `GridLevels` in `Layouts`."""

    num_levels: int
    window: int
    """Side of the windows in tokens."""

    def build(self, segments: Segments, position_L3: Tensor) -> GridLevels:
        """
        Raises:
            ValueError: a sample is not a whole grid in the order (frame, row, column).
        """
        parts = position_L3.split(list(segments.lengths))
        shapes = [(int(t) + 1, int(h) + 1, int(w) + 1) for t, h, w in (part.amax(0).tolist() for part in parts)]
        levels = [_level(shapes, self.window)]
        if not torch.equal(levels[0].position_L3, position_L3):
            raise ValueError(f"tokens of a pack are not the whole grids {shapes}: some were dropped, or moved")
        while len(levels) < self.num_levels:
            shapes = [coarser(shape) for shape in shapes]
            levels.append(_level(shapes, self.window))
        return GridLevels(tuple(levels))


def coarser(shape: Shape3) -> Shape3:
    """Grid of the next level."""
    return shape[0], -(-shape[1] // 2), -(-shape[2] // 2)


def _level(shapes: Sequence[Shape3], window: int) -> GridLevel:
    grids = [torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, 3) for shape in shapes]
    segments, position_L3 = Segments.from_lengths([len(grid) for grid in grids]), torch.cat(grids)
    around_L9 = torch.cat([_around(shape, grid) for shape, grid in zip(shapes, grids, strict=True)])
    starts_L1 = segments.cu_seqlens[:-1].long()[segments.segment_ids_L, None]
    around_L9 = torch.where(around_L9 < 0, len(position_L3), around_L9 + starts_L1)
    parents, start = [], 0
    for shape, grid in zip(shapes, grids, strict=True):
        frames, rows, columns = coarser(shape)
        parents.append(start + (grid[:, 0] * rows + grid[:, 1] // 2) * columns + grid[:, 2] // 2)
        start += frames * rows * columns
    return GridLevel(
        segments=segments,
        frames=Segments.from_lengths([shape[1] * shape[2] for shape in shapes for _ in range(shape[0])]),
        position_L3=position_L3,
        around_L9=around_L9,
        down_K9=around_L9[(position_L3[:, 1:] % 2 == 0).all(1)],
        parent_L=torch.cat(parents),
        windows=layout_of(segments, position_L3, ("windows", window, window)),
        places=layout_of(segments, position_L3, ("places",)),
    )


def _around(shape: Shape3, grid: Tensor) -> Tensor:
    """(L, 9) of one sample: -1 over the rim of the frame."""
    _, rows, columns = shape
    steps = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2))
    row_L9, column_L9 = (grid[:, axis, None] + steps[:, axis - 1] for axis in (1, 2))
    is_inside_L9 = (row_L9 >= 0) & (row_L9 < rows) & (column_L9 >= 0) & (column_L9 < columns)
    index_L9 = (grid[:, :1] * rows + row_L9) * columns + column_L9
    return torch.where(is_inside_L9, index_L9, -1)


class PackedConv(nn.Module):
    """A 3 x 3 convolution within each frame as one product over gathered neighbours; as Conv2d with a rim of zeros."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(9 * in_width, out_width)

    def forward(self, x_LD: Tensor, index_K9: Tensor) -> Tensor:
        """
        Args:
            index_K9: `around_L9` of the level, or its `down_K9` for stride 2.
        """
        device_type = x_LD.device.type
        if torch.is_autocast_enabled(device_type):  # before the gather: a ninth of the numbers to cast
            x_LD = x_LD.to(torch.get_autocast_dtype(device_type))
        return self.proj(gather_neighbours(x_LD, index_K9).flatten(1))


class PackedGroupNorm(nn.Module):
    """GroupNorm within each segment of a pack, a frame for example; at least 4 channels per group.

    Fewer would be near constant in frames of one or two tokens, where dividing by their deviation magnifies rounding.
    """

    def __init__(self, width: int, max_groups: int = 32) -> None:
        super().__init__()
        self.num_groups = next(n for n in range(min(max_groups, max(1, width // 4)), 0, -1) if width % n == 0)
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x_LD: Tensor, segments: Segments) -> Tensor:
        """In autocast's dtype, as `modulated_layer_norm`."""
        device_type = x_LD.device.type
        autocast = torch.is_autocast_enabled(device_type)
        out_dtype = torch.get_autocast_dtype(device_type) if autocast else x_LD.dtype
        return _GroupNorm.apply(x_LD, self.weight, self.bias, segments, self.num_groups, out_dtype)


GROUP_NORM_EPS = 1e-5


class _GroupNorm(torch.autograd.Function):
    """Saves the normalised tokens and a number per segment and group."""

    @staticmethod
    def forward(
        ctx: Any, x_LD: Tensor, weight: Tensor, bias: Tensor, segments: Segments, groups: int, out_dtype: torch.dtype
    ) -> Tensor:
        exact = torch.promote_types(x_LD.dtype, torch.float32)
        ids_L = segments.segment_ids_L
        centred_LD = x_LD.to(exact) - _group_mean(x_LD.to(exact), segments, groups)[ids_L]
        rstd_SD = (_group_mean(centred_LD.square(), segments, groups) + GROUP_NORM_EPS).rsqrt()
        normed_LD = centred_LD.mul_(rstd_SD[ids_L])
        ctx.save_for_backward(normed_LD.to(out_dtype), rstd_SD, weight)
        ctx.segments, ctx.groups, ctx.dtype = segments, groups, x_LD.dtype
        return (normed_LD * weight.to(exact) + bias.to(exact)).to(out_dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_LD: Tensor) -> tuple[Tensor | None, ...]:
        normed_LD, rstd_SD, weight = ctx.saved_tensors
        exact = torch.promote_types(grad_LD.dtype, torch.float32)
        grad_LD, normed_LD = grad_LD.to(exact), normed_LD.to(exact)
        ids_L = ctx.segments.segment_ids_L
        grad_normed_LD = grad_LD * weight.to(exact)
        mean_LD, along_LD = (
            _group_mean(value_LD, ctx.segments, ctx.groups)[ids_L]
            for value_LD in (grad_normed_LD, grad_normed_LD * normed_LD)
        )
        grad_x_LD = rstd_SD[ids_L] * (grad_normed_LD - mean_LD - normed_LD * along_LD)
        grad_weight, grad_bias = (grad_LD * normed_LD).sum(0).to(weight.dtype), grad_LD.sum(0).to(weight.dtype)
        return grad_x_LD.to(ctx.dtype), grad_weight, grad_bias, None, None, None


def _group_mean(value_LD: Tensor, segments: Segments, groups: int) -> Tensor:
    """(S, D): mean over the tokens of each segment and the channels of each group, for each channel of the group."""
    width = value_LD.shape[1] // groups
    num_values_S = torch.diff(segments.cu_seqlens).to(value_LD.dtype) * width
    mean_SG = segments.sum(value_LD).unflatten(1, (groups, width)).sum(2) / num_values_S[:, None]
    return mean_SG.repeat_interleave(width, dim=1)
