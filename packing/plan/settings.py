"""Settings of the packing plan and the checks they have to pass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from packing.mixture.segments import ExcerptRules
from recaption.errors import UsageError

POLICIES = ("first_fit", "best_fit", "subset_sum", "flops")


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How samples are packed."""

    capacity: int
    """Most tokens of one pack; what bounds the memory of a step."""
    policy: str = "first_fit"
    """`first_fit`: each sample into the first pack with room (NaViT's greedy rule). `best_fit`: the oldest waiting
    sample opens a pack, then the largest of the waiting ones that fits joins, until none does. `subset_sum`: the oldest
    with those of the waiting ones that leave least room. `flops`: best fit by cost, every pack about as dear as the
    dearest sample; wants a capacity of twice the longest sample."""
    pool: int = 64
    """Samples that wait at a time; no effect under `first_fit`, which keeps every pack open."""
    budget_tokens: int = 0
    """Under `flops`: a pack may cost what one sample of so many tokens costs; longer ones are rejected. 0: the longest."""
    seed: int = 0
    global_rows: int = 0
    """Packs per global batch: ranks x accumulation of the largest job. Every number of ranks that divides it sees the
    same global batches at equal cost. 0: the largest power of two up to 64 that adds at most 1/16 to the packs."""

    cost_width: int = 1152
    """Model width of the cost that the ranks of a step are balanced by."""
    window_samples: int = 1 << 20
    """Larger sets are planned in windows of about so many samples, which bounds the memory; see `epochs`."""

    # What an epoch shows of each sample; `rules` says how rules are written, `excerpts` what cutting means. Not in the repr:
    # hashes are made of that, and those of trainings without rules have to stay what they were.
    too_long: str = field(default="reject", repr=False)
    """A sample larger than a pack is left out (`reject`), or `split` in time into pieces that are as equal as whole latent
    frames allow. One of which a single frame is larger is always left out."""
    max_frames: tuple[str, ...] = field(default=(), repr=False)
    """Most latent frames that an appearance of a sample shows, from a start drawn anew each epoch: `5`, or rules such as
    `1@epoch<2` for a start with images."""
    mix: tuple[str, ...] = field(default=(), repr=False)
    """How often samples appear per epoch, on average: rules such as `images=2`, `17f-64x64-8fps=0.5` or
    `tokens>2048=0@epoch<3`, multiplied."""
    keep: tuple[str, ...] = field(default=(), repr=False)
    """Share of the tokens that is kept: rules such as `0.5`, `beta(4,2)`, `1024/tokens` or `0.25..1@epoch<10`; by default
    all are. Which ones is drawn anew for each appearance."""

    def __post_init__(self) -> None:
        check_policy(self.policy, self.capacity, self.pool)
        if min(self.budget_tokens, self.window_samples - 1) < 0:
            raise UsageError(f"{self.budget_tokens=} must be 0 (automatic) or more, {self.window_samples=} at least 1")
        if self.global_rows < 0 or self.cost_width < 1:
            raise UsageError(f"{self.global_rows=} must be 0 (automatic) or more, {self.cost_width=} at least 1")
        self.excerpt_rules  # noqa: B018  (says what is wrong with a rule before anything is read)

    @cached_property
    def excerpt_rules(self) -> ExcerptRules:
        return ExcerptRules.parse(mix=self.mix, max_frames=self.max_frames, keep=self.keep, too_long=self.too_long)

    def config(self) -> dict[str, Any]:
        """As plain values, without the rules that nobody set: what was recorded before there were any compares equal."""
        defaults = {f.name: f.default for f in dataclasses.fields(self) if not f.repr}
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if defaults.get(name, ...) != value}


def check_policy(policy: str, capacity: int, pool: int) -> None:
    if policy not in POLICIES:
        raise UsageError(f"there is no packing policy {policy!r}; there are {', '.join(POLICIES)}")
    if capacity < 1:
        raise UsageError(f"a pack needs a capacity of at least 1 token, not {capacity}")
    if pool < 1:
        raise UsageError(f"{policy} needs a pool of at least 1 sample, not {pool}")


def longest_sample(policy: str, capacity: int, budget_tokens: int) -> int:
    """Tokens that a sample may have; longer ones are rejected."""
    return min(capacity, budget_tokens) if policy == "flops" and budget_tokens else capacity
