"""Recipes of cascades, one for each stage: `imagen_video/base` to `/ssr3`, and `imagen_tiny/base`, `/tsr` and `/ssr`.

    recaption run --videos DATA --out RUN --recipe imagen_video/base --stop-after encode   # the same clips for all stages
    recaption encode --run RUN --compressor pixels:stride=16,frame-stride=4
    recaption train dit --run RUN --recipe imagen_video/ssr1 --name ssr1

`imagen_video` is the chain of Imagen Video (arXiv 2210.02303), planned for a cluster: seven models of 11.6 billion weights
that make 128 frames of 1280x768 px at 24 per second out of 16 of 40x24 at 3; here 129 out of 17, for the first frame is a
group of its own. Separable transformers stand in for its U-Nets, of about the sizes published (test_cascades.py); time is
mixed by attention in the base and by convolution after it, as there. `imagen_tiny` trains on a CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from jobs.recipe.settings import CaptionSettings, PrepareSettings, Recipe, SampleSettings, ShardSettings, TrainDit
from jobs.recipe.stage_settings import EncodeSettings, TextSettings
from packing.buckets import BucketTable
from packing.grid import Shape3
from packing.plan.settings import PlanSettings
from train.backbones.separable import SeparableSettings
from train.diffusion.process import DiffusionSettings
from train.engine.settings import TrainerSettings
from train.generator.settings import DitSettings

T5_XXL = "t5:google/t5-v1_1-xxl"


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """One model of a cascade."""

    published_billions: float
    """Weights in the paper; 0: none published."""
    spatial_stride: int
    frame_stride: int
    """Of its `pixels` compressor."""
    patch: Shape3
    width: int
    depth: int
    capacity: int
    """Tokens of a pack."""
    kind: str = ""
    """`ssr` or `tsr`; empty: the base."""
    ratio: int = 2
    max_frames: int = 0
    """Longer clips are cropped in time; 0: none."""

    @property
    def compressor(self) -> str:
        return f"pixels:stride={self.spatial_stride},frame-stride={self.frame_stride}"


IMAGEN_VIDEO = {
    "base": StageRecipe(
        published_billions=5.6, spatial_stride=32, frame_stride=8, patch=(1, 1, 1), width=2304, depth=36, capacity=16_384
    ),
    "tsr1": StageRecipe(
        kind="tsr", published_billions=1.7, spatial_stride=32, frame_stride=4, patch=(1, 1, 1), width=1792, depth=21,
        capacity=32_768,
    ),
    "ssr1": StageRecipe(
        kind="ssr", published_billions=1.4, spatial_stride=16, frame_stride=4, patch=(1, 2, 2), width=1536, depth=23,
        capacity=32_768,
    ),
    "ssr2": StageRecipe(
        kind="ssr", ratio=4, published_billions=1.2, spatial_stride=4, frame_stride=4, patch=(1, 8, 8), width=1408,
        depth=23, capacity=32_768,
    ),
    "tsr2": StageRecipe(
        kind="tsr", published_billions=0.78, spatial_stride=4, frame_stride=2, patch=(1, 8, 8), width=1152, depth=22,
        capacity=65_536,
    ),
    "tsr3": StageRecipe(
        kind="tsr", published_billions=0.63, spatial_stride=4, frame_stride=1, patch=(1, 8, 8), width=1024, depth=23,
        capacity=65_536, max_frames=65,
    ),
    "ssr3": StageRecipe(
        kind="ssr", ratio=4, published_billions=0.34, spatial_stride=1, frame_stride=1, patch=(1, 32, 32), width=1024,
        depth=12, capacity=32_768, max_frames=33,
    ),
}  # fmt: skip
"""In the order in which they are sampled. Frames of 40x24 tokens in all of them; clips that are too long are cropped in
time, where the paper trains on crops in space."""
IMAGEN_TINY = {
    "base": StageRecipe(
        published_billions=0, spatial_stride=4, frame_stride=4, patch=(1, 2, 2), width=192, depth=5, capacity=640
    ),
    "tsr": StageRecipe(
        kind="tsr", published_billions=0, spatial_stride=4, frame_stride=2, patch=(1, 2, 2), width=192, depth=4,
        capacity=1152,
    ),
    "ssr": StageRecipe(
        kind="ssr", published_billions=0, spatial_stride=2, frame_stride=2, patch=(1, 4, 4), width=192, depth=4,
        capacity=1152,
    ),
}  # fmt: skip
"""16 px and 2 frames per second, to 4 per second, to 32 px."""


def imagen_video(name: str) -> Recipe:
    """The recipe of one stage of Imagen Video, by its name in `IMAGEN_VIDEO`."""
    stage = IMAGEN_VIDEO[name]
    recipe = Recipe(
        name=f"imagen_video/{name}",
        prepare=PrepareSettings(part_size=64, max_clip_seconds=10.0, max_failed_share=0.2),
        caption=CaptionSettings(captioner="open_clip:coca_ViT-L-14/mscoco_finetuned_laion2b_s13b_b90k", batch_size=32),
        shard=ShardSettings(
            buckets=BucketTable(
                fps=24, num_frames=(1, 129), max_areas_px=(768 * 1280,), crf=14, max_samples_per_shard=128
            )
        ),
        encode=EncodeSettings(
            compressor=stage.compressor,
            spatial_stride=32,
            frame_stride=8,
            text=TextSettings(encoder=T5_XXL, max_gigabytes=20_000),
        ),
        plan=_plan(stage),
        train_dit=TrainDit(
            dit=dataclasses.replace(
                _dit(stage), text_encoder=T5_XXL, diffusion=DiffusionSettings(schedule="cosine", prediction="v")
            ),
            trainer=TrainerSettings(
                num_steps=500_000,
                lr=1e-4,
                warmup_steps=10_000,
                weight_decay=0.0,
                ema_decay=0.9999,
                precision="bf16",
                schedule="constant",
                activation_checkpointing=True,
                compile=True,
                checkpoint_every=1000,
                keep_checkpoints=3,
                validate_every=5000,
            ),
        ),
        sample=SampleSettings(
            num_steps=128,
            guidance=8.0,
            guidance_oscillation_steps=16,
            dynamic_threshold=99.5,
            num_frames=129,
            height_px=768,
            width_px=1280,
        ),
    )
    return recipe


def imagen_tiny(name: str) -> Recipe:
    """The recipe of one stage of a cascade that trains on a CPU, by its name in `IMAGEN_TINY`."""
    stage = IMAGEN_TINY[name]
    return Recipe(
        name=f"imagen_tiny/{name}",
        prepare=PrepareSettings(max_clip_seconds=4.0),
        caption=CaptionSettings(max_tokens=79, text_encoder="captioner:tiny"),
        shard=ShardSettings(buckets=BucketTable(fps=8, num_frames=(9, 17), max_areas_px=(64 * 64,))),
        encode=EncodeSettings(compressor=stage.compressor),
        plan=_plan(stage),
        train_dit=TrainDit(
            dit=dataclasses.replace(
                _dit(stage), num_heads=6, absolute_positions=True, diffusion=DiffusionSettings(timestep_mean=0.5)
            ),
            trainer=TrainerSettings(num_steps=800, lr=2e-3, ema_decay=0.99, checkpoint_every=100),
        ),
        sample=SampleSettings(
            expander="none", guidance=3.0, dynamic_threshold=99.5, num_frames=17, height_px=64, width_px=64
        ),
    )


def _plan(stage: StageRecipe) -> PlanSettings:
    crop = (str(stage.max_frames),) if stage.max_frames else ()
    return PlanSettings(capacity=stage.capacity, policy="best_fit", max_latent_frames=crop)


def _dit(stage: StageRecipe) -> DitSettings:
    return DitSettings(
        backbone="separable",
        separable=SeparableSettings(time="conv" if stage.kind else "attention"),
        width=stage.width,
        depth=stage.depth,
        num_heads=stage.width // 64,
        patch=stage.patch,
        stage=stage.kind,
        stage_ratio=stage.ratio,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    f"{recipe.__name__}/{name}": lambda recipe=recipe, name=name: recipe(name)  # type: ignore[misc]
    for recipe, stages in ((imagen_video, IMAGEN_VIDEO), (imagen_tiny, IMAGEN_TINY))
    for name in stages
}
