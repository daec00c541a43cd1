"""Training objective of the generator: noised tokens, conditioning tokens passed in clean, diffusion loss.

    objective = DiffusionObjective(settings)
    draws = objective.draws(batch, seed=0)                       # on the CPU, before the batch is moved
    loss_sum, weight = objective.loss(model, batch, draws)

Shape suffixes: L tokens of a pack, S samples of a pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from train.diffusion.frame_conditioning import parse_conditions, sample_condition_mask
from train.diffusion.loss import diffusion_loss
from train.diffusion.process import NoisedTokens, TimestepsAndNoise, add_noise, sample_timesteps_and_noise
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
        dropped_S=tuple(drop_text_S),
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


class Objective(Protocol):
    """What a training of the generator draws for a batch, and the loss it takes: one for each way of training."""

    def draws(self, batch: DitBatch, *, seed: int) -> BatchDraws:
        """All random numbers of a training step, from (seed, epoch, clip id); on the CPU, before the batch is moved."""

    def loss(self, model: nn.Module, batch: DitBatch, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        """Sum of the losses and its weight, as of `diffusion_loss`."""

    def flops(self, model: nn.Module, batch: DitBatch) -> float:
        """Forward and backward FLOPs of all model calls of `loss`."""

    def activation_bytes(
        self, model: nn.Module, num_tokens: Sequence[int], num_text_tokens: Sequence[int], **how: Any
    ) -> int:
        """Saved for the backward of all model calls of `loss`; arguments as of `Backbone.activation_bytes`."""

    def frozen_networks(self) -> Sequence[nn.Module]:
        """Networks that `loss` needs besides the model, a teacher for example: the engine places them on the device."""


class DiffusionObjective:
    """Diffusion loss of one model call at one noise level per sample."""

    def __init__(self, settings: DitSettings) -> None:
        self.settings = settings

    def draws(self, batch: DitBatch, *, seed: int) -> BatchDraws:
        return sample_draws(batch, self.settings, seed=seed)

    def loss(self, model: nn.Module, batch: DitBatch, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        further = {"scalars": draws.scalars, "hint_LD": draws.hint_LD}
        return self._loss(model, batch, draws.noise, draws.text, draws.condition_mask_L, further)

    def loss_at(
        self,
        model: nn.Module,
        batch: DitBatch,
        noise: TimestepsAndNoise,
        drop_text_S: Sequence[bool] | TextSelection | None,
        condition_mask_L: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss of a validation at this noise."""
        return self._loss(model, batch, noise, drop_text_S, condition_mask_L, self.validation_inputs(batch))

    def _loss(
        self,
        model: nn.Module,
        batch: DitBatch,
        noise: TimestepsAndNoise,
        drop_text_S: Sequence[bool] | TextSelection | None,
        condition_mask_L: Tensor | None,
        further_inputs: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Conditioning tokens enter clean and are excluded from the loss."""
        noised = add_noise(batch.tokens_LD, noise, batch.segments, self.settings.diffusion)
        inputs = batch.inputs(noised.x_LD, noise.timestep_S, drop_text_S, condition_mask_L, **further_inputs)
        return self.diffusion_loss(model(inputs), noised, batch, condition_mask_L)

    def diffusion_loss(
        self, prediction_LD: Tensor, noised: NoisedTokens, batch: DitBatch, condition_mask_L: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`diffusion_loss` with these settings; conditioning tokens are excluded from it."""
        return diffusion_loss(
            prediction_LD,
            noised.target_LD,
            batch.segments,
            norm=self.settings.loss_norm,
            weight_S=noised.weight_S,
            loss_mask_L=None if condition_mask_L is None else ~condition_mask_L,
        )

    def validation_inputs(self, batch: DitBatch) -> dict[str, Any]:
        """Further arguments of `DitBatch.inputs` at which the loss of a validation is taken."""
        return {}

    def flops(self, model: nn.Module, batch: DitBatch) -> float:
        lengths, text_lengths = batch.segments.lengths, batch.text.segments.lengths
        flops: float = model.flops(lengths, text_lengths, batch.token_shapes)  # type: ignore[operator]
        return flops

    def activation_bytes(
        self, model: nn.Module, num_tokens: Sequence[int], num_text_tokens: Sequence[int], **how: Any
    ) -> int:
        saved: int = model.activation_bytes(num_tokens, num_text_tokens, **how)  # type: ignore[operator]
        return saved

    def frozen_networks(self) -> Sequence[nn.Module]:
        return ()
