"""Caption generation for open_clip's CoCa with a KV cache: greedy, sampling or beam search.

open_clip 3.3 decodes by running both text towers over the whole prefix for every new token, re-projecting all image
tokens each time (and its `generate` does not run with current transformers at all). Here the self-attention keys and
values of both towers are cached, cross-attention keys and values are computed once per clip and shared by the beams or
samples of that clip, the LM head is applied to the last position only, and finished clips leave the batch. The CLS token
that CoCa's text tower appends comes after every text token and the tower is causal: no text token attends to it, so
generation leaves it out. In fp32 the greedy tokens are those of the full forward pass.

    with torch.inference_mode():
        embedding = video_coca.encode_clips(pixels_BTCHW)
        captions = generate(video_coca.coca, embedding.tokens_BND, special=SpecialTokens(start=1, end=2, pad=0))
    captions[0].tokens, captions[0].mean_logprob, captions[0].ended

Shapes: B clips, R rows (beams or samples of clips; those of a clip are adjacent), M tokens, N image tokens, D width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from recaption.captioners.generation.beam_search import beam_search
from recaption.captioners.generation.kv_cache import CachedDecoder
from recaption.captioners.generation.settings import DecodingSettings, GeneratedTokens, SpecialTokens
from recaption.errors import UsageError

COMPACT_FRACTION = 0.25
"""Finished rows leave the batch once they are this fraction of it: copying the caches costs about a quarter of a step."""


def generate(
    coca: nn.Module,
    image_embs_BND: Tensor,
    *,
    special: SpecialTokens,
    decoding: DecodingSettings | None = None,
    prompt: Sequence[int] = (),
    uniforms_RM: np.ndarray | None = None,
    return_kv_cache: bool = False,
) -> list[GeneratedTokens]:
    """Generate captions from image tokens: `num_samples` per clip, those of a clip adjacent.

    Args:
        coca: an `open_clip.coca_model.CoCa` in eval mode.
        prompt: token ids that every caption starts with, after the start token.
        uniforms_RM: uniform random numbers in [0, 1), one per caption and token; required if `temperature` > 0. A
            caption depends on its own row alone, not on the other rows of the batch.
        return_kv_cache: fill `GeneratedTokens.kv_cache_LKPD`, from which caption_embeddings.py embeds the captions.

    Raises:
        UsageError: the prompt leaves no room in the context, or `uniforms_RM` is missing or too small.
    """
    decoding = decoding or DecodingSettings()
    prompt_ids = [special.start, *prompt]
    context_length = min(coca.text.context_length, coca.text_decoder.context_length)  # type: ignore[arg-type, type-var]
    room = int(context_length) - len(prompt_ids) + 1
    if room < 1:
        raise UsageError(f"a prompt of {len(prompt)} tokens does not fit a context of {context_length} tokens")
    max_tokens = min(decoding.max_tokens, room)
    is_sampled = decoding.temperature > 0
    num_rows = image_embs_BND.shape[0] * decoding.num_samples
    if is_sampled and (uniforms_RM is None or uniforms_RM.shape[0] < num_rows or uniforms_RM.shape[1] < max_tokens):
        raise UsageError(f"sampling {num_rows} captions of {max_tokens} tokens needs uniforms_RM of that shape")
    if not len(image_embs_BND):
        return []
    decoder = CachedDecoder(
        coca,
        image_embs_BND,
        rows_per_clip=decoding.num_beams if decoding.num_beams > 1 else decoding.num_samples,
        capacity=len(prompt_ids) + max_tokens - 1,
    )
    if decoding.num_beams > 1:
        return beam_search(decoder, prompt_ids, max_tokens, special, decoding, return_kv_cache)
    return _greedy_or_sample(
        decoder, prompt_ids, max_tokens, special, decoding, uniforms_RM if is_sampled else None, return_kv_cache
    )


def _greedy_or_sample(
    decoder: CachedDecoder,
    prompt_ids: list[int],
    max_tokens: int,
    special: SpecialTokens,
    decoding: DecodingSettings,
    uniforms_RM: np.ndarray | None,
    return_kv_cache: bool,
) -> list[GeneratedTokens]:
    """Greedy decoding, or sampling if `uniforms_RM` is given; every row is independent."""
    num_captions = decoder.num_clips * decoder.rows_per_clip
    tokens: list[list[int]] = [[] for _ in range(num_captions)]
    logprobs: list[list[float]] = [[] for _ in range(num_captions)]
    kv_caches: list[Tensor | None] = [None] * num_captions
    ended = [False] * num_captions
    caption_of_row = list(range(num_captions))
    next_input = torch.tensor([prompt_ids], device=decoder.device).expand(num_captions, -1)
    uniform_RM = None
    if uniforms_RM is not None:  # uploaded once
        uniform_RM = torch.as_tensor(
            uniforms_RM[:num_captions, :max_tokens], dtype=torch.float32, device=decoder.device
        )
    for index in range(max_tokens):
        logits_RV = decoder.step(next_input)
        log_normalizer_R = logits_RV.logsumexp(dim=-1)
        if uniform_RM is not None:
            chosen_R = sample_tokens(logits_RV, uniform_RM[:, index], decoding)
        else:
            chosen_R = logits_RV.argmax(dim=-1)
        chosen_logprob_R = logits_RV.gather(1, chosen_R[:, None])[:, 0] - log_normalizer_R
        # one transfer per step, which waits for the device: token ids are exact in float64
        for row, (token_id, logprob) in enumerate(
            torch.stack([chosen_R.double(), chosen_logprob_R.double()], 1).tolist()
        ):
            caption, token = caption_of_row[row], int(token_id)
            if not ended[caption]:
                tokens[caption].append(token)
                logprobs[caption].append(logprob)
                ended[caption] = token in (special.end, special.pad)
                if return_kv_cache and (ended[caption] or index + 1 == max_tokens):
                    kv_caches[caption] = decoder.text_kv_cache(row)
        if all(ended) or index + 1 == max_tokens:
            break
        next_input = chosen_R[:, None]
        rows, clips = _rows_to_continue([ended[caption] for caption in caption_of_row], decoder.rows_per_clip)
        if len(caption_of_row) - len(rows) >= max(1.0, COMPACT_FRACTION * len(caption_of_row)):
            decoder.select_rows(rows, clips)
            next_input = next_input[rows]
            uniform_RM = None if uniform_RM is None else uniform_RM[rows]
            caption_of_row = [caption_of_row[row] for row in rows]
    return [
        GeneratedTokens(tokens=tuple(row_tokens), logprobs=tuple(row_logprobs), ended=row_ended, kv_cache_LKPD=cache)
        for row_tokens, row_logprobs, row_ended, cache in zip(tokens, logprobs, ended, kv_caches, strict=True)
    ]


def _rows_to_continue(is_finished: list[bool], rows_per_clip: int) -> tuple[list[int], list[int]]:
    """Rows and clips that stay in the batch: every clip with an unfinished row, with equally many rows for each clip.

    That number is the most unfinished rows of any clip; clips with fewer keep finished rows too, whose outputs are ignored.
    """
    spans = [range(start, start + rows_per_clip) for start in range(0, len(is_finished), rows_per_clip)]
    most = max(sum(not is_finished[row] for row in span) for span in spans)
    clips = [clip for clip, span in enumerate(spans) if not all(is_finished[row] for row in span)]
    rows = [row for clip in clips for row in sorted(sorted(spans[clip], key=lambda row: is_finished[row])[:most])]
    return rows, clips


def sample_tokens(logits_RV: Tensor, uniform_R: Tensor, decoding: DecodingSettings) -> Tensor:
    """Token ids (R,) sampled by inverse CDF from each row's distribution after temperature, top-k and top-p."""
    logits_RV = logits_RV / decoding.temperature
    ids_RV: Tensor | None = None
    if decoding.top_k or decoding.top_p < 1:  # sorted by probability; only top-k and top-p need that
        count = min(decoding.top_k or logits_RV.shape[1], logits_RV.shape[1])
        logits_RV, ids_RV = logits_RV.topk(count, dim=-1)
    probability_RV = logits_RV.softmax(dim=-1)
    if decoding.top_p < 1:
        before_RV = probability_RV.cumsum(dim=-1) - probability_RV
        probability_RV = probability_RV * (before_RV < decoding.top_p)
    cumulative_RV = probability_RV.cumsum(dim=-1)
    # the first index whose cumulative sum exceeds the number: never one of probability 0, which adds nothing to the sum
    index_R = torch.searchsorted(cumulative_RV, uniform_R[:, None] * cumulative_RV[:, -1:], right=True)
    index_R = torch.minimum(index_R, (cumulative_RV < cumulative_RV[:, -1:]).sum(dim=-1, keepdim=True))
    return (index_R if ids_RV is None else ids_RV.gather(1, index_R))[:, 0]
