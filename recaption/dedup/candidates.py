"""Candidate pairs of near-duplicates: locality-sensitive hashing of 64-bit perceptual hashes (multi-table bit sampling).

    candidate_pairs(hashes, clip_indices, num_tables=8, key_bits=24, ...)      # (C, 2) indices of clips, no pair twice

Each table takes some bits of the hash as its key; hashes are sorted by key and only those with equal keys are compared:
n log n, never n squared. Tables, and ranges of keys within a table, are independent: they are processed one range at a
time, which bounds memory. matching.py then verifies the candidates.

Array names: E hashes of all clips together, C candidates.
"""

from __future__ import annotations

import numpy as np

from recaption.dedup.fingerprints import NO_HASH, NUM_BITS

NUM_KEY_CANDIDATE_BITS = 40
"""Keys use the bits of the lowest frequencies only: in real clips cropped by 4 to 5 % one of the first 40 bits in 24
differs, of the last 24 one in 13."""
MAX_HASHES_PER_RANGE = 1 << 23
"""Sorting these takes about 0.5 GB."""


def key_masks(num_tables: int, key_bits: int) -> np.ndarray:
    """(num_tables,) uint64: bit mask of the key of each table; the same in every run."""
    rng = np.random.default_rng(7)
    chosen = [rng.choice(NUM_KEY_CANDIDATE_BITS, key_bits, replace=False) for _ in range(num_tables)]
    return np.array([sum(1 << (NUM_BITS - 1 - int(bit)) for bit in bits) for bits in chosen], np.uint64)


def candidate_pairs(
    hashes_E: np.ndarray,
    clip_index_E: np.ndarray,
    *,
    num_tables: int,
    key_bits: int,
    max_hash_distance: int,
    max_candidates_per_hash: int,
    max_hashes_per_range: int = MAX_HASHES_PER_RANGE,
) -> np.ndarray:
    """(C, 2) indices of clips that share a key and have a small Hamming distance, first < second, sorted.

    Args:
        hashes_E: all hashes of all clips; those equal to `NO_HASH` match nothing.
        clip_index_E: the clip of each hash; clips are numbered from the best (0) to the worst (near_duplicates.py).
        max_hash_distance: maximum Hamming distance of 64 bits.
        max_candidates_per_hash: each hash is compared with this many hashes of the best clips under its key.
    """
    is_valid = hashes_E != NO_HASH
    hashes_E, clip_index_E = hashes_E[is_valid], clip_index_E[is_valid].astype(np.uint32)
    hashes_E, clip_index_E = _unique_per_clip(hashes_E, clip_index_E)
    num_ranges = 1 << max(0, int(np.ceil(np.log2(max(len(hashes_E), 1) / max_hashes_per_range))))
    found = np.zeros(0, np.uint64)
    for mask in key_masks(num_tables, key_bits):
        range_E = _range_of_key(hashes_E & mask, num_ranges)
        for range_index in range(num_ranges):
            chosen = range_E == range_index
            new = _pairs_under_one_key(
                hashes_E[chosen],
                clip_index_E[chosen].astype(np.uint64),
                mask,
                max_hash_distance,
                max_candidates_per_hash,
            )
            found = np.union1d(found, new)
    return np.stack([found >> np.uint64(32), found & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


def _range_of_key(keys_E: np.ndarray, num_ranges: int) -> np.ndarray:
    """(E,) uint16 range of each key; multiplicative hashing (Knuth, golden ratio) hasheds similar keys."""
    if num_ranges == 1:
        return np.zeros(len(keys_E), np.uint16)
    hashed = keys_E * np.uint64(0x9E3779B97F4A7C15)
    return (hashed >> np.uint64(64 - num_ranges.bit_length() + 1)).astype(np.uint16)


def _unique_per_clip(hashes_E: np.ndarray, clip_index_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop repeated hashes of a clip (a still clip has the same hash many times) and sort by clip."""
    order = np.lexsort((hashes_E, clip_index_E))
    hashes_E, clip_index_E = hashes_E[order], clip_index_E[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (hashes_E[1:] != hashes_E[:-1]) | (clip_index_E[1:] != clip_index_E[:-1])
    return hashes_E[is_first], clip_index_E[is_first]


def _pairs_under_one_key(
    hashes_E: np.ndarray,
    clip_index_E: np.ndarray,
    mask: np.uint64,
    max_hash_distance: int,
    max_candidates_per_hash: int,
) -> np.ndarray:
    """Sorted `first << 32 | second`; a hash is compared with `max_candidates_per_hash` of the best under its key."""
    keys_E = hashes_E & mask
    order = np.argsort(keys_E, kind="stable")  # stable: the best clips stay first under each key
    keys_E, hashes_E, clip_index_E = keys_E[order], hashes_E[order], clip_index_E[order]
    starts = np.flatnonzero(np.append(True, keys_E[1:] != keys_E[:-1])) if len(keys_E) else np.zeros(0, np.int64)
    sizes = np.diff(np.append(starts, len(keys_E)))
    first_E, rank_E = np.repeat(starts, sizes), np.arange(len(keys_E)) - np.repeat(starts, sizes)
    found = []
    remaining = np.flatnonzero(rank_E > 0)
    for rank in range(max_candidates_per_hash):
        remaining = remaining[rank_E[remaining] > rank]
        if not len(remaining):
            break
        best = first_E[remaining] + rank
        near = np.bitwise_count(hashes_E[best] ^ hashes_E[remaining]) <= max_hash_distance
        near &= clip_index_E[best] != clip_index_E[remaining]
        found.append(np.unique(clip_index_E[best[near]] << np.uint64(32) | clip_index_E[remaining[near]]))
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)
