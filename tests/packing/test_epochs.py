from __future__ import annotations

import numpy as np
import pytest

from packing.epochs import EpochPlans, Windows, automatic_global_rows
from packing.plan import PlanSettings
from recaption.errors import UsageError
from tests.packing.test_plan import video_lengths


def test_epoch_plans_do_not_know_how_many_ranks_read_them() -> None:
    lengths = video_lengths(4000)
    plans = EpochPlans(lengths, PlanSettings(capacity=16_384, policy="best_fit"))
    assert plans.global_rows == 32
    assert plans.num_rows % 32 == 0
    for num_ranks in (1, 2, 4, 8, 16, 32):
        assert plans[0].rank_efficiency_at(num_ranks) > 0.95
    for epoch in (0, 1, 2):
        rows = [plans.row(epoch * plans.num_rows + i) for i in range(plans.num_rows)]
        assert {e for e, _ in rows} == {epoch}
        assert sorted(np.concatenate([r for _, r in rows]).tolist()) == list(range(4000))


def test_epochs_never_repeat_rows_even_where_ranks_outnumber_samples() -> None:
    plans = EpochPlans(np.full(33, 90), PlanSettings(capacity=100, global_rows=8))  # no two share a pack
    assert plans.num_rows == 33
    for epoch in range(3):
        assert plans[epoch].num_repeated_rows == 0
        assert sorted(plans[epoch].samples.tolist()) == list(range(33))


def test_epoch_plan_is_the_same_whichever_epoch_was_asked_for_before() -> None:
    settings = PlanSettings(capacity=100, pool=4)
    lengths = np.random.default_rng(1).integers(1, 100, 300)
    wandering, straight = EpochPlans(lengths, settings), EpochPlans(lengths, settings)
    for epoch in (5, 0, 3, 4, 1):
        wandering[epoch]
    assert [wandering[e].hash for e in range(6)] == [straight[e].hash for e in range(6)]


def test_hash_tells_data_and_settings_apart() -> None:
    lengths = np.arange(1, 50)
    base = EpochPlans(lengths, PlanSettings(capacity=100), fingerprint="a").hash
    assert EpochPlans(lengths, PlanSettings(capacity=100), fingerprint="a").hash == base
    others = [
        EpochPlans(lengths, PlanSettings(capacity=101), fingerprint="a"),
        EpochPlans(lengths, PlanSettings(capacity=100, seed=1), fingerprint="a"),
        EpochPlans(lengths, PlanSettings(capacity=100), fingerprint="b"),
        EpochPlans(lengths[::-1], PlanSettings(capacity=100), fingerprint="a"),
    ]
    assert base not in {plans.hash for plans in others}


@pytest.mark.parametrize(("num_packs", "rows"), [(1, 1), (31, 1), (32, 2), (128, 8), (100_000, 64)])
def test_small_sets_are_not_cut_into_many_half_empty_rows(num_packs: int, rows: int) -> None:
    assert automatic_global_rows(num_packs) == rows


@pytest.mark.parametrize(
    ("num_samples", "window_samples"), [(0, 100), (1, 1), (255, 100), (10_000, 1000), (10_001, 3000)]
)
def test_windows_tile_the_set(num_samples: int, window_samples: int) -> None:
    windows = Windows(num_samples, window_samples, seed=3)
    together = [windows[i] for i in range(len(windows))]
    assert sorted(np.concatenate(together).tolist()) == list(range(num_samples))
    assert max(map(len, together)) <= max(window_samples, 256) + 256


def test_a_set_in_windows_is_read_once_an_epoch_in_equal_epochs() -> None:
    lengths = np.sort(video_lengths(12_000))  # as an index sorted by bucket would have them
    lengths[7] = 20_000
    plans = EpochPlans(lengths, PlanSettings(capacity=16_384, policy="best_fit", window_samples=2000))
    assert len(plans.windows) == 6
    assert plans.num_rows % plans.global_rows == 0
    assert plans.rejected["too_long"].tolist() == [7]
    for epoch in range(3):
        rows = [plans.row(epoch * plans.num_rows + i) for i in range(plans.num_rows)]
        assert {e for e, _ in rows} == {epoch}
        assert sorted(np.concatenate([r for _, r in rows]).tolist()) == [i for i in range(12_000) if i != 7]
        whole = plans[epoch]
        assert [r.tolist() for _, r in rows] == [r.tolist() for r in whole.rows]
        assert whole.row_tokens.tolist() == [lengths[r].sum() for r in whole.rows]
    assert plans[0].fill > 0.95  # windows of 430 rows: rounding up and the last of each pool show
    assert plans[0].rank_efficiency_at(8) > 0.95
    assert abs(np.corrcoef(np.arange(plans.num_rows), plans[0].row_flops)[0, 1]) < 0.1


def test_cost_budget_is_that_of_the_set_not_of_a_window() -> None:
    lengths = np.full(3000, 10)
    lengths[-1] = 100
    plans = EpochPlans(lengths, PlanSettings(capacity=200, policy="flops", window_samples=1000, cost_width=8))
    assert plans[0].row_tokens.mean() > 150  # the cost of one sample of 10 tokens would be a row each


def test_no_sample_that_fits_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="none of 5 samples fits"):
        EpochPlans(np.full(5, 100), PlanSettings(capacity=50))
