"""The settings of all stages as one tree of frozen dataclasses, `Recipe`, and their hashes.

    recipe.shard.buckets.num_frames               # (9, 17)
    stage_hashes(recipe)["caption"]               # changes with the prompt, not with a filter threshold
    from_dict(to_dict(recipe)) == recipe          # the format of run.yaml

Command-line flags are these fields: `--shard.buckets.fps 12`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pydantic
import pydantic_core
import tyro

from jobs.recipe.stage_settings import CaptionSettings, EncodeSettings, PrepareSettings, ShardSettings
from packing.grid import Grid
from packing.plan.settings import PlanSettings
from recaption.errors import UsageError
from recaption.quality.filters import FilterThresholds
from recaption.run_folder import recipe_hash
from train.captioner.task import CaptionerSettings
from train.compressors.settings import CompressorSettings
from train.engine.settings import TrainerSettings
from train.evaluation.metrics import EvaluationSettings
from train.generator.settings import DitSettings


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Checkpoint + prompt -> video."""

    num_steps: int = 0
    """Steps from noise to video; 0: 30, or those that a distilled model was trained for."""
    solver: str = "auto"
    """euler, heun or dpmpp_2m for flow models; dpmpp_2m, ddim or ancestral for other noise schedules; auto: the first."""
    precision: str = "auto"
    """Of the model calls: `fp32` or `bf16`; auto: bf16 on a GPU, fp32 on a CPU, whatever the training had."""
    guidance: float = 4.0
    """Classifier-free guidance scale; 1: none."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Guidance is applied between these two times, in 0 (clean) to 1 (noise)."""
    guidance_rescale: float = 0.0
    """CFG rescale factor (0: off): rescales guided predictions to the standard deviation of unguided ones; try 0.7."""
    guidance_power: float = 0.0
    """Power of the power-cosine guidance schedule, which rises from 1 at pure noise (4 in MDT); 0: constant guidance."""
    guidance_oscillation_steps: int = 0
    """Steps at full guidance before it alternates with `guidance_oscillation_scale` (Imagen Video: 15 and 1); 0: off."""
    guidance_oscillation_scale: float = 1.0
    """The lower scale of oscillating guidance."""
    dynamic_threshold: float = 0.0
    """Percentile of dynamic thresholding (99.5 in Imagen), for models in pixel space; 0: off."""
    hint_snr: float = 5.0
    """Signal-to-noise ratio of the low-resolution clip that a stage of a cascade gets; Imagen Video: 3 or 5."""
    guidance_context: float = 1.0
    """Context guidance scale: above 1, closer to the conditioning frames (1.5 to 2 in Video LDM's rollouts); 1: none."""
    decoder: str = ""
    """Compressor with the same latents to decode with, one with temporal layers in its decoder; empty: the model's own."""
    base: str = ""
    """Checkpoint of another image model of the same architecture, to put temporal layers over; empty: their own."""
    num_frames: int = 0
    """Length, 4k+1 frames; 0, here and in height and width: the most frequent training size. Longer ones are sampled in
    windows."""
    seconds: float = 0.0
    """Length in seconds instead, to the frame; of a --story the length of the film, a shot about as long as in training."""
    long: str = "windows"
    """Videos longer than a window: `windows`, one after the other, or `keyframes` over the whole length first, then those
    between them, which do not drift (needs a model trained with the condition keyframes)."""
    height_px: int = 0
    """Height; 0: as in training."""
    width_px: int = 0
    """Width; 0: as in training."""
    seed: int = 0
    """Seed of the noise."""
    window_frames: int = 0
    """Maximum frames per sampling window; 0: the longest video of the training."""
    overlap_frames: int = 0
    """Overlap of consecutive windows; 0: about a third of a window."""
    conditioning_pixels: str = "decoded"
    """Conditioning frames in the output: `decoded` from their latents, like the generated ones, or `original` pixels."""
    captioner: str = ""
    """SPEC of the captioner that reads the shots of a film back (default: tiny; `none`: they are not read), and that
    captions the video of an --invert edit without --source-prompt."""
    prompts: tuple[str, ...] = ()
    """Prompts that `recaption run` samples at its end; default: captions of the shards."""
    expander: str = "embedded"
    """Prompt expander, rewrites short prompts in the style of the training captions: none, embedded (no download),
    transformers:ID or http://HOST/v1#MODEL."""
    examples: str = ""
    """Run folder with captions as style examples; default: the run folder of the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TrainCaptioner:
    """Settings of `recaption train captioner`."""

    captions: tuple[str, ...] = ()
    """Caption sets of the run folder to train on, SET or SET=KIND each, `original` for the sidecar texts of the videos;
    none: rendered scenes."""
    captioner: CaptionerSettings = field(default_factory=CaptionerSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)


@dataclass(frozen=True, kw_only=True)
class TrainCompressor:
    """Settings of `recaption train compressor`."""

    compressor: CompressorSettings = field(default_factory=CompressorSettings)
    trainer: TrainerSettings = field(default_factory=lambda: TrainerSettings(lr=2e-3, ema_decay=0.99))
    """Short EMA: a compressor improves within minutes, and its latent statistics have to follow."""


@dataclass(frozen=True, kw_only=True)
class TrainDit:
    """Settings of `recaption train dit`."""

    dit: DitSettings = field(default_factory=DitSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of the whole pipeline, in the order of its stages."""

    name: tyro.conf.Suppress[str]
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    filters: FilterThresholds = field(default_factory=FilterThresholds)
    """Filters are evaluated on stored scores: changing a threshold recomputes no stage."""
    caption: CaptionSettings = field(default_factory=CaptionSettings)
    shard: ShardSettings = field(default_factory=ShardSettings)
    encode: EncodeSettings = field(default_factory=EncodeSettings)
    plan: PlanSettings = field(default_factory=lambda: PlanSettings(capacity=4096))
    train_captioner: TrainCaptioner = field(default_factory=TrainCaptioner)
    train_compressor: TrainCompressor = field(default_factory=TrainCompressor)
    train_dit: TrainDit = field(default_factory=TrainDit)
    sample: SampleSettings = field(default_factory=SampleSettings)


# --- serialisation and hashes -----------------------------------------------------------------------------------------


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Recipe as plain dicts, lists and numbers (run.yaml)."""
    return _plain(dataclasses.asdict(recipe))


def from_dict(tree: Any) -> Recipe:
    """Inverse of `to_dict`; missing settings get their defaults.

    Raises:
        UsageError: an unknown setting, or a value of another type; the message names the setting.
    """
    try:
        return _ADAPTER.validate_python([tree])[0]
    except pydantic.ValidationError as error:
        raise UsageError(_sentence(error.errors()[0])) from error


_ADAPTER = pydantic.TypeAdapter(list[Recipe], config=pydantic.ConfigDict(extra="forbid"))
"""Of a list, since the option for unknown keys is handed down to dataclasses, but cannot be set for one of them."""


def _sentence(error: pydantic_core.ErrorDetails) -> str:
    path, value = [str(part) for part in error["loc"][1:]], error["input"]
    if error["type"] == "unexpected_keyword_argument":
        *groups, name = path
        settings: Any = Recipe(name="")
        for group in groups:
            settings = getattr(settings, group)
        known = ", ".join(sorted(f.name for f in dataclasses.fields(settings)))
        return f"{'.'.join(['recipe', *groups])}: unknown setting {name!r} (known: {known})"
    where = ".".join(path) or "recipe"
    if error["type"] == "value_error":  # raised by the settings themselves
        return f"{where}: {error['ctx']['error']}"
    if error["type"] == "missing":
        return f"{where} is missing"
    expected = error["msg"].removeprefix("Input should be ").partition(",")[0]
    expected = {"tuple_type": "a list", "dataclass_type": "a group of settings"}.get(error["type"], expected)
    return f"{where} = {value!r}: it takes {expected}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


NOT_HASHED = ("device", "decode", "endpoint", "max_failed_share", "cache_encoder_tokens", "audio")
"""Settings that change how a stage runs but not its outputs: left out of the hashes. `audio` is part of the hash of each
shard that it changes (`ShardClip.audio`): a run without sound is the same with and without it."""
HASHED_ALWAYS = ("on_damage",)
"""Settings of a group of `NOT_HASHED` that change outputs all the same."""
DECODED_BY_BACKEND = ("caption", "shard")
"""Stages whose frames come from `prepare.decode.backend`, which rounds colours in its own way; those of `prepare` do not."""
HASHED_SEPARATELY = ("duplicates", "repeats", "text", "plugins")
"""Settings of RUN/duplicates/, RUN/captions/*/repeated.parquet, RUN/text/ and RUN/scores/, which store hashes of their own;
no clip, caption or latent depends on them."""


def stage_hashes(recipe: Recipe) -> dict[str, str]:
    """Hash of the settings that each stage's outputs depend on; filter thresholds are in none of them."""
    tree = to_dict(recipe)
    hashed = {stage: _hashed_settings(tree[stage]) for stage in ("prepare", "caption", "shard", "encode")}
    for stage in DECODED_BY_BACKEND:
        hashed[stage]["decode_backend"] = recipe.prepare.decode.backend
    return {stage: recipe_hash(settings) for stage, settings in hashed.items()}


def _hashed_settings(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    hashed = {k: _hashed_settings(v) for k, v in value.items() if k not in NOT_HASHED + HASHED_SEPARATELY}
    groups = [v for k, v in value.items() if k in NOT_HASHED and isinstance(v, dict)]
    return hashed | {k: v for group in groups for k, v in group.items() if k in HASHED_ALWAYS}


def grid_of(recipe: Recipe) -> Grid:
    """The token grid of the recipe's compressor strides and patch size."""
    return Grid(
        frame_stride=recipe.encode.frame_stride,
        spatial_stride=recipe.encode.spatial_stride,
        patch=recipe.train_dit.dit.patch,
    )
