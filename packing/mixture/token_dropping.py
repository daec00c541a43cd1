"""Leaving tokens of a sample out of training, as NaViT does (arXiv 2307.06304, section 3.2): known before packing.

    rules = parse_keep(["0.5", "images=beta(4,2)", "1024/tokens", "0.25..1@epoch<10"])
    kept_shares(rules, sizes, at, tokens, keys, seed=0, epoch=1, position=1.0)
    kept_tokens(320, 160, "clip-1", seed=0, epoch=1)                   # which, in ascending order

A rule (grammar: `rules`) gives the share of tokens that is kept: a number up to 1; beta(A,B), drawn for each appearance
of a sample from that distribution (whole numbers A and B; mean A / (A + B)); N/tokens, so that about N tokens stay of
whatever has more, the rate by resolution. `0.25..1@epoch<10` is a schedule over what training has seen: few tokens at
first, all at the end. At least one token always stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from packing.mixture.rng import betas, random_keys
from packing.mixture.rules import Rule, parse_rule
from packing.mixture.sample_sizes import SampleSizes
from recaption.errors import UsageError

BETA = re.compile(r"beta\((\d+),(\d+)\)")


OF_TOKENS = re.compile(r"(\d+)/tokens")


EITHER = re.compile(f"(?:{BETA.pattern})|(?:{OF_TOKENS.pattern})")


MAX_BETA = 64


ROUNDING = 1e-9
"""0.29 x 100 is 28.999999999999996 in floating point and 29 to everybody else."""


def parse_keep(rules: Iterable[str]) -> tuple[Rule, ...]:
    """Raises UsageError where one is no rule for a share."""
    parsed = tuple(parse_rule(rule, other_values=EITHER) for rule in rules)
    for rule in parsed:
        beta, of_tokens = BETA.fullmatch(rule.value), OF_TOKENS.fullmatch(rule.value)
        if rule.number and not (0 < rule.number.first <= 1 and 0 < rule.number.last <= 1):
            raise UsageError(f"rule {rule.text!r}: the share of tokens kept is above 0 and at most 1")
        if beta and not (min(numbers := tuple(map(int, beta.groups()))) >= 1 and sum(numbers) <= MAX_BETA):
            raise UsageError(f"rule {rule.text!r}: beta(A,B) wants whole numbers from 1, with a sum up to {MAX_BETA}")
        if of_tokens and int(of_tokens.group(1)) < 1:
            raise UsageError(f"rule {rule.text!r}: at least 1 token has to stay")
    return parsed


def kept_shares(
    rules: Sequence[Rule],
    sizes: SampleSizes,
    at: np.ndarray,
    num_tokens: np.ndarray,
    keys: np.ndarray,
    *,
    seed: int,
    epoch: int,
    position: float,
) -> np.ndarray:
    """float64: the share of its tokens that each appearance keeps.

    Args:
        at: place of its sample among `sizes`; rules choose by the whole sample.
        num_tokens: of what the appearance shows; N/tokens goes by it.
        keys: of each appearance.
    """
    shares = np.ones(len(at))
    for number, rule in enumerate(rules):
        if not rule.holds(position):
            continue
        matches = rule.matches(sizes, at)
        chosen = np.arange(len(at)) if matches is None else np.flatnonzero(matches)
        if rule.number:
            shares[chosen] *= rule.number_at(position)
        elif beta := BETA.fullmatch(rule.value):
            shares[chosen] *= betas(keys[chosen], int(beta[1]), int(beta[2]), seed, epoch, "kept share", number)
        elif of_tokens := OF_TOKENS.fullmatch(rule.value):
            shares[chosen] *= np.minimum(1.0, int(of_tokens[1]) / num_tokens[chosen])
    return shares


def num_kept(num_tokens: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """int64: whole tokens, at least one."""
    return np.maximum(1, np.floor(shares * num_tokens + ROUNDING)).astype(np.int64)


def kept_tokens(num_tokens: int, num_kept: int, name: str, *, seed: int, epoch: int) -> np.ndarray:
    """int64 (num_kept): which tokens stay, ascending; every subset is as likely.

    Args:
        name: of the appearance (`batch.draw_id`).
    """
    keys = random_keys(num_tokens, seed, epoch, f"kept tokens of {name}")
    return np.sort(np.argsort(keys, kind="stable")[:num_kept])
