"""Objective of MDT: the diffusion loss of a whole pass, plus that of a pass whose encoder sees some of the tokens only.

    objective = MaskedDiffusionObjective(DiffusionObjective(settings))
    draws = objective.draws(batch, seed=0)                       # draws.masked: noise and masked tokens of the second pass
    loss_sum, weight = objective.loss(model, batch, draws)       # of both passes, over the weight of one

Both passes have the same noise levels and all tokens in their loss; noise and mask are drawn for each. They are one model
call with every sample twice, so that each layer still runs once. Formula after arXiv 2303.14389v2.

Shape suffixes: L tokens of a pack, S samples of a pack.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from train.diffusion.process import TimestepsAndNoise, add_noise
from train.diffusion.rng import seeded_generator
from train.generator.batch import BatchDraws, DitBatch, MaskedPass
from train.generator.objective import DiffusionObjective, timesteps_and_noise
from train.layers.segments import Segments
from train.layers.text_condition import TextSelection
from train.layers.token_mask import TokenMask


class MaskedDiffusionObjective(DiffusionObjective):
    """Loss of a whole and of a masked pass. Conditioning tokens are never masked; token dropping comes before."""

    def __init__(self, unmasked: DiffusionObjective) -> None:
        """
        Args:
            unmasked: objective of the whole pass; what it gives the model besides, a hint for example, both passes get.
        """
        super().__init__(unmasked.settings)
        self.unmasked = unmasked

    def validation_inputs(self, batch: DitBatch) -> dict[str, Any]:
        return self.unmasked.validation_inputs(batch)

    def draws(self, batch: DitBatch, *, seed: int) -> BatchDraws:
        draws = self.unmasked.draws(batch, seed=seed)
        key = (seed, batch.epoch)
        smallest, largest = self.settings.mdt.mask_ratio
        is_masked_L = sample_mask(
            batch.clip_ids, batch.segments, smallest, largest, key=key, excluded_L=draws.condition_mask_L
        )
        second = timesteps_and_noise(batch, self.settings, key=(*key, "masked pass"))
        both = Segments.from_lengths(batch.segments.lengths * 2)
        masked = MaskedPass(
            noise=TimestepsAndNoise(draws.noise.timestep_S, second.noise_LD),
            mask=TokenMask.of(torch.cat([torch.zeros_like(is_masked_L), is_masked_L]), both),
            text=TextSelection.of(draws.dropped_S * 2, batch.text.segments.repeated(2)),
        )
        return dataclasses.replace(draws, masked=masked)

    def loss(self, model: nn.Module, batch: DitBatch, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        masked, mask_L = draws.masked, draws.condition_mask_L
        assert masked is not None
        settings = self.settings
        passes = [
            add_noise(batch.tokens_LD, noise, batch.segments, settings.diffusion)
            for noise in (draws.noise, masked.noise)
        ]
        further: dict[str, Any] = {"scalars": draws.scalars, "hint_LD": draws.hint_LD}
        inputs = [batch.inputs(noised.x_LD, draws.noise.timestep_S, None, mask_L, **further) for noised in passes]
        both = inputs[0].repeated(2, masked.text)
        both = both.replace(tokens_LD=torch.cat([one.tokens_LD for one in inputs]), token_mask=masked.mask)
        predictions = model(both).split(batch.segments.num_tokens)
        (whole, weight), (hidden, _) = (
            self.diffusion_loss(prediction_LD, noised, batch, mask_L)
            for prediction_LD, noised in zip(predictions, passes, strict=True)
        )
        return whole + hidden, weight

    def flops(self, model: nn.Module, batch: DitBatch) -> float:
        """Of both passes; before the mask is drawn, with a mean share of masked tokens."""
        num_samples = len(batch.segments)
        if batch.draws is not None and batch.draws.masked is not None:
            visible = list(batch.draws.masked.mask.visible_segments.lengths[num_samples:])
        else:
            visible = self._visible(batch.segments.lengths, sum(self.settings.mdt.mask_ratio) / 2)
        flops: float = model.flops(  # type: ignore[operator]
            batch.segments.lengths * 2,
            batch.text.segments.lengths * 2,
            num_visible=[*batch.segments.lengths, *visible],
        )
        return flops

    def activation_bytes(
        self, model: nn.Module, num_tokens: Sequence[int], num_text_tokens: Sequence[int], **how: Any
    ) -> int:
        """Of both passes, with as few masked tokens as there can be."""
        visible = self._visible(num_tokens, self.settings.mdt.mask_ratio[0])
        saved: int = model.activation_bytes(  # type: ignore[operator]
            [*num_tokens] * 2, [*num_text_tokens] * 2, num_visible=[*num_tokens, *visible], **how
        )
        return saved

    @staticmethod
    def _visible(num_tokens: Sequence[int], mask_ratio: float) -> list[int]:
        return [max(1, math.ceil(length * (1 - mask_ratio))) if length else 0 for length in num_tokens]


def sample_mask(
    clip_ids: Sequence[str],
    segments: Segments,
    smallest: float,
    largest: float,
    *,
    key: Sequence[str | int],
    excluded_L: Tensor | None = None,
) -> Tensor:
    """bool (L): the masked tokens of each sample, a function of `key` and the clip's id.

    Of n tokens int(n (1 - r)) stay visible, with r uniform between `smallest` and `largest`; at least one stays.

    Args:
        excluded_L: bool, conditioning tokens: always visible, and not among the n.
    """
    parts = []
    excluded = [None] * len(segments) if excluded_L is None else excluded_L.split(list(segments.lengths))
    for clip_id, length, excluded_of_sample in zip(clip_ids, segments.lengths, excluded, strict=True):
        generator = seeded_generator(*key, "mask", clip_id)
        ratio = smallest + (largest - smallest) * float(torch.rand((), generator=generator))
        order = torch.randperm(length, generator=generator)
        if excluded_of_sample is not None:
            order = order[~excluded_of_sample[order]]
        num_visible = int(len(order) * (1 - ratio))
        if len(order) == length:
            num_visible = max(1, num_visible)
        parts.append(torch.zeros(length, dtype=torch.bool).index_fill(0, order[num_visible:], True))
    return torch.cat(parts)
