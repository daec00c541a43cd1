"""A pack of latent tokens with its encoded captions: one micro-batch of the generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from packing.grid import Shape3
from packing.loader.batch import PackedBatch
from train.backbones.interface import PackedInputs
from train.diffusion.process import TimestepsAndNoise
from train.layers.layouts import Layouts
from train.layers.segments import Segments
from train.layers.text_condition import TextSelection
from train.layers.token_mask import TokenMask
from train.parallel.transfer import copied
from train.text.encoder import EncodedText, TextEncoder


@dataclass(frozen=True)
class MaskedPass:
    """The second pass of a masked model (masked_objective.py), in one pack with the first: every sample twice."""

    noise: TimestepsAndNoise
    """Of the second pass alone, at the noise levels of the first."""
    mask: TokenMask
    """Of both passes; nothing is masked in the first."""
    text: TextSelection
    """Of both passes, the same."""

    def to(self, device: torch.device | str) -> MaskedPass:
        return MaskedPass(self.noise.to(device), self.mask.to(device), self.text.to(device))


@dataclass(frozen=True)
class BatchDraws:
    """Everything that is drawn for a batch, on the CPU, before the batch is moved (`DitTask.prepared`)."""

    noise: TimestepsAndNoise
    condition_mask_L: Tensor | None
    """bool (L): conditioning tokens; None without frame conditioning."""
    text: TextSelection
    """Each sample's caption, or the null caption where it is dropped."""
    without_text: TextSelection | None = None
    """The null caption for all of them, where the objective needs it."""
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    """Further inputs of the model, a number per sample (S,) each."""
    times: Mapping[str, Tensor] = field(default_factory=dict)
    """Further timesteps per sample (S,), that the steps of a teacher go through."""
    hint_LD: Tensor | None = None
    """Noised tokens of the low-resolution video of a super-resolution stage."""
    dropped_S: tuple[bool, ...] = ()
    """Samples whose caption is dropped."""
    masked: MaskedPass | None = None

    def to(self, device: torch.device | str) -> BatchDraws:
        mask_L, hint_LD = self.condition_mask_L, self.hint_LD
        return BatchDraws(
            self.noise.to(device),
            None if mask_L is None else copied(mask_L, device),
            self.text.to(device),
            None if self.without_text is None else self.without_text.to(device),
            {name: copied(value_S, device) for name, value_S in self.scalars.items()},
            {name: copied(value_S, device) for name, value_S in self.times.items()},
            None if hint_LD is None else copied(hint_LD, device),
            self.dropped_S,
            None if self.masked is None else self.masked.to(device),
        )


@dataclass(frozen=True)
class DitBatch:
    """One pack with its encoded text. Shape suffixes: L tokens of the pack, D numbers per token."""

    tokens_LD: Tensor
    position_L3: Tensor
    segments: Segments
    text: EncodedText
    token_shapes: tuple[Shape3, ...]
    """Tokens of each sample along (frames, rows, columns), before token dropping."""
    first_frames: tuple[int, ...]
    """First token frame of each sample, counted in its whole clip."""
    clip_ids: tuple[str, ...]
    """Seed the random numbers of each sample; a clip that appears twice in an epoch has two."""
    epoch: int
    capacity: int
    """Tokens of a full pack."""
    layouts: Layouts
    draws: BatchDraws | None = None
    """Noise, conditioning and dropped captions of a training step; validation draws its own."""

    @classmethod
    def from_packed(cls, batch: PackedBatch, encoder: TextEncoder) -> DitBatch:
        """Encode the captions and strip the padding: packs need not have one length."""
        segments, position_L3 = Segments.from_lengths(batch.lengths), batch.position_L3[: batch.num_tokens]
        return cls(
            tokens_LD=batch.tokens_LD[: batch.num_tokens],
            position_L3=position_L3,
            segments=segments,
            layouts=Layouts(segments, position_L3),
            text=encoder.encode(batch.captions),
            token_shapes=batch.token_shapes,
            first_frames=tuple(frame // batch.patch[0] for frame in batch.first_frames),
            clip_ids=batch.rng_keys,
            epoch=batch.epoch,
            capacity=batch.capacity,
        )

    def to(self, device: torch.device | str) -> DitBatch:
        """The one place where a batch is moved: pinned and non-blocking, with all that a step needs."""
        segments, position_L3 = self.segments.to(device), copied(self.position_L3, device)
        return dataclasses.replace(
            self,
            tokens_LD=copied(self.tokens_LD, device),
            position_L3=position_L3,
            segments=segments,
            layouts=self.layouts.to(device, segments, position_L3),
            text=self.text.to(device),
            draws=None if self.draws is None else self.draws.to(device),
        )

    def inputs(
        self,
        x_LD: Tensor,
        timestep_S: Tensor,
        drop_text_S: Sequence[bool] | TextSelection | None,
        condition_mask_L: Tensor | None = None,
        *,
        scalars: Mapping[str, Tensor] | None = None,
        hint_LD: Tensor | None = None,
    ) -> PackedInputs:
        """What a backbone gets of the batch at these noised tokens; the conditioning tokens clean."""
        noised_LD = None
        if condition_mask_L is not None:
            noised_LD = x_LD
            x_LD = torch.where(condition_mask_L[:, None], self.tokens_LD, x_LD)
        return PackedInputs(
            tokens_LD=x_LD,
            position_L3=self.position_L3,
            segments=self.segments,
            timestep_S=timestep_S,
            text=self.text,
            drop_text_S=drop_text_S,
            condition_mask_L=condition_mask_L,
            noised_LD=noised_LD,
            hint_LD=hint_LD,
            scalars=scalars or {},
            token_shapes=self.token_shapes,
            layouts=self.layouts,
        )
