"""Tokens of a pack that an encoder does not see, as in masked autoencoders (arXiv 2111.06377).

    mask = TokenMask.of(is_masked_L, segments)             # on the CPU, before the batch is moved
    x_KD = x_LD[mask.visible_index_K]                      # with mask.visible_segments
    x_LD = mask.with_mask_tokens(x_KD, mask_token_D)

Shape suffixes: L tokens of a pack, K of them visible, N masked, J tokens of the samples that have masked ones, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from train.layers.segments import Segments
from train.parallel.transfer import copied


@dataclass(frozen=True, eq=False)
class TokenMask:
    """Indices of the visible and the masked tokens, known without the device."""

    visible_index_K: Tensor
    """int64: tokens of the pack, in order."""
    visible_segments: Segments
    masked_index_N: Tensor
    """int64: tokens of the pack, in order."""
    incomplete_index_J: Tensor
    """int64: tokens of the pack, all those of the samples that have masked ones."""
    incomplete_segments: Segments
    """Of those tokens; samples without masked tokens are empty here."""
    masked_in_incomplete_N: Tensor
    """int64: the masked tokens among those."""

    @classmethod
    def of(cls, is_masked_L: Tensor, segments: Segments) -> TokenMask:
        """
        Args:
            is_masked_L: bool, on the CPU.
        """
        per_sample = is_masked_L.split(list(segments.lengths))
        num_masked = [int(part.sum()) for part in per_sample]
        in_incomplete_L = torch.cat([torch.full_like(part, bool(n)) for part, n in zip(per_sample, num_masked)])
        return cls(
            visible_index_K=(~is_masked_L).nonzero()[:, 0],
            visible_segments=Segments.from_lengths([n - m for n, m in zip(segments.lengths, num_masked)]),
            masked_index_N=is_masked_L.nonzero()[:, 0],
            incomplete_index_J=in_incomplete_L.nonzero()[:, 0],
            incomplete_segments=Segments.from_lengths([n if m else 0 for n, m in zip(segments.lengths, num_masked)]),
            masked_in_incomplete_N=is_masked_L[in_incomplete_L].nonzero()[:, 0],
        )

    @classmethod
    def of_nothing(cls, segments: Segments) -> TokenMask:
        """All tokens are visible, and all samples still count as incomplete: a side block is in the graph of every pack."""
        index_L = torch.arange(segments.num_tokens, device=segments.cu_seqlens.device)
        return cls(index_L, segments, index_L[:0], index_L, segments, index_L[:0])

    def to(self, device: torch.device | str) -> TokenMask:
        return TokenMask(
            copied(self.visible_index_K, device),
            self.visible_segments.to(device),
            copied(self.masked_index_N, device),
            copied(self.incomplete_index_J, device),
            self.incomplete_segments.to(device),
            copied(self.masked_in_incomplete_N, device),
        )

    def with_mask_tokens(self, x_KD: Tensor, mask_token_D: Tensor) -> Tensor:
        """(L, D): the visible tokens in their places, the mask token in the others."""
        num_tokens = len(self.visible_index_K) + len(self.masked_index_N)
        everywhere_LD = mask_token_D.to(x_KD.dtype).expand(num_tokens, -1)
        return everywhere_LD.index_copy(0, self.visible_index_K, x_KD)
