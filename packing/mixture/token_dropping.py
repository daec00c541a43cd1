"""Token dropping as in NaViT (arXiv 2307.06304, section 3.2), decided before packing.

    rules = parse_token_keep_rates(["0.5", "images=beta(4,2)", "1024/tokens", "0.25..1@epoch<10"])
    token_keep_rates(rules, sizes, sample_indices, tokens, keys, seed=0, epoch=1, position_epochs=1.0)
    sample_kept_tokens(320, 160, "clip-1", seed=0, epoch=1)            # indices of the kept tokens, ascending

A rule (`rules` has the grammar) gives the fraction of tokens that is kept: a number up to 1; beta(A,B), sampled from that
distribution for each segment (whole numbers A and B; mean A / (A + B)); or N/tokens, which keeps about N tokens of any
segment with more than N, so that the rate depends on resolution. `0.25..1@epoch<10` is a schedule: few tokens at the start
of training, all at the end. At least one token is always kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from packing.mixture.rules import Rule, parse_rule
from packing.mixture.sample_sizes import SampleSizes
from recaption.errors import UsageError
from recaption.rng import random_keys, sample_beta

BETA = re.compile(r"beta\((\d+),(\d+)\)")
TARGET_TOKENS = re.compile(r"(\d+)/tokens")
BETA_OR_TARGET = re.compile(f"(?:{BETA.pattern})|(?:{TARGET_TOKENS.pattern})")
MAX_BETA_SUM = 64
"""A + B of beta(A,B): each value takes as many uniform numbers."""
ROUNDING_SLACK = 1e-9
"""0.29 x 100 is 28.999999999999996 in floating point: without it the floor would be 28 tokens, not 29."""


def parse_token_keep_rates(rules: Iterable[str]) -> tuple[Rule, ...]:
    """Raises UsageError where a rule is malformed or its rate not in (0, 1]."""
    parsed = tuple(parse_rule(rule, other_values=BETA_OR_TARGET) for rule in rules)
    for rule in parsed:
        beta, target = BETA.fullmatch(rule.value), TARGET_TOKENS.fullmatch(rule.value)
        if rule.schedule and not (0 < rule.schedule.first <= 1 and 0 < rule.schedule.last <= 1):
            raise UsageError(f"rule {rule.text!r}: the fraction of tokens kept must be above 0 and at most 1")
        if beta and not (min(numbers := tuple(map(int, beta.groups()))) >= 1 and sum(numbers) <= MAX_BETA_SUM):
            raise UsageError(
                f"rule {rule.text!r}: beta(A,B) takes whole numbers from 1, with a sum up to {MAX_BETA_SUM}"
            )
        if target and int(target.group(1)) < 1:
            raise UsageError(f"rule {rule.text!r}: at least 1 token has to be kept")
    return parsed


def token_keep_rates(
    rules: Sequence[Rule],
    sizes: SampleSizes,
    sample_indices: np.ndarray,
    num_tokens: np.ndarray,
    keys: np.ndarray,
    *,
    seed: int,
    epoch: int,
    position_epochs: float,
) -> np.ndarray:
    """float64: the fraction of its tokens that each segment keeps.

    Args:
        sample_indices: of each segment's sample; conditions of rules are about the whole sample.
        num_tokens: of each segment, which N/tokens divides by.
        keys: RNG key of each segment.
    """
    rates = np.ones(len(sample_indices))
    for number, rule in enumerate(rules):
        if not rule.is_active(position_epochs):
            continue
        matches = rule.matches(sizes, sample_indices)
        chosen = np.arange(len(sample_indices)) if matches is None else np.flatnonzero(matches)
        if rule.schedule:
            rates[chosen] *= rule.value_at(position_epochs)
        elif beta := BETA.fullmatch(rule.value):
            rates[chosen] *= sample_beta(keys[chosen], int(beta[1]), int(beta[2]), seed, epoch, "kept share", number)
        elif target := TARGET_TOKENS.fullmatch(rule.value):
            rates[chosen] *= np.minimum(1.0, int(target[1]) / num_tokens[chosen])
    return rates


def num_kept_tokens(num_tokens: np.ndarray, keep_rates: np.ndarray) -> np.ndarray:
    """int64: `num_tokens` x `keep_rates` rounded down, at least one."""
    return np.maximum(1, np.floor(keep_rates * num_tokens + ROUNDING_SLACK)).astype(np.int64)


def sample_kept_tokens(num_tokens: int, num_kept: int, rng_key: str, *, seed: int, epoch: int) -> np.ndarray:
    """int64 (num_kept): indices of the kept tokens, ascending; every subset is equally likely.

    Args:
        rng_key: of the segment (`batch.rng_key`).
    """
    keys = random_keys(num_tokens, seed, epoch, f"kept tokens of {rng_key}")
    return np.sort(np.argsort(keys, kind="stable")[:num_kept])
