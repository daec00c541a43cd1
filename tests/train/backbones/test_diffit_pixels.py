"""Image-space DiffiT: its stages, what stays in windows and frames, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from packing.plan.settings import PlanSettings
from recaption.errors import UsageError
from tests.stand_ins.memory_source import MemorySource
from tests.stand_ins.packed_inputs import make_backbone, make_inputs
from tests.stand_ins.packed_task import BUCKETS, WordTower
from train.backbones.diffit_pixels import DiffitPixels, DiffitPixelsSettings
from train.generator.settings import DitSettings
from train.generator.task import DitTask
from train.text.encoder import TextEncoder


def test_cells_go_down_and_up_again_and_those_of_the_coarse_stages_attend_along_time():
    model = make_backbone("diffit_pixels", depth=2, stages=4, window=2)
    assert model._stages_of_cells() == [0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 1, 1, 0, 0]
    assert [cell.conv.proj.out_features for cell in model.blocks] == [12, 12, *[24] * 10, 12, 12]
    has_time = [cell.time_attention is not None for cell in model.blocks]
    assert has_time == [stage >= 2 for stage in model._stages_of_cells()]


def test_features_of_the_way_down_are_taken_in_on_the_way_up():
    model = make_backbone("diffit_pixels")
    inputs = make_inputs()
    before = model(inputs)
    for linear in model.skip_linears:
        linear.weight.data[:, linear.out_features :] = 0
    assert (model(inputs) - before).abs().max() > 1e-3


def test_frames_of_a_video_are_images_but_for_attention_along_time():
    model = make_backbone("diffit_pixels", stages=2, window=2)
    for cell in model.blocks:
        cell.time_norm = cell.time_attention = None
    video = make_inputs(grids=((3, 4, 6),), text_lengths=(2,))
    frames = [
        video.replace(
            tokens_LD=part, position_L3=video.position_L3[:24], segments=type(video.segments).from_lengths([24]),
            token_shapes=((1, 4, 6),), layouts=None,
        )
        for part in video.tokens_LD.split(24)
    ]  # fmt: skip
    alone = torch.cat([model(frame) for frame in frames])
    torch.testing.assert_close(model(video), alone, atol=1e-5, rtol=1e-4)


def test_a_new_model_predicts_zero():
    model = DiffitPixels(token_width=6, text_width=10, pooled_width=7, width=12, depth=1, num_heads=1, stages=2)
    assert not model(make_inputs()).any()


def test_dropped_tokens_are_refused_at_the_start_in_one_sentence():
    with pytest.raises(ValueError, match="some were dropped"):
        make_backbone("diffit_pixels")(make_inputs(kept=([0, 2], [1], [3, 4])))
    latents = [torch.zeros(8, 2, 2, 2).numpy()]
    with pytest.raises(UsageError, match="'diffit_pixels' has no token dropping: its convolutions"):
        DitTask(
            MemorySource(latents, ["clip"], ["a hill"]),
            DitSettings(backbone="diffit_pixels", width=24, depth=1, num_heads=2),
            PlanSettings(capacity=20, token_keep_rate=("0.5",)),
            compressor="patch:8",
            buckets=BUCKETS[:1],
            encoder=TextEncoder(WordTower(), spec="words", weights_hash="0"),
        )
    with pytest.raises(UsageError, match="at least 1"):
        DiffitPixelsSettings(window=0).check()
