"""Settings of the packing plan and their validation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from packing.mixture.segments import SegmentRules
from recaption.errors import UsageError

DEFAULT_COST_MODEL_WIDTH = 1152
"""Of DiT-XL."""
POLICIES = ("first_fit", "best_fit", "subset_sum", "flops")


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How samples are packed."""

    capacity: int
    """Most tokens of one pack, which bounds the memory of a step."""
    policy: str = "first_fit"
    """`first_fit`: each sample into the first pack with room (NaViT's greedy rule). `best_fit`: the oldest sample of the
    pool opens a pack, then the largest one that fits is added until none fits. `subset_sum`: the oldest, with those of
    the pool that leave least room. `flops`: best fit by FLOPs, every pack costs about as much as the costliest sample;
    needs a capacity of twice the longest sample."""
    pool: int = 64
    """Samples in the packing buffer; no effect under `first_fit`, which keeps every pack open."""
    budget_tokens: int = 0
    """Under `flops`: a pack may cost as much as one sample of this many tokens; longer ones are rejected. 0: the longest."""
    seed: int = 0
    """Seed of the order of samples and of random rules."""
    global_batch_packs: int = 0
    """Packs per global batch: ranks x accumulation of the largest job. Every number of ranks that divides it sees the
    same global batches at equal cost. 0: the largest power of two up to 64 that adds at most 1/16 to the packs."""

    cost_model_width: int = 0
    """Packs are balanced across ranks by FLOPs, a l + b l^2 for a sample of l tokens: a / b is 6 times this width in a plain
    transformer. 0: what the backbone that is trained says of itself, or 1152."""
    window_samples: int = 1 << 20
    """Larger sets are planned in windows of about this many samples, which bounds the memory; see `epochs`."""

    # The rules that make segments of samples (`packing.mixture`: grammar in `rules`, temporal crops in `segments`).
    too_long: str = "reject"
    """A sample larger than a pack is rejected (`reject`), or `split` in time into parts that are as equal as whole latent
    frames allow; rejected also then where a single frame is larger than a pack."""
    max_latent_frames: tuple[str, ...] = ()
    """Longer samples are cropped to this many latent frames, from a random start each epoch: `5`, or rules such as
    `1@epoch<2` for image training first."""
    sampling_weights: tuple[str, ...] = ()
    """Expected repeats of a sample per epoch: rules such as `images=2`, `17f-64x64-8fps=0.5` or `tokens>2048=0@epoch<3`,
    multiplied."""
    token_keep_rate: tuple[str, ...] = ()
    """Fraction of the tokens that is kept (NaViT's token dropping): rules such as `0.5`, `beta(4,2)`, `1024/tokens` or
    `0.25..1@epoch<10`; default: all. Which tokens is random for each segment."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UsageError(f"there is no packing policy {self.policy!r}; there are {', '.join(POLICIES)}")
        if self.capacity < 1:
            raise UsageError(f"a pack needs a capacity of at least 1 token, not {self.capacity}")
        if self.pool < 1:
            raise UsageError(f"{self.policy} needs a pool of at least 1 sample, not {self.pool}")
        if min(self.budget_tokens, self.window_samples - 1) < 0:
            raise UsageError(f"{self.budget_tokens=} must be 0 (automatic) or more, {self.window_samples=} at least 1")
        if self.global_batch_packs < 0 or self.cost_model_width < 0:
            raise UsageError(f"{self.global_batch_packs=} and {self.cost_model_width=} must be 0 (automatic) or more")
        self.segment_rules  # noqa: B018  (refuses a malformed rule before anything is read)

    def with_cost_model_width(self, width: int) -> PlanSettings:
        """These settings, with `width` where `cost_model_width` is left to the backbone."""
        return self if self.cost_model_width else dataclasses.replace(self, cost_model_width=width)

    @cached_property
    def segment_rules(self) -> SegmentRules:
        return SegmentRules.parse(
            sampling_weights=self.sampling_weights,
            max_latent_frames=self.max_latent_frames,
            token_keep_rate=self.token_keep_rate,
            too_long=self.too_long,
        )

    @property
    def max_sample_tokens(self) -> int:
        """Longer samples are rejected or split."""
        is_limited = self.policy == "flops" and self.budget_tokens
        return min(self.capacity, self.budget_tokens) if is_limited else self.capacity
