"""Which clips are worth comparing: those with a hash nearly in common. The fast and rough half of the search for copies.

    candidate_pairs(hashes, owners, num_tables=8, key_bits=24, ...)      # (C, 2) rows of clips, no pair twice

Each table asks for agreement in some bits of the hash, so that clips are sorted by them and only neighbours looked at:
n log n, never n squared. Hashes under one key meet only each other, so that tables, and ranges of keys within a table,
are tasks of their own: here one range after the other, which bounds memory.

Array names: E hashes of all clips together, C candidates.
"""

from __future__ import annotations

import numpy as np

from recaption.dedup.fingerprints import NO_HASH, NUM_BITS

LOW_BITS = 40
"""Keys are drawn from the lowest frequencies: in real clips cropped by 4 to 5 % one of the first 40 bits in 24
differs, of the last 24 one in 13."""


HASHES_AT_A_TIME = 1 << 23
"""Sorting these takes about 0.5 GB."""


def key_masks(num_tables: int, key_bits: int) -> np.ndarray:
    """(num_tables,) uint64: the bits that each table asks for; the same ones in every run."""
    rng = np.random.default_rng(7)
    chosen = [rng.choice(LOW_BITS, key_bits, replace=False) for _ in range(num_tables)]
    return np.array([sum(1 << (NUM_BITS - 1 - int(bit)) for bit in bits) for bits in chosen], np.uint64)


def candidate_pairs(
    hashes_E: np.ndarray,
    owners_E: np.ndarray,
    *,
    num_tables: int,
    key_bits: int,
    max_hash_distance: int,
    max_links: int,
    hashes_at_a_time: int = HASHES_AT_A_TIME,
) -> np.ndarray:
    """(C, 2) of clips that agree in one key, first < second, sorted.

    Args:
        hashes_E: all hashes of all clips; those equal to `NO_HASH` match nothing.
        owners_E: whose each is: the clip's place in the order of the best copy, 0 the best.
    """
    is_hash = hashes_E != NO_HASH
    hashes_E, owners_E = hashes_E[is_hash], owners_E[is_hash].astype(np.uint32)
    hashes_E, owners_E = _without_repeats(hashes_E, owners_E)
    num_ranges = 1 << max(0, int(np.ceil(np.log2(max(len(hashes_E), 1) / hashes_at_a_time))))
    found = np.zeros(0, np.uint64)
    for mask in key_masks(num_tables, key_bits):
        range_E = _range_of(hashes_E & mask, num_ranges)
        for number in range(num_ranges):
            chosen = range_E == number
            new = _pairs_under_one_key(
                hashes_E[chosen], owners_E[chosen].astype(np.uint64), mask, max_hash_distance, max_links
            )
            found = np.union1d(found, new)
    return np.stack([found >> np.uint64(32), found & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


def _range_of(keys_E: np.ndarray, num_ranges: int) -> np.ndarray:
    """(E,) uint16, the same for equal keys; a multiplication spreads keys that are alike (Knuth's, by the golden ratio)."""
    if num_ranges == 1:
        return np.zeros(len(keys_E), np.uint16)
    spread = keys_E * np.uint64(0x9E3779B97F4A7C15)
    return (spread >> np.uint64(64 - num_ranges.bit_length() + 1)).astype(np.uint16)


def _without_repeats(hashes_E: np.ndarray, owners_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A clip that stands still has the same hash many times; sorted by owner."""
    order = np.lexsort((hashes_E, owners_E))
    hashes_E, owners_E = hashes_E[order], owners_E[order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (hashes_E[1:] != hashes_E[:-1]) | (owners_E[1:] != owners_E[:-1])
    return hashes_E[is_new], owners_E[is_new]


def _pairs_under_one_key(
    hashes_E: np.ndarray, owners_E: np.ndarray, mask: np.uint64, max_hash_distance: int, max_links: int
) -> np.ndarray:
    """Sorted `first << 32 | second`. Each hash meets the `max_links` hashes of the best clips under its key."""
    keys_E = hashes_E & mask
    order = np.argsort(keys_E, kind="stable")  # the best clips stay first under each key
    keys_E, hashes_E, owners_E = keys_E[order], hashes_E[order], owners_E[order]
    starts = np.flatnonzero(np.append(True, keys_E[1:] != keys_E[:-1])) if len(keys_E) else np.zeros(0, np.int64)
    sizes = np.diff(np.append(starts, len(keys_E)))
    first_E, place_E = np.repeat(starts, sizes), np.arange(len(keys_E)) - np.repeat(starts, sizes)
    found = []
    left = np.flatnonzero(place_E > 0)
    for link in range(max_links):
        left = left[place_E[left] > link]
        if not len(left):
            break
        best = first_E[left] + link
        near = np.bitwise_count(hashes_E[best] ^ hashes_E[left]) <= max_hash_distance
        near &= owners_E[best] != owners_E[left]
        found.append(np.unique(owners_E[best[near]] << np.uint64(32) | owners_E[left[near]]))
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)
