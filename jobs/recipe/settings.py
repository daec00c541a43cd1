"""Every setting of every stage, as one tree of frozen dataclasses: `Recipe`.

    recipe.shard.buckets.num_frames               # (9, 17)
    stage_hashes(recipe)["caption"]               # changes with the prompt, not with a filter threshold
    from_dict(to_dict(recipe)) == recipe          # as run.yaml holds it

Flags are these fields: `--shard.buckets.fps 12`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import tyro

from packing.buckets import BucketTable
from packing.grid import Grid
from packing.plan.settings import PlanSettings
from recaption.captions.repeated import RepeatedCaptionSettings
from recaption.chat_endpoint import EndpointSettings
from recaption.dedup.near_duplicates import DuplicateSettings
from recaption.errors import UsageError
from recaption.quality.filters import FilterThresholds
from recaption.quality.scores import ScoreSettings
from recaption.run_folder import recipe_hash
from recaption.shots.settings import ShotSettings
from recaption.video_io.frames import DecodeLimits
from train.captioner.task import CaptionerSettings
from train.compressors.settings import CompressorSettings
from train.engine.settings import TrainerSettings
from train.evaluation.metrics import EvaluationSettings
from train.generator.settings import DitSettings

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """Raw videos -> clips with scores."""

    part_size: int = 16
    """Inputs per part: one part is one commit, and what a kill can cost."""
    min_clip_seconds: float = 1.0
    """Shots are cut so that no piece is shorter, unless the shot itself is."""
    max_clip_seconds: float = 10.0
    preview_px: int = 240
    """Short side of the picture kept per clip for the report."""
    max_failed_share: float = 1.0
    """Stop with an error where a larger share of the inputs failed; 1 never stops."""
    shots: ShotSettings = field(default_factory=ShotSettings)
    scores: ScoreSettings = field(default_factory=ScoreSettings)
    decode: DecodeLimits = field(default_factory=DecodeLimits)
    duplicates: DuplicateSettings = field(default_factory=DuplicateSettings)


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Clips -> captions."""

    captioner: str = "tiny"
    """SPEC: `tiny`, `open_clip:MODEL/PRETRAINED`, `git:`, `vlm:`, `frozenbilm:`, `mplug2:` with an id or folder,
    `http://HOST/v1#MODEL`, or the folder of a captioner trained here."""
    scorer: str = ""
    """SPEC of a second captioner (`tiny`, `open_clip:...`) for clip scores, where the first has no contrastive space."""
    prompt: str = ""
    """What a captioner that is asked in words (`vlm:`, `http:`) is asked; empty: its own question. Others that take one
    go on from it."""
    num_frames: int = 0
    """How many frames such a captioner is shown; 0: its own number."""
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)
    max_tokens: int = 76
    num_beams: int = 0
    """Of beam search; 1: greedy; 0: what the captioner itself was found best with (3 for `tiny`, 1 for others)."""
    num_samples: int = 1
    """Above 1, this many captions are drawn per clip, from one look at its frames, and the best by clip score is kept."""
    batch_size: int = 16
    seed: int = 0
    snap_seconds: float = 0.0
    """Look at a keyframe this close instead of the evenly spaced frame: cheaper to read, where keyframes are dense."""
    kinds: tuple[str, ...] = ("descriptive",)
    """Kinds of caption per clip, from one look at its frames: descriptive (which shards hold), short, main_object, action,
    surroundings, background, text, style, colour; as far as the captioner was trained on them."""
    window_seconds: float = 0.0
    """Clips longer than this also get captions of consecutive windows, none of them longer; 0: of the whole clip only."""
    min_clip_score: float | None = None
    """Captions that match their own frames less than this are bad. Differs from captioner to captioner: default is what the
    captioner itself was calibrated to, none where it was not."""
    min_score_margin: float | None = None
    """Captions that match their own frames no better, by this much, than captions of other clips of the batch do are bad."""
    text_encoder: str = ""
    """Text encoder of the training (`captioner:SPEC`, `t5:ID`, `clip:MODEL/TAG`, or several joined by +): captions longer
    than it reads are bad. "": not asked."""
    max_text_tokens: int = 0
    """Limit in that encoder's tokens; 0: as many as it reads."""
    repeats: RepeatedCaptionSettings = field(default_factory=RepeatedCaptionSettings)
    precision: str = "auto"
    """`fp32`, `bf16` or `int8` (CPUs only); auto: bf16 on a GPU, fp32 on a CPU, where the others pay for small batches."""
    keep_embeddings: bool = False
    """Keep what the captioner saw of each clip (261 kB with CoCa ViT-B/32): captions made later by the same weights, with
    other settings, read no video. The one vector per clip that finds clips alike is kept anyway."""
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """Captioned clips -> WebDataset shards."""

    buckets: BucketTable = field(default_factory=BucketTable)


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Texts of the shards -> encoded texts, which training then reads."""

    encoder: str = ""
    """Text encoder whose tokens are stored: `captioner:SPEC`, `t5:ID`, `clip:MODEL/TAG`, or several joined by +; "": none,
    training encodes as it goes."""
    dtype: str = "float16"
    """`float16` or `bfloat16`."""
    max_gigabytes: float = 100.0
    """Refused before it starts where the texts would take more than this."""


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """Shards -> latents."""

    compressor: str = "patch"
    """SPEC: `patch`, the folder of a compressor trained here, or `diffusers:ID[#subfolder]`."""
    frame_stride: int = 4
    """Frames per latent frame after the first; with `spatial_stride` what sharding needs to count tokens before any
    compressor is loaded. `encode` refuses a compressor with other strides."""
    spatial_stride: int = 8
    """Pixels per latent position."""
    dtype: str = "float16"
    """How latents are stored: `float16`, `bfloat16`, or `int8` with a step and a middle for each channel of each sample,
    half the bytes."""
    text: TextSettings = field(default_factory=TextSettings)
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Checkpoint + prompt -> video."""

    num_steps: int = 30
    solver: str = "auto"
    """euler, heun or dpmpp_2m for models of schedule flow; dpmpp_2m, ddim or ancestral for the others; auto: the first."""
    guidance: float = 4.0
    """1 = none, higher = closer to the prompt and less varied."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest time that is guided, of 0 (clean) to 1 (noise)."""
    guidance_rescale: float = 0.0
    """Share by which a guided answer is brought back to the spread of an unguided one; try 0.7 at high guidance."""
    guidance_power: float = 0.0
    """Let guidance rise from 1 at noise by the power-cosine schedule of this power (4 in MDT); 0 = it is constant."""
    num_frames: int = 0
    """4k+1; 0, here and in the two below: the size that most samples were trained at. Longer than trained is made in
    windows."""
    height_px: int = 0
    width_px: int = 0
    seed: int = 0
    window_frames: int = 0
    """Longest piece of a video that is made at once; 0: the longest video of the training."""
    overlap_frames: int = 0
    """Frames that a piece shares with the one before; 0: about a third of it."""
    conditioning_pixels: str = "decoded"
    """`decoded`: given frames look as the compressor shows them, like those made beside them; `original`: as they came."""
    prompts: tuple[str, ...] = ()
    """What `recaption run` samples at its end."""
    expander: str = "embedded"
    """What rewrites short prompts in the style of the training captions: none, embedded (no download), transformers:ID or
    http://HOST/v1#MODEL."""
    examples: str = ""
    """Run folder whose captions set that style; default: that of the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TrainCaptioner:
    """Settings of `recaption train captioner`."""

    captions: tuple[str, ...] = ()
    """Caption sets of the run folder to learn from, SET or SET=KIND each, `original` for the texts that came with the
    videos; none: rendered scenes."""
    captioner: CaptionerSettings = field(default_factory=CaptionerSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)


@dataclass(frozen=True, kw_only=True)
class TrainCompressor:
    """Settings of `recaption train compressor`."""

    compressor: CompressorSettings = field(default_factory=CompressorSettings)
    trainer: TrainerSettings = field(default_factory=lambda: TrainerSettings(lr=2e-3, ema_decay=0.99))
    """The average is short: a compressor is better within minutes, and its latents' statistics have to keep up."""


@dataclass(frozen=True, kw_only=True)
class TrainDit:
    """Settings of `recaption train dit`."""

    dit: DitSettings = field(default_factory=DitSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The whole chain, stage by stage in the order of the river."""

    name: tyro.conf.Suppress[str]
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    filters: FilterThresholds = field(default_factory=FilterThresholds)
    """Verdicts are queries over stored scores: changing these re-computes no stage."""
    caption: CaptionSettings = field(default_factory=CaptionSettings)
    shard: ShardSettings = field(default_factory=ShardSettings)
    encode: EncodeSettings = field(default_factory=EncodeSettings)
    plan: PlanSettings = field(default_factory=lambda: PlanSettings(capacity=4096))
    train_captioner: TrainCaptioner = field(default_factory=TrainCaptioner)
    train_compressor: TrainCompressor = field(default_factory=TrainCompressor)
    train_dit: TrainDit = field(default_factory=TrainDit)
    sample: SampleSettings = field(default_factory=SampleSettings)


# --- as plain values, and their hashes ---------------------------------------------------------------------------------


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain dicts, lists and numbers, as run.yaml holds them."""
    return _plain(dataclasses.asdict(recipe))


def from_dict(tree: dict[str, Any]) -> Recipe:
    return _build(Recipe, tree, "recipe")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


def _build(cls: type[T], tree: dict[str, Any], where: str) -> T:
    """A settings dataclass from plain values; an unknown key is an error, a missing one takes its default."""
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(tree) - names)
    if unknown:
        raise UsageError(f"{where}: unknown setting {unknown[0]!r} (known: {', '.join(sorted(names))})")
    return cls(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in tree.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(typing.cast(type, hint), value, where)
    if isinstance(hint, types.UnionType) and value is not None:
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is tuple and value is not None:
        return tuple(tuple(v) if isinstance(v, list) else v for v in value)
    if hint is float and isinstance(value, int):
        return float(value)
    return value


PARALLELISM_ONLY = ("device", "decode", "endpoint", "max_failed_share", "keep_embeddings")
"""Settings that change how a stage runs, not what it makes: left out of the hashes."""


HASHED_BY_THEMSELVES = ("duplicates", "repeats", "text")
"""What RUN/duplicates/, RUN/captions/*/repeated.parquet and RUN/text/ are made with: these carry a hash of their own, and no
clip, caption or latent depends on them."""


def stage_hashes(recipe: Recipe) -> dict[str, str]:
    """Hash of the settings that made each stage's outputs. Filter thresholds are in none of them."""
    tree = to_dict(recipe)
    return {
        stage: recipe_hash(_without_parallelism(tree[stage])) for stage in ("prepare", "caption", "shard", "encode")
    }


def _without_parallelism(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: _without_parallelism(v) for k, v in value.items() if k not in PARALLELISM_ONLY + HASHED_BY_THEMSELVES}


def grid_of(recipe: Recipe) -> Grid:
    """The token grid that the recipe's compressor and patch give."""
    return Grid(
        frame_stride=recipe.encode.frame_stride,
        spatial_stride=recipe.encode.spatial_stride,
        patch=recipe.train_dit.dit.patch,
    )
