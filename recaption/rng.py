"""Counter-based RNG: every random number is a pure function of (seed, purpose, key).

    keys_N = keys_from_names(clip_ids)                          # uint64, one per sample
    sample_uniform(keys_N, seed, epoch, "appearances")          # float64 in [0, 1), one per sample
    uniform_sequence(num, seed, clip_sha256)                    # float64 in [0, 1), num of them
    random_permutation(num, seed, epoch, "steps")               # int64, 0 .. num - 1 in random order

The same on every machine, in any order and for any subset, so that adding or removing a sample changes no other sample's
numbers. Integer arithmetic only (Philox for sequences, splitmix64's finaliser for one number per sample, both keyed by
sha256), because a plan must not depend on the rounding of the local libm.

Purpose strings are part of the seed: to change one changes every plan, so they keep their wording even where names change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def random_keys(num: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    """uint64 keys by (seed, epoch, purpose)."""
    return _philox_bits(num, f"{seed} {epoch} {purpose}")


def random_permutation(num: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    """int64: 0 .. num - 1 in random order."""
    return np.argsort(random_keys(num, seed, epoch, purpose), kind="stable")


def uniform_sequence(num: int, seed: int, key: str) -> np.ndarray:
    """float64 (num) in [0, 1) by (seed, key); a shorter sequence is the beginning of a longer one."""
    return _to_uniform(_philox_bits(num, f"{seed}:{key}"))


def _philox_bits(num: int, key: str) -> np.ndarray:
    """uint64: raw Philox output, which numpy promises never to change, under the sha256 of `key`."""
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)).random_raw(num)


def _to_uniform(bits: np.ndarray) -> np.ndarray:
    """float64 in [0, 1), all of its 53 bits random."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio, odd: the increment of splitmix64, whose multiples reach every uint64."""


def splitmix64(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: a bijection of uint64 in which each input bit flips half of the output bits on average."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def keys_from_names(names: Sequence[str]) -> np.ndarray:
    """uint64 key of each name, independent of the other names and of their lengths."""
    encoded = np.array([name.encode() for name in names], dtype=np.bytes_)
    width = -(-encoded.dtype.itemsize // 8) * 8
    words = encoded.astype(f"S{width}").view("<u8").reshape(len(names), width // 8).astype(np.uint64)
    keys = np.zeros(len(names), np.uint64)
    for word in words.T:  # a name ends before the first word of zeros
        keys = np.where(word != 0, splitmix64((keys + GOLDEN_GAMMA) ^ word), keys)
    return keys


def keys_from_indices(num: int) -> np.ndarray:
    """uint64 keys of samples 0 .. num - 1, for sets without names."""
    return splitmix64(np.arange(1, num + 1, dtype=np.uint64) * GOLDEN_GAMMA)


def fold_in(keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """uint64: a new key for each (key, number from 0), as `jax.random.fold_in`."""
    return splitmix64(keys + (numbers.astype(np.uint64) + np.uint64(1)) * GOLDEN_GAMMA)


def random_bits(keys: np.ndarray, *purpose: str | int) -> np.ndarray:
    """uint64: 64 random bits for each key."""
    digest = hashlib.sha256(" ".join(map(str, purpose)).encode()).digest()
    first, second = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    return splitmix64(splitmix64(keys ^ first) + second)


def sample_uniform(keys: np.ndarray, *purpose: str | int) -> np.ndarray:
    """float64 in [0, 1) for each key."""
    return _to_uniform(random_bits(keys, *purpose))


def sample_beta(keys: np.ndarray, alpha: int, beta: int, *purpose: str | int) -> np.ndarray:
    """float64 from Beta(alpha, beta) of whole numbers: the alpha-th smallest of alpha + beta - 1 uniform numbers."""
    uniforms = [sample_uniform(keys, *purpose, number) for number in range(alpha + beta - 1)]
    return np.partition(np.stack(uniforms), alpha - 1, axis=0)[alpha - 1]
