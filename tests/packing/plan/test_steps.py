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
def test_each_epoch_reads_every_sample_once_with_equal_packs_on_all_ranks(
    lengths: list[int], policy: str, num_ranks: int, seed: int, epoch: int
) -> None:
    lengths = [7, *lengths]  # at least one that fits
    plan = plan_steps(lengths, num_ranks=num_ranks, capacity=60, policy=policy, pool=8, seed=seed, epoch=epoch)
    tokens = np.array(lengths)
    per_rank = [[plan.packs[step * num_ranks + rank] for step in range(plan.num_steps)] for rank in range(num_ranks)]
    read = [pack for packs in per_rank for pack in packs]
    assert len(read) == len(plan.packs)
    assert all(len(pack) for pack in read)
    assert all(tokens[pack].sum() <= 60 for pack in read)
    fitting = np.flatnonzero(tokens <= 60)
    once = read if plan.num_repeated_packs == 0 else plan.packs[: -plan.num_repeated_packs]
    assert sorted(np.concatenate(once).tolist()) == fitting.tolist()
    if plan.num_repeated_packs:  # only where every pack is down to one sample and that is still not enough
        assert len(once) == len(fitting)
        assert plan.num_repeated_packs < num_ranks
    assert plan.rejected.get("too_long", np.array([])).tolist() == np.flatnonzero(tokens > 60).tolist()
    assert plan.fill == pytest.approx(sum(tokens[p].sum() for p in read) / (60 * len(read)))
    costs = np.array([[sample_flops(tokens[pack]).sum() for pack in packs] for packs in per_rank])
    assert plan.rank_efficiency == pytest.approx((costs.mean(0) / costs.max(0)).mean())
    again = plan_steps(lengths, num_ranks=num_ranks, capacity=60, policy=policy, pool=8, seed=seed, epoch=epoch)
    assert again.hash == plan.hash


@settings(max_examples=50)
@given(length_sets, policies, st.sampled_from([1, 4]))
def test_every_epoch_has_the_same_number_of_packs(lengths: list[int], policy: str, num_ranks: int) -> None:
    plans = [
        plan_steps(lengths, num_ranks=num_ranks, capacity=100, policy=policy, pool=4, epoch=epoch) for epoch in range(6)
    ]
    assert len({plan.num_packs for plan in plans}) == 1


def test_epochs_and_seeds_give_other_packs_in_another_order() -> None:
    lengths = video_lengths(500)
    plans = [plan_steps(lengths, num_ranks=2, capacity=16_384, seed=s, epoch=e) for s, e in [(0, 0), (0, 1), (1, 0)]]
    assert len({plan.hash for plan in plans}) == 3
    packs = [{frozenset(pack.tolist()) for pack in plan.packs} for plan in plans]
    assert len(packs[0] & packs[1]) < len(packs[0]) / 2


def test_plan_is_pinned() -> None:
    """A changed hash invalidates every saved position of training."""
    plan = plan_steps(list(range(1, 101)), num_ranks=4, capacity=128, policy="best_fit", pool=16, seed=3, epoch=2)
    assert plan.packs[0].tolist() == [56, 66]
    assert plan.hash == "ae1c45f8e7a0367c"


def test_too_long_samples_are_rejected_or_raised() -> None:
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
        (lambda: plan_steps([8, 8, 8], capacity=8, num_ranks=1, num_rows=2), "2 packs per epoch are too few"),
        (lambda: PlanSettings(capacity=8, policy="none"), "none"),
        (lambda: PlanSettings(capacity=8, global_batch_packs=-1), "global_batch_packs"),
    ],
)
def test_wrong_use_is_refused_with_one_clear_sentence(call: object, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("num_ranks", [8, 64])
def test_ranks_of_a_step_cost_about_the_same(num_ranks: int) -> None:
    plan = plan_steps(video_lengths(30_000), num_ranks=num_ranks, capacity=16_384, policy="best_fit")
    assert plan.rank_efficiency >= 0.97
    assert plan.fill >= 0.985
    shuffled_flops = plan.pack_flops[np.random.default_rng(0).permutation(plan.num_packs)].reshape(-1, num_ranks)
    assert (shuffled_flops.mean(1) / shuffled_flops.max(1)).mean() < 0.85  # what balancing improves


def test_cheap_and_costly_steps_are_mixed_over_the_epoch() -> None:
    plan = plan_steps(video_lengths(20_000), num_ranks=8, capacity=16_384, policy="best_fit")
    cost = plan.pack_flops.reshape(-1, 8).mean(axis=1)
    assert abs(np.corrcoef(np.arange(len(cost)), cost)[0, 1]) < 0.2
    assert abs(np.corrcoef(cost[:-1], cost[1:])[0, 1]) < 0.2


def test_no_rank_always_gets_the_cheapest_pack() -> None:
    plan = plan_steps(video_lengths(20_000), num_ranks=4, capacity=16_384)
    cheapest = np.bincount(plan.pack_flops.reshape(-1, 4).argmin(axis=1), minlength=4)
    assert cheapest.min() > cheapest.sum() / 4 * 0.8


@pytest.mark.parametrize("num_ranks", [8, 64])
def test_flops_policy_makes_packs_of_equal_cost_in_any_order(num_ranks: int) -> None:
    """With twice the longest sample's room every pack costs about as much as that sample."""
    lengths = video_lengths(30_000)
    plan = plan_steps(lengths, num_ranks=num_ranks, capacity=2 * 16_384, policy="flops", pool=128)
    assert plan.rank_efficiency >= 0.98
    shuffled_flops = plan.pack_flops[np.random.default_rng(0).permutation(plan.num_packs)].reshape(-1, num_ranks)
    assert (shuffled_flops.mean(1) / shuffled_flops.max(1)).mean() > 0.95
    assert plan.pack_tokens.max() <= 2 * 16_384


def test_samples_above_the_flops_budget_are_rejected() -> None:
    plan = plan_steps([50, 30, 80], num_ranks=1, capacity=100, policy="flops", budget_tokens=60)
    assert plan.rejected["too_long"].tolist() == [2]
    assert len(plan_packs([50, 40], capacity=100, policy="flops", budget_tokens=60, width=1)) == 2


def test_lengths_in_a_step_are_distributed_about_as_in_the_set() -> None:
    lengths = video_lengths(30_000)
    plan = plan_steps(lengths, num_ranks=64, capacity=16_384, policy="best_fit")
    mix = plan.length_mix(lengths)
    assert mix.random_baseline < mix.per_step < 0.3
    of_sorted = plan_steps(np.sort(lengths), num_ranks=64, capacity=16_384, policy="best_fit")
    assert of_sorted.length_mix(np.sort(lengths)).per_step < 0.3  # the order of the index does not matter


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
