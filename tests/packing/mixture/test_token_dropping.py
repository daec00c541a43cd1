from __future__ import annotations

import numpy as np
import pytest

from packing.mixture.sample_sizes import SampleSizes
from packing.mixture.token_dropping import num_kept_tokens, parse_token_keep_rates, sample_kept_tokens, token_keep_rates
from recaption.errors import UsageError
from recaption.rng import keys_from_indices

TOKENS = np.array([1, 10, 100, 1000])
SIZES = SampleSizes(TOKENS)


def kept(*rules: str, position_epochs: float = 0.0, num_tokens: np.ndarray = TOKENS, **key: int) -> list[int]:
    sample_indices = np.arange(len(num_tokens))
    key = {"seed": 0, "epoch": int(position_epochs)} | key
    keys = keys_from_indices(len(num_tokens))
    rates = token_keep_rates(
        parse_token_keep_rates(rules),
        SampleSizes(num_tokens),
        sample_indices,
        num_tokens,
        keys,
        position_epochs=position_epochs,
        **key,
    )
    return num_kept_tokens(num_tokens, rates).tolist()


def test_constant_resolution_dependent_and_scheduled_keep_rates() -> None:
    assert kept() == TOKENS.tolist()
    assert kept("0.29") == [1, 2, 29, 290]  # 0.29 x 100 in floating point is less than 29
    assert kept("50/tokens") == [1, 10, 50, 50]
    assert kept("tokens>10=0.5", "tokens>100=0.5") == [1, 10, 50, 250]
    assert [kept("0.2..1@epoch<4", position_epochs=p)[3] for p in (0, 1, 2, 3, 4)] == [200, 400, 600, 800, 1000]


def test_beta_rates_are_sampled_per_segment_and_epoch() -> None:
    tokens = np.full(20_000, 1000)
    first = np.array(kept("beta(4,2)", num_tokens=tokens))
    assert abs(first.mean() / 1000 - 4 / 6) < 0.01
    assert 0.15 < first.std() / 1000 < 0.2
    assert first.tolist() == kept("beta(4,2)", num_tokens=tokens)
    assert abs(np.corrcoef(first, kept("beta(4,2)", num_tokens=tokens, epoch=1))[0, 1]) < 0.03


def test_kept_tokens_are_a_uniform_subset_seeded_by_rng_key_and_epoch() -> None:
    chosen = sample_kept_tokens(100, 30, "a", seed=0, epoch=0)
    assert len(set(chosen.tolist())) == 30
    assert np.all(np.diff(chosen) > 0)
    assert chosen.tolist() == sample_kept_tokens(100, 30, "a", seed=0, epoch=0).tolist()
    assert chosen.tolist() != sample_kept_tokens(100, 30, "a#1", seed=0, epoch=0).tolist()
    counts = np.zeros(100)
    for epoch in range(600):
        counts[sample_kept_tokens(100, 30, "a", seed=0, epoch=epoch)] += 1
    assert counts.min() > 110
    assert counts.max() < 250  # 180 expected, standard deviation 11


@pytest.mark.parametrize("rule", ["0", "1.5", "0..1@epoch<3", "beta(0,2)", "beta(50,50)", "0/tokens"])
def test_keep_rates_outside_0_to_1_are_refused(rule: str) -> None:
    with pytest.raises(UsageError, match="rule"):
        parse_token_keep_rates([rule])
