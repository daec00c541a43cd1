"""Caption decoding for open_clip's CoCa: each token is computed once.

open_clip 3.3 decodes by running both text towers over the whole prefix for every new token, re-projecting all image
tokens each time (and its `generate` does not run with current transformers at all). Here the self-attention keys and
values of both towers are cached, cross-attention keys and values are computed once per clip and shared by the beams or
samples of that clip, only the last position meets the vocabulary, and clips that have ended leave the batch. The CLS
token that CoCa's text tower appends comes after every text token and the tower is causal: no text token ever sees it,
so decoding leaves it out. In fp32 the greedy tokens are those of the full computation.

    with torch.inference_mode():
        embedding = video_coca.encode_clips(pixels_BTCHW)
        texts = generate(video_coca.coca, embedding.tokens_BND, special=SpecialTokens(start=1, end=2, pad=0))
    texts[0].tokens, texts[0].mean_logprob, texts[0].ended

Shapes: B clips, R rows (beams or samples of clips; those of a clip are neighbours), M tokens, N image tokens, D width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from recaption.captioners.generation.beam_search import beam_search
from recaption.captioners.generation.kv_cache import DecodingSteps
from recaption.captioners.generation.packed_weights import StepWeights
from recaption.captioners.generation.settings import Decoding, Generated, SpecialTokens
from recaption.errors import UsageError

__all__ = ["Decoding", "DecodingSteps", "Generated", "SpecialTokens", "StepWeights", "draw", "generate"]


COMPACT_SHARE = 0.25
"""Ended rows leave the batch once they are this share of it: copying the caches costs about a quarter of a step."""


def generate(
    coca: nn.Module,
    image_embs_BND: Tensor,
    *,
    special: SpecialTokens,
    decoding: Decoding | None = None,
    prompt: Sequence[int] = (),
    draws_RM: np.ndarray | None = None,
    weights: StepWeights | None = None,
    keep_states: bool = False,
) -> list[Generated]:
    """Caption each clip from its image tokens: `num_samples` captions per clip, those of a clip one after another.

    Args:
        coca: an `open_clip.coca_model.CoCa` in eval mode.
        prompt: token ids that every caption starts with, after the start token.
        draws_RM: uniform numbers in [0, 1), one per caption and token; needed where `temperature` > 0. A caption
            depends on its own row alone, not on its neighbours in the batch.
        weights: of this `coca`, laid out for speed; worth it from the second call on.
        keep_states: give `Generated.states_LKPD`, from which caption_embeddings.py embeds the captions.

    Raises:
        UsageError: the prompt leaves no room in the context, or draws are missing.
    """
    decoding = decoding or Decoding()
    first = [special.start, *prompt]
    context_length = min(coca.text.context_length, coca.text_decoder.context_length)  # type: ignore[arg-type, type-var]
    room = int(context_length) - len(first) + 1
    if room < 1:
        raise UsageError(f"a prompt of {len(prompt)} tokens does not fit a context of {context_length} tokens")
    max_tokens = min(decoding.max_tokens, room)
    is_drawn = decoding.temperature > 0
    num_rows = image_embs_BND.shape[0] * decoding.num_samples
    if is_drawn and (draws_RM is None or draws_RM.shape[0] < num_rows or draws_RM.shape[1] < max_tokens):
        raise UsageError(f"drawing {num_rows} captions of {max_tokens} tokens needs as many uniform numbers")
    if not len(image_embs_BND):
        return []
    steps = DecodingSteps(
        coca,
        image_embs_BND,
        rows_per_clip=decoding.num_beams if decoding.num_beams > 1 else decoding.num_samples,
        capacity=len(first) + max_tokens - 1,
        weights=weights,
    )
    if decoding.num_beams > 1:
        return beam_search(steps, first, max_tokens, special, decoding, keep_states)
    return _one_by_one(steps, first, max_tokens, special, decoding, draws_RM if is_drawn else None, keep_states)


def _one_by_one(
    steps: DecodingSteps,
    first: list[int],
    max_tokens: int,
    special: SpecialTokens,
    decoding: Decoding,
    draws_RM: np.ndarray | None,
    keep_states: bool,
) -> list[Generated]:
    """Greedy decoding, or drawing where `draws_RM` is given: every row goes its own way."""
    num_captions = steps.num_clips * steps.rows_per_clip
    tokens: list[list[int]] = [[] for _ in range(num_captions)]
    logprobs: list[list[float]] = [[] for _ in range(num_captions)]
    states: list[Tensor | None] = [None] * num_captions
    ended = [False] * num_captions
    caption_of_row = list(range(num_captions))
    newest = torch.tensor([first], device=steps.device).expand(num_captions, -1)
    for index in range(max_tokens):
        logits_RV = steps.step(newest)
        normaliser_R = logits_RV.logsumexp(dim=-1)
        choosable_RV = logits_RV
        if index < decoding.min_tokens:
            choosable_RV = logits_RV.clone()
            choosable_RV[:, special.end] = -torch.inf
        if draws_RM is not None:
            drawn_R = torch.as_tensor(draws_RM[caption_of_row, index], dtype=torch.float32, device=steps.device)
            chosen_R = draw(choosable_RV, drawn_R, decoding)
        else:
            chosen_R = choosable_RV.argmax(dim=-1)
        chosen_logprob_R = logits_RV.gather(1, chosen_R[:, None])[:, 0] - normaliser_R
        for row, (token, logprob) in enumerate(zip(chosen_R.tolist(), chosen_logprob_R.tolist(), strict=True)):
            caption = caption_of_row[row]
            if not ended[caption]:
                tokens[caption].append(token)
                logprobs[caption].append(logprob)
                ended[caption] = token in (special.end, special.pad)
                if keep_states and (ended[caption] or index + 1 == max_tokens):
                    states[caption] = steps.text_states(row)
        if all(ended) or index + 1 == max_tokens:
            break
        newest = chosen_R[:, None]
        rows, clips = _live_rows([ended[caption] for caption in caption_of_row], steps.rows_per_clip)
        if len(caption_of_row) - len(rows) >= max(1.0, COMPACT_SHARE * len(caption_of_row)):
            steps.keep(rows, clips)
            newest = newest[rows]
            caption_of_row = [caption_of_row[row] for row in rows]
    return [
        Generated(tokens=tuple(said), logprobs=tuple(scores), ended=end, states_LKPD=kept)
        for said, scores, end, kept in zip(tokens, logprobs, ended, states, strict=True)
    ]


def _live_rows(is_over: list[bool], rows_per_clip: int) -> tuple[list[int], list[int]]:
    """Rows and clips to go on with: clips with a live row, as many rows each as the one with the most has live ones.

    A clip with fewer fills up with rows that are over; nobody listens to what they say.
    """
    spans = [range(start, start + rows_per_clip) for start in range(0, len(is_over), rows_per_clip)]
    most = max(sum(not is_over[row] for row in span) for span in spans)
    clips = [clip for clip, span in enumerate(spans) if not all(is_over[row] for row in span)]
    rows = [row for clip in clips for row in sorted(sorted(spans[clip], key=lambda row: is_over[row])[:most])]
    return rows, clips


def draw(logits_RV: Tensor, uniform_R: Tensor, decoding: Decoding) -> Tensor:
    """Token ids (R,) drawn by inverting each row's cumulative distribution after temperature, top-k and top-p."""
    logits_RV = logits_RV / decoding.temperature
    ids_RV: Tensor | None = None
    if decoding.top_k or decoding.top_p < 1:  # in order of probability; nothing else needs the vocabulary sorted
        count = min(decoding.top_k or logits_RV.shape[1], logits_RV.shape[1])
        logits_RV, ids_RV = logits_RV.topk(count, dim=-1)
    probability_RV = logits_RV.softmax(dim=-1)
    if decoding.top_p < 1:
        before_RV = probability_RV.cumsum(dim=-1) - probability_RV
        probability_RV = probability_RV * (before_RV < decoding.top_p)
    cumulative_RV = probability_RV.cumsum(dim=-1)
    # the first place whose sum exceeds the number: never one of probability 0, for it adds nothing to the sum before it
    place_R = torch.searchsorted(cumulative_RV, uniform_R[:, None] * cumulative_RV[:, -1:], right=True)
    place_R = torch.minimum(place_R, (cumulative_RV < cumulative_RV[:, -1:]).sum(dim=-1, keepdim=True))
    return (place_R if ids_RV is None else ids_RV.gather(1, place_R))[:, 0]
