"""Settings of caption generation (`DecodingSettings`) and its result per caption (`GeneratedTokens`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from recaption.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialTokens:
    """Ids of the start, end and padding tokens."""

    start: int
    end: int
    pad: int
    """Ends a caption too, as in open_clip (where pad is also an ordinary token, "!")."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingSettings:
    """Decoding strategy: greedy unless `num_beams` > 1 (beam search) or `temperature` > 0 (sampling)."""

    max_tokens: int = 76
    """Maximum number of generated tokens, the end token included; also bounded by the model's context length."""
    num_beams: int = 1
    length_penalty: float = 1.0
    """Finished beams are ranked by the sum of their log-probabilities over length**length_penalty: 1 is the mean per
    token, 0 the sum, which favours short captions."""
    temperature: float = 0.0
    """0 takes the most probable token; above 0 tokens are sampled."""
    num_samples: int = 1
    """Captions sampled per clip."""
    top_k: int = 0
    """Sample from the k most probable tokens; 0 = all."""
    top_p: float = 1.0
    """Nucleus sampling: sample from the fewest tokens whose probabilities reach this sum."""

    def __post_init__(self) -> None:
        if min(self.max_tokens, self.num_beams, self.num_samples) < 1 or self.top_k < 0 or self.temperature < 0:
            raise UsageError(
                "decoding needs max_tokens >= 1, num_beams >= 1, num_samples >= 1, top_k >= 0, temperature >= 0: "
                f"{self}"
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(f"{self.top_p = } is outside (0, 1]")
        if self.num_beams > 1 and self.temperature > 0:
            raise UsageError("beam search takes no temperature; leave one of num_beams and temperature at its default")
        if self.num_samples > 1 and self.temperature == 0:
            raise UsageError(
                f"{self.num_samples} samples of a clip are all the same at temperature 0; set a temperature above 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedTokens:
    """Tokens of one generated caption, prompt excluded."""

    tokens: tuple[int, ...]
    """Including the end token where the caption ended."""
    logprobs: tuple[float, ...]
    """Natural log of each token's probability under the model itself (temperature 1, nothing masked out)."""
    ended: bool
    """False where the caption was truncated at the length limit."""
    kv_cache_LKPD: Tensor | None = field(default=None, compare=False, repr=False)
    """Text tower's keys and values at the positions that were fed: the start token, then all tokens but the last."""

    @property
    def mean_logprob(self) -> float:
        return sum(self.logprobs) / len(self.logprobs)
