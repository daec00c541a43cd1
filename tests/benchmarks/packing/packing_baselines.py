"""How others fill rows and steps, in their published rules and our own words: what bench_plan.py compares with."""

from __future__ import annotations

from collections import defaultdict

import numpy as np


def next_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Close the row at the first sample that does not fit (vit-pytorch's NaViT)."""
    rows: list[list[int]] = []
    room = 0
    for i, length in enumerate(lengths):
        if length > room:
            rows.append([])
            room = capacity
        rows[-1].append(i)
        room -= length
    return rows


def first_fit_flush(lengths: list[int], capacity: int, num_bins: int = 8) -> list[list[int]]:
    """First fit over a fixed number of bins; a sample that fits in none sends all of them off (Grain)."""
    rows: list[list[int]] = []
    bins: list[list[int]] = []
    room: list[int] = []
    for i, length in enumerate(lengths):
        place = next((b for b in range(len(bins)) if room[b] >= length), None)
        if place is None and len(bins) == num_bins:
            rows += bins
            bins, room = [], []
        if place is None:
            bins.append([])
            room.append(capacity)
            place = len(bins) - 1
        bins[place].append(i)
        room[place] -= length
    return rows + bins


def decreasing_flush(lengths: list[int], capacity: int, buffer: int = 64) -> list[list[int]]:
    """First fit decreasing over each buffer of samples, all its rows sent off (Energon with NeMo's packer)."""
    rows: list[list[int]] = []
    for start in range(0, len(lengths), buffer):
        order = sorted(range(start, min(start + buffer, len(lengths))), key=lambda i: -lengths[i])
        opened: list[list[int]] = []
        room: list[int] = []
        for i in order:
            place = next((r for r in range(len(opened)) if room[r] >= lengths[i]), None)
            if place is None:
                opened.append([])
                room.append(capacity)
                place = len(opened) - 1
            opened[place].append(i)
            room[place] -= lengths[i]
        rows += opened
    return rows


def fixed_count(num_samples: int, count: int, seed: int = 0) -> list[list[int]]:
    """So many samples a rank, whatever their size; the rest is left out."""
    order = np.random.default_rng(seed).permutation(num_samples)
    return order[: num_samples // count * count].reshape(-1, count).tolist()


def buckets(lengths: list[int], capacity: int, seed: int = 0) -> list[list[int]]:
    """Batches of one bucket each, as many samples as fill `capacity` at the bucket's size, ranks of a step in different
    buckets (Open-Sora); here a bucket is a range of lengths up to a factor of 1.25. Incomplete batches go."""
    level = np.minimum(np.log(np.array(lengths)) / np.log(1.25), 10_000).astype(int)
    members: dict[int, list[int]] = defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        members[int(level[i])].append(i)
    batches = []
    for of_level in members.values():
        size = max(1, capacity // max(lengths[i] for i in of_level))
        batches += [of_level[s : s + size] for s in range(0, len(of_level) - size + 1, size)]
    order = np.random.default_rng(seed).permutation(len(batches))
    return [batches[i] for i in order]
