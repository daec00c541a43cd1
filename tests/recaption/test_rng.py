from __future__ import annotations

import numpy as np

from recaption.rng import (
    GOLDEN_GAMMA,
    fold_in,
    keys_from_indices,
    keys_from_names,
    random_permutation,
    sample_beta,
    sample_uniform,
    splitmix64,
    uniform_sequence,
)


def test_splitmix64_matches_the_reference() -> None:
    assert (
        hex(int(splitmix64(np.array([GOLDEN_GAMMA], np.uint64))[0])) == "0xe220a8397b1dcdaf"
    )  # its first output from seed 0


def test_numbers_are_pinned_as_every_plan_depends_on_them() -> None:
    assert random_permutation(8, 1, 2, "rows").tolist() == [0, 3, 7, 5, 6, 2, 4, 1]
    assert sample_uniform(keys_from_names(["a", "b"]), 1, 2, "x").tolist() == [0.6433653722943007, 0.6763363300040498]
    assert uniform_sequence(2, 1, "a").tolist() == [0.7835087043090702, 0.8366005665704661]


def test_random_number_depends_on_the_name_alone() -> None:
    names = [f"clip-{i}" for i in range(100)]
    many = sample_uniform(keys_from_names([*names, "a name that is much longer than all the others"]), 1, 2, "x")
    alone = np.array([sample_uniform(keys_from_names([name]), 1, 2, "x")[0] for name in names])
    assert np.array_equal(many[:-1], alone)
    assert len(set(keys_from_names(["a", "b", "aa", "ab", "12345678", "123456789", "é"]).tolist())) == 7


def test_purposes_folded_numbers_and_names_give_independent_numbers() -> None:
    keys = keys_from_indices(20_000)
    numbers = [
        sample_uniform(keys, 0, 0, "x"),
        sample_uniform(keys, 0, 1, "x"),
        sample_uniform(keys, 1, 0, "x"),
        sample_uniform(keys, 0, 0, "y"),
        sample_uniform(fold_in(keys, np.zeros(20_000, np.int64)), 0, 0, "x"),
        sample_uniform(fold_in(keys, np.ones(20_000, np.int64)), 0, 0, "x"),
        sample_uniform(keys_from_names([f"clip-{i}" for i in range(20_000)]), 0, 0, "x"),
    ]
    assert all(abs(d.mean() - 0.5) < 0.01 and abs(d.var() - 1 / 12) < 0.003 for d in numbers)
    assert np.abs(np.corrcoef(numbers) - np.eye(len(numbers))).max() < 0.03


def test_sample_beta_has_the_mean_and_variance_of_the_distribution() -> None:
    values = sample_beta(keys_from_indices(50_000), 4, 2, "x")
    assert abs(values.mean() - 4 / 6) < 0.005
    assert abs(values.var() - 4 * 2 / (6**2 * 7)) < 0.002
