"""A packed batch with its encoded captions, ready for the device."""

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
    """One row, its text encoded."""

    tokens_LD: Tensor
    position_L3: Tensor
    segments: Segments
    text: EncodedText
    token_shapes: tuple[Shape3, ...]
    """Tokens of each sample along (frames, rows, columns), before any were dropped."""
    first_frames: tuple[int, ...]
    """Token frame of its whole clip that each sample begins with."""
    clip_ids: tuple[str, ...]
    epoch: int
    capacity: int

    @classmethod
    def of(cls, batch: PackedBatch, encoder: TextEncoder) -> DitBatch:
        """Padding is left behind: nothing here needs rows of one length."""
        return cls(
            tokens_LD=batch.tokens_LD[: batch.num_tokens],
            position_L3=batch.position_L3[: batch.num_tokens],
            segments=Segments.from_lengths(batch.lengths),
            text=encoder.encode(batch.captions),
            token_shapes=batch.token_shapes,
            first_frames=tuple(frame // batch.patch[0] for frame in batch.first_frames),
            clip_ids=batch.rng_keys,  # each appearance of a clip in an epoch has chances of its own
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
