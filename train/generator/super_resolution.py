"""Training of a super-resolution stage: pairs of a clip and its low-resolution version, made from the clip itself.

    recaption train dit --run RUN --name ssr --stage ssr --encode.compressor pixels

The hint (train/sampling/cascade.py) is noised at a level that is drawn for each sample and given to the model as a scalar.

Shape suffixes: L tokens of a pack, S samples of a pack, D numbers per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from packing.grid import Shape3
from packing.loader.batch import patchify, unpatchify
from recaption.errors import UsageError
from train.compressors.interface import Compressor
from train.diffusion.noise_augmentation import LEVEL, augmented, level_of_snr
from train.diffusion.rng import seeded_generator
from train.generator.batch import BatchDraws, DitBatch
from train.generator.objective import DiffusionObjective
from train.generator.settings import DitSettings
from train.sampling.stage import DEFAULT_SNR, Stage


def stage_of(settings: DitSettings, compressor: Compressor, latent_shapes: Sequence[Shape3]) -> Stage | None:
    """The stage that is trained; None for a base.

    Raises:
        UsageError: latents that are no pixels, or that the ratio does not divide.
    """
    if not settings.stage:
        return None
    if getattr(compressor, "value_range", None) is None:
        raise UsageError(
            f"stage {settings.stage} enlarges pixels, and {compressor.name} encodes latents: encode with compressor pixels"
        )
    stage = Stage(kind=settings.stage, ratio=settings.stage_ratio)
    for shape in sorted(set(latent_shapes)):
        stage.check_shape(shape)
    return stage


class SuperResolution(DiffusionObjective):
    """Diffusion loss with the noised low-resolution clip as a hint."""

    def __init__(self, settings: DitSettings, stage: Stage) -> None:
        super().__init__(settings)
        self.stage = stage

    def draws(self, batch: DitBatch, *, seed: int) -> BatchDraws:
        draws = super().draws(batch, seed=seed)
        key = (seed, batch.epoch)
        levels = [
            float(torch.rand((), generator=seeded_generator(*key, "level", clip_id))) for clip_id in batch.clip_ids
        ]
        level_S = self.settings.max_hint_level * torch.tensor(levels)
        return dataclasses.replace(draws, hint_LD=self._hint(batch, level_S, key), scalars={LEVEL: level_S})

    def validation_inputs(self, batch: DitBatch) -> dict[str, Any]:
        """The hint at the level that sampling has."""
        level = level_of_snr(DEFAULT_SNR, self.settings.diffusion)
        level_S = torch.full((len(batch.segments),), level, device=batch.tokens_LD.device)
        return {"hint_LD": self._hint(batch, level_S, ("validation",)), "scalars": {LEVEL: level_S}}

    def _hint(self, batch: DitBatch, level_S: Tensor, key: tuple[str | int, ...]) -> Tensor:
        """The noised hints of all samples, where the batch lies; the noise is that of (key, clip id)."""
        patch = self.settings.patch
        parts = batch.tokens_LD.split(list(batch.segments.lengths))
        hints, noise = [], []
        for tokens_LD, shape, clip_id in zip(parts, batch.token_shapes, batch.clip_ids, strict=True):
            low = self.stage.hint(unpatchify(tokens_LD.float(), shape, patch))
            hints.append(patchify(low.contiguous(), patch))
            noise.append(torch.randn(tokens_LD.shape, generator=seeded_generator(*key, "hint", clip_id)))
        noise_LD = torch.cat(noise).to(batch.tokens_LD.device)
        return augmented(torch.cat(hints), noise_LD, level_S, batch.segments, self.settings.diffusion)
