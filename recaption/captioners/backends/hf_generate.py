"""Captions from a model of the transformers package that continues a text: its own cache and beams, our draws.

    continuations = continue_rows(model, inputs, decoding=Decoding(max_tokens=40), draws_BM=batch.draws_RM, pad=0)
    continuations[0].tokens, continuations[0].mean_logprob, continuations[0].ended

transformers draws all rows of a batch from one stream, so a caption would depend on its neighbours. Here each row's tokens
come from its own uniform numbers, and log-probabilities are those of the model itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recaption.captioners.base import Said
from recaption.captioners.generation.generate import draw
from recaption.captioners.generation.settings import Decoding


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """What a model says after one prompt."""

    tokens: tuple[int, ...]
    """With the end token, where it came."""
    mean_logprob: float
    ended: bool

    def said(self, tokenizer: Any) -> Said:
        text = tokenizer.decode(list(self.tokens), skip_special_tokens=True)
        return Said(text=text, num_tokens=len(self.tokens), mean_logprob=self.mean_logprob, ended=self.ended)


def plain_generation(model: Any) -> tuple[int, ...]:
    """Forget how a checkpoint wants to be sampled, and return the tokens that end a text.

    Checkpoints come with penalties, temperatures and lengths of their own that would be mixed into ours.
    """
    from transformers import GenerationConfig

    known = model.generation_config
    ends = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
    model.generation_config = GenerationConfig(
        bos_token_id=known.bos_token_id, eos_token_id=known.eos_token_id, pad_token_id=known.pad_token_id
    )
    return tuple(token for token in ends if token is not None)


@torch.inference_mode()
def continue_rows(
    model: Any,
    inputs: Mapping[str, Any],
    *,
    decoding: Decoding,
    draws_BM: np.ndarray,
    ends: Sequence[int],
    pad: int,
) -> list[Continuation]:
    """Continue each row of `inputs["input_ids"]` (padded on the left), which are no part of what comes back."""
    from transformers import LogitsProcessorList

    choice = _Choice(decoding, draws_BM)
    beams = decoding.num_beams
    made = model.generate(
        **inputs,
        max_new_tokens=decoding.max_tokens,
        do_sample=False,
        num_beams=beams,
        length_penalty=decoding.length_penalty,
        eos_token_id=list(ends),
        pad_token_id=pad,
        use_cache=True,
        logits_processor=LogitsProcessorList([] if beams > 1 else [choice]),
        return_dict_in_generate=True,
        output_scores=beams > 1,  # without, no sequences_scores
    )
    new_BM = made.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    scores_B = made.sequences_scores.tolist() if beams > 1 else None
    continuations = []
    for row, tokens in enumerate(new_BM):
        length = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
        ended = bool(length) and tokens[length - 1] in ends
        # a beam's score is the sum over its tokens by length**penalty
        mean = scores_B[row] * length ** (decoding.length_penalty - 1) if scores_B else choice.mean_logprob(row, length)
        continuations.append(Continuation(tokens=tuple(tokens[:length]), mean_logprob=mean, ended=ended))
    return continuations


class _Choice:
    """Chooses each row's next token, leaves `generate` no other, and remembers its log-probability."""

    def __init__(self, decoding: Decoding, draws_BM: np.ndarray) -> None:
        self._decoding, self._draws_BM = decoding, draws_BM
        self._logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores_BV: Tensor) -> Tensor:
        logprob_BV = scores_BV.float().log_softmax(dim=-1)
        if self._decoding.temperature > 0:
            drawn = self._draws_BM[:, len(self._logprobs)]
            uniform_B = torch.as_tensor(drawn, dtype=torch.float32, device=scores_BV.device)
            chosen_B = draw(scores_BV.float(), uniform_B, self._decoding)
        else:
            chosen_B = logprob_BV.argmax(dim=-1)
        self._logprobs.append(logprob_BV.gather(1, chosen_B[:, None])[:, 0])
        return torch.full_like(scores_BV, -torch.inf).scatter(1, chosen_B[:, None], 0.0)

    def mean_logprob(self, row: int, length: int) -> float:
        return float(torch.stack(self._logprobs[:length])[:, row].mean()) if length else 0.0
