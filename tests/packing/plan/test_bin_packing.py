from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.plan.bin_packing import Packs, best_fit, cost_fit, first_fit, subset_sum

lengths = st.lists(st.integers(1, 50), max_size=400)


def slow_first_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    packs: list[list[int]] = []
    room: list[int] = []
    for i, length in enumerate(lengths):
        index = next((p for p in range(len(packs)) if room[p] >= length), None)
        if index is None:
            packs.append([])
            room.append(capacity)
            index = len(packs) - 1
        packs[index].append(i)
        room[index] -= length
    return packs


def slow_best_fit(lengths: list[int], capacity: int, pool: int) -> list[list[int]]:
    buffer, num_arrived, packs = list(range(min(pool, len(lengths)))), min(pool, len(lengths)), []
    while buffer:
        pack: list[int] = []
        room = capacity
        choice: int | None = buffer[0]
        while choice is not None:
            pack.append(choice)
            room -= lengths[choice]
            buffer.remove(choice)
            if num_arrived < len(lengths):
                buffer.append(num_arrived)
                num_arrived += 1
            choice = max((i for i in buffer if lengths[i] <= room), key=lambda i: (lengths[i], -i), default=None)
        packs.append(pack)
    return packs


def as_lists(packs: Packs) -> list[list[int]]:
    return [pack.tolist() for pack in packs.to_list()]


@settings(max_examples=150)
@given(lengths, st.integers(50, 120))
def test_first_fit_matches_the_textbook_algorithm(lengths: list[int], capacity: int) -> None:
    assert as_lists(first_fit(lengths, capacity)) == slow_first_fit(lengths, capacity)


def test_first_fit_with_more_packs_than_the_tree_starts_with() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 3000).tolist()
    assert as_lists(first_fit(lengths, 50)) == slow_first_fit(lengths, 50)


@settings(max_examples=150)
@given(lengths, st.integers(50, 120), st.integers(1, 40))
def test_best_fit_matches_the_plain_algorithm(lengths: list[int], capacity: int, pool: int) -> None:
    assert as_lists(best_fit(lengths, capacity, pool)) == slow_best_fit(lengths, capacity, pool)


def slow_subset(lengths: list[int], room: int) -> int:
    """Largest sum of some of `lengths` within `room`."""
    sums = {0}
    for length in lengths:
        sums |= {total + length for total in sums if total + length <= room}
    return max(sums)


@settings(max_examples=150)
@given(lengths, st.integers(50, 120), st.integers(1, 12))
def test_subset_sum_leaves_no_room_that_the_pool_could_fill(lengths: list[int], capacity: int, pool: int) -> None:
    buffer, num_arrived = list(range(min(pool, len(lengths)))), min(pool, len(lengths))
    for pack in as_lists(subset_sum(lengths, capacity, pool)):
        assert pack[0] == buffer[0]
        assert set(pack) <= set(buffer)
        room = capacity - lengths[pack[0]]
        assert sum(lengths[i] for i in pack[1:]) == slow_subset([lengths[i] for i in buffer[1:]], room)
        buffer = [i for i in buffer if i not in pack]
        num_new = min(len(pack), len(lengths) - num_arrived)
        buffer += range(num_arrived, num_arrived + num_new)
        num_arrived += num_new
    assert not buffer


@settings(max_examples=150)
@given(lengths, st.integers(50, 120), st.integers(1, 40))
def test_cost_fit_keeps_both_limits_and_is_best_fit_where_only_tokens_bind(
    lengths: list[int], capacity: int, pool: int
) -> None:
    linear, square = 10.0, 1.0

    def cost(pack: list[int]) -> float:
        return sum(linear * lengths[i] + square * lengths[i] ** 2 for i in pack)

    budget = linear * 50 + square * 50**2
    packs = as_lists(cost_fit(lengths, capacity, pool, budget=budget, cost=(linear, square)))
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in pack) <= capacity and cost(pack) <= budget * (1 + 1e-9) for pack in packs)
    unlimited = as_lists(cost_fit(lengths, capacity, pool, budget=1e12, cost=(linear, square)))
    assert unlimited == as_lists(best_fit(lengths, capacity, pool))


pooled = st.sampled_from(
    [best_fit, subset_sum, lambda *of: cost_fit(*of, budget=3000.0, cost=(10.0, 1.0))],
)


@given(lengths, st.integers(1, 20), pooled)
def test_no_sample_waits_longer_than_pool_packs(lengths: list[int], pool: int, fit) -> None:
    packs = as_lists(fit(lengths, 50, pool))
    first_samples = [pack[0] for pack in packs]
    assert first_samples == sorted(first_samples)  # the oldest always goes next
    pack_of = {sample: i for i, pack in enumerate(packs) for sample in pack}
    newest_so_far = -1
    first_seen: dict[int, int] = {}
    for i, pack in enumerate(packs):
        newest_so_far = max(newest_so_far, *pack)
        for sample in range(newest_so_far + 1):
            first_seen.setdefault(sample, i)
    assert all(pack_of[s] - first_seen[s] <= pool for s in first_seen)


@pytest.mark.parametrize("packs", [first_fit([], 8), best_fit([], 8, 4), subset_sum([], 8, 4)])
def test_no_samples_give_no_packs(packs: Packs) -> None:
    assert len(packs.samples) == 0
    assert packs.starts.tolist() == [0]
