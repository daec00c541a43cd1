"""flex_attention's block mask of a pack, from the lengths of its samples: no L x M tensor is ever made.

    mask = block_diagonal_mask([200, 64], [200, 64], segment_ids_L, segment_ids_L)

Samples follow each other in queries and keys alike, so a block of queries sees one run of key blocks: from the first key of
its first sample to the last key of its last. Blocks inside a single sample need no mask at all (`full`). Everything is
computed on the CPU, in units of blocks: 65,536 tokens are 512 x 512 of them, where one mask value per pair of tokens would
take 4 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.parallel.transfer import copied

BLOCK_TOKENS = 128
"""Queries and keys of a block: the default of flex_attention."""
_TENSORS_OF_MASK = (
    "kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
    "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices",
)  # fmt: skip


def block_diagonal_mask(
    lengths_q: Sequence[int], lengths_k: Sequence[int], segment_ids_L: Tensor, segment_ids_M: Tensor
) -> Any:
    """The `BlockMask` under which sample s of the queries attends to sample s of the keys, on the device of the ids."""
    from torch.nn.attention.flex_attention import BlockMask

    partial, full = _blocks(lengths_q, lengths_k)
    mask = BlockMask.from_kv_blocks(
        *_ordered(partial),
        *_ordered(full),
        BLOCK_SIZE=BLOCK_TOKENS,
        seq_lengths=(sum(lengths_q), sum(lengths_k)),
        mask_mod=document_mask(segment_ids_L, segment_ids_M),
    )
    for name in _TENSORS_OF_MASK:
        setattr(mask, name, copied(getattr(mask, name), segment_ids_L.device))
    return mask


def document_mask(segment_ids_L: Tensor, segment_ids_M: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """flex_attention's `mask_mod` of document masking: query and key belong to the same sample."""

    def same_sample(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return segment_ids_L[query] == segment_ids_M[key]

    return same_sample


def _blocks(lengths_q: Sequence[int], lengths_k: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """bool (query blocks, key blocks): those that are masked in part, and those within one sample."""
    starts_q, starts_k = (np.concatenate([[0], np.cumsum(lengths)]) for lengths in (lengths_q, lengths_k))
    num_queries, num_keys = int(starts_q[-1]), int(starts_k[-1])
    first_query = np.arange(0, num_queries, BLOCK_TOKENS)
    last_query = np.minimum(first_query + BLOCK_TOKENS, num_queries) - 1
    first_sample, last_sample = (
        np.searchsorted(starts_q, query, side="right") - 1 for query in (first_query, last_query)
    )
    start, end = starts_k[first_sample][:, None], starts_k[last_sample + 1][:, None]
    first_key = np.arange(0, num_keys, BLOCK_TOKENS)
    is_seen = (first_key < end) & (first_key + BLOCK_TOKENS > start)
    is_one_sample = (first_sample == last_sample) & (first_query + BLOCK_TOKENS <= num_queries)
    is_full = is_seen & (first_key >= start) & (first_key + BLOCK_TOKENS <= end) & is_one_sample[:, None]
    return is_seen & ~is_full, is_full


def _ordered(blocks: np.ndarray) -> tuple[Tensor, Tensor]:
    """(number of blocks of each row, all block indices of the row with those first), as flex_attention wants them."""
    counts = torch.from_numpy(blocks.sum(1, dtype=np.int32))
    indices = torch.from_numpy(np.argsort(~blocks, axis=1, kind="stable").astype(np.int32))
    return counts[None, None], indices[None, None]
