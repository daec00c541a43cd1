"""Chance that depends on names and numbers alone, for many samples at once.

    keys_N = name_keys(clip_ids)                          # uint64, one per sample
    uniforms(keys_N, seed, epoch, "appearances")          # float64 in [0, 1)

A draw is a function of (what it is for, the sample's key): the same on every machine, in any order, for any part of the
set, so one sample more or less changes no other's. Integer arithmetic only (the finaliser of splitmix64, twice under a
128-bit key from sha256), because a plan must not depend on the rounding of somebody's libm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def random_keys(num: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    """uint64 keys by (seed, epoch, purpose). Raw Philox output, which numpy promises never to change."""
    digest = hashlib.sha256(f"{seed} {epoch} {purpose}".encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)).random_raw(num)


def shuffled(num: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    return np.argsort(random_keys(num, seed, epoch, purpose), kind="stable")


GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio, odd: steps of it reach every number."""


def mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: a bijection of uint64 in which every bit of the input moves half of the output's."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def name_keys(names: Sequence[str]) -> np.ndarray:
    """uint64 key of each name; other names, longer or shorter, do not change it."""
    encoded = np.array([name.encode() for name in names], dtype=np.bytes_)
    width = -(-encoded.dtype.itemsize // 8) * 8
    words = encoded.astype(f"S{width}").view("<u8").reshape(len(names), width // 8).astype(np.uint64)
    keys = np.zeros(len(names), np.uint64)
    for word in words.T:  # a name ends before the first word of zeros
        keys = np.where(word != 0, mixed((keys + GOLDEN) ^ word), keys)
    return keys


def index_keys(num: int) -> np.ndarray:
    """uint64 keys of samples that have no name but their place."""
    return mixed(np.arange(1, num + 1, dtype=np.uint64) * GOLDEN)


def numbered_keys(keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Keys of the 0th, 1st, 2nd, ... of several things that belong to each key."""
    return mixed(keys + (numbers.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def random_bits(keys: np.ndarray, *purpose: str | int) -> np.ndarray:
    """64 random bits for each key."""
    digest = hashlib.sha256(" ".join(map(str, purpose)).encode()).digest()
    first, second = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    return mixed(mixed(keys ^ first) + second)


def uniforms(keys: np.ndarray, *purpose: str | int) -> np.ndarray:
    """float64 in [0, 1), all of its 53 bits random."""
    return (random_bits(keys, *purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def betas(keys: np.ndarray, alpha: int, beta: int, *purpose: str | int) -> np.ndarray:
    """From Beta(alpha, beta) of whole numbers: the alpha-th smallest of alpha + beta - 1 uniform draws."""
    each = [uniforms(keys, *purpose, number) for number in range(alpha + beta - 1)]
    return np.partition(np.stack(each), alpha - 1, axis=0)[alpha - 1]
