"""Contrastive text embeddings of generated captions, computed from the decoder's KV cache.

CoCa's contrastive text embedding is a CLS token appended to the text, computed by the same causal tower that generates the
caption. After generation only the last token, the end token and CLS are missing: two to four positions that attend to cached
keys and values, instead of a forward pass over the whole text.

    captions = generate(coca, tokens_BND, special=special, return_kv_cache=True)
    texts = [tokenizer.decode(caption.tokens) for caption in captions]        # then cleaned, stripped, ...
    # equals model.pool_texts(...) up to rounding
    embed_from_kv_cache(model, tokenizer.encode(texts), captions, start=special.start)

Only the cached positions before the first difference between text and generated tokens are reused; texts with more than
`MAX_NEW_POSITIONS` other positions get a full forward pass.

Shapes: S texts, M positions of a text and its CLS token, P cached positions, N new positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recaption.captioners.generation.kv_cache import self_attention
from recaption.captioners.generation.settings import GeneratedTokens
from recaption.captioners.videococa.model import VideoCoCa

MAX_NEW_POSITIONS = 8
"""New positions per text, CLS included, up to which the cache is used; beyond it a full pass is as fast."""


def embed_from_kv_cache(
    model: VideoCoCa, ids_SM: Tensor, generated: Sequence[GeneratedTokens], *, start: int
) -> Tensor:
    """`model.pool_texts(ids_SM)`, up to rounding.

    Args:
        generated: one per text; those without `kv_cache_LKPD` get a full forward pass.
        start: the start token; captions generated with a prompt are not supported.
    """
    text: Any = model.coca.text
    if not model.has_appended_cls_token:
        return model.pool_texts(ids_SM)
    num_shared = [_num_shared(ids, caption, start) for ids, caption in zip(ids_SM.tolist(), generated, strict=True)]
    lengths = _lengths(ids_SM, text.pad_id)
    cached_rows = [row for row, shared in enumerate(num_shared) if shared and lengths[row] - shared < MAX_NEW_POSITIONS]
    if not cached_rows:
        return model.pool_texts(ids_SM)
    pooled_SD = torch.empty(len(ids_SM), text.output_dim, dtype=text.positional_embedding.dtype, device=ids_SM.device)
    caches = [generated[row].kv_cache_LKPD for row in cached_rows]
    from_cache_SD = _pool_with_cache(
        text,
        ids_SM[cached_rows],
        [cache for cache in caches if cache is not None],
        [num_shared[row] for row in cached_rows],
    )
    pooled_SD[cached_rows] = from_cache_SD.to(pooled_SD.dtype)  # half precision under autocast
    others = sorted(set(range(len(ids_SM))) - set(cached_rows))
    if others:
        pooled_SD[others] = model.pool_texts(ids_SM[others]).to(pooled_SD.dtype)
    return pooled_SD


def _num_shared(ids: Sequence[int], generated: GeneratedTokens, start: int) -> int:
    """Length of the common prefix of a text and the tokens fed to the decoder; 0 without a cache."""
    if generated.kv_cache_LKPD is None:
        return 0
    fed = (start, *generated.tokens)[: generated.kv_cache_LKPD.shape[2]]
    return next((index for index, (a, b) in enumerate(zip(ids, fed, strict=False)) if a != b), min(len(ids), len(fed)))


def _lengths(ids_SM: Tensor, pad: int) -> list[int]:
    """Positions per text that CLS attends to; with published weights they include the one after the text."""
    positions = torch.arange(1, ids_SM.shape[1] + 1, device=ids_SM.device)
    last_S = (positions * (ids_SM != pad)).amax(dim=1)
    return (last_S + 1).clamp(max=ids_SM.shape[1]).tolist()


def _pool_with_cache(text: Any, ids_SM: Tensor, kv_caches: Sequence[Tensor], num_shared: Sequence[int]) -> Tensor:
    """Feed each text's positions after its cached ones, then CLS; every row has its own positions and keys."""
    x_SMD, mask = text._embeds(ids_SM)
    num_texts, num_positions = x_SMD.shape[:2]
    mask_SMM = mask.view(num_texts, -1, num_positions, num_positions)[:, 0]
    lengths = _lengths(ids_SM, text.pad_id)
    most_new = max(length - shared for length, shared in zip(lengths, num_shared, strict=True))
    most_shared = max(num_shared)
    device = ids_SM.device
    # shorter rows are padded at the front of the new positions; padding is masked out as keys
    new = [[*range(shared, length)] for length, shared in zip(lengths, num_shared, strict=True)]
    queries_SN = torch.tensor([[*[0] * (most_new - len(row)), *row, num_positions - 1] for row in new], device=device)
    keys_SK = torch.cat([torch.arange(most_shared, device=device).expand(num_texts, -1), queries_SN], dim=1)
    is_key_SK = torch.tensor(
        [
            [*[True] * shared, *[False] * (most_shared - shared + most_new - len(row)), *[True] * (len(row) + 1)]
            for shared, row in zip(num_shared, new, strict=True)
        ],
        device=device,
    )
    rows = torch.arange(num_texts, device=device)[:, None]
    mask_SNK = mask_SMM[rows[:, :, None], queries_SN[:, :, None], keys_SK[:, None]]
    mask_S1NK = mask_SNK.masked_fill(~is_key_SK[:, None], -torch.inf)[:, None]
    x_SND = x_SMD[rows, queries_SN]
    for layer, block in enumerate(text.transformer.resblocks):
        cache_KSPD = x_SND.new_zeros(2, num_texts, keys_SK.shape[1], x_SND.shape[2])
        for row, shared in enumerate(num_shared):
            cache_KSPD[:, row, :shared] = kv_caches[row][layer, :, :shared]
        x_SND = self_attention(block, x_SND, cache_KSPD, most_shared, mask_S1NK)
    pooled_SD = text.ln_final(x_SND[:, -1])
    return pooled_SD if text.text_projection is None else pooled_SD @ text.text_projection
