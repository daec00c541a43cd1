"""A pack of latent tokens with its encoded captions: one micro-batch of the generator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from packing.grid import Shape3
from packing.loader.batch import PackedBatch
from train.layers.segments import Segments
from train.text.encoder import EncodedText, TextEncoder


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

    @classmethod
    def from_packed(cls, batch: PackedBatch, encoder: TextEncoder) -> DitBatch:
        """Encode the captions and strip the padding: packs need not have one length."""
        return cls(
            tokens_LD=batch.tokens_LD[: batch.num_tokens],
            position_L3=batch.position_L3[: batch.num_tokens],
            segments=Segments.from_lengths(batch.lengths),
            text=encoder.encode(batch.captions),
            token_shapes=batch.token_shapes,
            first_frames=tuple(frame // batch.patch[0] for frame in batch.first_frames),
            clip_ids=batch.rng_keys,
            epoch=batch.epoch,
            capacity=batch.capacity,
        )

    def to(self, device: torch.device | str) -> DitBatch:
        return dataclasses.replace(
            self,
            tokens_LD=self.tokens_LD.to(device, non_blocking=True),
            position_L3=self.position_L3.to(device, non_blocking=True),
            segments=self.segments.to(device),
            text=self.text.to(device),
        )
