"""Training objective of the generator: noised tokens, conditioning tokens passed in clean, diffusion loss.

    draws = sample_draws(batch, settings, seed=0)                # on the CPU, before the batch is moved
    noised = add_noise(batch.tokens_LD, draws.noise, batch.segments, settings.diffusion)
    loss_sum, weight = objective(
        model, batch, noised, draws.noise.timestep_S, draws.text, settings, draws.condition_mask_L
    )

Shape suffixes: L tokens of a pack, S samples of a pack.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from train.diffusion.frame_conditioning import parse_conditions, sample_condition_mask
from train.diffusion.loss import diffusion_loss
from train.diffusion.process import NoisedTokens, TimestepsAndNoise, sample_timesteps_and_noise
from train.diffusion.rng import seeded_bernoulli
from train.generator.batch import BatchDraws, DitBatch
from train.generator.settings import DitSettings
from train.layers.text_condition import TextSelection


def sample_draws(batch: DitBatch, settings: DitSettings, *, seed: int) -> BatchDraws:
    """Noise, conditioning tokens and dropped captions of a training step, all from (seed, epoch, clip id)."""
    key = (seed, batch.epoch)
    # the words "caption dropout" seed the random numbers: other words would drop other captions
    drop_text_S = [
        seeded_bernoulli(settings.caption_dropout, *key, "caption dropout", clip_id) for clip_id in batch.clip_ids
    ]
    return BatchDraws(
        noise=timesteps_and_noise(batch, settings, key=key),
        condition_mask_L=condition_mask(batch, settings, key=key),
        text=TextSelection.of(drop_text_S, batch.text.segments),
    )


def timesteps_and_noise(batch: DitBatch, settings: DitSettings, *, key: Sequence[str | int]) -> TimestepsAndNoise:
    """Timesteps and noise of a batch.

    Args:
        key: seeds the random numbers together with the clip ids, for example (seed, epoch).
    """
    return sample_timesteps_and_noise(
        batch.clip_ids,
        batch.segments,
        batch.tokens_LD.shape[1],
        settings.diffusion,
        key=key,
        token_shapes=batch.token_shapes,
    )


def condition_mask(batch: DitBatch, settings: DitSettings, *, key: Sequence[str | int]) -> Tensor | None:
    """bool (L): the conditioning tokens of a batch; None without frame conditioning.

    Args:
        key: as of `timesteps_and_noise`.
    """
    weights = parse_conditions(settings.conditions)
    spans = [(first, first + shape[0]) for first, shape in zip(batch.first_frames, batch.token_shapes, strict=True)]
    return sample_condition_mask(weights, batch.clip_ids, batch.segments, batch.position_L3, spans, key=key)


def objective(
    model: nn.Module,
    batch: DitBatch,
    noised: NoisedTokens,
    timestep_S: Tensor,
    drop_text_S: Sequence[bool] | TextSelection,
    settings: DitSettings,
    condition_mask_L: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss sum and weight of `diffusion_loss`; conditioning tokens enter clean and are excluded from the loss."""
    x_LD = noised.x_LD
    if condition_mask_L is not None:
        x_LD = torch.where(condition_mask_L[:, None], batch.tokens_LD, x_LD)
    prediction_LD = model(
        x_LD,
        batch.position_L3,
        batch.segments,
        timestep_S,
        batch.text.text_MC,
        batch.text.segments,
        batch.text.pooled_SC,
        drop_text_S=drop_text_S,
        condition_mask_L=condition_mask_L,
    )
    return diffusion_loss(
        prediction_LD,
        noised.target_LD,
        batch.segments,
        norm=settings.loss_norm,
        weight_S=noised.weight_S,
        loss_mask_L=None if condition_mask_L is None else ~condition_mask_L,
    )
