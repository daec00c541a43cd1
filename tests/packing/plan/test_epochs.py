from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from packing.mixture.sample_sizes import SampleSizes
from packing.mixture.segments import Segment
from packing.plan.epochs import EpochPlans, Windows, default_global_batch_packs
from packing.plan.settings import PlanSettings
from recaption.errors import UsageError
from tests.packing.plan.test_steps import video_lengths


def test_epoch_plans_do_not_depend_on_the_number_of_ranks() -> None:
    lengths = video_lengths(4000)
    plans = EpochPlans(lengths, PlanSettings(capacity=16_384, policy="best_fit"))
    assert plans.global_batch_packs == 32
    assert plans.num_packs % 32 == 0
    for num_ranks in (1, 2, 4, 8, 16, 32):
        assert plans[0].rank_efficiency_at(num_ranks) > 0.95
    for epoch in (0, 1, 2):
        packs = [plans.pack(epoch * plans.num_packs + i) for i in range(plans.num_packs)]
        assert {e for e, _ in packs} == {epoch}
        assert sorted(np.concatenate([r for _, r in packs]).tolist()) == list(range(4000))


def test_epochs_repeat_no_pack_even_with_more_ranks_than_samples() -> None:
    plans = EpochPlans(np.full(33, 90), PlanSettings(capacity=100, global_batch_packs=8))  # no two share a pack
    assert plans.num_packs == 33
    for epoch in range(3):
        assert plans[epoch].num_repeated_packs == 0
        assert sorted(plans[epoch].samples.tolist()) == list(range(33))


def test_epoch_plan_does_not_depend_on_epochs_planned_before() -> None:
    settings = PlanSettings(capacity=100, pool=4)
    lengths = np.random.default_rng(1).integers(1, 100, 300)
    random_access, in_order = EpochPlans(lengths, settings), EpochPlans(lengths, settings)
    for epoch in (5, 0, 3, 4, 1):
        random_access[epoch]
    assert [random_access[e].hash for e in range(6)] == [in_order[e].hash for e in range(6)]


def test_hash_changes_with_data_and_settings() -> None:
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


@pytest.mark.parametrize(("num_packs", "global_batch"), [(1, 1), (31, 1), (32, 2), (128, 8), (100_000, 64)])
def test_default_global_batch_adds_few_packs_to_small_sets(num_packs: int, global_batch: int) -> None:
    assert default_global_batch_packs(num_packs) == global_batch


@pytest.mark.parametrize(
    ("num_samples", "window_samples"), [(0, 100), (1, 1), (255, 100), (10_000, 1000), (10_001, 3000)]
)
def test_windows_tile_the_set(num_samples: int, window_samples: int) -> None:
    windows = Windows(num_samples, window_samples, seed=3)
    together = [windows[i] for i in range(len(windows))]
    assert sorted(np.concatenate(together).tolist()) == list(range(num_samples))
    assert max(map(len, together)) <= max(window_samples, 256) + 256
    for window, samples in enumerate(together):
        assert windows.select(window, np.arange(len(samples))).tolist() == samples.tolist()


def test_set_in_windows_is_read_once_per_epoch_in_equal_epochs() -> None:
    lengths = np.sort(video_lengths(12_000))  # as an index sorted by bucket would have them
    lengths[7] = 20_000
    plans = EpochPlans(lengths, PlanSettings(capacity=16_384, policy="best_fit", window_samples=2000))
    assert len(plans.windows) == 6
    assert plans.num_packs % plans.global_batch_packs == 0
    assert plans.rejected["too_long"].tolist() == [7]
    for epoch in range(3):
        packs = [plans.pack(epoch * plans.num_packs + i) for i in range(plans.num_packs)]
        assert {e for e, _ in packs} == {epoch}
        assert sorted(np.concatenate([r for _, r in packs]).tolist()) == [i for i in range(12_000) if i != 7]
        whole = plans[epoch]
        assert [r.tolist() for _, r in packs] == [r.tolist() for r in whole.packs]
        assert whole.pack_tokens.tolist() == [lengths[r].sum() for r in whole.packs]
    assert plans[0].fill > 0.95  # windows of 430 packs: rounding up and the last packs of each window have padding
    assert plans[0].rank_efficiency_at(8) > 0.95
    assert abs(np.corrcoef(np.arange(plans.num_packs), plans[0].pack_flops)[0, 1]) < 0.1


def test_flops_budget_is_that_of_the_set_not_of_a_window() -> None:
    lengths = np.full(3000, 10)
    lengths[-1] = 100
    plans = EpochPlans(lengths, PlanSettings(capacity=200, policy="flops", window_samples=1000, cost_model_width=8))
    assert plans[0].pack_tokens.mean() > 150  # the cost of one sample of 10 tokens would be a pack each


def test_set_without_fitting_samples_is_refused() -> None:
    with pytest.raises(UsageError, match="none of 5 samples fits"):
        EpochPlans(np.full(5, 100), PlanSettings(capacity=50))


def test_window_without_fitting_samples_has_no_packs() -> None:
    lengths = np.full(5 * 256, 10)
    lengths[256:512] = 1000
    plans = EpochPlans(lengths, PlanSettings(capacity=100, window_samples=256))
    assert len(plans.windows) == 5
    assert plans.rejected["too_long"].tolist() == list(range(256, 512))
    for epoch in range(2):
        packs = [plans.pack(epoch * plans.num_packs + i)[1] for i in range(plans.num_packs)]
        assert sorted(np.concatenate(packs).tolist()) == [*range(256), *range(512, 5 * 256)]


@pytest.mark.parametrize(
    ("settings", "plan_hash", "epoch_hashes", "num_packs"),
    [
        (
            PlanSettings(capacity=400),
            "719a84c77dcf49f4",
            ["119674f4d8f07f45", "33eeaabde71ed339", "11c8f281dd2029b3"],
            640,
        ),
        (
            PlanSettings(capacity=300, policy="best_fit", pool=16, seed=3, window_samples=1000),
            "1fba7dbb187a243c",
            ["e9b118b11fde3b94", "8b70dbbf7f5dbce0", "a1a1aec653c28d25"],
            832,
        ),
    ],
)
def test_plans_without_rules_are_pinned(
    settings: PlanSettings, plan_hash: str, epoch_hashes: list[str], num_packs: int
) -> None:
    """A changed hash invalidates every saved position of training."""
    lengths = np.arange(5000) * 7919 % 97 + 1
    plans = EpochPlans(lengths, settings, fingerprint="pinned")
    assert (plans.hash, plans.num_packs) == (plan_hash, num_packs)
    assert [plans[epoch].hash for epoch in range(3)] == epoch_hashes


# --- epochs with rules, which differ in length ----------------------------------------------------------------------

RULES = PlanSettings(
    capacity=100,
    policy="best_fit",
    pool=8,
    window_samples=512,
    too_long="split",
    max_latent_frames=("6", "2@epoch<1"),
    sampling_weights=("images=1.5", "tokens>40=0..1@epoch<3"),
    token_keep_rate=("0.8", "tokens>60=beta(3,1)"),
)


def clips(num: int = 1200) -> SampleSizes:
    rng = np.random.default_rng(4)
    frames = np.where(rng.random(num) < 0.3, 1, rng.integers(2, 12, num))
    names = [f"clip-{i}" for i in range(num)]
    return SampleSizes(frames * rng.integers(1, 20, num), num_frames=frames, clip_ids=names)


def segments_of(plans: EpochPlans, packs: range) -> list[tuple[int, list[Segment]]]:
    found = [plans.segments(index) for index in packs]
    return [(epoch, segments.to_list()) for epoch, segments in found]


def test_unequal_epochs_contain_exactly_their_segments() -> None:
    plans = EpochPlans(clips(), RULES)
    assert len(plans.windows) == 3
    first_pack, lengths = 0, []
    for epoch in range(4):
        whole = plans[epoch]
        num_packs = whole.num_packs
        packs = segments_of(plans, range(first_pack, first_pack + num_packs))
        assert {e for e, _ in packs} == {epoch}
        sampled = [plans._sample_segments(window, epoch).segments for window in range(3)]
        expected = sorted(
            s._replace(sample=int(plans.windows[w][s.sample])) for w, part in enumerate(sampled) for s in part.to_list()
        )
        assert sorted(s for _, pack in packs for s in pack) == expected
        assert [sum(s.num_tokens for s in pack) for _, pack in packs] == whole.pack_tokens.tolist()
        assert whole.pack_tokens.max() <= 100
        assert num_packs % plans.global_batch_packs == 0
        assert whole.num_samples == len({s.sample for s in expected})
        first_pack += num_packs
        lengths.append(num_packs)
    assert len(set(lengths)) > 2
    assert plans.num_packs == lengths[0]


def test_seek_to_a_saved_window_offset_skips_earlier_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = EpochPlans(clips(), RULES)
    far = sum(plans[epoch].num_packs for epoch in range(6)) + 5
    expected = segments_of(plans, range(far, far + 60))
    resumed = EpochPlans(clips(), RULES)
    assert resumed.hash == plans.hash
    planned = []
    plan = resumed._plan_segments
    monkeypatch.setattr(resumed, "_plan_segments", lambda window, epoch: planned.append(epoch) or plan(window, epoch))
    resumed.seek(plans.window_offset(far))
    assert segments_of(resumed, range(far, far + 60)) == expected
    assert set(planned) <= {6, 7}
    assert segments_of(resumed, range(3)) == segments_of(plans, range(3))  # earlier packs are still found


def test_rule_for_part_of_an_epoch_is_active_in_the_windows_that_start_in_it() -> None:
    settings = PlanSettings(capacity=250, window_samples=512, sampling_weights=("videos=0@epoch<0.5",))
    sizes = clips()
    plans = EpochPlans(sizes, settings)
    order = [int(w) for w in plans._window_order(0)]  # windows start at epochs 0, 1/3 and 2/3
    sampled = np.unique(plans[0].samples)
    images = sizes.num_frames == 1
    for window in order[:2]:
        here = plans.windows[window]
        assert set(sampled) & set(here) == set(here[images[here]])
    assert set(plans.windows[order[2]]) <= set(sampled)
    assert set(np.unique(plans[1].samples)) == set(range(1200))


def test_rules_change_the_hash_and_length_mix_counts_segments() -> None:
    hashes = {
        EpochPlans(clips(), dataclasses.replace(RULES, **change)).hash
        for change in (
            {},
            {"sampling_weights": ()},
            {"token_keep_rate": ()},
            {"max_latent_frames": ()},
            {"too_long": "reject"},
        )
    }
    assert len(hashes) == 5
    assert EpochPlans(clips(), RULES)[0].length_mix(clips().num_tokens).per_step >= 0


def test_sampling_weights_of_0_for_all_epochs_are_refused() -> None:
    plans = EpochPlans(clips(20), dataclasses.replace(RULES, sampling_weights=("0",)))
    with pytest.raises(UsageError, match="epoch after epoch has no sample"):
        plans.segments(0)
    later = EpochPlans(clips(20), dataclasses.replace(RULES, sampling_weights=("0@epoch<30",)))
    assert later.segments(0)[0] == 30


def test_flops_budget_grows_with_costlier_segments_of_later_epochs() -> None:
    settings = PlanSettings(capacity=250, policy="flops", cost_model_width=8, max_latent_frames=("1@epoch<1",))
    plans = EpochPlans(clips(), settings)
    assert plans[0].pack_tokens.max() < plans[1].pack_tokens.max() <= 250
    assert len(np.unique(plans[1].samples)) == 1200
