"""Packing rules of other trainers, reimplemented from their documentation: the baselines of bench_plan.py."""

from __future__ import annotations

from collections import defaultdict

import numpy as np


def next_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Close the pack at the first sample that does not fit (vit-pytorch's NaViT)."""
    packs: list[list[int]] = []
    room = 0
    for i, length in enumerate(lengths):
        if length > room:
            packs.append([])
            room = capacity
        packs[-1].append(i)
        room -= length
    return packs


def first_fit_flush(lengths: list[int], capacity: int, num_bins: int = 8) -> list[list[int]]:
    """First fit over a fixed number of bins; a sample that fits in none flushes all of them (Grain)."""
    packs: list[list[int]] = []
    bins: list[list[int]] = []
    room: list[int] = []
    for i, length in enumerate(lengths):
        index = next((b for b in range(len(bins)) if room[b] >= length), None)
        if index is None and len(bins) == num_bins:
            packs += bins
            bins, room = [], []
        if index is None:
            bins.append([])
            room.append(capacity)
            index = len(bins) - 1
        bins[index].append(i)
        room[index] -= length
    return packs + bins


def decreasing_flush(lengths: list[int], capacity: int, buffer: int = 64) -> list[list[int]]:
    """First fit decreasing over each buffer of samples, all its packs are flushed (Energon with NeMo's packer)."""
    packs: list[list[int]] = []
    for start in range(0, len(lengths), buffer):
        order = sorted(range(start, min(start + buffer, len(lengths))), key=lambda i: -lengths[i])
        opened: list[list[int]] = []
        room: list[int] = []
        for i in order:
            index = next((r for r in range(len(opened)) if room[r] >= lengths[i]), None)
            if index is None:
                opened.append([])
                room.append(capacity)
                index = len(opened) - 1
            opened[index].append(i)
            room[index] -= lengths[i]
        packs += opened
    return packs


def fixed_count(num_samples: int, count: int, seed: int = 0) -> list[list[int]]:
    """`count` samples per rank, of any size; an incomplete last pack is dropped."""
    order = np.random.default_rng(seed).permutation(num_samples)
    return order[: num_samples // count * count].reshape(-1, count).tolist()


def buckets(lengths: list[int], capacity: int, seed: int = 0) -> list[list[int]]:
    """Batches of one bucket each, as many samples as fill `capacity` at the bucket's size, ranks of a step in different
    buckets (Open-Sora); here a bucket is a range of lengths up to a factor of 1.25. Incomplete batches are dropped."""
    level = np.minimum(np.log(np.array(lengths)) / np.log(1.25), 10_000).astype(int)
    members: dict[int, list[int]] = defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        members[int(level[i])].append(i)
    batches = []
    for samples in members.values():
        size = max(1, capacity // max(lengths[i] for i in samples))
        batches += [samples[s : s + size] for s in range(0, len(samples) - size + 1, size)]
    order = np.random.default_rng(seed).permutation(len(batches))
    return [batches[i] for i in order]
