"""Settings of the training of the generator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from packing.loader.holdout import held_out_videos
from recaption.captions.mixture import CaptionMixtureSettings, parse_mixture_weights
from recaption.errors import UsageError
from train.backbones.diffit import DiffitSettings
from train.backbones.diffit_pixels import DiffitPixelsSettings
from train.backbones.mdt import MdtSettings
from train.backbones.separable import SeparableSettings
from train.backbones.temporal import TemporalSettings
from train.backbones.uvit import UvitSettings
from train.diffusion.frame_conditioning import parse_conditions
from train.diffusion.loss import norm_power
from train.diffusion.process import DiffusionSettings

SETTINGS_OF_BACKBONES = {
    "temporal": ("temporal", "temporal-unet"),
    "mdt": ("mdt",),
    "separable": ("separable",),
    "diffit": ("diffit",),
    "diffit_pixels": ("diffit_pixels",),
    "uvit": ("uvit",),
}
"""Field of `DitSettings` -> the backbones whose own settings it holds."""


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """Progressive distillation: the teacher is `init_from`, and the student starts as it."""

    stage: str = ""
    """`guidance`: one call for both of classifier-free guidance, at any scale of `guidance`; then `halve`: one step for two
    of the teacher, to `num_steps`. Empty: no distillation."""
    num_steps: int = 8
    """Sampling steps of the student of `halve`; its teacher takes twice as many."""
    guidance: tuple[float, float] = (1.0, 6.0)
    """Lowest and highest guidance scale that the student learns."""

    def check(self, *, init_from: str, prediction: str) -> None:
        """Raises UsageError where a setting is invalid.

        Args:
            prediction: type of the model's prediction.
        """
        if not self.stage:
            return
        if self.stage not in ("guidance", "halve"):
            raise UsageError(f"unknown distill stage {self.stage!r}: choose guidance or halve")
        if not init_from:
            raise UsageError("distillation starts from its teacher: name its checkpoint with --init-from")
        if self.num_steps < 1:
            raise UsageError(f"distill num_steps = {self.num_steps} must be at least 1")
        low, high = self.guidance
        if not 1 <= low <= high:
            raise UsageError(f"distill guidance {low} to {high}: pass two scales with 1 <= low <= high")
        if prediction == "epsilon":
            raise UsageError(
                "a model that predicts epsilon cannot take large steps (at pure noise it says nothing of the sample): "
                "distil one with prediction v, x0 or velocity"
            )


@dataclass(frozen=True, kw_only=True)
class DitSettings:
    """Model, text encoder and objective of `recaption train dit`; `SIZES` of a backbone's module has the usual sizes."""

    init_from: str = ""
    """Checkpoint of the same transformer to initialise from, a step folder or RUN/train/NAME: one trained on images, say,
    which gives the same images at first. With temporal layers the image model to freeze; `diffusers:ID#unet` for a U-Net.
    Empty: from scratch."""
    backbone: str = "dit"
    """Architecture of the transformer, one of docs/backbones.md. `temporal`: a frozen `dit` that was trained on images, with
    temporal layers; `temporal-unet`: a frozen U-Net of diffusers with them; both over the image model of `init_from`."""
    temporal: TemporalSettings = field(default_factory=TemporalSettings)
    mdt: MdtSettings = field(default_factory=MdtSettings)
    uvit: UvitSettings = field(default_factory=UvitSettings)
    separable: SeparableSettings = field(default_factory=SeparableSettings)
    diffit: DiffitSettings = field(default_factory=DiffitSettings)
    diffit_pixels: DiffitPixelsSettings = field(default_factory=DiffitPixelsSettings)
    width: int = 192
    """Channels per token."""
    depth: int = 6
    """Transformer blocks."""
    num_heads: int = 6
    """Attention heads of a block."""
    absolute_positions: bool = False
    """Add a sine-cosine position embedding to RoPE: small models learn shapes sooner. With `init_from` a model without, its
    weights start at zero."""
    attention_backend: str = "auto"
    """`auto`, `loop`, `varlen` or `flex`; auto is the fastest that runs on the device."""
    num_registers: int = 0
    """Learned register tokens per clip; not counted in the plan's capacity; 0 to 8 are usual."""
    patch: tuple[int, int, int] = (1, 1, 1)
    """Latent (frames, rows, columns) per token."""
    text_encoder: str = "captioner:tiny"
    """`captioner:SPEC`, `t5:ID`, `clip:MODEL/TAG`, or several joined by +."""
    caption_dropout: float = 0.1
    """Fraction of clips trained with the null caption, for classifier-free guidance."""
    distill: DistillSettings = field(default_factory=DistillSettings)
    stage: str = ""
    """Super-resolution stage of a cascade in pixel space: `ssr` (spatial) or `tsr` (temporal), trained on pairs made from
    the clips themselves; sampled after its base by `recaption sample --checkpoint BASE STAGE...`. Empty: a base."""
    stage_ratio: int = 2
    """Pixels per low-resolution pixel along each axis, or frames per low-resolution frame, of the stage."""
    max_hint_level: float = 1.0
    """Noise conditioning augmentation: the low-resolution clip is noised at a level up to this, from 0 to 1."""
    conditions: tuple[str, ...] = ()
    """KIND=FRACTION of clips that are trained with conditioning frames, for prompts with images and videos: none, first,
    prefix, suffix, both_ends, keyframes, random (diffusion/frame_conditioning.py). Empty: text and edit prompts only."""
    blend: CaptionMixtureSettings = field(default_factory=CaptionMixtureSettings)
    """Mixture of captions: the kind of caption a clip is trained with, sampled every epoch."""
    loss_norm: str = "sample"
    """`sample`: every clip counts the same; `token`: every token does; `tokens^0.5`: between the two."""
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)
    """Noise schedule, prediction type, timestep distribution and loss weighting."""
    holdout_share: float = 0.02
    """Share of the videos that are never trained on, by the hash of their ids; the validation loss is computed on them. A
    set of fewer than 1 / share videos is trained on whole, and validated on packs of the training; 0 = every set."""
    validation_packs: int = 2
    """Packs on which the validation losses are computed, with fixed noise: of held-out videos, and of the training."""
    sample_prompts: tuple[str, ...] = ()
    """Sampled at each validation, for TensorBoard."""

    def check(self) -> None:
        """Raises UsageError where a setting is invalid."""
        parse_mixture_weights(self.blend.weights)
        parse_conditions(self.conditions)
        if not 0 <= self.caption_dropout <= 1:
            raise UsageError(f"caption_dropout = {self.caption_dropout} must be a fraction from 0 to 1")
        if self.validation_packs < 0:
            raise UsageError(f"validation_packs = {self.validation_packs} is negative")
        held_out_videos((), self.holdout_share)
        norm_power(self.loss_norm)
        self.diffusion.check()
        if self.stage not in ("", "ssr", "tsr"):
            raise UsageError(f"unknown stage {self.stage!r}: choose ssr or tsr, or leave it out for a base")
        if self.stage and self.distill.stage:
            raise UsageError("a super-resolution stage cannot be distilled yet: distil the base")
        if not 2 <= self.stage_ratio <= 8 or not 0 <= self.max_hint_level <= 1:
            raise UsageError(f"{self.stage_ratio = } must be from 2 to 8 and {self.max_hint_level = } from 0 to 1")
        self.distill.check(init_from=self.init_from, prediction=self.diffusion.prediction)
        backbone_settings(self)


def backbone_settings(settings: DitSettings) -> dict[str, Any]:
    """The chosen backbone's own settings: what its settings say of the model (`of_model`), for `build`.

    Raises:
        UsageError: settings of a backbone that is not chosen.
    """
    found: dict[str, Any] = {}
    for name, backbones in SETTINGS_OF_BACKBONES.items():
        own = getattr(settings, name)
        if settings.backbone in backbones:
            own.check()
            found |= getattr(own, "of_model", None) or dataclasses.asdict(own)
        elif own != type(own)():
            raise UsageError(
                f"settings of {name} have no effect with backbone {settings.backbone!r}: leave them out, or choose "
                f"{' or '.join(backbones)}"
            )
    return found
