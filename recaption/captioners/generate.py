"""Caption decoding for open_clip's CoCa: each token is computed once.

open_clip 3.3 decodes by running both text towers over the whole prefix for every new token, re-projecting all image
tokens each time (and its `generate` does not run with current transformers at all). Here the self-attention keys and
values of both towers are cached, cross-attention keys and values are computed once per clip and shared by the beams of
that clip, only the last position meets the vocabulary, and clips that have ended leave the batch. The CLS token that
CoCa's text tower appends comes after every text token and the tower is causal: no text token ever sees it, so decoding
leaves it out. In fp32 the greedy tokens are those of the full computation.

    with torch.inference_mode():
        embedding = video_coca.encode_clips(pixels_BTCHW)
        texts = generate(video_coca.coca, embedding.tokens_BND, special=SpecialTokens(start=1, end=2, pad=0))
    texts[0].tokens, texts[0].mean_logprob, texts[0].ended

Shapes: B clips, K beams, R = B*K rows (the beams of a clip are neighbours), P new positions, D width, H heads,
N image tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.errors import UsageError

COMPACT_SHARE = 0.25
"""Ended clips leave the batch once they are this share of it: copying the caches costs about a quarter of a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialTokens:
    start: int
    end: int
    pad: int
    """Ends a row too, as in open_clip (where pad is also an ordinary token, "!")."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How the next token is chosen. Greedy unless `num_beams` > 1 or `temperature` > 0."""

    max_tokens: int = 76
    """Most tokens to generate, the end token included; the context length of the model bounds it too."""
    num_beams: int = 1
    temperature: float = 0.0
    """0 takes the most probable token; above 0 a token is drawn."""
    top_k: int = 0
    """Draw among this many most probable tokens; 0 = all."""
    top_p: float = 1.0
    """Draw among the fewest tokens whose probabilities reach this sum."""
    min_tokens: int = 0
    """The end token is barred until this many tokens stand."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.num_beams < 1 or self.top_k < 0 or self.temperature < 0:
            raise UsageError(f"decoding needs max_tokens >= 1, num_beams >= 1, top_k >= 0, temperature >= 0: {self}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"{self.top_p = } is outside (0, 1]")
        if self.num_beams > 1 and self.temperature > 0:
            raise UsageError("beam search takes no temperature; leave one of num_beams and temperature at its default")


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """One generated caption, prompt excluded."""

    tokens: tuple[int, ...]
    """With the end token, where it came."""
    logprobs: tuple[float, ...]
    """Natural log of each token's probability under the model itself (no temperature, nothing barred)."""
    ended: bool
    """False where the length limit cut it short."""

    @property
    def mean_logprob(self) -> float:
        return sum(self.logprobs) / len(self.logprobs)


def generate(
    coca: nn.Module,
    image_embs_BND: Tensor,
    *,
    special: SpecialTokens,
    decoding: Decoding | None = None,
    prompt: Sequence[int] = (),
    draws_BM: np.ndarray | None = None,
) -> list[Generated]:
    """Caption each clip from its image tokens.

    Args:
        coca: an `open_clip.coca_model.CoCa` in eval mode.
        prompt: token ids that every caption starts with, after the start token.
        draws_BM: uniform numbers in [0, 1), one per clip and token; needed where `temperature` > 0. A clip's caption
            depends on its own row alone, not on its neighbours in the batch.

    Raises:
        UsageError: the prompt leaves no room in the context, or draws are missing.
    """
    decoding = decoding or Decoding()
    steps = DecodingSteps(coca, image_embs_BND, rows_per_clip=decoding.num_beams)
    first = [special.start, *prompt]
    room = steps.context_length - len(first) + 1
    if room < 1:
        raise UsageError(f"a prompt of {len(prompt)} tokens does not fit a context of {steps.context_length} tokens")
    max_tokens = min(decoding.max_tokens, room)
    if decoding.num_beams > 1:
        return _beam_search(steps, first, max_tokens, special, decoding)
    if decoding.temperature > 0 and (draws_BM is None or draws_BM.shape[1] < max_tokens):
        raise UsageError(f"drawing {max_tokens} tokens needs as many uniform numbers per clip")
    return _one_row_per_clip(steps, first, max_tokens, special, decoding, draws_BM)


class DecodingSteps:
    """The two text towers, one new position at a time, for a batch of rows that move in step."""

    def __init__(self, coca: nn.Module, image_embs_BND: Tensor, *, rows_per_clip: int = 1) -> None:
        text: Any = coca.text
        decoder: Any = coca.text_decoder
        self.text, self.decoder = text, decoder
        self.rows_per_clip = rows_per_clip
        self.num_clips = image_embs_BND.shape[0]
        self.context_length = min(text.context_length, decoder.context_length)
        self.position = 0
        num_rows = self.num_clips * rows_per_clip
        self._caches = [
            _SelfCache(block, num_rows, self.context_length, image_embs_BND)
            for block in (*text.transformer.resblocks, *decoder.resblocks)
        ]
        self._cross = [_CrossCache(block, image_embs_BND) for block in decoder.cross_attn]

    def step(self, tokens_RP: Tensor) -> Tensor:
        """Feed the tokens at the next P positions; logits (R, V) for the position after them."""
        text, decoder = self.text, self.decoder
        num_new = tokens_RP.shape[1]
        if self.position + num_new > self.context_length:
            raise UsageError(f"{self.position + num_new} tokens exceed the context of {self.context_length}")
        positions_PD = text.positional_embedding[self.position : self.position + num_new]
        x_RPD = text.token_embedding(tokens_RP).to(positions_PD.dtype) + positions_PD
        num_text_layers = len(text.transformer.resblocks)
        for cache in self._caches[:num_text_layers]:
            x_RPD = cache.advance(x_RPD, self.position)
        for cache, cross in zip(self._caches[num_text_layers:], self._cross, strict=True):
            x_RPD = cross.attend(cache.advance(x_RPD, self.position), self.rows_per_clip)
        self.position += num_new
        out_RD = decoder.ln_final(x_RPD[:, -1])
        if decoder.text_projection is not None:
            out_RD = out_RD @ decoder.text_projection
        return out_RD.float()

    def keep(self, rows: list[int], clips: list[int]) -> None:
        """Go on with these clips (indices among the present ones); row i of them continues what row `rows[i]` said."""
        if rows == list(range(self.num_clips * self.rows_per_clip)):
            return
        device = self.text.positional_embedding.device
        kept_rows = torch.tensor(rows, device=device)
        for cache in self._caches:
            cache.keep(kept_rows, self.position)
        if len(clips) < self.num_clips:
            kept_clips = torch.tensor(clips, device=device)
            for cross in self._cross:
                cross.keep(kept_clips)
            self.num_clips = len(clips)


def _heads(x_RPD: Tensor, num_heads: int) -> Tensor:
    rows, positions, width = x_RPD.shape
    return x_RPD.view(rows, positions, num_heads, width // num_heads).transpose(1, 2)


def _attended(block: Any, x_RPD: Tensor, attended_RHPd: Tensor) -> Tensor:
    """What is left of a residual attention block once attention is done: projection, residual, MLP."""
    rows, _, positions, _ = attended_RHPd.shape
    merged_RPD = attended_RHPd.transpose(1, 2).reshape(rows, positions, -1)
    x_RPD = x_RPD + block.ls_1(block.attn.out_proj(merged_RPD))
    return x_RPD + block.ls_2(block.mlp(block.ln_2(x_RPD)))


class _SelfCache:
    """Keys and values of one causal self-attention block, for all positions so far."""

    def __init__(self, block: Any, num_rows: int, num_positions: int, like: Tensor) -> None:
        attn = block.attn
        if not isinstance(attn, nn.MultiheadAttention):
            raise UsageError(f"cached decoding knows nn.MultiheadAttention, not {type(attn).__name__}")
        self.block = block
        shape = (num_rows, attn.num_heads, num_positions, attn.embed_dim // attn.num_heads)
        weight = attn.in_proj_weight
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)

    def advance(self, x_RPD: Tensor, position: int) -> Tensor:
        block = self.block
        attn = block.attn
        projected = F.linear(block.ln_1(x_RPD), attn.in_proj_weight, attn.in_proj_bias)
        query, key, value = (_heads(part, attn.num_heads) for part in projected.chunk(3, dim=-1))
        end = position + x_RPD.shape[1]
        self.keys[:, :, position:end] = key
        self.values[:, :, position:end] = value
        attended = F.scaled_dot_product_attention(
            query, self.keys[:, :, :end], self.values[:, :, :end], attn_mask=self._mask(position, end)
        )
        return _attended(block, x_RPD, attended)

    def _mask(self, position: int, end: int) -> Tensor | None:
        if end - position == 1:
            return None
        earlier = torch.arange(end, device=self.keys.device)
        return earlier[None, :] <= earlier[position:, None]

    def keep(self, rows: Tensor, num_positions: int) -> None:
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros((len(rows), *old.shape[1:]))
            new[:, :, :num_positions] = old[rows, :, :num_positions]
            setattr(self, name, new)


class _CrossCache:
    """Keys and values of one cross-attention block: one set per clip, whatever the number of beams."""

    def __init__(self, block: Any, image_embs_BND: Tensor) -> None:
        self.block = block
        attn = block.attn
        width = attn.embed_dim
        bias = attn.in_proj_bias
        projected = F.linear(
            block.ln_1_kv(image_embs_BND), attn.in_proj_weight[width:], None if bias is None else bias[width:]
        )
        self.keys, self.values = (_heads(part, attn.num_heads).contiguous() for part in projected.chunk(2, dim=-1))

    def attend(self, x_RPD: Tensor, rows_per_clip: int) -> Tensor:
        block = self.block
        attn = block.attn
        rows, positions, width = x_RPD.shape
        bias = attn.in_proj_bias
        query = F.linear(block.ln_1(x_RPD), attn.in_proj_weight[:width], None if bias is None else bias[:width])
        # the beams of a clip become further query positions of that clip: its keys and values are not repeated
        query = _heads(query.reshape(rows // rows_per_clip, rows_per_clip * positions, width), attn.num_heads)
        attended = F.scaled_dot_product_attention(query, self.keys, self.values)
        attended = attended.transpose(1, 2).reshape(rows, positions, attn.num_heads, -1).transpose(1, 2)
        return _attended(block, x_RPD, attended)

    def keep(self, clips: Tensor) -> None:
        self.keys, self.values = self.keys[clips], self.values[clips]


def _one_row_per_clip(
    steps: DecodingSteps,
    first: list[int],
    max_tokens: int,
    special: SpecialTokens,
    decoding: Decoding,
    draws_BM: np.ndarray | None,
) -> list[Generated]:
    """Greedy decoding, or drawing where `draws_BM` is given."""
    num_clips = steps.num_clips
    device = steps.text.positional_embedding.device
    tokens: list[list[int]] = [[] for _ in range(num_clips)]
    logprobs: list[list[float]] = [[] for _ in range(num_clips)]
    ended = [False] * num_clips
    clip_of_row = list(range(num_clips))
    newest = torch.tensor([first], device=device).expand(num_clips, -1)
    for index in range(max_tokens):
        logits_RV = steps.step(newest)
        logprob_RV = F.log_softmax(logits_RV, dim=-1)
        if index < decoding.min_tokens:
            logits_RV[:, special.end] = -torch.inf
        if decoding.temperature > 0 and draws_BM is not None:
            drawn_R = torch.as_tensor(draws_BM[clip_of_row, index], dtype=torch.float32, device=device)
            chosen_R = draw(logits_RV, drawn_R, decoding)
        else:
            chosen_R = logits_RV.argmax(dim=-1)
        chosen_logprob_R = logprob_RV.gather(1, chosen_R[:, None])[:, 0]
        for clip, token, logprob in zip(clip_of_row, chosen_R.tolist(), chosen_logprob_R.tolist(), strict=True):
            if not ended[clip]:
                tokens[clip].append(token)
                logprobs[clip].append(logprob)
                ended[clip] = token in (special.end, special.pad)
        live = [row for row, clip in enumerate(clip_of_row) if not ended[clip]]
        if not live:
            break
        newest = chosen_R[:, None]
        if len(clip_of_row) - len(live) >= max(1.0, COMPACT_SHARE * len(clip_of_row)):
            steps.keep(live, live)
            newest = newest[live]
            clip_of_row = [clip_of_row[row] for row in live]
    return [
        Generated(tokens=tuple(said), logprobs=tuple(scores), ended=end)
        for said, scores, end in zip(tokens, logprobs, ended, strict=True)
    ]


def draw(logits_RV: Tensor, uniform_R: Tensor, decoding: Decoding) -> Tensor:
    """Token ids (R,) drawn by inverting each row's cumulative distribution after temperature, top-k and top-p."""
    count = decoding.top_k or logits_RV.shape[1]
    ordered_RV, ids_RV = (logits_RV / decoding.temperature).topk(min(count, logits_RV.shape[1]), dim=-1)
    probability_RV = ordered_RV.softmax(dim=-1)
    before_RV = probability_RV.cumsum(dim=-1) - probability_RV
    probability_RV = probability_RV * (before_RV < decoding.top_p)
    cumulative_RV = probability_RV.cumsum(dim=-1)
    place_R = (cumulative_RV <= uniform_R[:, None] * cumulative_RV[:, -1:]).sum(dim=-1)
    last_R = (probability_RV > 0).sum(dim=-1) - 1
    return ids_RV.gather(1, torch.minimum(place_R, last_R)[:, None])[:, 0]


def _beam_search(
    steps: DecodingSteps, first: list[int], max_tokens: int, special: SpecialTokens, decoding: Decoding
) -> list[Generated]:
    """Beam search by summed log-probability; ended captions are compared by their mean per token."""
    num_beams = decoding.num_beams
    device = steps.text.positional_embedding.device
    beams = [_Beams(num_beams) for _ in range(steps.num_clips)]
    present = list(range(steps.num_clips))
    newest = torch.tensor([first], device=device).expand(steps.num_clips * num_beams, -1)
    for index in range(max_tokens):
        logprob_RV = F.log_softmax(steps.step(newest), dim=-1)
        barred_RV = logprob_RV
        if index < decoding.min_tokens:
            barred_RV = logprob_RV.clone()
            barred_RV[:, special.end] = -torch.inf
        rows: list[int] = []
        tokens: list[int] = []
        kept_clips: list[int] = []
        for place, clip in enumerate(present):
            span = slice(place * num_beams, (place + 1) * num_beams)
            beams[clip].extend(barred_RV[span], logprob_RV[span], special)
            if not beams[clip].is_done():
                kept_clips.append(place)
                rows += [place * num_beams + parent for parent in beams[clip].parents]
                tokens += [said[-1] for said in beams[clip].said]
        if not kept_clips or index + 1 == max_tokens:
            break
        steps.keep(rows, kept_clips)
        present = [present[place] for place in kept_clips]
        newest = torch.tensor(tokens, device=device)[:, None]
    return [clip_beams.best() for clip_beams in beams]


class _Beams:
    """The live beams of one clip and the captions that have ended."""

    def __init__(self, num_beams: int) -> None:
        self.num_beams = num_beams
        self.said: list[list[int]] = [[] for _ in range(num_beams)]
        self.logprobs: list[list[float]] = [[] for _ in range(num_beams)]
        # all beams start alike: only the first may grow at the first step
        self.scores = [0.0] + [-torch.inf] * (num_beams - 1)
        self.parents = list(range(num_beams))
        self.done: list[Generated] = []

    def extend(self, barred_KV: Tensor, logprob_KV: Tensor, special: SpecialTokens) -> None:
        """One token further: ended continuations among the K best are set aside, the K best live ones stay."""
        num_tokens = logprob_KV.shape[1]
        total_KV = barred_KV + torch.tensor(self.scores, device=barred_KV.device)[:, None]
        # each beam can end in two ways (end, pad): among 3K continuations at least K are live
        best = total_KV.flatten().topk(min(3 * self.num_beams, total_KV.numel()))
        own = logprob_KV.flatten()[best.indices].tolist()
        said: list[list[int]] = []
        logprobs: list[list[float]] = []
        scores: list[float] = []
        parents: list[int] = []
        for rank, (score, index, logprob) in enumerate(
            zip(best.values.tolist(), best.indices.tolist(), own, strict=True)
        ):
            parent, token = divmod(index, num_tokens)
            if token in (special.end, special.pad):
                if rank < self.num_beams and score > -torch.inf:
                    self.done.append(
                        Generated(
                            tokens=(*self.said[parent], token),
                            logprobs=(*self.logprobs[parent], logprob),
                            ended=True,
                        )
                    )
                continue
            if len(said) < self.num_beams:
                said.append([*self.said[parent], token])
                logprobs.append([*self.logprobs[parent], logprob])
                scores.append(score)
                parents.append(parent)
        self.said, self.logprobs, self.scores, self.parents = said, logprobs, scores, parents

    def is_done(self) -> bool:
        """K captions have ended and no live beam has a better mean than the K-th of them."""
        if len(self.done) < self.num_beams:
            return False
        worst = sorted((caption.mean_logprob for caption in self.done), reverse=True)[self.num_beams - 1]
        return max(self.scores) / len(self.said[0]) <= worst

    def best(self) -> Generated:
        """The best ended caption; where none ended, the best beam cut short."""
        if self.done:
            return max(self.done, key=lambda caption: caption.mean_logprob)
        top = max(range(len(self.said)), key=lambda beam: self.scores[beam])
        return Generated(tokens=tuple(self.said[top]), logprobs=tuple(self.logprobs[top]), ended=False)
