from __future__ import annotations

import numpy as np

from packing.mixture.rng import GOLDEN, betas, index_keys, mixed, name_keys, numbered_keys, uniforms


def test_mixing_is_splitmix64() -> None:
    assert hex(int(mixed(np.array([GOLDEN], np.uint64))[0])) == "0xe220a8397b1dcdaf"  # its first output from seed 0


def test_a_draw_hangs_on_the_name_alone() -> None:
    names = [f"clip-{i}" for i in range(100)]
    many = uniforms(name_keys([*names, "a name that is much longer than all the others"]), 1, 2, "x")
    alone = np.array([uniforms(name_keys([name]), 1, 2, "x")[0] for name in names])
    assert np.array_equal(many[:-1], alone)
    assert len(set(name_keys(["a", "b", "aa", "ab", "12345678", "123456789", "é"]).tolist())) == 7


def test_other_purposes_numbers_and_names_draw_independently() -> None:
    keys = index_keys(20_000)
    draws = [
        uniforms(keys, 0, 0, "x"),
        uniforms(keys, 0, 1, "x"),
        uniforms(keys, 1, 0, "x"),
        uniforms(keys, 0, 0, "y"),
        uniforms(numbered_keys(keys, np.zeros(20_000, np.int64)), 0, 0, "x"),
        uniforms(numbered_keys(keys, np.ones(20_000, np.int64)), 0, 0, "x"),
        uniforms(name_keys([f"clip-{i}" for i in range(20_000)]), 0, 0, "x"),
    ]
    assert all(abs(d.mean() - 0.5) < 0.01 and abs(d.var() - 1 / 12) < 0.003 for d in draws)
    assert np.abs(np.corrcoef(draws) - np.eye(len(draws))).max() < 0.03


def test_betas_have_the_mean_and_the_spread_of_the_distribution() -> None:
    drawn = betas(index_keys(50_000), 4, 2, "x")
    assert abs(drawn.mean() - 4 / 6) < 0.005
    assert abs(drawn.var() - 4 * 2 / (6**2 * 7)) < 0.002
