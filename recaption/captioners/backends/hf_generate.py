"""Caption generation by `generate` of the transformers package, with random numbers per sequence.

    completions = generate_completions(model, inputs, decoding=settings, uniform_BM=uniforms_BM, pad_id=0)
    completions[0].tokens, completions[0].mean_logprob, completions[0].ended

KV cache and beam search are those of transformers. Its sampling draws all sequences of a batch from one random stream, so
that a caption would depend on the other clips of its batch. Here each sequence has its own uniform random numbers, and
log-probabilities are those of the model, before temperature and top-k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recaption.captioners.base import GeneratedText
from recaption.captioners.generation.generate import sample_tokens
from recaption.captioners.generation.settings import DecodingSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """The tokens generated after one prompt."""

    tokens: tuple[int, ...]
    """With the end token, if it was generated."""
    mean_logprob: float
    ended: bool
    """False where `max_tokens` cut it short."""

    def decode(self, tokenizer: Any) -> GeneratedText:
        text = tokenizer.decode(list(self.tokens), skip_special_tokens=True)
        return GeneratedText(text=text, num_tokens=len(self.tokens), mean_logprob=self.mean_logprob, ended=self.ended)


def reset_generation_config(model: Any) -> tuple[int, ...]:
    """Drop a checkpoint's own generation settings and return its end token ids.

    Checkpoints come with penalties, temperatures and lengths that would be mixed into ours.
    """
    from transformers import GenerationConfig

    original = model.generation_config
    end_ids = original.eos_token_id if isinstance(original.eos_token_id, list) else [original.eos_token_id]
    model.generation_config = GenerationConfig(
        bos_token_id=original.bos_token_id, eos_token_id=original.eos_token_id, pad_token_id=original.pad_token_id
    )
    return tuple(token for token in end_ids if token is not None)


@torch.inference_mode()
def generate_completions(
    model: Any,
    inputs: Mapping[str, Any],
    *,
    decoding: DecodingSettings,
    uniform_BM: np.ndarray,
    end_ids: Sequence[int],
    pad_id: int,
) -> list[Completion]:
    """Generate one completion per prompt in `inputs["input_ids"]` (B, prompt length; padded on the left).

    Args:
        uniform_BM: uniform random numbers per sequence and token; used where `decoding.temperature` is above 0.

    Returns:
        Generated tokens without their prompts.
    """
    from transformers import LogitsProcessorList

    selector = _TokenSelector(decoding, uniform_BM)
    num_beams = decoding.num_beams
    output = model.generate(
        **inputs,
        max_new_tokens=decoding.max_tokens,
        do_sample=False,
        num_beams=num_beams,
        length_penalty=decoding.length_penalty,
        eos_token_id=list(end_ids),
        pad_token_id=pad_id,
        use_cache=True,
        logits_processor=LogitsProcessorList([] if num_beams > 1 else [selector]),
        return_dict_in_generate=True,
        output_scores=num_beams > 1,  # sequences_scores needs it
    )
    new_BM = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    scores_B = output.sequences_scores.tolist() if num_beams > 1 else None
    completions = []
    for index, tokens in enumerate(new_BM):
        length = next((position + 1 for position, token in enumerate(tokens) if token in end_ids), len(tokens))
        ended = bool(length) and tokens[length - 1] in end_ids
        if scores_B:  # a beam's score is its summed log-probability / length**penalty
            mean_logprob = scores_B[index] * length ** (decoding.length_penalty - 1)
        else:
            mean_logprob = selector.mean_logprob(index, length)
        completions.append(Completion(tokens=tuple(tokens[:length]), mean_logprob=mean_logprob, ended=ended))
    return completions


class _TokenSelector:
    """Logits processor that selects each sequence's next token: all other logits become -inf; keeps its log-probability."""

    def __init__(self, decoding: DecodingSettings, uniform_BM: np.ndarray) -> None:
        self._decoding, self._uniform_BM = decoding, uniform_BM
        self._logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores_BV: Tensor) -> Tensor:
        logprob_BV = scores_BV.float().log_softmax(dim=-1)
        if self._decoding.temperature > 0:
            uniforms = self._uniform_BM[:, len(self._logprobs)]
            uniform_B = torch.as_tensor(uniforms, dtype=torch.float32, device=scores_BV.device)
            chosen_B = sample_tokens(scores_BV.float(), uniform_B, self._decoding)
        else:
            chosen_B = logprob_BV.argmax(dim=-1)
        self._logprobs.append(logprob_BV.gather(1, chosen_B[:, None])[:, 0])
        return torch.full_like(scores_BV, -torch.inf).scatter(1, chosen_B[:, None], 0.0)

    def mean_logprob(self, index: int, length: int) -> float:
        return float(torch.stack(self._logprobs[:length])[:, index].mean()) if length else 0.0
