"""Contrastive embeddings of texts that a decoder has just said, from what its text tower computed while saying them.

CoCa's contrastive embedding is the CLS token behind a text, read by the same causal tower that the decoder goes through
token by token. Once a caption has been said, all that is missing are its last token and end, and the CLS token: two to
four positions that look at keys and values which are there, instead of a pass over the whole text.

    captions = generate(coca, tokens_BND, special=special, keep_states=True)
    texts = [vocabulary.decode(caption.tokens) for caption in captions]        # cleaned, stripped, ...
    pool_said(model, vocabulary.encode(texts), captions, start=special.start)  # as model.pool_texts(...), to rounding

A text that differs from what was said shares only its first tokens; one that shares too few gets a pass of its own.

Shapes: S texts, M positions of a text and its CLS token, P positions said, N new positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recaption.captioners.generation.kv_cache import self_attention
from recaption.captioners.generation.packed_weights import StepWeights
from recaption.captioners.generation.settings import Generated
from recaption.captioners.videococa.model import VideoCoCa

MAX_NEW = 8
"""Positions beyond the shared ones, CLS included; a text with more is passed through the tower as a whole."""


def pool_said(
    model: VideoCoCa, ids_SM: Tensor, said: Sequence[Generated], *, start: int, weights: StepWeights | None = None
) -> Tensor:
    """`model.pool_texts(ids_SM)`, up to rounding.

    Args:
        said: one for each text, with `states_LKPD` where they were kept.
        start: token that all of them began with; no prompt.
        weights: of the same model.
    """
    text: Any = model.coca.text
    if not model.has_cls_of_its_own:
        return model.pool_texts(ids_SM)
    num_shared = [_num_shared(ids, one, start) for ids, one in zip(ids_SM.tolist(), said, strict=True)]
    lengths = _lengths(ids_SM, text.pad_id)
    short = [row for row, shared in enumerate(num_shared) if shared and lengths[row] - shared < MAX_NEW]
    if not short:
        return model.pool_texts(ids_SM)
    weights = weights or StepWeights(model.coca, packed=False)
    pooled_SD = torch.empty(len(ids_SM), text.output_dim, dtype=text.positional_embedding.dtype, device=ids_SM.device)
    states = [said[row].states_LKPD for row in short]
    after_SD = _pool_after(
        text, weights, ids_SM[short], [one for one in states if one is not None], [num_shared[row] for row in short]
    )
    pooled_SD[short] = after_SD.to(pooled_SD.dtype)  # under autocast it comes in half precision
    others = sorted(set(range(len(ids_SM))) - set(short))
    if others:
        pooled_SD[others] = model.pool_texts(ids_SM[others]).to(pooled_SD.dtype)
    return pooled_SD


def _num_shared(ids: Sequence[int], said: Generated, start: int) -> int:
    """Positions from the start at which a text and what was fed are alike; 0 where nothing is known of them."""
    if said.states_LKPD is None:
        return 0
    fed = (start, *said.tokens)[: said.states_LKPD.shape[2]]
    return next((place for place, (a, b) in enumerate(zip(ids, fed, strict=False)) if a != b), min(len(ids), len(fed)))


def _lengths(ids_SM: Tensor, pad: int) -> list[int]:
    """Positions of each text that its CLS token may see: published weights take the one behind a text for a part of it."""
    places = torch.arange(1, ids_SM.shape[1] + 1, device=ids_SM.device)
    last_S = (places * (ids_SM != pad)).amax(dim=1)
    return (last_S + 1).clamp(max=ids_SM.shape[1]).tolist()


def _pool_after(
    text: Any, weights: StepWeights, ids_SM: Tensor, states: Sequence[Tensor], num_shared: Sequence[int]
) -> Tensor:
    """Feed what each text has beyond its shared positions, then CLS; every row has its own positions and keys."""
    x_SMD, mask = text._embeds(ids_SM)
    num_texts, num_positions = x_SMD.shape[:2]
    mask_SMM = mask.view(num_texts, -1, num_positions, num_positions)[:, 0]
    lengths = _lengths(ids_SM, text.pad_id)
    most_new = max(length - shared for length, shared in zip(lengths, num_shared, strict=True))
    most_shared = max(num_shared)
    device = ids_SM.device
    # slots without a position of their own stand at the front of the new ones; nobody looks at them
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
    for layer, block in enumerate(weights.text_blocks):
        cache_KSPD = x_SND.new_zeros(2, num_texts, keys_SK.shape[1], x_SND.shape[2])
        for row, shared in enumerate(num_shared):
            cache_KSPD[:, row, :shared] = states[row][layer, :, :shared]
        x_SND = self_attention(block, x_SND, cache_KSPD, most_shared, mask_S1NK)
    pooled_SD = text.ln_final(x_SND[:, -1])
    return pooled_SD if text.text_projection is None else pooled_SD @ text.text_projection
