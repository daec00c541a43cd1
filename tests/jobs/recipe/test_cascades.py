"""The recipes of cascades: stages that fit each other and their clips, of about the published sizes."""

from __future__ import annotations

import itertools

import pytest
import torch

from jobs.recipe.cascades import IMAGEN_TINY, IMAGEN_VIDEO
from jobs.recipe.presets import load_recipe
from train.backbones.registry import build
from train.compressors.registry import load
from train.generator.settings import backbone_settings
from train.sampling.stage import Stage

CASCADES = {"imagen_video": (IMAGEN_VIDEO, (129, 768, 1280)), "imagen_tiny": (IMAGEN_TINY, (17, 64, 64))}


@pytest.mark.parametrize("cascade", CASCADES)
def test_each_stage_goes_on_where_the_one_before_ends_and_fits_its_packs(cascade):
    stages, (num_frames, height_px, width_px) = CASCADES[cascade]
    strides = []
    for name, stage in stages.items():
        recipe = load_recipe(f"{cascade}/{name}")
        recipe.train_dit.dit.check()
        compressor = load(recipe.encode.compressor)
        frames, stride = compressor.frame_stride, compressor.spatial_stride
        strides.append((frames, stride))
        shape = (1 + (num_frames - 1) // frames, height_px // stride, width_px // stride)
        assert shape[1] % stage.patch[1] == shape[2] % stage.patch[2] == 0
        if stage.kind:
            Stage(kind=stage.kind, ratio=stage.ratio).check_shape(shape)
        in_pack = min(shape[0], stage.max_frames or shape[0])
        tokens = in_pack * (shape[1] // stage.patch[1]) * (shape[2] // stage.patch[2])
        assert 0.5 * stage.capacity <= tokens <= stage.capacity
    for (before, after), stage in zip(itertools.pairwise(strides), list(stages.values())[1:], strict=True):
        expected = (after[0] * stage.ratio, after[1]) if stage.kind == "tsr" else (after[0], after[1] * stage.ratio)
        assert before == expected


@pytest.mark.parametrize("name", IMAGEN_VIDEO)
def test_the_models_have_about_the_published_sizes(name):
    dit = load_recipe(f"imagen_video/{name}").train_dit.dit
    width = 3 * dit.patch[0] * dit.patch[1] * dit.patch[2]
    with torch.device("meta"):
        model = build(
            dit.backbone, token_width=width, text_width=4096, pooled_width=4096, width=dit.width, depth=dit.depth,
            num_heads=dit.num_heads, hint_width=width if dit.stage else 0, scalars=("level",) if dit.stage else (),
            **backbone_settings(dit),
        )  # fmt: skip
    billions = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert billions == pytest.approx(IMAGEN_VIDEO[name].published_billions, rel=0.1)
