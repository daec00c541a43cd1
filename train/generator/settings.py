"""Settings of the training of the generator."""

from __future__ import annotations

from dataclasses import dataclass, field

from recaption.captions.mixture import CaptionMixtureSettings, parse_mixture_weights
from recaption.errors import UsageError
from train.diffusion.frame_conditioning import parse_conditions
from train.diffusion.loss import norm_power
from train.diffusion.process import PathSettings


@dataclass(frozen=True, kw_only=True)
class DitSettings:
    """The transformer and what it learns. `train.backbones.dit.SIZES` has the sizes of the literature."""

    start: str = ""
    """Checkpoint of the same transformer to go on from, a step folder or RUN/train/NAME: one trained on images, say, which
    gives the same images at the start. Empty: from nothing."""
    backbone: str = "dit"
    width: int = 192
    depth: int = 6
    num_heads: int = 6
    absolute_positions: bool = False
    """Tell each token where it is on the grid, besides distances (RoPE): small models learn shapes sooner. A start
    without them gains them as zeros."""
    attention_backend: str = "auto"
    """`auto`, `loop`, `varlen` or `flex`; auto is the fastest that runs on the device."""
    num_registers: int = 0
    """Learned tokens that go with every clip through the blocks; beside the plan's capacity, 0 to 8 are usual."""
    patch: tuple[int, int, int] = (1, 1, 1)
    """Latent (frames, rows, columns) per token."""
    text_encoder: str = "captioner:tiny"
    """`captioner:SPEC`, `t5:ID`, `clip:MODEL/TAG`, or several joined by +."""
    caption_dropout: float = 0.1
    """Share of clips trained with the null caption, which guidance needs."""
    conditions: tuple[str, ...] = ()
    """KIND=SHARE: how often which frames of a clip are given clean, for prompts with images and videos: none, first, head,
    tail, ends, keyframes, random (diffusion/frame_conditioning.py). Empty: never, and only text and edits can be sampled."""
    blend: CaptionMixtureSettings = field(default_factory=CaptionMixtureSettings)
    """Which of its texts a clip is trained with, drawn anew each epoch."""
    loss_norm: str = "sample"
    """`sample`: every clip counts the same; `token`: every token does; `tokens^0.5`: between the two."""
    path: PathSettings = field(default_factory=PathSettings)
    """Which noise levels are trained and sampled, and what is predicted there."""
    validation_rows: int = 2
    """Rows of the first epoch on which the loss is measured with fixed noise."""
    sample_prompts: tuple[str, ...] = ()
    """Sampled at each validation, for TensorBoard."""

    def check(self) -> None:
        """Raises UsageError where a setting makes no sense."""
        parse_mixture_weights(self.blend.weights)
        parse_conditions(self.conditions)
        if not 0 <= self.caption_dropout <= 1:
            raise UsageError(f"caption_dropout = {self.caption_dropout} must be a share from 0 to 1")
        if self.validation_rows < 0:
            raise UsageError(f"validation_rows = {self.validation_rows} is negative")
        norm_power(self.loss_norm)
        self.path.check()
