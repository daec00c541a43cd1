from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from packing.mixture.sample_sizes import SampleSizes
from packing.mixture.segments import Excerpt
from packing.plan.epochs import EpochPlans, Windows, automatic_global_rows
from packing.plan.settings import PlanSettings
from recaption.errors import UsageError
from tests.packing.plan.test_steps import video_lengths


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
    for window, samples in enumerate(together):
        assert windows.at(window, np.arange(len(samples))).tolist() == samples.tolist()


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


def test_a_window_without_any_sample_that_fits_is_left_empty() -> None:
    lengths = np.full(5 * 256, 10)
    lengths[256:512] = 1000
    plans = EpochPlans(lengths, PlanSettings(capacity=100, window_samples=256))
    assert len(plans.windows) == 5
    assert plans.rejected["too_long"].tolist() == list(range(256, 512))
    for epoch in range(2):
        rows = [plans.row(epoch * plans.num_rows + i)[1] for i in range(plans.num_rows)]
        assert sorted(np.concatenate(rows).tolist()) == [*range(256), *range(512, 5 * 256)]


@pytest.mark.parametrize(
    ("settings", "plan_hash", "of_epochs", "num_rows"),
    [
        (
            PlanSettings(capacity=400),
            "2662b5852b3328c3",
            ["119674f4d8f07f45", "33eeaabde71ed339", "11c8f281dd2029b3"],
            640,
        ),
        (
            PlanSettings(capacity=300, policy="best_fit", pool=16, seed=3, window_samples=1000),
            "4bfa1b7fde88683b",
            ["e9b118b11fde3b94", "8b70dbbf7f5dbce0", "a1a1aec653c28d25"],
            832,
        ),
    ],
)
def test_plans_without_rules_are_those_of_earlier_versions(
    settings: PlanSettings, plan_hash: str, of_epochs: list[str], num_rows: int
) -> None:
    """Trainings that were started before there were rules go on."""
    lengths = np.arange(5000) * 7919 % 97 + 1
    plans = EpochPlans(lengths, settings, fingerprint="pinned")
    assert (plans.hash, plans.num_rows) == (plan_hash, num_rows)
    assert [plans[epoch].hash for epoch in range(3)] == of_epochs
    assert not {"too_long", "max_frames", "mix", "keep"} & settings.config().keys()


# --- epochs that rules make unequal -----------------------------------------------------------------------------------

RULES = PlanSettings(
    capacity=100,
    policy="best_fit",
    pool=8,
    window_samples=512,
    too_long="split",
    max_frames=("6", "2@epoch<1"),
    mix=("images=1.5", "tokens>40=0..1@epoch<3"),
    keep=("0.8", "tokens>60=beta(3,1)"),
)


def clips(num: int = 1200) -> SampleSizes:
    rng = np.random.default_rng(4)
    frames = np.where(rng.random(num) < 0.3, 1, rng.integers(2, 12, num))
    names = [f"clip-{i}" for i in range(num)]
    return SampleSizes(frames * rng.integers(1, 20, num), num_frames=frames, clip_ids=names)


def excerpts_of(plans: EpochPlans, rows: range) -> list[tuple[int, list[Excerpt]]]:
    found = [plans.excerpts(row) for row in rows]
    return [(epoch, excerpts.each()) for epoch, excerpts in found]


def test_unequal_epochs_show_exactly_what_was_drawn_for_them() -> None:
    plans = EpochPlans(clips(), RULES)
    assert len(plans.windows) == 3
    first_row, lengths = 0, []
    for epoch in range(4):
        whole = plans[epoch]
        num_rows = whole.num_packs
        rows = excerpts_of(plans, range(first_row, first_row + num_rows))
        assert {e for e, _ in rows} == {epoch}
        drawn = [plans._draw(window, epoch).excerpts for window in range(3)]
        expected = sorted(
            e._replace(sample=int(plans.windows[w][e.sample])) for w, part in enumerate(drawn) for e in part.each()
        )
        assert sorted(e for _, row in rows for e in row) == expected
        assert [sum(e.num_tokens for e in row) for _, row in rows] == whole.row_tokens.tolist()
        assert whole.row_tokens.max() <= 100
        assert num_rows % plans.global_rows == 0
        assert whole.num_samples == len({e.sample for e in expected})
        first_row += num_rows
        lengths.append(num_rows)
    assert len(set(lengths)) > 2
    assert plans.num_rows == lengths[0]


def test_a_saved_beginning_spares_the_plans_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = EpochPlans(clips(), RULES)
    far = sum(plans[epoch].num_packs for epoch in range(6)) + 5
    expected = excerpts_of(plans, range(far, far + 60))
    resumed = EpochPlans(clips(), RULES)
    assert resumed.hash == plans.hash
    planned = []
    plan = resumed._plan_excerpts
    monkeypatch.setattr(resumed, "_plan_excerpts", lambda window, epoch: planned.append(epoch) or plan(window, epoch))
    resumed.begin_at(plans.beginning(far))
    assert excerpts_of(resumed, range(far, far + 60)) == expected
    assert set(planned) <= {6, 7}
    assert excerpts_of(resumed, range(3)) == excerpts_of(plans, range(3))  # rows before it are still there


def test_a_rule_of_part_of_an_epoch_holds_for_the_windows_that_start_in_it() -> None:
    settings = PlanSettings(capacity=250, window_samples=512, mix=("videos=0@epoch<0.5",))
    sizes = clips()
    plans = EpochPlans(sizes, settings)
    order = [int(w) for w in plans._order(0)]  # windows start at epochs 0, 1/3 and 2/3
    shown = np.unique(plans[0].samples)
    images = sizes.num_frames == 1
    for window in order[:2]:
        here = plans.windows[window]
        assert set(shown) & set(here) == set(here[images[here]])
    assert set(plans.windows[order[2]]) <= set(shown)
    assert set(np.unique(plans[1].samples)) == set(range(1200))


def test_rules_change_the_hash_and_the_mix_of_sizes_counts_excerpts() -> None:
    hashes = {
        EpochPlans(clips(), dataclasses.replace(RULES, **change)).hash
        for change in ({}, {"mix": ()}, {"keep": ()}, {"max_frames": ()}, {"too_long": "reject"})
    }
    assert len(hashes) == 5
    assert EpochPlans(clips(), RULES)[0].size_mix(clips().num_tokens).of_steps >= 0


def test_a_mix_that_shows_nothing_is_one_sentence() -> None:
    plans = EpochPlans(clips(20), dataclasses.replace(RULES, mix=("0",)))
    with pytest.raises(UsageError, match="epoch after epoch shows no sample"):
        plans.excerpts(0)
    later = EpochPlans(clips(20), dataclasses.replace(RULES, mix=("0@epoch<30",)))
    assert later.excerpts(0)[0] == 30


def test_under_a_cost_budget_a_later_epoch_may_show_dearer_samples() -> None:
    settings = PlanSettings(capacity=250, policy="flops", cost_width=8, max_frames=("1@epoch<1",))
    plans = EpochPlans(clips(), settings)
    assert plans[0].row_tokens.max() < plans[1].row_tokens.max() <= 250
    assert len(np.unique(plans[1].samples)) == 1200
