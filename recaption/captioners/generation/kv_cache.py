"""KV-cached decoding with CoCa's two text towers, a batch of rows one position at a time.

Self-attention keys and values are cached for every row; cross-attention keys and values are computed once per clip and
shared by all rows of that clip (its beams, or its samples): these become further query positions of the clip.

Shapes: B clips, R rows (those of a clip are adjacent, equally many for each clip), P new positions, D width, H heads, d
width of a head, N image tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.errors import UsageError


class CachedDecoder:
    """Feeds tokens with `step`; drops and reorders rows with `select_rows`."""

    def __init__(
        self, coca: nn.Module, image_embs_BND: Tensor, *, rows_per_clip: int = 1, capacity: int | None = None
    ) -> None:
        """
        Args:
            capacity: maximum number of tokens that will be fed; None = the context length.

        Raises:
            UsageError: attention layers other than torch's own.
        """
        text: Any = coca.text
        decoder: Any = coca.text_decoder
        self.text, self.decoder = text, decoder
        self.device = image_embs_BND.device
        self.rows_per_clip = rows_per_clip
        self.num_clips = image_embs_BND.shape[0]
        self.context_length = min(text.context_length, decoder.context_length)
        self.position = 0
        blocks = (*text.transformer.resblocks, *decoder.resblocks)
        width = text.positional_embedding.shape[1]
        shape = (len(blocks), 2, self.num_clips * rows_per_clip, min(capacity or 2**30, self.context_length), width)
        self._cache_LKRPD = torch.empty(shape, dtype=text.positional_embedding.dtype, device=self.device)
        self._spare_LKRPD: Tensor | None = None
        """Second buffer that `select_rows` copies into; the two are swapped."""
        self._cross = [_CrossAttention(block, image_embs_BND) for block in decoder.cross_attn]

    def step(self, tokens_RP: Tensor) -> Tensor:
        """Feed the tokens at the next P positions; logits (R, V), float32, for the position after them."""
        start, end = self.position, self.position + tokens_RP.shape[1]
        if end > self._cache_LKRPD.shape[3]:
            raise UsageError(f"{end} tokens exceed the context of {self._cache_LKRPD.shape[3]}")
        positions_PD = self.text.positional_embedding[start:end]
        x_RPD = self.text.token_embedding(tokens_RP).to(positions_PD.dtype) + positions_PD
        text_blocks = self.text.transformer.resblocks
        mask = (
            None if end - start == 1 else torch.ones(end - start, end, dtype=torch.bool, device=self.device).tril(start)
        )
        for block, cache_KRPD in zip(text_blocks, self._cache_LKRPD, strict=False):
            x_RPD = self_attention(block, x_RPD, cache_KRPD, start, mask)
        caches = self._cache_LKRPD[len(text_blocks) :]
        for block, cache_KRPD, cross in zip(self.decoder.resblocks, caches, self._cross, strict=True):
            x_RPD = cross.attend(self_attention(block, x_RPD, cache_KRPD, start, mask), self.rows_per_clip)
        self.position = end
        x_RD = self.decoder.ln_final(x_RPD[:, -1])
        projection = self.decoder.text_projection
        return (x_RD if projection is None else x_RD @ projection).float()

    def text_kv_cache(self, row: int) -> Tensor:
        """Copy of the text tower's keys and values (layers, 2, positions, D) for the tokens fed to `row`."""
        return self._cache_LKRPD[: len(self.text.transformer.resblocks), :, row, : self.position].clone()

    def select_rows(self, rows: list[int], clips: list[int]) -> None:
        """Continue with these rows and their clips (indices into the current ones); row i continues row `rows[i]`."""
        if rows == list(range(self.num_clips * self.rows_per_clip)):
            return
        row_index = torch.tensor(rows, device=self.device)
        old, new = self._cache_LKRPD, self._spare_LKRPD
        if new is None or len(rows) != new.shape[2]:
            new = old.new_empty((*old.shape[:2], len(rows), *old.shape[3:]))
        filled = (slice(None), slice(None), slice(None), slice(self.position))
        torch.index_select(old[filled], 2, row_index, out=new[filled])
        self._cache_LKRPD, self._spare_LKRPD = new, old if len(rows) == old.shape[2] else None
        if len(clips) < self.num_clips:
            clip_index = torch.tensor(clips, device=self.device)
            for cross in self._cross:
                cross.select_clips(clip_index)
            self.num_clips = len(clips)
        self.rows_per_clip = len(rows) // len(clips)


def _heads(x_RPD: Tensor, num_heads: int) -> Tensor:
    """(R, P, D) as (R, H, P, d)."""
    rows, positions, width = x_RPD.shape
    return x_RPD.view(rows, positions, num_heads, width // num_heads).transpose(1, 2)


def self_attention(block: Any, x_RPD: Tensor, cache_KRPD: Tensor, start: int, mask: Tensor | None) -> Tensor:
    """One self-attention block for P new positions; their keys and values are written to the cache at `start`."""
    attn = _torch_attention(block)
    num_heads = attn.num_heads
    query_RPD, key_RPD, value_RPD = F.linear(block.ln_1(x_RPD), attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    end = start + x_RPD.shape[1]
    cache_KRPD[0, :, start:end] = key_RPD
    cache_KRPD[1, :, start:end] = value_RPD
    keys, values = (_heads(one[:, :end], num_heads) for one in cache_KRPD)
    attended = F.scaled_dot_product_attention(_heads(query_RPD, num_heads), keys, values, attn_mask=mask)
    return _out_proj_and_mlp(block, x_RPD, attended.transpose(1, 2).reshape(x_RPD.shape))


def _torch_attention(block: Any) -> nn.MultiheadAttention:
    if not isinstance(block.attn, nn.MultiheadAttention):
        raise UsageError(f"cached decoding supports nn.MultiheadAttention, not {type(block.attn).__name__}")
    return block.attn


def _out_proj_and_mlp(block: Any, x_RPD: Tensor, attended_RPD: Tensor) -> Tensor:
    """Output projection, residual, MLP, residual."""
    x_RPD = x_RPD + block.ls_1(block.attn.out_proj(attended_RPD))
    return x_RPD + block.ls_2(block.mlp(block.ln_2(x_RPD)))


class _CrossAttention:
    """One cross-attention block with its cached keys and values: one set per clip, shared by the clip's rows."""

    def __init__(self, block: Any, image_embs_BND: Tensor) -> None:
        attn = _torch_attention(block)
        self.block = block
        self.num_heads = attn.num_heads
        width, bias = attn.embed_dim, attn.in_proj_bias
        self._query_weight = attn.in_proj_weight[:width]
        self._query_bias = None if bias is None else bias[:width]
        kv_bias = None if bias is None else bias[width:]
        projected = F.linear(block.ln_1_kv(image_embs_BND), attn.in_proj_weight[width:], kv_bias)
        self.keys, self.values = (_heads(part, self.num_heads).contiguous() for part in projected.chunk(2, dim=-1))

    def attend(self, x_RPD: Tensor, rows_per_clip: int) -> Tensor:
        rows, positions, width = x_RPD.shape
        query = F.linear(self.block.ln_1(x_RPD), self._query_weight, self._query_bias)
        query = _heads(query.reshape(rows // rows_per_clip, rows_per_clip * positions, width), self.num_heads)
        attended = F.scaled_dot_product_attention(query, self.keys, self.values)
        return _out_proj_and_mlp(self.block, x_RPD, attended.transpose(1, 2).reshape(x_RPD.shape))

    def select_clips(self, clips: Tensor) -> None:
        self.keys, self.values = self.keys[clips], self.values[clips]
