"""The named recipes `quickstart`, `small` and `base`: functions that return a `Recipe` (settings.py).

    recipe = load_recipe("quickstart")            # or "small", "base", or the path of a run.yaml

`run.yaml` in every run folder is the resolved recipe, and is accepted in place of a name.
"""

from __future__ import annotations

from collections.abc import Callable

import yaml

from jobs.recipe import cascades
from jobs.recipe.settings import (
    CaptionSettings,
    EncodeSettings,
    PrepareSettings,
    Recipe,
    SampleSettings,
    ShardSettings,
    TrainCaptioner,
    TrainDit,
    from_dict,
)
from packing.buckets import BucketTable
from packing.plan.settings import PlanSettings
from recaption.errors import UsageError
from train.diffusion.frame_conditioning import DEFAULT_CONDITIONS
from train.diffusion.process import DiffusionSettings
from train.engine.settings import TrainerSettings
from train.generator.settings import DitSettings

TINY_CAPTIONER = TrainCaptioner(
    trainer=TrainerSettings(num_steps=1500, lr=1e-3, warmup_steps=100, weight_decay=0.05, ema_decay=0.995, device="cpu")
)
"""Training settings of the captioner in the package: `recaption train captioner --run RUN`."""
DESCRIPTIVE = (
    "A flat clip shows a large plain {colour} circle that moves left. The weather is clear. The surroundings are empty. "
    "Further back there is {background}. No text is shown. All along, the camera is fixed."
)
"""Prompt in the style of the training captions; a model this small follows no other style."""
SEA, SAND = "the sea with rows of thin waves", "bare sand with soft ripples"
COCA_L14 = "open_clip:coca_ViT-L-14/mscoco_finetuned_laion2b_s13b_b90k"
WAN_VAE = "diffusers:Wan-AI/Wan2.1-T2V-1.3B-Diffusers#vae"


# --- the recipes ------------------------------------------------------------------------------------------------------


def quickstart() -> Recipe:
    """Laptop CPU, minutes: the captioner in the package, a fixed compressor, a 5 M transformer at 64 px."""
    return Recipe(
        name="quickstart",
        prepare=PrepareSettings(max_clip_seconds=4.0),
        caption=CaptionSettings(max_tokens=79, text_encoder="captioner:tiny"),
        shard=ShardSettings(buckets=BucketTable(fps=8, num_frames=(9, 17), max_areas_px=(64 * 64,))),
        # Few channels, half whitened: colour and position are learned before texture. Of the settings tried, the one
        # whose samples follow the prompt's colour soonest; see "Measured" in the README.
        encode=EncodeSettings(compressor="patch:24,whitening=0.5"),
        plan=PlanSettings(capacity=1024, cost_model_width=192),
        train_captioner=TINY_CAPTIONER,
        train_dit=TrainDit(
            # absolute positions: a model this small learns object positions in a third of the steps
            dit=DitSettings(patch=(1, 2, 2), absolute_positions=True, diffusion=DiffusionSettings(timestep_mean=0.8)),
            trainer=TrainerSettings(num_steps=800, lr=2e-3, ema_decay=0.99, checkpoint_every=100),
        ),
        sample=SampleSettings(
            expander="none",  # the prompts below are in caption style
            guidance=3.0,
            num_frames=17,
            height_px=64,
            width_px=64,
            prompts=tuple(
                DESCRIPTIVE.format(colour=colour, background=background)
                for colour, background in (("red", SEA), ("yellow", SEA), ("red", SAND), ("blue", SAND))
            ),
        ),
    )


def small() -> Recipe:
    """One GPU, a day: real captioner, T5 text, a pretrained video VAE, DiT-B at 256 px."""
    return Recipe(
        name="small",
        prepare=PrepareSettings(max_clip_seconds=10.0),
        caption=CaptionSettings(captioner=COCA_L14, text_encoder="t5:google/t5-v1_1-base"),
        shard=ShardSettings(
            buckets=BucketTable(fps=8, num_frames=(1, 17, 33, 49), max_areas_px=(192 * 320, 256 * 448), crf=14)
        ),
        encode=EncodeSettings(compressor=WAN_VAE),
        plan=PlanSettings(capacity=8192, policy="best_fit"),
        train_dit=TrainDit(
            dit=DitSettings(
                width=768,
                depth=12,
                num_heads=12,
                patch=(1, 2, 2),
                conditions=DEFAULT_CONDITIONS,
                text_encoder="t5:google/t5-v1_1-base",
                diffusion=DiffusionSettings(shift=3.0, shift_tokens=4096),
            ),
            trainer=TrainerSettings(
                num_steps=100_000,
                lr=2e-4,
                warmup_steps=1000,
                weight_decay=0.0,
                betas=(0.9, 0.95),
                ema_decay=0.9995,
                precision="bf16",
                schedule="constant",
                checkpoint_every=1000,
                validate_every=1000,
            ),
        ),
        sample=SampleSettings(num_steps=40, guidance=5.0, num_frames=33, height_px=256, width_px=448),
    )


def base() -> Recipe:
    """A GPU cluster, weeks: DiT-XL at up to 480p and 81 frames, 5 s at 16 frames per second."""
    return Recipe(
        name="base",
        prepare=PrepareSettings(part_size=64, max_clip_seconds=10.0, max_failed_share=0.2),
        caption=CaptionSettings(captioner=COCA_L14, batch_size=32, text_encoder="t5:google/t5-v1_1-xxl"),
        shard=ShardSettings(
            buckets=BucketTable(
                fps=16,
                num_frames=(1, 17, 33, 49, 81),
                max_areas_px=(256 * 448, 480 * 832),
                crf=16,
                max_samples_per_shard=512,
                max_shard_bytes=1 << 30,
            )
        ),
        encode=EncodeSettings(compressor=WAN_VAE),
        plan=PlanSettings(capacity=65_536, policy="best_fit", pool=128),
        train_dit=TrainDit(
            dit=DitSettings(
                width=1152,
                depth=28,
                num_heads=16,
                patch=(1, 2, 2),
                conditions=DEFAULT_CONDITIONS,
                text_encoder="t5:google/t5-v1_1-xxl",
                diffusion=DiffusionSettings(shift=3.0, shift_tokens=4096),
            ),
            trainer=TrainerSettings(
                num_steps=500_000,
                lr=1e-4,
                warmup_steps=2000,
                weight_decay=0.0,
                betas=(0.9, 0.95),
                ema_decay=0.9999,
                precision="bf16",
                schedule="constant",
                activation_checkpointing=True,  # 65,536 tokens of 28 blocks are 111 GB otherwise
                compile=True,
                checkpoint_every=1000,
                keep_checkpoints=3,
                validate_every=5000,
            ),
        ),
        sample=SampleSettings(num_steps=50, guidance=5.0, num_frames=81, height_px=480, width_px=832),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"quickstart": quickstart, "small": small, "base": base} | cascades.RECIPES


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of this name, or of a run.yaml file.

    Raises:
        UsageError: no such recipe or file, or a file with unknown settings.
    """
    if name_or_path in RECIPES:
        return RECIPES[name_or_path]()
    if not name_or_path.endswith((".yaml", ".yml")):
        raise UsageError(f"no recipe {name_or_path!r}: known are {', '.join(RECIPES)}, or the path of a run.yaml")
    import fsspec

    fs, path = fsspec.url_to_fs(name_or_path)
    if not fs.exists(path):
        raise UsageError(f"no such recipe file: {name_or_path}")
    try:
        document = yaml.safe_load(fs.cat_file(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{name_or_path} is not a run.yaml: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(document, dict) or "recipe" not in document:
        raise UsageError(f"{name_or_path} is not a run.yaml: it has no `recipe` key")
    return from_dict(document["recipe"])
