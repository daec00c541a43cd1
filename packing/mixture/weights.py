"""How often each sample is shown in an epoch: weights per bucket, size and kind, and how they change over training.

    rules = parse_mix(["images=2", "17f-64x64-8fps=0.3", "tokens>2048=0@epoch<3"])
    appearances(rules, sizes, at, seed=0, epoch=1, position=1.0)      # images 2, of that bucket 0 or 1, large ones 0

A weight is the expected number of appearances per epoch: 2.5 gives 2 or 3, 0.3 gives 1 in 30 % of the epochs. Which it
is is drawn per sample and epoch, so over the epochs every sample has its turn. The grammar is that of `rules`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from packing.mixture.rng import uniforms
from packing.mixture.rules import Rule, parse_rule, product
from packing.mixture.sample_sizes import SampleSizes
from recaption.errors import UsageError

MAX_WEIGHT = 1000.0
"""More appearances an epoch are a slip of the pen."""


def parse_mix(rules: Iterable[str]) -> tuple[Rule, ...]:
    """Raises UsageError where one is no rule for a weight."""
    parsed = tuple(parse_rule(rule) for rule in rules)
    for rule in parsed:
        assert rule.number is not None
        if max(rule.number.first, rule.number.last) > MAX_WEIGHT:
            raise UsageError(f"rule {rule.text!r}: a weight is at most {MAX_WEIGHT:.0f} appearances an epoch")
    return parsed


def appearances(
    rules: Sequence[Rule], sizes: SampleSizes, at: np.ndarray, *, seed: int, epoch: int, position: float
) -> np.ndarray:
    """int64: how often each of the samples `at` these places is shown in this epoch."""
    if not rules:
        return np.ones(len(at), np.int64)
    weights = np.minimum(product(rules, sizes, at, position), MAX_WEIGHT)
    whole = np.floor(weights)
    more = uniforms(sizes.keys[at], seed, epoch, "appearances") < weights - whole
    return whole.astype(np.int64) + more
