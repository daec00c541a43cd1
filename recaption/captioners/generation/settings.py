"""What a caption decoder is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from recaption.errors import UsageError


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
    length_penalty: float = 1.0
    """Ended beams are compared by the sum of their log-probabilities over length**length_penalty: 1 is the mean per
    token, 0 the sum, which favours short captions."""
    temperature: float = 0.0
    """0 takes the most probable token; above 0 a token is drawn."""
    num_samples: int = 1
    """Captions drawn per clip."""
    top_k: int = 0
    """Draw among this many most probable tokens; 0 = all."""
    top_p: float = 1.0
    """Draw among the fewest tokens whose probabilities reach this sum."""
    min_tokens: int = 0
    """The end token is barred until this many tokens stand."""

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
            raise UsageError(f"{self.num_samples} samples of a clip are all the same without a temperature above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """One generated caption, prompt excluded."""

    tokens: tuple[int, ...]
    """With the end token, where it came."""
    logprobs: tuple[float, ...]
    """Natural log of each token's probability under the model itself (no temperature, nothing barred)."""
    ended: bool
    """False where the length limit cut it short."""
    states_LKPD: Tensor | None = field(default=None, compare=False, repr=False)
    """Keys and values of the text tower at the positions that were fed: the start token, then all tokens but the last."""

    @property
    def mean_logprob(self) -> float:
        return sum(self.logprobs) / len(self.logprobs)
