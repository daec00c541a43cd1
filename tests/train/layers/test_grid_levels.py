"""Pyramids of packed grids: convolutions, norms and resampling against torch's own on each grid alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from tests.stand_ins.packed_inputs import grid_positions
from train.layers.grid_levels import GridLevelsKey, PackedConv, PackedGroupNorm, coarser
from train.layers.layouts import Layouts
from train.layers.segments import Segments

SHAPES = ((2, 5, 4), (1, 1, 7), (3, 6, 6), (1, 3, 1))


def grid_levels(shapes, *, num_levels, window, times=1):
    positions = [grid_positions(shape) for shape in shapes]
    layouts = Layouts(Segments.from_lengths([len(one) for one in positions]), torch.cat(positions))
    key = GridLevelsKey(num_levels, window)
    layouts.built([key])
    return layouts.repeated(times)[key].levels


def as_frames(x_LD, shapes):
    """Each sample as (T, D, H, W)."""
    lengths = [t * h * w for t, h, w in shapes]
    return [part.view(*shape, -1).permute(0, 3, 1, 2) for part, shape in zip(x_LD.split(lengths), shapes, strict=True)]


def as_tokens(frames):
    return torch.cat([grid.permute(0, 2, 3, 1).flatten(0, 2) for grid in frames])


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_are_those_of_each_grid(stride):
    torch.manual_seed(0)
    levels = grid_levels(SHAPES, num_levels=2, window=4)
    conv, packed = nn.Conv2d(3, 5, 3, stride=stride, padding=1), PackedConv(3, 5)
    packed.proj.weight.data = conv.weight.data.permute(0, 2, 3, 1).flatten(1)
    packed.proj.bias.data = conv.bias.data
    x_LD = torch.randn(levels[0].segments.num_tokens, 3)
    expected = as_tokens([conv(grid) for grid in as_frames(x_LD, SHAPES)])
    torch.testing.assert_close(packed(x_LD, levels[0].around_L9 if stride == 1 else levels[0].down_K9), expected)


def test_each_level_has_half_the_rows_and_columns_and_tokens_know_their_parents():
    levels = grid_levels(SHAPES, num_levels=3, window=4)
    shapes = SHAPES
    for fine, coarse in itertools.pairwise(levels):
        next_shapes = tuple(coarser(shape) for shape in shapes)
        assert coarse.segments.lengths == tuple(t * h * w for t, h, w in next_shapes)
        assert len(fine.down_K9) == coarse.segments.num_tokens
        values = torch.randn(coarse.segments.num_tokens, 2)
        grids = [
            nn.functional.interpolate(grid, scale_factor=2)[:, :, : shape[1], : shape[2]]
            for grid, shape in zip(as_frames(values, next_shapes), shapes, strict=True)
        ]
        torch.testing.assert_close(values[fine.parent_L], as_tokens(grids))
        shapes = next_shapes
    assert coarser((2, 7, 1)) == (2, 4, 1)


def test_levels_repeated_are_those_of_the_repeated_pack():
    once = grid_levels(SHAPES, num_levels=3, window=2, times=2)
    again = grid_levels(SHAPES * 2, num_levels=3, window=2)
    for repeated, built in zip(once, again, strict=True):
        assert repeated.segments.lengths == built.segments.lengths
        assert repeated.frames.lengths == built.frames.lengths
        for name in ("position_L3", "around_L9", "down_K9", "parent_L"):
            assert torch.equal(getattr(repeated, name), getattr(built, name)), name
        for name in ("windows", "places"):
            x_LD = torch.arange(built.segments.num_tokens)[:, None]
            assert torch.equal(getattr(repeated, name).gather(x_LD), getattr(built, name).gather(x_LD)), name


def test_group_norm_is_that_of_each_frame_forward_and_backward():
    torch.manual_seed(0)
    level = grid_levels(SHAPES, num_levels=1, window=4)[0]
    packed, plain = PackedGroupNorm(12), nn.GroupNorm(3, 12)
    for parameter in (packed.weight, packed.bias):
        nn.init.normal_(parameter)
    plain.load_state_dict(packed.state_dict())
    x_LD = torch.randn(level.segments.num_tokens, 12, requires_grad=True)
    found, expected = packed(x_LD, level.frames), as_tokens([plain(grid) for grid in as_frames(x_LD, SHAPES)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn(found.shape)
    for got, exact in zip(
        torch.autograd.grad((found * weight).sum(), [x_LD, *packed.parameters()]),
        torch.autograd.grad((expected * weight).sum(), [x_LD, *plain.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(got, exact, atol=1e-4, rtol=1e-4)
    assert [PackedGroupNorm(width).num_groups for width in (2, 12, 48, 256)] == [1, 3, 12, 32]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packed(x_LD, level.frames).dtype == torch.bfloat16


def test_windows_at_the_rim_are_smaller_and_stay_in_their_frame():
    level = grid_levels(((2, 5, 4),), num_levels=1, window=4)[0]
    assert sorted(level.windows.segments.lengths) == [4, 4, 16, 16]
    assert level.places.segments.lengths == (2,) * 20
    assert level.frames.lengths == (20, 20)
    assert Segments.from_lengths([40]).lengths == level.segments.lengths
