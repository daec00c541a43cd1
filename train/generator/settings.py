"""Settings of the training of the generator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from packing.loader.holdout import held_out_videos
from recaption.captions.mixture import CaptionMixtureSettings, parse_mixture_weights
from recaption.errors import UsageError
from train.backbones.uvit import UvitSettings
from train.diffusion.frame_conditioning import parse_conditions
from train.diffusion.loss import norm_power
from train.diffusion.process import DiffusionSettings

OWN_SETTINGS = ("uvit",)
"""Backbones with settings of their own: fields of `DitSettings`."""


@dataclass(frozen=True, kw_only=True)
class DitSettings:
    """Model, text encoder and objective of `recaption train dit`; `SIZES` of a backbone's module has the usual sizes."""

    init_from: str = ""
    """Checkpoint of the same transformer to initialise from, a step folder or RUN/train/NAME: one trained on images, say,
    which gives the same images at first. Empty: from scratch."""
    backbone: str = "dit"
    """Architecture of the transformer, one of docs/backbones.md."""
    uvit: UvitSettings = field(default_factory=UvitSettings)
    """Of backbone `uvit`."""
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
        self.backbone_settings()
        held_out_videos((), self.holdout_share)
        norm_power(self.loss_norm)
        self.diffusion.check()

    def backbone_settings(self) -> dict[str, Any]:
        """Settings of the chosen backbone alone, by name.

        Raises:
            UsageError: one is invalid, or settings of a backbone that is not chosen are set.
        """
        own: dict[str, Any] = {}
        for name in OWN_SETTINGS:
            settings = getattr(self, name)
            if name == self.backbone:
                settings.check()
                own = dataclasses.asdict(settings)
            elif settings != type(settings)():
                raise UsageError(
                    f"settings of backbone {name!r} have no effect with backbone {self.backbone!r}: {settings}"
                )
        return own
