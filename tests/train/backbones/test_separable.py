"""Space-time separable attention: what attends to what, and images that never touch a temporal weight."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from recaption.errors import UsageError
from tests.stand_ins.packed_inputs import gradients, grid_positions, make_backbone, make_inputs
from train.backbones.registry import build
from train.layers.packed_convolution import TimeConv, neighbour_index
from train.layers.segments import Segments

make_separable = functools.partial(make_backbone, "separable")
TIME = ("attention", "conv")
GRIDS = ((3, 2, 2), (1, 3, 4), (2, 1, 5))
"""The second sample is an image."""


def temporal(model) -> dict[str, nn.Parameter]:
    found = {name: parameter for name, parameter in model.named_parameters() if ".temporal." in name}
    assert len(found) >= 2 * 4
    return found


@pytest.mark.parametrize("time", TIME)
def test_an_image_is_independent_of_every_temporal_weight_and_trains_none(time):
    model, inputs = make_separable(time=time), make_inputs(grids=GRIDS)
    before = model(inputs)
    of_image_L = inputs.segments.segment_ids_L == 1
    alone = gradients(model, model(make_inputs(grids=[GRIDS[1]] * 2)))
    assert alone.keys() == dict(model.named_parameters()).keys(), "DDP waits for all of them, in a pack of images too"
    for name, parameter in temporal(model).items():
        assert not alone[name].any(), name
        with torch.no_grad():
            kept = parameter.clone()
            parameter.copy_(torch.randn_like(parameter))
            after = model(inputs)
            parameter.copy_(kept)
        assert torch.equal(after[of_image_L], before[of_image_L]), name
    with torch.no_grad():
        for parameter in temporal(model).values():
            parameter.fill_(float("nan"))
    after = model(inputs)
    assert torch.equal(after[of_image_L], before[of_image_L])
    assert after[~of_image_L].isnan().all(), "the videos do depend on them"


@pytest.mark.parametrize("time", TIME)
def test_one_block_reaches_the_own_frame_then_the_own_place(time):
    """Of a change of one token: its frame, and the tokens at the places of that frame; a convolution only as far as 1."""
    model, inputs = make_separable(time=time, depth=1), make_inputs(grids=[(4, 2, 3)])
    changed = inputs.tokens_LD.clone()
    changed[0] += 1  # frame 0, place (0, 0)
    moved_L = (model(inputs.replace(tokens_LD=changed)) - model(inputs)).abs().amax(-1) > 1e-6
    frame_L = inputs.position_L3[:, 0]
    reach = {"attention": 3, "conv": 1}[time]
    assert moved_L.tolist() == (frame_L <= reach).tolist()
    # without the attention within frames: the own place alone
    with torch.no_grad():
        model.blocks[0].attention.out.weight.zero_()
        model.blocks[0].attention.out.bias.zero_()
    moved_L = (model(inputs.replace(tokens_LD=changed)) - model(inputs)).abs().amax(-1) > 1e-6
    is_own_place_L = (inputs.position_L3[:, 1:] == 0).all(-1)
    assert moved_L.tolist() == (is_own_place_L & (frame_L <= reach)).tolist()


def test_the_convolution_along_time_equals_conv1d_and_a_dropped_neighbour_counts_as_zero():
    torch.manual_seed(0)
    grids = [(4, 2, 3), (2, 1, 1), (3, 3, 1)]
    positions = [grid_positions(grid) for grid in grids]
    position_L3, segments = torch.cat(positions), Segments.from_lengths([len(one) for one in positions])
    conv, x_LD = TimeConv(5), torch.randn(len(position_L3), 5)
    nn.init.normal_(conv.bias_D)

    def packed(kept_L: torch.Tensor) -> torch.Tensor:
        ids_L = segments.segment_ids_L[kept_L]
        part = Segments.from_lengths([int((ids_L == sample).sum()) for sample in range(3)])
        indices = [neighbour_index(part, position_L3[kept_L], (step, 0, 0)) for step in (-1, 1)]
        return conv(x_LD[kept_L], *indices)

    def dense(x_LD: torch.Tensor) -> torch.Tensor:
        outputs = []
        for part, (frames, rows, columns) in zip(x_LD.split(segments.lengths), grids):
            places_NDT = part.unflatten(0, (frames, rows * columns)).permute(1, 2, 0)
            out = nn.functional.conv1d(places_NDT, conv.weight_3D.T[:, None], conv.bias_D, padding=1, groups=5)
            outputs.append(out.permute(2, 0, 1).flatten(0, 1))
        return torch.cat(outputs)

    everything = torch.arange(len(x_LD))
    torch.testing.assert_close(packed(everything), dense(x_LD))
    torch.testing.assert_close(packed(everything.flip(0)[:0]), x_LD[:0])
    kept_L = torch.rand(len(x_LD), generator=torch.Generator().manual_seed(1)) < 0.6
    torch.testing.assert_close(packed(kept_L.nonzero()[:, 0]), dense(x_LD * kept_L[:, None])[kept_L])


def test_at_initialisation_the_output_is_zero_and_the_flops_of_an_image_skip_time():
    model = build("separable", token_width=6, text_width=10, pooled_width=7, width=24, depth=2, num_heads=2)
    assert torch.count_nonzero(model(make_inputs(grids=GRIDS))) == 0
    image, video = model.flops([60], [4], [(1, 6, 10)]), model.flops([60], [4], [(4, 3, 5)])
    assert image == model.flops([60], [4]), "unknown: one frame"
    per_width = 3 * 2 * 24 * 60
    expected = per_width * (8 * 24 + 4 * 4) - per_width * 4 * (
        60 - 15
    )  # attention along time, less within smaller frames
    assert video - image == pytest.approx(expected)


def test_unknown_time_mixing_is_one_sentence():
    sizes = {"token_width": 6, "text_width": 10, "pooled_width": 7, "width": 24, "depth": 1, "num_heads": 2}
    with pytest.raises(UsageError, match="time = 'lstm' of backbone separable: choose attention or conv"):
        build("separable", **sizes, time="lstm")
    with pytest.raises(UsageError, match="backbone 'separable' has no num_registers: leave it out"):
        build("separable", **sizes, num_registers=2)
