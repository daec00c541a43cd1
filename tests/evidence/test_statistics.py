"""Intervals cover the truth as often as they say, pairing narrows them, and verdicts follow the rules."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evidence.statistics import (
    CANNOT_BE_TOLD,
    DOES_NOT_HOLD,
    HOLDS,
    Difference,
    paired_difference,
    student_quantile,
    verdict,
)

NUM_SEEDS, NUM_PROMPTS = 3, 300


def bits(rng: np.random.Generator, rate: float, *, seeds: float, prompts: float, arms: int = 2) -> np.ndarray:
    """(arms, seeds, prompts) of 0 and 1: `seeds` is the standard deviation of the rate over arms and seeds, `prompts` that
    over prompts, which all arms share (some prompts are hard for every model)."""
    rate_ASU = (
        rate + seeds * rng.standard_normal((arms, NUM_SEEDS, 1)) + prompts * rng.standard_normal((1, 1, NUM_PROMPTS))
    )
    return (rng.random((arms, NUM_SEEDS, NUM_PROMPTS)) < rate_ASU).astype(float)


@pytest.mark.parametrize("seeds", [0.0, 0.03, 0.1])
def test_95_of_100_intervals_contain_the_true_difference_however_much_seeds_differ(seeds):
    rng, covered = np.random.default_rng(0), []
    for _ in range(300):
        one, other = bits(rng, 0.5, seeds=seeds, prompts=0.15)
        found = paired_difference(one, other)
        covered.append(found.low <= 0 <= found.high)
    assert 0.93 <= np.mean(covered) <= 1.0, np.mean(covered)


def test_a_bootstrap_over_three_seeds_covers_far_less_than_it_says():
    rng, covered = np.random.default_rng(0), []
    for _ in range(120):
        one, other = bits(rng, 0.5, seeds=0.1, prompts=0.15)
        d_SU = one - other
        means = [
            d_SU[rng.integers(NUM_SEEDS, size=NUM_SEEDS)][:, rng.integers(NUM_PROMPTS, size=NUM_PROMPTS)].mean()
            for _ in range(150)
        ]
        low, high = np.quantile(means, [0.025, 0.975])
        covered.append(low <= 0 <= high)
    assert np.mean(covered) < 0.88, np.mean(covered)


def test_pairing_by_prompt_narrows_the_interval():
    rng = np.random.default_rng(1)
    one, other = bits(rng, 0.5, seeds=0.0, prompts=0.4)
    paired = paired_difference(one, other)
    unpaired = paired_difference(one, other[:, rng.permutation(NUM_PROMPTS)])
    assert paired.mean == pytest.approx(unpaired.mean)
    assert paired.high - paired.low < 0.8 * (unpaired.high - unpaired.low)


def test_seeds_that_disagree_widen_the_interval_though_there_are_many_prompts():
    rng = np.random.default_rng(2)
    same = paired_difference(*bits(rng, 0.5, seeds=0.0, prompts=0.1))
    noisy = paired_difference(*bits(rng, 0.5, seeds=0.15, prompts=0.1))
    assert noisy.high - noisy.low > 2 * (same.high - same.low)


def test_one_value_per_seed_is_the_paired_t_test():
    one, other = np.array([[0.50], [0.52], [0.47]]), np.array([[0.45], [0.46], [0.44]])
    found = paired_difference(one, other)
    d = (one - other)[:, 0]
    assert found.mean == pytest.approx(d.mean())
    assert found.high - found.mean == pytest.approx(4.302653 * d.std(ddof=1) / 3**0.5, rel=1e-4)


def test_a_single_seed_has_an_infinite_interval_and_values_of_other_prompts_are_refused():
    found = paired_difference(np.ones((1, 5)), np.zeros((1, 5)))
    assert verdict(found) == CANNOT_BE_TOLD
    with pytest.raises(ValueError, match="one shape"):
        paired_difference(np.ones((3, 5)), np.zeros((3, 4)))


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 3, 3.18245),
        (0.95, 10, 1.81246),
        (0.975, 299, 1.96793),
        (0.975, 1e6, 1.95997),
    ],
)
def test_quantiles_of_student_s_distribution(probability, degrees, expected):
    assert student_quantile(probability, degrees) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.01, 0.2, 0.0, HOLDS),
        (-0.01, 0.2, 0.0, CANNOT_BE_TOLD),
        (-0.2, -0.01, 0.0, DOES_NOT_HOLD),
        (-0.04, 0.02, -0.05, HOLDS),
        (-0.2, -0.06, -0.05, DOES_NOT_HOLD),
        (0.01, 0.04, 0.05, DOES_NOT_HOLD),
    ],
)
def test_a_verdict_is_where_the_interval_lies(low, high, margin, expected):
    difference = Difference(mean=(low + high) / 2, low=low, high=high, num_seeds=3, num_units=300)
    assert verdict(difference, margin=margin) == expected
