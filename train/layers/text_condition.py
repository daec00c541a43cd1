"""Null captions of classifier-free guidance, put in place of dropped texts.

    text_MC, text_segments, pooled_SC = with_null_captions(
        text_MC, text_segments, pooled_SC, [False, True], null_text_MC=null_text_MC, null_pooled_C=null_pooled_C
    )

Shape suffixes: M text tokens of a pack, S samples of a pack, C width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from train.layers.segments import Segments

NULL_TOKENS = 1
"""Text tokens of the learned null caption."""


def with_null_captions(
    text_MC: Tensor,
    text_segments: Segments,
    pooled_SC: Tensor,
    drop_text_S: Sequence[bool] | None,
    *,
    null_text_MC: Tensor,
    null_pooled_C: Tensor,
) -> tuple[Tensor, Segments, Tensor]:
    """The packed text with the null caption for samples whose text is dropped or empty.

    The null embeddings are part of every graph, used or not: DDP waits for the gradient of every parameter.

    Args:
        drop_text_S: samples whose text is dropped; None: none of them.
        null_text_MC: (NULL_TOKENS, C) learned embedding.
        null_pooled_C: learned embedding in place of the pooled one.

    Returns:
        text_MC, its segments and pooled_SC, in the dtypes of the null embeddings.
    """
    drop = list(drop_text_S) if drop_text_S is not None else [False] * len(text_segments)
    if len(drop) != len(text_segments):
        raise ValueError(f"{len(drop)} entries of drop_text_S for {len(text_segments)} samples")
    drop = [is_dropped or not length for is_dropped, length in zip(drop, text_segments.lengths)]
    num_text = text_segments.num_tokens
    index: list[int] = []
    start = 0
    for is_dropped, length in zip(drop, text_segments.lengths):
        index += range(num_text, num_text + NULL_TOKENS) if is_dropped else range(start, start + length)
        start += length
    device = text_MC.device
    lengths = [NULL_TOKENS if is_dropped else length for is_dropped, length in zip(drop, text_segments.lengths)]
    text_MC = torch.cat([text_MC.to(null_text_MC.dtype), null_text_MC])
    pooled_SC = torch.cat([pooled_SC.to(null_pooled_C.dtype), null_pooled_C[None]])
    pooled_index = [len(drop) if is_dropped else sample for sample, is_dropped in enumerate(drop)]
    return (
        text_MC[torch.tensor(index, device=device)],
        Segments.from_lengths(lengths, device),
        pooled_SC[torch.tensor(pooled_index, device=device)],
    )
