from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.grid import sample_flops
from packing.plan.settings import PlanSettings
from packing.plan.steps import plan_packs, plan_steps
from recaption.errors import SampleTooLongError, UsageError

length_sets = st.lists(st.integers(1, 100), min_size=1, max_size=200)
policies = st.sampled_from(["first_fit", "best_fit", "subset_sum", "flops"])


def video_lengths(num: int, seed: int = 0) -> np.ndarray:
    """Long-tailed like real clips: short side, aspect and duration multiply."""
    rng = np.random.default_rng(seed)
    frames = np.where(rng.random(num) < 0.3, 1, rng.integers(2, 10, num))
    side = rng.choice([9, 15, 22, 30], num, p=[0.15, 0.25, 0.3, 0.3])
    return (frames * side * (side * rng.uniform(0.9, 2.3, num)).astype(int)).clip(1, 16_384)


def test_documented_example() -> None:
    packs = plan_packs([5, 4, 3, 3], capacity=8)
    assert [p.tolist() for p in packs] == [[0, 2], [1, 3]]


@settings(max_examples=150)
@given(length_sets, policies, st.integers(1, 30), st.one_of(st.none(), st.integers(0, 5)))
def test_every_sample_is_in_exactly_one_pack_within_capacity(
    lengths: list[int], policy: str, pool: int, seed: int | None
) -> None:
    packs = plan_packs(lengths, capacity=100, policy=policy, pool=pool, seed=seed)
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(lengths)))
    tokens = np.array(lengths)
    assert all(tokens[p].sum() <= 100 for p in packs)
    assert len(packs) <= 2 * tokens.sum() / 100 + 1 or policy != "first_fit"


@settings(max_examples=150)
@given(length_sets, policies, st.sampled_from([1, 2, 3, 8]), st.integers(0, 3), st.integers(0, 2))
def test_each_epoch_reads_every_sample_once_with_equal_rows_on_all_ranks(
    lengths: list[int], policy: str, num_ranks: int, seed: int, epoch: int
) -> None:
    lengths = [7, *lengths]  # at least one that fits
    plan = plan_steps(lengths, num_ranks=num_ranks, capacity=60, policy=policy, pool=8, seed=seed, epoch=epoch)
    tokens = np.array(lengths)
    per_rank = [[plan.rows[step * num_ranks + rank] for step in range(plan.num_steps)] for rank in range(num_ranks)]
    read = [row for rows in per_rank for row in rows]
    assert len(read) == len(plan.rows)
    assert all(len(row) for row in read)
    assert all(tokens[row].sum() <= 60 for row in read)
    kept = np.flatnonzero(tokens <= 60)
    once = read if plan.num_repeated_rows == 0 else plan.rows[: -plan.num_repeated_rows]
    assert sorted(np.concatenate(once).tolist()) == kept.tolist()
    if plan.num_repeated_rows:  # only where every row is down to one sample and that is still not enough
        assert len(once) == len(kept)
        assert plan.num_repeated_rows < num_ranks
    assert plan.rejected.get("too_long", np.array([])).tolist() == np.flatnonzero(tokens > 60).tolist()
    assert plan.fill == pytest.approx(sum(tokens[r].sum() for r in read) / (60 * len(read)))
    costs = np.array([[sample_flops(tokens[row]).sum() for row in rows] for rows in per_rank])
    assert plan.rank_efficiency == pytest.approx((costs.mean(0) / costs.max(0)).mean())
    again = plan_steps(lengths, num_ranks=num_ranks, capacity=60, policy=policy, pool=8, seed=seed, epoch=epoch)
    assert again.hash == plan.hash


@settings(max_examples=50)
@given(length_sets, policies, st.sampled_from([1, 4]))
def test_every_epoch_has_the_same_number_of_rows(lengths: list[int], policy: str, num_ranks: int) -> None:
    plans = [
        plan_steps(lengths, num_ranks=num_ranks, capacity=100, policy=policy, pool=4, epoch=epoch) for epoch in range(6)
    ]
    assert len({plan.num_packs for plan in plans}) == 1


def test_epochs_and_seeds_group_and_order_differently() -> None:
    lengths = video_lengths(500)
    plans = [plan_steps(lengths, num_ranks=2, capacity=16_384, seed=s, epoch=e) for s, e in [(0, 0), (0, 1), (1, 0)]]
    assert len({plan.hash for plan in plans}) == 3
    companions = [{frozenset(row.tolist()) for row in plan.rows} for plan in plans]
    assert len(companions[0] & companions[1]) < len(companions[0]) / 2


def test_plan_of_today_is_the_plan_of_tomorrow() -> None:
    """A changed hash breaks every saved training position: change it knowingly."""
    plan = plan_steps(list(range(1, 101)), num_ranks=4, capacity=128, policy="best_fit", pool=16, seed=3, epoch=2)
    assert plan.rows[0].tolist() == [56, 66]
    assert plan.hash == "ae1c45f8e7a0367c"


def test_too_long_samples_are_listed_or_named() -> None:
    plan = plan_steps([10, 200, 20, 300], num_ranks=1, capacity=100)
    assert plan.rejected["too_long"].tolist() == [1, 3]
    assert plan.num_samples == 2
    assert plan.summary()["rejected"] == {"too_long": 2}
    with pytest.raises(SampleTooLongError, match="sample 1 has 200 tokens"):
        plan_steps([10, 200, 20, 300], num_ranks=1, capacity=100, too_long="raise")
    with pytest.raises(SampleTooLongError, match="sample 1 has 200 tokens"):
        plan_packs([10, 200], capacity=100)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: plan_packs([1], capacity=8, policy="worst_fit"), "worst_fit"),
        (lambda: plan_packs([1], capacity=0), "capacity"),
        (lambda: plan_packs([1], capacity=8, policy="best_fit", pool=0), "pool"),
        (lambda: plan_packs([3, 0], capacity=8), "sample 1 has 0 tokens"),
        (lambda: plan_packs([1.5], capacity=8), "whole numbers"),
        (lambda: plan_steps([1], capacity=8, num_ranks=0), "num_ranks"),
        (lambda: plan_steps([9], capacity=8, num_ranks=1), "none of 1"),
        (lambda: plan_steps([8, 8, 8], capacity=8, num_ranks=1, num_rows=2), "num_rows"),
        (lambda: PlanSettings(capacity=8, policy="none"), "none"),
        (lambda: PlanSettings(capacity=8, global_rows=-1), "global_rows"),
    ],
)
def test_wrong_use_is_one_clear_sentence(call: object, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("num_ranks", [8, 64])
def test_ranks_of_a_step_cost_about_the_same(num_ranks: int) -> None:
    plan = plan_steps(video_lengths(30_000), num_ranks=num_ranks, capacity=16_384, policy="best_fit")
    assert plan.rank_efficiency >= 0.97
    assert plan.fill >= 0.985
    shuffled = plan.row_flops[np.random.default_rng(0).permutation(plan.num_packs)].reshape(-1, num_ranks)
    assert (shuffled.mean(1) / shuffled.max(1)).mean() < 0.85  # what the order is worth


def test_cheap_and_dear_steps_are_mixed_over_the_epoch() -> None:
    plan = plan_steps(video_lengths(20_000), num_ranks=8, capacity=16_384, policy="best_fit")
    cost = plan.row_flops.reshape(-1, 8).mean(axis=1)
    assert abs(np.corrcoef(np.arange(len(cost)), cost)[0, 1]) < 0.2
    assert abs(np.corrcoef(cost[:-1], cost[1:])[0, 1]) < 0.2


def test_no_rank_always_gets_the_cheapest_row() -> None:
    plan = plan_steps(video_lengths(20_000), num_ranks=4, capacity=16_384)
    cheapest = np.bincount(plan.row_flops.reshape(-1, 4).argmin(axis=1), minlength=4)
    assert cheapest.min() > cheapest.sum() / 4 * 0.8


@pytest.mark.parametrize("num_ranks", [8, 64])
def test_packs_of_equal_cost_need_no_order(num_ranks: int) -> None:
    """With twice the longest sample's room every pack costs about as much as that sample."""
    lengths = video_lengths(30_000)
    plan = plan_steps(lengths, num_ranks=num_ranks, capacity=2 * 16_384, policy="flops", pool=128)
    assert plan.rank_efficiency >= 0.98
    shuffled = plan.row_flops[np.random.default_rng(0).permutation(plan.num_packs)].reshape(-1, num_ranks)
    assert (shuffled.mean(1) / shuffled.max(1)).mean() > 0.95
    assert plan.row_tokens.max() <= 2 * 16_384


def test_a_budget_rejects_what_costs_more() -> None:
    plan = plan_steps([50, 30, 80], num_ranks=1, capacity=100, policy="flops", budget_tokens=60)
    assert plan.rejected["too_long"].tolist() == [2]
    assert len(plan_packs([50, 40], capacity=100, policy="flops", budget_tokens=60, width=1)) == 2


def test_a_step_shows_sizes_about_as_the_set_does() -> None:
    lengths = video_lengths(30_000)
    plan = plan_steps(lengths, num_ranks=64, capacity=16_384, policy="best_fit")
    mix = plan.size_mix(lengths)
    assert mix.of_random_rows < mix.of_steps < 0.3
    of_one_size = plan_steps(np.sort(lengths), num_ranks=64, capacity=16_384, policy="best_fit")
    assert of_one_size.size_mix(np.sort(lengths)).of_steps < 0.3  # the order of the index does not matter


def test_padding_and_time_on_a_long_tailed_set() -> None:
    lengths = video_lengths(50_000)
    ideal = lengths.sum() / 16_384
    padding = {}
    for policy, pool in [("first_fit", 64), ("best_fit", 16), ("best_fit", 64), ("subset_sum", 64)]:
        start = time.process_time()
        padding[policy, pool] = 1 - ideal / len(plan_packs(lengths, capacity=16_384, policy=policy, pool=pool))
        assert time.process_time() - start < 2  # 0.06 s when nothing else runs; a quadratic search takes minutes
    assert padding["first_fit", 64] < 0.01
    assert padding["best_fit", 16] < 0.015
    assert padding["best_fit", 64] < 0.005
    assert padding["subset_sum", 64] < 0.001
