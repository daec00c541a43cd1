"""Sampling weights: the expected number of times that an epoch repeats each sample, by bucket and size, on a schedule.

    rules = parse_sampling_weights(["images=2", "17f-64x64-8fps=0.3", "tokens>2048=0@epoch<3"])
    repeat_counts(rules, sizes, sample_indices, seed=0, epoch=1, position_epochs=1.0)   # images 2, of that bucket 0 or 1

A weight of 2.5 gives 2 or 3 repeats, 0.3 gives 1 in 30 % of the epochs. The fraction is drawn anew per sample and epoch, so
that every sample is used in some epoch. `rules` has the grammar.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from packing.mixture.rules import Rule, parse_rule, product_of_rules
from packing.mixture.sample_sizes import SampleSizes
from recaption.errors import UsageError
from recaption.rng import sample_uniform

MAX_WEIGHT = 1000.0
"""More repeats per epoch are surely a typing error."""


def parse_sampling_weights(rules: Iterable[str]) -> tuple[Rule, ...]:
    """Raises UsageError where a rule is malformed or its weight above `MAX_WEIGHT`."""
    parsed = tuple(parse_rule(rule) for rule in rules)
    for rule in parsed:
        assert rule.schedule is not None
        if max(rule.schedule.first, rule.schedule.last) > MAX_WEIGHT:
            raise UsageError(f"rule {rule.text!r}: a weight is at most {MAX_WEIGHT:.0f} repeats per epoch")
    return parsed


def repeat_counts(
    rules: Sequence[Rule],
    sizes: SampleSizes,
    sample_indices: np.ndarray,
    *,
    seed: int,
    epoch: int,
    position_epochs: float,
) -> np.ndarray:
    """int64: how many times this epoch repeats each of these samples (0: it leaves it out)."""
    if not rules:
        return np.ones(len(sample_indices), np.int64)
    weights = np.minimum(product_of_rules(rules, sizes, sample_indices, position_epochs), MAX_WEIGHT)
    whole = np.floor(weights)
    is_rounded_up = sample_uniform(sizes.keys[sample_indices], seed, epoch, "appearances") < weights - whole
    return whole.astype(np.int64) + is_rounded_up
