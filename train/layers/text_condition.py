"""Null captions of classifier-free guidance, put in place of dropped texts.

    selection = TextSelection.of([False, True], text_segments)          # on the CPU, before the batch is moved
    text_MC, text_segments, pooled_SC = with_null_captions(
        text_MC, text_segments, pooled_SC, selection, null_text_MC=null_text_MC, null_pooled_C=null_pooled_C
    )

Shape suffixes: M text tokens of a pack, S samples of a pack, C width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.layers.segments import Segments
from train.parallel.transfer import copied

NULL_TOKENS = 1
"""Text tokens of the learned null caption."""


@dataclass(frozen=True, eq=False)
class TextSelection:
    """Which text each sample gets, its own or the null caption: the rows to gather, known without the device."""

    index_M: Tensor
    """int64: rows of the packed text with the null caption's tokens behind it."""
    segments: Segments
    """Of the gathered tokens."""
    pooled_index_S: Tensor
    """int64: rows of the pooled embeddings with the null caption's behind them."""

    @classmethod
    def of(cls, drop_text_S: Sequence[bool] | TextSelection | None, text_segments: Segments) -> TextSelection:
        """A selection as it is, or the one for samples whose text is dropped (None: none of them) or empty. Made once.

        Raises:
            ValueError: not one entry for each sample.
        """
        if isinstance(drop_text_S, TextSelection):
            return drop_text_S
        drop = list(drop_text_S) if drop_text_S is not None else [False] * len(text_segments)
        if len(drop) != len(text_segments):
            raise ValueError(f"{len(drop)} entries of drop_text_S for {len(text_segments)} samples")
        known = text_segments.text_selections
        if tuple(drop) not in known:
            known[tuple(drop)] = cls._made(drop, text_segments)
        selection: TextSelection = known[tuple(drop)]
        return selection

    @classmethod
    def _made(cls, drop: Sequence[bool], text_segments: Segments) -> TextSelection:
        drop = [is_dropped or not length for is_dropped, length in zip(drop, text_segments.lengths)]
        num_text = text_segments.num_tokens
        index: list[int] = []
        start = 0
        for is_dropped, length in zip(drop, text_segments.lengths):
            index += range(num_text, num_text + NULL_TOKENS) if is_dropped else range(start, start + length)
            start += length
        lengths = [NULL_TOKENS if is_dropped else length for is_dropped, length in zip(drop, text_segments.lengths)]
        pooled_index = [len(drop) if is_dropped else sample for sample, is_dropped in enumerate(drop)]
        return cls(torch.tensor(index), Segments.from_lengths(lengths), torch.tensor(pooled_index)).to(
            text_segments.cu_seqlens.device
        )

    def to(self, device: torch.device | str) -> TextSelection:
        return TextSelection(
            copied(self.index_M, device), self.segments.to(device), copied(self.pooled_index_S, device)
        )


def with_null_captions(
    text_MC: Tensor,
    text_segments: Segments,
    pooled_SC: Tensor,
    drop_text_S: Sequence[bool] | TextSelection | None,
    *,
    null_text_MC: Tensor,
    null_pooled_C: Tensor,
) -> tuple[Tensor, Segments, Tensor]:
    """The packed text with the null caption for samples whose text is dropped or empty.

    The null embeddings are part of every graph, used or not: DDP waits for the gradient of every parameter.

    Args:
        drop_text_S: samples whose text is dropped, or the selection made of them (`TextSelection.of`).
        null_text_MC: (NULL_TOKENS, C) learned embedding.
        null_pooled_C: learned embedding in place of the pooled one.

    Returns:
        text_MC, its segments and pooled_SC, in the dtypes of the null embeddings.
    """
    selection = TextSelection.of(drop_text_S, text_segments)
    text_MC = torch.cat([text_MC.to(null_text_MC.dtype), null_text_MC])
    pooled_SC = torch.cat([pooled_SC.to(null_pooled_C.dtype), null_pooled_C[None]])
    return text_MC[selection.index_M], selection.segments, pooled_SC[selection.pooled_index_S]
